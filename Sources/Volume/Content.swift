/// A piece of content addressed by its bytes: pieces root and length determine everything else.
public struct Extent: Hashable, Sendable {
    public let root: ContentRoot
    /// Bytes; 1 ... `Limits.extentBytesMax`.
    public let length: UInt64

    public init(root: ContentRoot, length: UInt64) {
        self.root = root
        self.length = length
    }

    /// Bytes per piece of the torrent: a pure function of the length, so that every node rebuilds
    /// the identical info dictionary. A power of two, max(64 KiB, length / 32768), at most 4 MiB.
    public var pieceBytes: UInt64 {
        var piece = Limits.pieceBytesMin
        while piece < Limits.pieceBytesMax, piece * 32768 < length { piece <<= 1 }
        return piece
    }

    public var pieceCount: Int { Int((length + pieceBytes - 1) / pieceBytes) }
}

/// The bytes of a regular file.
public enum Content: Hashable, Sendable {
    /// At most `Limits.inlineBytesMax` bytes, kept in the record itself. Empty for an empty file.
    case inline([UInt8])
    /// Consecutive extents; never empty.
    case extents([Extent])

    public var length: UInt64 {
        switch self {
        case .inline(let bytes): UInt64(bytes.count)
        case .extents(let extents): extents.reduce(0) { $0 + $1.length }
        }
    }

    public var extents: [Extent] {
        if case .extents(let extents) = self { extents } else { [] }
    }

    public static let empty = Content.inline([])
}
