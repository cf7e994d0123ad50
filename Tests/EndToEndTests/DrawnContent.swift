import Glibc
import Simulation

/// Random bytes that all content of a test is cut from.
final class BytePool: Sendable {
    static let count = 8 << 20
    private let bytes: [UInt8]

    init(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        bytes = [UInt8](unsafeUninitializedCapacity: Self.count) { buffer, count in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            for position in stride(from: 0, to: Self.count, by: 8) {
                raw.storeBytes(of: random.next(), toByteOffset: position, as: UInt64.self)
            }
            count = Self.count
        }
    }

    fileprivate func copy(_ source: Range<Int>, to target: UnsafeMutableRawBufferPointer) {
        bytes.withUnsafeBytes {
            target.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[source]))
        }
    }
}

/// Content that a few numbers name: slices of a pool, later ones over earlier ones. Two of them
/// differ everywhere, so that no mix of two passes for either.
struct DrawnContent: Sendable, Equatable {
    private struct Slice: Equatable {
        var position: Int
        var source: Range<Int>
    }

    private var slices: [Slice] = []
    private(set) var count = 0

    static let empty = DrawnContent()

    private init() {}

    init(count: Int, _ random: inout SeededGenerator) {
        write(count: count, at: 0, &random)
    }

    mutating func write(count: Int, at position: Int, _ random: inout SeededGenerator) {
        let start = Int.random(in: 0...BytePool.count - count, using: &random)
        slices.append(Slice(position: position, source: start..<start + count))
        self.count = max(self.count, position + count)
    }

    func prefix(_ length: Int) -> DrawnContent {
        var result = DrawnContent()
        result.count = min(count, length)
        result.slices = slices.compactMap { slice in
            let kept = min(slice.source.count, length - slice.position)
            guard kept > 0 else { return nil }
            let start = slice.source.lowerBound
            return Slice(position: slice.position, source: start..<start + kept)
        }
        return result
    }

    /// This one's first bytes over another one.
    func prefix(_ length: Int, over other: DrawnContent) -> DrawnContent {
        var result = other
        result.slices += prefix(length).slices
        result.count = max(result.count, min(count, length))
        return result
    }

    func bytes(_ pool: BytePool) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count) { buffer, count in
            let raw = UnsafeMutableRawBufferPointer(
                start: buffer.baseAddress, count: self.count)
            for slice in slices {
                let range = slice.position..<slice.position + slice.source.count
                pool.copy(slice.source, to: UnsafeMutableRawBufferPointer(rebasing: raw[range]))
            }
            count = self.count
        }
    }

    /// Where bytes that were read are first another's than these; nil: they are these.
    func difference(_ read: [UInt8], _ pool: BytePool) -> Int? {
        let own = bytes(pool)
        let common = min(own.count, read.count)
        let isSame = own.withUnsafeBytes { own in
            read.withUnsafeBytes { read in
                guard let one = own.baseAddress, let other = read.baseAddress else { return true }
                return memcmp(one, other, common) == 0
            }
        }
        guard isSame else { return (0..<common).first { own[$0] != read[$0] } ?? common }
        return own.count == read.count ? nil : common
    }
}

/// System calls of a test on a mount.
enum Calls {
    struct Failed: Error, CustomStringConvertible {
        let call: String
        let code: Int32
        var description: String { "\(call): \(ModelWorld.name(code))" }
    }

    /// What one `write` is given.
    private static let stepBytes = 64 << 10

    static func check<Value: FixedWidthInteger>(_ call: String, _ result: Value) throws -> Value {
        guard result >= 0 else { throw Failed(call: call, code: errno) }
        return result
    }

    /// Opens, and closes also when the body throws; a failed close is an error.
    private static func with(
        _ path: String, _ flags: Int32, _ body: (Int32) throws -> Void
    ) throws {
        let file = try check("open", Glibc.open(path, flags | O_CLOEXEC, 0o644))
        do { try body(file) } catch {
            Glibc.close(file)
            throw error
        }
        _ = try check("close", Glibc.close(file))
    }

    private static func write(_ bytes: ArraySlice<UInt8>, at position: Int, _ file: Int32) throws {
        var done = 0
        while done < bytes.count {
            let step = min(Self.stepBytes, bytes.count - done)
            done += try bytes.withUnsafeBytes { raw in
                try check(
                    "write",
                    pwrite(file, raw.baseAddress.map { $0 + done }, step, off_t(position + done)))
            }
        }
    }

    /// A new file, or a file's whole content in place.
    static func write(_ bytes: [UInt8], to path: String, isSynced: Bool) throws {
        try with(path, O_WRONLY | O_CREAT | O_TRUNC) { file in
            try write(bytes[...], at: 0, file)
            if isSynced { _ = try check("fsync", fsync(file)) }
        }
    }

    static func edit(
        _ path: String, _ bytes: ArraySlice<UInt8>, at position: Int, isSynced: Bool
    ) throws {
        try with(path, O_RDWR) { file in
            try write(bytes, at: position, file)
            if isSynced { _ = try check("fsync", fsync(file)) }
        }
    }

    static func syncDirectory(_ path: String) throws {
        try with(path, O_RDONLY | O_DIRECTORY) { _ = try check("fsync", fsync($0)) }
    }

    static func rename(_ path: String, to other: String) throws {
        _ = try check("rename", Glibc.rename(path, other))
    }

    static func unlink(_ path: String) throws { _ = try check("unlink", Glibc.unlink(path)) }

    /// - Returns: nil: there is none.
    static func read(_ path: String) throws -> [UInt8]? {
        var result: [UInt8] = []
        do {
            try with(path, O_RDONLY) { file in
                var status = stat()
                _ = try check("fstat", fstat(file, &status))
                // One byte more: the end must be there too.
                let capacity = Int(status.st_size) + 1
                var failure: (any Error)?
                result = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
                    count = 0
                    while count < capacity {
                        let space = buffer.baseAddress.map { $0 + count }
                        let got = Glibc.read(file, space, capacity - count)
                        if got < 0 { failure = Failed(call: "read", code: errno) }
                        if got <= 0 { return }
                        count += got
                    }
                }
                if let failure { throw failure }
            }
        } catch let failed as Failed where failed.code == ENOENT { return nil }
        return result
    }
}
