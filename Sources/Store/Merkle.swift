import Crypto
public import Volume

/// An extent with its piece layer: what a seed needs and every receiver can verify.
public struct HashedExtent: Hashable, Sendable {
    public let extent: Extent
    /// The 32-byte roots of the pieces, concatenated; empty when one piece holds the extent.
    public let layer: [UInt8]

    public init(extent: Extent, layer: [UInt8]) {
        self.extent = extent
        self.layer = layer
    }
}

/// The content of one file as hashing found it.
public struct MerkleResult: Hashable, Sendable {
    /// Consecutive; never empty.
    public let extents: [HashedExtent]

    public init(extents: [HashedExtent]) { self.extents = extents }

    public var length: UInt64 { extents.reduce(0) { $0 + $1.extent.length } }
    public var content: Content { .extents(extents.map(\.extent)) }
}

/// The Merkle tree of BEP 52 (https://www.bittorrent.org/beps/bep_0052.html).
///
/// Leaves are SHA-256 of 16 KiB blocks, the last block as short as it is. Leaves missing up to the
/// next power of two are 32 zero bytes, not hashes of zero data; an absent piece is therefore the
/// root of a subtree of zero hashes. Holes on the other hand are data: their subtrees have the
/// roots of zero blocks. The two families of constants are `padding` and `zeroData`.
public enum Merkle {
    static let hashBytes = 32
    /// 16 KiB blocks under 4 MiB pieces are 8 levels, pieces of 32 GiB another 13.
    private static let levelsMax = 24

    /// By level: the root of a subtree of absent leaves.
    static let padding: [UInt8] = constants(leaf: [UInt8](repeating: 0, count: hashBytes))
    /// By level: the root of a subtree of whole blocks of zeros.
    static let zeroData: [UInt8] = constants(
        leaf: digest([UInt8](repeating: 0, count: Limits.blockBytes)))

    private static func constants(leaf: [UInt8]) -> [UInt8] {
        var all = leaf
        var last = leaf
        for _ in 1..<levelsMax {
            last = digest(last + last)
            all += last
        }
        return all
    }

    static func digest(_ bytes: [UInt8]) -> [UInt8] {
        var out = [UInt8](repeating: 0, count: hashBytes)
        out.withUnsafeMutableBytes { out in bytes.withUnsafeBytes { digest($0, to: out) } }
        return out
    }

    /// SHA-256 of a whole buffer; no copies, no per-byte work in Swift.
    static func digest(_ bytes: UnsafeRawBufferPointer, to out: UnsafeMutableRawBufferPointer) {
        var hasher = SHA256()
        hasher.update(bufferPointer: bytes)
        hasher.finalize().withUnsafeBytes { out.copyMemory(from: $0) }
    }

    /// Copies one of the constants.
    static func copy(
        _ constants: [UInt8], level: Int, to out: UnsafeMutableRawBufferPointer
    ) {
        constants.withUnsafeBytes {
            out.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[level * 32..<level * 32 + 32]))
        }
    }

    /// Folds the hashes of one level in place; the root of the subtree ends up in front.
    ///
    /// - Parameters:
    ///   - nodes: `count` hashes and room for one more.
    ///   - level: of the hashes; 0 are leaves.
    ///   - levels: how far up to go; `count` is at most 2^levels and at least 1.
    static func fold(
        _ nodes: UnsafeMutableRawBufferPointer, count: Int, level: Int, levels: Int
    ) {
        precondition(count >= 1 && count <= 1 << levels && nodes.count >= (count + 1) * hashBytes)
        var count = count
        for step in 0..<levels {
            if count & 1 == 1 {
                copy(padding, level: level + step, to: slot(nodes, count))
                count += 1
            }
            count /= 2
            for index in 0..<count {
                let pair = UnsafeRawBufferPointer(rebasing: nodes[index * 64..<index * 64 + 64])
                digest(pair, to: slot(nodes, index))
            }
        }
    }

    static func slot(
        _ nodes: UnsafeMutableRawBufferPointer, _ index: Int
    ) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: nodes[index * hashBytes..<(index + 1) * hashBytes])
    }

    /// The smallest number of levels over so many nodes.
    static func levels(over count: Int) -> Int {
        count <= 1 ? 0 : Int.bitWidth - (count - 1).leadingZeroBitCount
    }

    /// The root over the roots of all pieces of an extent of more than one piece.
    static func root(ofLayer layer: [UInt8], pieceBytes: UInt64) -> ContentRoot {
        let count = layer.count / hashBytes
        var nodes = layer + [UInt8](repeating: 0, count: hashBytes)
        nodes.withUnsafeMutableBytes {
            fold(
                $0, count: count, level: levels(over: Int(pieceBytes) / Limits.blockBytes),
                levels: levels(over: count))
        }
        return contentRoot(nodes.prefix(hashBytes))
    }

    static func contentRoot(_ bytes: some Collection<UInt8>) -> ContentRoot {
        guard let root = ContentRoot(bytes: Array(bytes)) else {
            preconditionFailure("a root is 32 bytes")
        }
        return root
    }
}

extension Merkle {
    /// Whether a piece layer, from a peer for example, belongs to an extent: right length, right
    /// root. An extent of one piece has an empty layer.
    public static func verify(_ hashed: HashedExtent) -> Bool {
        let extent = hashed.extent
        guard extent.length > extent.pieceBytes else { return hashed.layer.isEmpty }
        guard extent.length <= Limits.extentBytesMax,
            hashed.layer.count == extent.pieceCount * hashBytes
        else { return false }
        return root(ofLayer: hashed.layer, pieceBytes: extent.pieceBytes) == extent.root
    }

    /// Hashes bytes in memory; one extent.
    ///
    /// - Precondition: 1 to `Limits.extentBytesMax` bytes.
    public static func hash(_ bytes: [UInt8]) -> HashedExtent {
        precondition(!bytes.isEmpty && bytes.count <= Limits.extentBytesMax)
        let shape = ExtentShape(length: UInt64(bytes.count))
        var layer = [UInt8](repeating: 0, count: shape.pieceCount * hashBytes)
        layer.withUnsafeMutableBytes { layer in
            bytes.withUnsafeBytes { bytes in
                var piece = PieceFolder(shape: shape, layer: layer)
                piece.begin(0)
                piece.add(bytes)
            }
        }
        return shape.hashed(layer)
    }

    private static func isEqual(_ roots: [UInt8], at piece: Int, to root: [UInt8]) -> Bool {
        roots.withUnsafeBytes { roots in
            root.withUnsafeBytes { root in
                let slot = UnsafeRawBufferPointer(
                    rebasing: roots[piece * hashBytes..<(piece + 1) * hashBytes])
                return zip(slot.bindMemory(to: UInt64.self), root.bindMemory(to: UInt64.self))
                    .allSatisfy { $0 == $1 }
            }
        }
    }

    /// The pieces whose bytes are all zero: they are neither requested nor sent.
    ///
    /// - Precondition: the layer was verified.
    public static func zeroPieces(of hashed: HashedExtent) -> [Int] {
        let shape = ExtentShape(length: hashed.extent.length)
        let roots = shape.pieceCount == 1 ? hashed.extent.root.bytes : hashed.layer
        let last = shape.pieceCount - 1
        let whole = Array(
            zeroData[shape.pieceLevel * hashBytes..<(shape.pieceLevel + 1) * hashBytes])
        let short = shape.zeroRoot(ofPiece: last)
        return (0...last).filter { piece in
            isEqual(roots, at: piece, to: piece == last ? short : whole)
        }
    }
}
