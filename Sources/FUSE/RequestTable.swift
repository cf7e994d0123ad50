import Synchronization

/// Which requests are being worked on: for interrupts and for the order between answers and
/// invalidations.
///
/// Every request joins the current *epoch* before its handler runs and leaves it once its answer
/// has been written. Work handed to `afterCurrent` closes the epoch and becomes due when no request
/// of it, or of an earlier one, is left.
final class RequestTable: Sendable {
    /// Requests that wait outside a reader thread, at once. The kernel sends one per blocked
    /// process (and up to `max_background` more), so this is far beyond what a machine does.
    static let detachedMax = 16_384
    /// Interrupts that overtook their request. At most one request per reader thread is between
    /// being read and being detached; the rest of the ring holds interrupts of answered requests.
    static let earlyInterruptsMax = 256
    /// Work waiting for the end of an epoch.
    static let waitersMax = 65_536

    typealias Work = @Sendable () -> Void

    private struct WeakReply {
        weak var reply: PendingReply?
    }

    private struct State {
        var epoch: UInt64 = 1
        /// Epochs with requests in them, oldest first: never more entries than requests.
        var populations: [(epoch: UInt64, count: Int)] = []
        /// In order of their epochs.
        var waiters: [(epoch: UInt64, work: Work)] = []
        var detached: [UInt64: WeakReply] = [:]
        var earlyInterrupts: [UInt64] = []
        var oldestInterrupt = 0

        mutating func leave(_ epoch: UInt64) -> [Work] {
            guard let index = populations.lastIndex(where: { $0.epoch == epoch }) else {
                preconditionFailure("a request left an epoch that it was not in")
            }
            populations[index].count -= 1
            if populations[index].count == 0 { populations.remove(at: index) }
            return waiters.isEmpty ? [] : takeDue()
        }

        mutating func takeDue() -> [Work] {
            let oldest = populations.first?.epoch ?? UInt64.max
            let dueCount = waiters.firstIndex { $0.epoch >= oldest } ?? waiters.count
            let due = waiters[..<dueCount].map(\.work)
            waiters.removeFirst(dueCount)
            return due
        }
    }

    private let state = Mutex(State())

    /// A request starts; the result is the epoch that it must leave.
    func enter() -> UInt64 {
        state.withLock { state in
            let last = state.populations.count - 1
            if last >= 0, state.populations[last].epoch == state.epoch {
                state.populations[last].count += 1
            } else {
                state.populations.append((state.epoch, 1))
            }
            return state.epoch
        }
    }

    /// A request was answered; the result is the work that was waiting for it.
    func leave(_ epoch: UInt64) -> [Work] {
        state.withLock { $0.leave(epoch) }
    }

    enum Waiting { case due, later, refused }

    /// Keeps `work` until every request now being worked on has been answered. `due` says that
    /// there is none: the caller runs it.
    func afterCurrent(_ work: @escaping Work) -> Waiting {
        state.withLock { state in
            if state.populations.isEmpty { return .due }
            if state.waiters.count >= Self.waitersMax { return .refused }
            state.waiters.append((state.epoch, work))
            state.epoch += 1
            return .later
        }
    }

    enum Detachment { case registered, alreadyInterrupted, refused }

    /// A request moves off its reader thread and can be interrupted from now on.
    func detach(_ unique: UInt64, _ reply: PendingReply) -> Detachment {
        state.withLock { state in
            if state.detached.count >= Self.detachedMax { return .refused }
            state.detached[unique] = WeakReply(reply: reply)
            return state.earlyInterrupts.contains(unique) ? .alreadyInterrupted : .registered
        }
    }

    func reattach(_ unique: UInt64) {
        state.withLock { _ = $0.detached.removeValue(forKey: unique) }
    }

    /// The reply to interrupt; nil when the request is not (yet) detached: then the interrupt is
    /// remembered, as it may have been read before its request reached the table.
    func interrupted(_ unique: UInt64) -> PendingReply? {
        state.withLock { state in
            if let reply = state.detached[unique]?.reply { return reply }
            if state.earlyInterrupts.count < Self.earlyInterruptsMax {
                state.earlyInterrupts.append(unique)
            } else {
                state.earlyInterrupts[state.oldestInterrupt] = unique
                state.oldestInterrupt = (state.oldestInterrupt + 1) % Self.earlyInterruptsMax
            }
            return nil
        }
    }

    var detachedReplies: [PendingReply] {
        state.withLock { $0.detached.values.compactMap(\.reply) }
    }

    /// For the end of a session: the work that nobody will wait for any more.
    func takeWaiters() -> [Work] {
        state.withLock { state in
            defer { state.waiters = [] }
            return state.waiters.map(\.work)
        }
    }
}
