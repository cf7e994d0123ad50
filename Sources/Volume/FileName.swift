/// A POSIX file name: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
///
/// Bytes, never text: Swift strings compare by canonical equivalence, so two different POSIX names
/// would collide as one key.
public struct FileName: Hashable, Sendable, Comparable {
    public let bytes: [UInt8]

    /// Fails with nil for anything that POSIX does not allow as the name of a directory entry.
    public init?(_ bytes: [UInt8]) {
        guard !bytes.isEmpty, bytes.count <= Limits.nameBytesMax,
            bytes != [0x2E], bytes != [0x2E, 0x2E]
        else { return nil }
        for byte in bytes where byte == 0 || byte == 0x2F { return nil }
        self.bytes = bytes
    }

    public init?(_ text: String) { self.init(Array(text.utf8)) }

    public static func < (a: FileName, b: FileName) -> Bool {
        a.bytes.lexicographicallyPrecedes(b.bytes)
    }
}

/// Lossy, for logs and messages only.
extension FileName: CustomStringConvertible {
    public var description: String { String(decoding: bytes, as: UTF8.self) }
}
