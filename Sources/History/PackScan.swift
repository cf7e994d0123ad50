import CGit
import Glibc
import SystemPackage
import Volume

/// Reads a received pack from end to end before libgit2 does, to bound what unpacking it takes.
///
/// libgit2's indexer holds whole delta results in memory and believes the sizes they declare; a few
/// kilobytes could ask for gigabytes. Here nothing is kept but two small buffers. The sum is bounded
/// by zlib alone, a thousandfold: any lower bound would refuse some valid commit for ever. What
/// the objects are and whether the checksums hold is the indexer's business.
struct PackScan {
    private static let headerBytes = 12
    private static let trailerBytes = 20
    /// Two sizes of at most ten bytes each stand at the start of a delta.
    private static let deltaHeaderBytes = 20

    private static let bufferBytes = 64 << 10

    private let file: FileDescriptor
    /// Where the objects end and the checksum begins.
    private let end: Int
    private var at = headerBytes
    /// A stretch of the file, from `inputStart` on. Not mapped: a sector that cannot be read would be
    /// SIGBUS.
    private let input: UnsafeMutableRawBufferPointer
    private var inputStart = 0
    private var inputCount = 0
    private let scratch: UnsafeMutableRawBufferPointer

    /// The number of objects. Throws `malformed` or `tooLarge`.
    static func scan(_ path: FilePath) throws -> Int {
        let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        let size = Int(try file.seek(offset: 0, from: .end))
        guard size <= HistoryLimits.packBytesMax else {
            throw HistoryError(.tooLarge, "scan pack", "\(size) bytes")
        }
        guard size >= headerBytes + trailerBytes else { throw malformed("too short") }
        return try withUnsafeTemporaryAllocation(byteCount: bufferBytes, alignment: 16) { input in
            try withUnsafeTemporaryAllocation(byteCount: bufferBytes, alignment: 16) { scratch in
                var scan = PackScan(
                    file: file, end: size - trailerBytes, input: input, scratch: scratch)
                return try scan.run()
            }
        }
    }

    private init(
        file: FileDescriptor, end: Int, input: UnsafeMutableRawBufferPointer,
        scratch: UnsafeMutableRawBufferPointer
    ) {
        self.file = file
        self.end = end
        self.input = input
        self.scratch = scratch
    }

    /// What of the file stands at `place` and after it, at least one byte.
    private mutating func bytes(at place: Int) throws -> UnsafeRawBufferPointer {
        guard place < end else { throw Self.malformed("cut short") }
        if place < inputStart || place >= inputStart + inputCount {
            inputStart = place
            inputCount = try file.read(
                fromAbsoluteOffset: Int64(place),
                into: UnsafeMutableRawBufferPointer(
                    rebasing: input.prefix(min(input.count, end - place))))
            guard inputCount > 0 else { throw Self.malformed("cut short") }
        }
        return UnsafeRawBufferPointer(
            rebasing: input[(place - inputStart)..<inputCount])
    }

    private static func malformed(_ reason: String) -> HistoryError {
        HistoryError(.malformed, "scan pack", reason)
    }

    private mutating func run() throws -> Int {
        var header = [UInt8](repeating: 0, count: Self.headerBytes)
        let read = try header.withUnsafeMutableBytes {
            try file.read(fromAbsoluteOffset: 0, into: $0)
        }
        func word(_ offset: Int) -> Int {
            header[offset...].prefix(4).reduce(0) { $0 << 8 | Int($1) }
        }
        guard read == header.count, header.starts(with: "PACK".utf8), word(4) == 2 else {
            throw Self.malformed("not a pack of version 2")
        }
        let count = word(8)
        guard count <= HistoryLimits.packObjectsMax else {
            throw HistoryError(.tooLarge, "scan pack", "\(count) objects")
        }
        var stream = z_stream()
        guard cgit_inflate_init(&stream) == Z_OK else {
            throw HistoryError(.library, "scan pack", "zlib did not start")
        }
        defer { inflateEnd(&stream) }
        for _ in 0..<count { try object(&stream) }
        guard at == end else { throw Self.malformed("bytes after the last object") }
        return count
    }

