import Synchronization

/// What an open descriptor of the kernel stands for.
struct Handle: Sendable {
    let vnode: Vnode
    let writes: Bool
}

/// What is open, by the number that the kernel sends back with each request on it; bounded by the
/// open descriptors.
final class HandleTable<Handle: Sendable>: Sendable {
    private struct State {
        var handles: [UInt64: Handle] = [:]
        var next: UInt64 = 1
    }

    private let state = Mutex(State())

    func insert(_ handle: Handle) -> UInt64 {
        state.withLock { state in
            defer { state.next += 1 }
            state.handles[state.next] = handle
            return state.next
        }
    }

    func handle(_ number: UInt64) -> Handle? { state.withLock { $0.handles[number] } }

    var open: [UInt64] { state.withLock { Array($0.handles.keys) } }

    /// For one that is still open.
    func replace(_ number: UInt64, _ handle: Handle) {
        state.withLock { if $0.handles[number] != nil { $0.handles[number] = handle } }
    }

    @discardableResult
    func remove(_ number: UInt64) -> Handle? {
        state.withLock { $0.handles.removeValue(forKey: number) }
    }
}
