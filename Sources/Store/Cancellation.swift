import Synchronization

/// Ends a long hashing, copying or publishing at its next step. Cancelling twice is harmless; a
/// cancellation cannot be taken back.
public final class Cancellation: Sendable {
    private let flag = Atomic(false)
    private let isUnwanted: @Sendable () -> Bool

    /// - Parameter isUnwanted: asked at every look, where something else than `cancel` ends the work.
    public init(when isUnwanted: @escaping @Sendable () -> Bool = { false }) {
        self.isUnwanted = isUnwanted
    }

    public func cancel() { flag.store(true, ordering: .relaxed) }

    public var isCancelled: Bool { flag.load(ordering: .relaxed) || isUnwanted() }

    func check(_ operation: @autoclosure () -> String) throws(StoreError) {
        if isCancelled { throw StoreError(operation(), .canceled) }
    }
}
