import Store
import Synchronization
import Volume

/// Stores small contents that arrive at about the same time together: what comes while the disk is
/// being synced waits for the next sync, in which all of it is.
final class ObjectIntake: Sendable {
    /// Contents in one batch, of `Limits.openReplyBytesMax` at most.
    static let batchMax = 64

    private struct Item {
        let extent: Extent
        let bytes: [UInt8]
        let continuation: CheckedContinuation<Void, any Error>
    }

    private struct State {
        var waiting: [Item] = []
        var isRunning = false
    }

    private let store: Store
    private let state = Mutex(State())

    init(store: Store) { self.store = store }

    /// Returns when the object is durable.
    func store(_ extent: Extent, bytes: [UInt8]) async throws {
        try await withCheckedThrowingContinuation { continuation in
            let starts = state.withLock { state in
                state.waiting.append(
                    Item(extent: extent, bytes: bytes, continuation: continuation))
                defer { state.isRunning = true }
                return !state.isRunning
            }
            if starts { Blocking.begin(.content) { self.run() } }
        }
    }

    private func run() {
        while let batch = next() {
            do throws(StoreError) {
                let outcomes = try store.storeObjects(batch.map { ($0.extent, $0.bytes) })
                for (item, outcome) in zip(batch, outcomes) {
                    item.continuation.resume(with: outcome.mapError { $0 })
                }
            } catch { for item in batch { item.continuation.resume(throwing: error) } }
        }
    }

    private func next() -> [Item]? {
        state.withLock { state in
            let batch = Array(state.waiting.prefix(Self.batchMax))
            state.waiting.removeFirst(batch.count)
            state.isRunning = !batch.isEmpty
            return batch.isEmpty ? nil : batch
        }
    }
}
