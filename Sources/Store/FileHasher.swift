import Glibc
import Synchronization
public import SystemPackage
public import Volume

/// Hashes one extent of a file with up to two threads: the caller's and a helper.
///
/// The extent is dealt out in units of 4 MiB, which hold whole pieces whatever their size.
/// `@unchecked Sendable`: the layer's memory is written in disjoint slots (a unit belongs to the
/// thread that drew it from `nextUnit`) and read only after the helper was joined.
private final class FileHasher: @unchecked Sendable {
    static let unitBytes = Limits.pieceBytesMax
    static let chunkBytes: UInt64 = 1 << 20
    /// Below this the second thread costs more than it saves.
    static let helperBytesMin: UInt64 = 16 << 20

    private let file: CInt
    private let start: UInt64
    private let shape: ExtentShape
    private let isSparse: Bool
    private let cancellation: Cancellation?
    private let layer: UnsafeMutableRawBufferPointer
    private let nextUnit = Atomic<UInt64>(0)
    private let failure = Mutex<StoreError?>(nil)

    init(
        file: CInt, start: UInt64, shape: ExtentShape, isSparse: Bool, cancellation: Cancellation?
    ) {
        self.file = file
        self.start = start
        self.shape = shape
        self.isSparse = isSparse
        self.cancellation = cancellation
        layer = .allocate(byteCount: shape.pieceCount * Merkle.hashBytes, alignment: 16)
    }

    deinit { layer.deallocate() }

    func run() throws(StoreError) -> HashedExtent {
        if shape.length >= Self.helperBytesMin,
            let helper = WorkerThread(name: "store-hash", body: { self.work() })
        {
            work()
            helper.join()
        } else {
            work()
        }
        if let error = failure.withLock({ $0 }) { throw error }
        return shape.hashed(Array(layer))
    }

    /// Takes units until none is left or somebody failed.
    private func work() {
        let chunk = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(min(Self.chunkBytes, shape.length)), alignment: 4096)
        defer { chunk.deallocate() }
        var folder = PieceFolder(shape: shape, layer: layer)
        // Up to here is known to be a hole, so that a long one is not asked about unit by unit.
        var holeEnd: UInt64 = 0
        let units = (shape.length - 1) / Self.unitBytes + 1
        do throws(StoreError) {
            while failure.withLock({ $0 == nil }) {
                let unit = nextUnit.wrappingAdd(1, ordering: .relaxed).oldValue
                guard unit < units else { return }
                let from = unit * Self.unitBytes
                folder.begin(Int(from / shape.pieceBytes))
                try hash(
                    from..<min(from + Self.unitBytes, shape.length), chunk, &folder, &holeEnd)
            }
        } catch {
            failure.withLock { $0 = $0 ?? error }
        }
    }

    private func hash(
        _ range: Range<UInt64>, _ chunk: UnsafeMutableRawBufferPointer,
        _ folder: inout PieceFolder, _ holeEnd: inout UInt64
    ) throws(StoreError) {
        var position = range.lowerBound
        while position < range.upperBound {
            try cancellation?.check("hash")
            if isSparse, holeEnd <= position {
                let data = try nextData(in: file, from: start + position)
                holeEnd = data == .max ? .max : data - start
            }
            var end = range.upperBound
            if holeEnd < end { end = min(end, position + Self.chunkBytes) }
            if holeEnd >= end {
                folder.addZeros(end - position)
                position = end
                continue
            }
            end = min(position + Self.chunkBytes, range.upperBound)
            let bytes = UnsafeMutableRawBufferPointer(rebasing: chunk[..<Int(end - position)])
            let count = try read(into: bytes, from: file, at: start + position, "for hashing")
            guard count == bytes.count else { throw StoreError("hash", .wrongLength) }
            folder.add(UnsafeRawBufferPointer(bytes))
            position = end
        }
    }
}

extension Merkle {
    /// Hashes the first `length` bytes of a file that nobody writes to.
    ///
    /// Blocks; up to two threads (the caller's and one of our own) for files of 16 MiB and more.
    ///
    /// - Parameter length: at least 1.
    /// - Throws: `StoreError`: what reading gave, `.wrongLength` when the file is shorter,
    ///   `.canceled`.
    public static func hash(
        _ file: FileDescriptor, length: UInt64, cancellation: Cancellation? = nil
    ) throws(StoreError) -> MerkleResult {
        try hash(
            file, length: length, extentBytesMax: Limits.extentBytesMax, cancellation: cancellation)
    }

    static func hash(
        _ file: FileDescriptor, length: UInt64, extentBytesMax: UInt64, cancellation: Cancellation?
    ) throws(StoreError) -> MerkleResult {
        precondition(length > 0, "empty files have no content to hash")
        let status = try FileStatus(of: file.rawValue)
        guard status.size >= length else { throw StoreError("hash", .wrongLength) }
        var extents: [HashedExtent] = []
        var start: UInt64 = 0
        while start < length {
            try cancellation?.check("hash")
            let hasher = FileHasher(
                file: file.rawValue, start: start,
                shape: ExtentShape(length: min(extentBytesMax, length - start)),
                isSparse: status.isSparse, cancellation: cancellation)
            let hashed = try hasher.run()
            extents.append(hashed)
            start += hashed.extent.length
        }
        return MerkleResult(extents: extents)
    }
}

extension Merkle {
    /// Whether the bytes of a file from `offset` on are those of an extent. Threads as for `hash`.
    ///
    /// - Throws: `StoreError`: what reading gave, `.wrongLength` when the file is shorter.
    public static func matches(
        _ file: FileDescriptor, at offset: UInt64, _ extent: Extent
    ) throws(StoreError) -> Bool {
        let hasher = FileHasher(
            file: file.rawValue, start: offset, shape: ExtentShape(length: extent.length),
            isSparse: try FileStatus(of: file.rawValue).isSparse, cancellation: nil)
        return try hasher.run().extent == extent
    }
}
