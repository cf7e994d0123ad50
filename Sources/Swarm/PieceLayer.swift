import CTorrent
public import Volume

/// The hashes of an extent's pieces (BEP 52), 32 bytes each; what a peer sends with its open reply.
///
/// An extent of one piece has no layer: its root says everything.
public enum PieceLayer {
    /// Bytes that a valid layer of the extent has.
    public static func byteCount(of extent: Extent) -> Int {
        extent.pieceCount > 1 ? extent.pieceCount * 32 : 0
    }

    /// Whether the layer folds to the extent's root: the only reason to trust one.
    public static func verify(_ layer: [UInt8], for extent: Extent) -> Bool {
        guard layer.count == byteCount(of: extent) else { return false }
        guard extent.pieceCount > 1 else { return true }
        var level = layer
        var pad = paddingRoot(of: extent)
        while level.count > 32 {
            if level.count % 64 != 0 { level += pad }
            level = sha256(level, stride: 64)
            pad = sha256(pad + pad, stride: 64)
        }
        return level == extent.root.bytes
    }

    /// The hash of a piece whose bytes are all zero: such pieces are neither asked for nor sent.
    static func zeroPieceHash(of extent: Extent) -> [UInt8] {
        fold(
            sha256([UInt8](repeating: 0, count: Limits.blockBytes), stride: Limits.blockBytes),
            of: extent)
    }

    /// Missing pieces at the end count as subtrees of zero *hashes*.
    private static func paddingRoot(of extent: Extent) -> [UInt8] {
        fold([UInt8](repeating: 0, count: 32), of: extent)
    }

    private static func fold(_ leaf: [UInt8], of extent: Extent) -> [UInt8] {
        var hash = leaf
        var width = UInt64(Limits.blockBytes)
        while width < extent.pieceBytes {
            hash = sha256(hash + hash, stride: 64)
            width *= 2
        }
        return hash
    }

    /// The digests of consecutive inputs of `stride` bytes each.
    static func sha256(_ inputs: [UInt8], stride: Int) -> [UInt8] {
        let count = inputs.count / stride
        return [UInt8](unsafeUninitializedCapacity: count * 32) { digests, written in
            let result = inputs.withUnsafeBufferPointer {
                ctorrent_sha256($0.baseAddress, stride, count, digests.baseAddress)
            }
            // Fails only for want of memory, like any allocation.
            precondition(result == CTORRENT_OK, "SHA-256 is not available")
            written = count * 32
        }
    }
}
