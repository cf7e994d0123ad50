import Glibc

/// Memory that ends where an inaccessible page begins: whoever reads one byte too many is killed.
struct GuardedPages: ~Copyable {
    private let start: UnsafeMutableRawPointer
    private let count: Int
    private static let pageSize = Int(getpagesize())

    init(pages: Int) {
        count = pages * Self.pageSize
        let flags = MAP_PRIVATE | MAP_ANONYMOUS
        guard let start = mmap(nil, count + Self.pageSize, PROT_READ | PROT_WRITE, flags, -1, 0),
            start != MAP_FAILED, mprotect(start + count, Self.pageSize, PROT_NONE) == 0
        else { preconditionFailure("no memory") }
        self.start = start
    }

    deinit { munmap(start, count + Self.pageSize) }

    /// A copy of these bytes, the last of which is the last that may be touched.
    func holding(_ bytes: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer {
        precondition(bytes.count <= count)
        let place = UnsafeMutableRawBufferPointer(
            start: start + (count - bytes.count), count: bytes.count)
        place.copyMemory(from: bytes)
        return UnsafeRawBufferPointer(place)
    }
}
