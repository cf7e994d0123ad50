import Volume

/// What the length of an extent alone determines about its tree.
struct ExtentShape {
    let length: UInt64
    let pieceBytes: UInt64
    let pieceCount: Int

    init(length: UInt64) {
        precondition(length >= 1 && length <= Limits.extentBytesMax)
        let extent = Extent(root: Self.noRoot, length: length)
        self.length = length
        pieceBytes = extent.pieceBytes
        pieceCount = extent.pieceCount
    }

    private static let noRoot = Merkle.contentRoot([UInt8](repeating: 0, count: Merkle.hashBytes))

    /// The level of the roots of pieces: that of a full piece, or, for a single piece, as low as
    /// its blocks allow.
    var pieceLevel: Int {
        Merkle.levels(over: (Int(min(length, pieceBytes)) - 1) / Limits.blockBytes + 1)
    }

    func length(ofPiece piece: Int) -> UInt64 {
        min(pieceBytes, length - UInt64(piece) * pieceBytes)
    }

    /// The root of a piece of zeros, whole or short.
    func zeroRoot(ofPiece piece: Int) -> [UInt8] {
        var layer = [UInt8](repeating: 0, count: pieceCount * Merkle.hashBytes)
        layer.withUnsafeMutableBytes {
            var folder = PieceFolder(shape: self, layer: $0)
            folder.begin(piece)
            folder.addZeros(length(ofPiece: piece))
        }
        return Array(layer[piece * Merkle.hashBytes..<(piece + 1) * Merkle.hashBytes])
    }

    /// The extent, from the roots of all its pieces.
    func hashed(_ roots: [UInt8]) -> HashedExtent {
        if pieceCount == 1 {
            let root = Merkle.contentRoot(roots)
            return HashedExtent(extent: Extent(root: root, length: length), layer: [])
        }
        let root = Merkle.root(ofLayer: roots, pieceBytes: pieceBytes)
        return HashedExtent(extent: Extent(root: root, length: length), layer: roots)
    }
}

/// Takes the bytes of consecutive pieces and leaves their roots in the layer.
struct PieceFolder: ~Copyable {
    private let shape: ExtentShape
    /// The caller's; only the slots of the pieces that pass through here are written.
    private let layer: UnsafeMutableRawBufferPointer
    private let leaves: UnsafeMutableRawBufferPointer
    private var leafCount = 0
    private var piece = 0
    /// Bytes of the current piece that are still to come.
    private var missing: UInt64 = 0

    private static let zeros = [UInt8](repeating: 0, count: Limits.blockBytes)

    init(shape: ExtentShape, layer: UnsafeMutableRawBufferPointer) {
        self.shape = shape
        self.layer = layer
        let leavesMax = Int(shape.pieceBytes) / Limits.blockBytes
        leaves = .allocate(byteCount: (leavesMax + 1) * Merkle.hashBytes, alignment: 16)
    }

    deinit { leaves.deallocate() }

    /// The next bytes are those at the start of this piece.
    mutating func begin(_ piece: Int) {
        self.piece = piece
        leafCount = 0
        missing = shape.length(ofPiece: piece)
    }

    /// - Parameter bytes: whole blocks, unless the extent ends with them.
    mutating func add(_ bytes: UnsafeRawBufferPointer) {
        var offset = 0
        while offset < bytes.count {
            let count = min(Limits.blockBytes, bytes.count - offset, Int(missing))
            let block = UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count])
            Merkle.digest(block, to: Merkle.slot(leaves, leafCount))
            finishBlock(count)
            offset += count
        }
    }

    /// The bytes of a hole.
    mutating func addZeros(_ length: UInt64) {
        var rest = length
        while rest > 0 {
            if leafCount == 0, missing == shape.pieceBytes, rest >= missing, shape.pieceCount > 1 {
                Merkle.copy(
                    Merkle.zeroData, level: shape.pieceLevel, to: Merkle.slot(layer, piece))
                rest -= missing
                advance()
                continue
            }
            let count = min(Limits.blockBytes, Int(min(rest, missing)))
            let leaf = Merkle.slot(leaves, leafCount)
            if count == Limits.blockBytes {
                Merkle.copy(Merkle.zeroData, level: 0, to: leaf)
            } else {
                Self.zeros.withUnsafeBytes {
                    Merkle.digest(UnsafeRawBufferPointer(rebasing: $0[..<count]), to: leaf)
                }
            }
            finishBlock(count)
            rest -= UInt64(count)
        }
    }

    private mutating func finishBlock(_ count: Int) {
        leafCount += 1
        missing -= UInt64(count)
        precondition(count == Limits.blockBytes || missing == 0, "only the last block is short")
        guard missing == 0 else { return }
        Merkle.fold(leaves, count: leafCount, level: 0, levels: shape.pieceLevel)
        Merkle.slot(layer, piece).copyMemory(
            from: UnsafeRawBufferPointer(rebasing: leaves[..<Merkle.hashBytes]))
        advance()
    }

    private mutating func advance() {
        piece += 1
        leafCount = 0
        missing = piece < shape.pieceCount ? shape.length(ofPiece: piece) : 0
    }
}
