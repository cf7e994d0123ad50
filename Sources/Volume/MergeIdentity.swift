/// Identities that a merge derives, so that every node that makes the same merge gives the same.
enum MergeIdentity {
    /// The loser of two edits lives on under this id, ino and link id.
    static func copy(of id: LineageID, losing stamp: Stamp) -> UInt64 {
        derived("copy", id.rawValue, stamp)
    }

    /// The later of two creations that met under one ino.
    static func renumbered(_ id: LineageID, stamp: Stamp) -> InodeNumber {
        InodeNumber(rawValue: inodeNumberBits(derived("ino", id.rawValue, stamp)))
    }

    /// Bit 62 marks inodes of the past inside `.delugefs/at`.
    static func inodeNumberBits(_ value: UInt64) -> UInt64 { value & (1 << 62 - 1) }

    /// SHA-256 of purpose, number and stamp, cut to 63 bits.
    private static func derived(_ purpose: String, _ number: UInt64, _ stamp: Stamp) -> UInt64 {
        var bytes = Array(purpose.utf8)
        bytes += mostSignificantFirst(number) + mostSignificantFirst(stamp.milliseconds)
        bytes += mostSignificantFirst(UInt64(stamp.counter)).suffix(2) + stamp.node.bytes
        let digest = PureSHA256.digest(bytes)
        return digest.prefix(8).reduce(0) { $0 << 8 | UInt64($1) } >> 1
    }
}
