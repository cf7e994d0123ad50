/// Every bound of the volume's formats and rules in one place.
public enum Limits {
    // MARK: Specification: a change makes another format

    public static let nameBytesMax = 255
    public static let symlinkBytesMax = 4095
    public static let xattrNameBytesMax = 255
    public static let xattrValueBytesMax = 65_536
    /// Content up to this size lives inside its record.
    public static let inlineBytesMax = 4096
    /// Content larger than this is split into several extents.
    public static let extentBytesMax: UInt64 = 32 << 30
    public static let fileBytesMax: UInt64 = 16 << 40
    /// BEP 52: the leaf of the Merkle tree.
    public static let blockBytes = 16384
    public static let pieceBytesMin: UInt64 = 64 << 10
    public static let pieceBytesMax: UInt64 = 4 << 20
    /// A directory with more entries is split by name hash into `%xx` subtrees, and never otherwise.
    public static let directoryEntriesUnsplitMax = 1024
    /// A stamp at or above this is invalid: 2200-01-01T00:00:00Z in milliseconds.
    public static let stampMillisecondsEnd: UInt64 = 7_258_118_400_000
    public static let recordBytesMax = 4 << 20
    public static let directoryDepthMax = 2048
    public static let copiesMax = 64

    // MARK: Implementation

    /// No clock takes a reading beyond this, 2199-01-01T00:00:00Z, from the machine or from a stamp.
    /// The year up to `stampMillisecondsEnd` is for counting on from there.
    public static let clockMillisecondsMax = stampMillisecondsEnd - 365 * 86_400_000

    /// Content up to this size travels inside the peer API's open reply instead of by swarm.
    public static let openReplyBytesMax: UInt64 = 1 << 20
}