    private mutating func byte() throws -> UInt8 {
        let byte = try bytes(at: at)[0]
        at += 1
        return byte
    }

    private mutating func object(_ stream: inout z_stream) throws {
        var part = try byte()
        let type = part >> 4 & 7
        var size = UInt64(part & 15)
        var shift: UInt64 = 4
        while part & 0x80 != 0 {
            part = try byte()
            guard shift < 57 else { throw Self.malformed("a size beyond all bounds") }
            size |= UInt64(part & 0x7F) << shift
            shift += 7
        }
        let bytesMax: Int
        switch type {
        case 1: bytesMax = ObjectKind.commit.bytesMax
        case 2: bytesMax = ObjectKind.tree.bytesMax
        case 3, 6, 7: bytesMax = ObjectKind.blob.bytesMax
        default: throw Self.malformed("an object of kind \(type)")
        }
        guard size <= UInt64(bytesMax) else {
            throw HistoryError(.tooLarge, "scan pack", "an object of \(size) bytes")
        }
        if type == 6 {
            var length = 1
            while try byte() & 0x80 != 0 {
                length += 1
                guard length <= 10 else { throw Self.malformed("a base too far away") }
            }
        } else if type == 7 {
            guard at + 20 <= end else { throw Self.malformed("cut short") }
            at += 20
        }
        let start = try inflate(&stream, size: Int(size))
        if type >= 6 { try delta(start) }
    }

    /// Passes over one compressed object; its first bytes. Throws unless it has just `size` bytes.
    private mutating func inflate(_ stream: inout z_stream, size: Int) throws -> [UInt8] {
        guard inflateReset(&stream) == Z_OK else { throw Self.malformed("zlib failed") }
        var start: [UInt8] = []
        var total = 0
        while true {
            // At the end there may still be something to come out.
            let rest =
                at < end ? try bytes(at: at) : UnsafeRawBufferPointer(start: nil, count: 0)
            // zlib does not write to its input, though the type would let it.
            stream.next_in = UnsafeMutablePointer(
                mutating: rest.baseAddress?.assumingMemoryBound(to: UInt8.self))
            stream.avail_in = UInt32(clamping: rest.count)
            stream.next_out = scratch.baseAddress?.assumingMemoryBound(to: UInt8.self)
            stream.avail_out = UInt32(scratch.count)
            let given = Int(stream.avail_in)
            let code = CGit.inflate(&stream, Z_NO_FLUSH)
            let read = given - Int(stream.avail_in)
            let written = scratch.count - Int(stream.avail_out)
            at += read
            total += written
            if start.count < Self.deltaHeaderBytes {
                start += scratch.prefix(min(written, Self.deltaHeaderBytes - start.count))
            }
            guard total <= size else { throw Self.malformed("an object is longer than it says") }
            if code == Z_STREAM_END { break }
            guard code == Z_OK, read + written > 0 else {
                throw Self.malformed("compressed bytes are damaged")
            }
        }
        guard total == size else { throw Self.malformed("an object is shorter than it says") }
        return start
    }

    /// Both sizes that a delta declares, of its base and of its result.
    private func delta(_ start: [UInt8]) throws {
        var position = 0
        for _ in 0..<2 {
            var size: UInt64 = 0
            var shift: UInt64 = 0
            while true {
                guard position < start.count, shift < 57 else {
                    throw Self.malformed("a delta without its sizes")
                }
                let part = start[position]
                position += 1
                size |= UInt64(part & 0x7F) << shift
                shift += 7
                if part & 0x80 == 0 { break }
            }
            guard size <= UInt64(ObjectKind.blob.bytesMax) else {
                throw HistoryError(.tooLarge, "scan pack", "a delta that makes \(size) bytes")
            }
        }
    }
}
