import History
import Logging
import Mount
import Synchronization
import Volume

// Each batch of commits, made here or fetched, is a pack: many are combined into one.
extension Timeline {
    /// Packs are not combined so soon after something came.
    private static let settledMilliseconds: UInt64 = 3000

    /// Begins it on a thread of its own: merges and commits go on. What it fails with is its problem until
    /// one has succeeded or none is needed.
    func repackIfNeeded() {
        let now = Monotonic.milliseconds
        let count = Result { try history.packCount() }
        guard case .success(let packs) = count, packs > HistoryLimits.packsMax else {
            attempt(.repacking) { _ = try count.get() }
            return
        }
        let isDue = state.withLock { state in
            guard !state.isRepacking else { return false }
            let settled = state.takenAt + Self.settledMilliseconds
            let isSettled = (state.heads?.announced.count ?? 1) < 2 && settled < now
            if !isSettled, packs <= HistoryLimits.packsLateMax {
                let due = now + Self.settledMilliseconds
                state.headsDue = min(state.headsDue ?? due, due)
                return false
            }
            state.isRepacking = true
            return true
        }
        guard isDue else { return }
        OwnThread.start("repack", .background) { [self] in
            attempt(.repacking) {
                guard try history.repackIfNeeded() else { return }
                logger.debug("repacked in \(Monotonic.milliseconds - now) ms")
            }
            state.withLock { $0.isRepacking = false }
            wake()
        }
    }
}
