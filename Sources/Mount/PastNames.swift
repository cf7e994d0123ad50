import Synchronization

/// Which states the names in `.delugefs/at` stand for.
///
/// A name that is in use means one state, until it was not used for a while or for long: `cp -r` out of
/// `2h` is to find the state of when it began, not one after the other.
final class PastNames<State: AnyObject & Sendable>: Sendable {
    /// How long a name keeps its meaning after it was last looked up, or a file opened or closed there.
    static var unusedMilliseconds: UInt64 { 10_000 }
    static var keptMilliseconds: UInt64 { 3_600_000 }
    static var keptMax: Int { 64 }

    private struct Kept {
        let state: State
        let since: UInt64
        var used: UInt64

        func isValid(at now: UInt64) -> Bool {
            now < used + PastNames.unusedMilliseconds && now < since + PastNames.keptMilliseconds
        }
    }

    private let names = Mutex<[[UInt8]: Kept]>([:])

    /// - Parameters:
    ///   - now: of a clock that only goes on, milliseconds.
    ///   - find: called when the name has no meaning; may block.
    func state(
        _ name: [UInt8], now: UInt64, _ find: () throws -> State?
    ) throws -> State? {
        let known = names.withLock { names -> State? in
            guard let kept = names[name], kept.isValid(at: now) else { return nil }
            names[name]?.used = now
            return kept.state
        }
        if let known { return known }
        guard let found = try find() else { return nil }
        names.withLock { names in
            names[name] = Kept(state: found, since: now, used: now)
            guard names.count > Self.keptMax else { return }
            names = names.filter { $0.value.isValid(at: now) }
            guard names.count > Self.keptMax else { return }
            if let oldest = names.min(by: { $0.value.used < $1.value.used }) {
                names[oldest.key] = nil
            }
        }
        return found
    }

    /// A file of the state was opened or closed: who reads a large one looks up nothing meanwhile.
    func used(_ state: State, now: UInt64) {
        names.withLock { names in
            for (name, kept) in names where kept.state === state { names[name]?.used = now }
        }
    }
}
