import Catalog
import History
import Logging
import Mount
import Synchronization
import Volume

/// The rows are whole, and the history lacks the commit that they represent: nothing can be committed or
/// merged before it is back, or before nobody is known to have it.
struct HistoryLost: Error, CustomStringConvertible {
    let commit: ObjectID

    var description: String {
        "the history of this disk is damaged and lacks commit \(commit). All files here are safe; a node that has the commit heals the history: start the other nodes of the volume"
    }
}

// What becomes of a history that is damaged.
extension Timeline {
    /// Looking at everything takes a while, and something may fail for another reason.
    private static let examinationPauseMilliseconds: UInt64 = 600_000

    /// The commit that has to come from a peer.
    var missing: ObjectID? { state.withLock { $0.missing } }

    /// Something failed: if it may be that the history is damaged, that is looked at soon.
    func suspect(_ error: any Error) {
        guard (error as? HistoryError)?.isDamage == true else { return }
        state.withLock { state in
            let pause = Self.examinationPauseMilliseconds
            let isDue = state.examined.map { Monotonic.milliseconds - $0 > pause } ?? true
            guard isDue, !state.isSuspect else { return }
            state.isSuspect = true
            state.headsDue = 0
        }
    }

    /// On the timeline's thread.
    func healIfSuspect() throws {
        let isSuspect = state.withLock { state in
            guard state.isSuspect else { return false }
            state.isSuspect = false
            state.examined = Monotonic.milliseconds
            return true
        }
        guard isSuspect, let found = try history.heal() else { return }
        logger.critical("the history is damaged: \(found)")
        guard let applied = try catalog.read({ try $0.applied() }) else { return }
        if history.graph.contains(applied) { return try resume(applied) }
        logger.critical("\(HistoryLost(commit: applied))")
        state.withLock { state in
            state.heads = nil
            state.missing = applied
            state.headsDue = 0
        }
    }

    /// Goes on when the missing commit has come. Where nobody has it the live state is committed as it
    /// is, on the last commit before it that anybody has: so it stays what others build on.
    ///
    /// Throws `HistoryLost` while neither is so.
    func settleMissing() throws {
        guard let missing else { return }
        if history.graph.contains(missing) {
            logger.notice("the history is whole again, with commit \(missing)")
            return try resume(missing)
        }
        guard try isAlone() || hooks.withLock({ $0.isGone })(missing) else {
            throw HistoryLost(commit: missing)
        }
        let past = try catalog.read { try $0.past() }
        let base = try history.knownAncestor(of: [missing] + past)
        let made = try commitWhole(on: base)
        try history.setHead(made)
        logger.error(
            "nobody has commit \(missing); the state of this disk is commit \(made), after \(base.map { "\($0)" } ?? "nothing")"
        )
        try resume(made)
        hooks.withLock { $0.announce }()
    }

    private func isAlone() throws -> Bool {
        try catalog.read { try $0.nodes() }.allSatisfy { $0.id == node || $0.description == nil }
    }
}
