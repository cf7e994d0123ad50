import CStore
import Glibc
import SystemPackage
import Volume

/// What re-reading an object found.
public struct ScrubResult: Hashable, Sendable {
    /// Pieces whose bytes are not what the root promises, or cannot be read.
    public let damagedPieces: [Int]
    /// The layer beside the object is missing or wrong although the bytes are right.
    public let isLayerDamaged: Bool
    /// The layer of the bytes as they are; right when no piece is damaged.
    public let hashed: HashedExtent

    public var isSound: Bool { damagedPieces.isEmpty && !isLayerDamaged }
}

extension Merkle {
    /// Read at once: long enough that asking the disk costs little beside hashing.
    private static let scrubBytes = 4 << 20

    /// Reads an object from the disk, past the page cache, on the caller's thread.
    ///
    /// - Parameters:
    ///   - layer: as stored; nil when it is missing.
    ///   - afterRead: called with the number of bytes read; the place to wait, for a gentle rate.
    static func scrub(
        _ file: CInt, extent: Extent, layer: [UInt8]?, cancellation: Cancellation?,
        afterRead: (Int) -> Void
    ) throws(StoreError) -> ScrubResult {
        let shape = ExtentShape(length: extent.length)
        var roots = [UInt8](repeating: 0, count: shape.pieceCount * hashBytes)
        var unreadable: Set<Int> = []
        let step = max(1, scrubBytes / Int(shape.pieceBytes))
        var reader = UncachedReader(
            file, bytesMax: min(step * Int(shape.pieceBytes), Int(shape.length)))
        for first in stride(from: 0, to: shape.pieceCount, by: step) {
            try cancellation?.check("scrub")
            let pieces = first..<min(first + step, shape.pieceCount)
            if try !reader.fold(pieces, of: shape, into: &roots) {
                // Which of them it is.
                for piece in pieces
                where try !reader.fold(piece..<piece + 1, of: shape, into: &roots) {
                    unreadable.insert(piece)
                }
            }
            afterRead(pieces.reduce(0) { $0 + Int(shape.length(ofPiece: $1)) })
        }
        return judge(roots, unreadable, shape, extent, layer)
    }

    private static func judge(
        _ roots: [UInt8], _ unreadable: Set<Int>, _ shape: ExtentShape, _ extent: Extent,
        _ layer: [UInt8]?
    ) -> ScrubResult {
        let found = shape.hashed(roots)
        let stored = layer.map { HashedExtent(extent: extent, layer: $0) }
        let isLayerSound = stored.map(verify) ?? (shape.pieceCount == 1)
        var damaged: [Int] = []
        if unreadable.isEmpty, found.extent.root == extent.root {
            damaged = []
        } else if isLayerSound, let stored, shape.pieceCount > 1 {
            damaged = (0..<shape.pieceCount).filter { piece in
                let slot = piece * hashBytes..<(piece + 1) * hashBytes
                return unreadable.contains(piece) || roots[slot] != stored.layer[slot]
            }
        } else {
            // Without a layer nothing says which piece it is.
            damaged = Array(0..<shape.pieceCount)
        }
        return ScrubResult(
            damagedPieces: damaged, isLayerDamaged: damaged.isEmpty && !isLayerSound, hashed: found)
    }
}

/// Reads a file from the disk itself, whatever the kernel remembers of it.
private struct UncachedReader: ~Copyable {
    private let file: CInt
    private let buffer: UnsafeMutableRawBufferPointer
    private var isDirect: Bool
    /// What the largest usual block of a disk asks for.
    private static let alignment = 4096

    init(_ file: CInt, bytesMax: Int) {
        self.file = file
        buffer = .allocate(byteCount: Self.blocks(bytesMax), alignment: Self.alignment)
        let flags = fcntl(file, F_GETFL)
        isDirect = flags >= 0 && fcntl(file, F_SETFL, flags | cstore_o_direct) == 0
    }

    deinit { buffer.deallocate() }

    /// Whole blocks, also where the file ends within one.
    private static func blocks(_ length: Int) -> Int {
        (length + alignment - 1) / alignment * alignment
    }

    /// Puts the roots of pieces in their slots.
    ///
    /// - Returns: false where the disk gives an error or the file ends early.
    mutating func fold(
        _ pieces: Range<Int>, of shape: ExtentShape, into roots: inout [UInt8]
    ) throws(StoreError) -> Bool {
        let offset = UInt64(pieces.lowerBound) * shape.pieceBytes
        let length = Int(
            min(UInt64(pieces.upperBound) * shape.pieceBytes, shape.length) - offset)
        do throws(StoreError) {
            guard try fill(length, at: offset) else { return false }
        } catch {
            guard error.errno == .ioError || error.errno == .badMessage else { throw error }
            return false
        }
        roots.withUnsafeMutableBytes {
            var folder = PieceFolder(shape: shape, layer: $0)
            folder.begin(pieces.lowerBound)
            folder.add(UnsafeRawBufferPointer(rebasing: buffer[..<length]))
        }
        return true
    }

    /// - Returns: false when the file ends early.
    private mutating func fill(_ length: Int, at offset: UInt64) throws(StoreError) -> Bool {
        guard isDirect else { return try fillCached(length, at: offset) }
        var done = 0
        let end = Self.blocks(length)
        do throws(StoreError) {
            while done < length, done % Self.alignment == 0 {
                let count = try system("read for scrub") {
                    cstore_pread(
                        file, buffer.baseAddress.map { $0 + done }, UInt64(end - done),
                        offset + UInt64(done))
                }
                if count == 0 { break }
                done += Int(count)
            }
        } catch {
            guard error.errno == .invalidArgument else { throw error }
            // A disk that wants it otherwise.
            isDirect = false
            _ = fcntl(file, F_SETFL, fcntl(file, F_GETFL) & ~cstore_o_direct)
            return try fillCached(length, at: offset)
        }
        return done >= length
    }

    private func fillCached(_ length: Int, at offset: UInt64) throws(StoreError) -> Bool {
        dropCache(file, offset: offset, length: UInt64(length))
        defer { dropCache(file, offset: offset, length: UInt64(length)) }
        let wanted = UnsafeMutableRawBufferPointer(rebasing: buffer[..<length])
        return try read(into: wanted, from: file, at: offset, "for scrub") == length
    }
}
