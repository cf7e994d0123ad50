/// How the kernel shall treat the file that an OPEN, CREATE or OPENDIR has opened.
public struct OpenFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// No page cache: every read and write comes to the server.
    public static let directIO = OpenFlags(rawValue: 1 << 0)
    /// Keep the pages that earlier opens have cached.
    public static let keepCache = OpenFlags(rawValue: 1 << 1)
    public static let nonSeekable = OpenFlags(rawValue: 1 << 2)
    /// Cache the answers of READDIR (directories only).
    public static let cacheDirectory = OpenFlags(rawValue: 1 << 3)
    public static let stream = OpenFlags(rawValue: 1 << 4)
    /// No FLUSH at close.
    public static let noFlush = OpenFlags(rawValue: 1 << 5)
    public static let parallelDirectWrites = OpenFlags(rawValue: 1 << 6)
    /// Reads and writes go straight to the backing file. Only `directIO`, `parallelDirectWrites`
    /// and `noFlush` may accompany it; the reply sets it when a backing id is given.
    public static let passthrough = OpenFlags(rawValue: 1 << 7)
}

/// What accompanies a WRITE.
public struct WriteFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Written back from the page cache (a shared mapping): the handle may be any writable one.
    public static let fromCache = WriteFlags(rawValue: 1 << 0)
    public static let lockOwner = WriteFlags(rawValue: 1 << 1)
    /// Drop suid, and sgid when the group may execute.
    public static let killPrivileges = WriteFlags(rawValue: 1 << 2)
}

/// What accompanies a RELEASE.
public struct ReleaseFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let flush = ReleaseFlags(rawValue: 1 << 0)
    public static let unlockFlock = ReleaseFlags(rawValue: 1 << 1)
}

/// The flags of `renameat2(2)`.
public struct RenameFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let noReplace = RenameFlags(rawValue: 1)
    public static let exchange = RenameFlags(rawValue: 2)
    public static let whiteout = RenameFlags(rawValue: 4)
}

/// What accompanies a SETXATTR.
public struct SetXattrFlags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// `XATTR_CREATE`: EEXIST when the attribute is there.
    public static let create = SetXattrFlags(rawValue: 1)
    /// `XATTR_REPLACE`: ENODATA when it is not.
    public static let replace = SetXattrFlags(rawValue: 2)
    /// Setting this access control list must drop sgid (from the protocol's own flag word).
    public static let killSetGroupID = SetXattrFlags(rawValue: 1 << 31)
}

/// What the kernel offers in INIT and the server takes: both flag words as one number.
struct InitFlags: OptionSet, Hashable, Sendable {
    let rawValue: UInt64
    static let asyncRead = InitFlags(rawValue: 1 << 0)
    static let posixLocks = InitFlags(rawValue: 1 << 1)
    static let atomicTruncate = InitFlags(rawValue: 1 << 3)
    static let exportSupport = InitFlags(rawValue: 1 << 4)
    static let bigWrites = InitFlags(rawValue: 1 << 5)
    static let dontMask = InitFlags(rawValue: 1 << 6)
    static let flockLocks = InitFlags(rawValue: 1 << 10)
    static let autoInvalidateData = InitFlags(rawValue: 1 << 12)
    static let readdirplus = InitFlags(rawValue: 1 << 13)
    static let readdirplusAuto = InitFlags(rawValue: 1 << 14)
    static let asyncDirectIO = InitFlags(rawValue: 1 << 15)
    static let writebackCache = InitFlags(rawValue: 1 << 16)
    static let parallelDirectoryOperations = InitFlags(rawValue: 1 << 18)
    static let posixACL = InitFlags(rawValue: 1 << 20)
    static let abortError = InitFlags(rawValue: 1 << 21)
    static let maxPages = InitFlags(rawValue: 1 << 22)
    static let cacheSymlinks = InitFlags(rawValue: 1 << 23)
    static let explicitInvalidateData = InitFlags(rawValue: 1 << 25)
    static let handleKillPrivilegesV2 = InitFlags(rawValue: 1 << 28)
    static let extendedSetxattr = InitFlags(rawValue: 1 << 29)
    static let extendedInit = InitFlags(rawValue: 1 << 30)
    static let expireOnly = InitFlags(rawValue: 1 << 35)
    static let directIOAllowsMmap = InitFlags(rawValue: 1 << 36)
    static let passthrough = InitFlags(rawValue: 1 << 37)
}
