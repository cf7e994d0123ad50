import Synchronization

/// Ends a long hashing, copying or publishing at its next step. Cancelling twice is harmless; a
/// cancellation cannot be taken back.
public final class Cancellation: Sendable {
    private let flag = Atomic(false)

    public init() {}

    public func cancel() { flag.store(true, ordering: .relaxed) }

    public var isCancelled: Bool { flag.load(ordering: .relaxed) }

    func check(_ operation: @autoclosure () -> String) throws(StoreError) {
        if isCancelled { throw StoreError(operation(), .canceled) }
    }
}
