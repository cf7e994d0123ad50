import Catalog
import Mount
import Store
import Volume

/// The last step of both ways in which content leaves a disk: copies that others make unnecessary
/// (`Dropper`), and content that no file has (`Collector`).
struct ContentRemoval {
    let catalog: Catalog
    let store: Store
    let exchange: ContentExchange

    /// Takes away content that is marked as dropping and whose loss is in the log, both durable.
    ///
    /// - Parameter isUnwanted: asked in one step with the row, in which who publishes the same bytes
    ///   looks for the object, too.
    /// - Returns: false when it stays, for a file has it again, or may soon: the log is to say so.
    func run(
        _ extent: Extent, if isUnwanted: @escaping @Sendable (Transaction) throws -> Bool
    ) async throws -> Bool {
        // Nobody new is served what is marked; who reads it already may end.
        await withCheckedContinuation { done in exchange.letGo(of: extent) { done.resume() } }
        return try await Blocking.run {
            guard let object = try withdraw(extent, if: isUnwanted) else { return false }
            try store.removeWithdrawn(object)
            return true
        }
    }

    private func withdraw(
        _ extent: Extent, if isUnwanted: (Transaction) throws -> Bool
    ) throws -> WithdrawnObject? {
        try catalog.perform { tx in
            let now = Monotonic.wallMilliseconds
            guard try tx.content(extent.root)?.state == .dropping else { return nil }
            if try isUnwanted(tx),
                case .withdrawn(let object) = try store.withdrawObject(extent.root)
            {
                try tx.setContentState(extent, .absent, at: now)
                return object
            }
            try tx.setContentState(extent, .stored, at: now)
            return nil
        }
    }
}
