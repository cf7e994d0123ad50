import Synchronization

/// Memory for one packet.
///
/// Unchecked: a buffer has one owner at a time, its reader thread or whoever took it from a pool.
struct PageBuffer: @unchecked Sendable {
    static let pageSize = 4096

    private let allocation: UnsafeMutableRawPointer
    let bytes: UnsafeMutableRawBufferPointer

    /// `headroom` bytes before a page boundary, `count` bytes after it. A request's payload starts
    /// behind its headers; on a page boundary it can be written with direct I/O.
    init(headroom: Int = 0, count: Int) {
        precondition(headroom >= 0 && headroom <= Self.pageSize && count > 0)
        let before = headroom == 0 ? 0 : Self.pageSize
        allocation = .allocate(byteCount: before + count, alignment: Self.pageSize)
        bytes = UnsafeMutableRawBufferPointer(
            start: allocation + before - headroom, count: headroom + count)
    }

    func deallocate() {
        allocation.deallocate()
    }
}

/// Buffers for answers to READ, kept for reuse.
final class BufferPool: Sendable {
    /// Idle buffers kept; more readers than that at once allocate and free.
    static let idleMax = 8

    private let size: Int
    private let idle = Mutex<[PageBuffer]>([])

    init(size: Int) {
        self.size = size
    }

    deinit {
        for buffer in idle.withLock({ $0 }) { buffer.deallocate() }
    }

    func withBuffer<Result>(
        _ body: (UnsafeMutableRawBufferPointer) -> Result
    ) -> Result {
        let buffer = idle.withLock { $0.popLast() } ?? PageBuffer(count: size)
        defer {
            let isKept = idle.withLock { idle in
                if idle.count >= Self.idleMax { return false }
                idle.append(buffer)
                return true
            }
            if !isKept { buffer.deallocate() }
        }
        return body(buffer.bytes)
    }
}
