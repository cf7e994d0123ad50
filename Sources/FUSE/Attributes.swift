/// A point in time as the protocol carries it: seconds since 1970, may be negative.
public struct Timestamp: Hashable, Sendable {
    public var seconds: Int64
    /// 0 ..< 1,000,000,000.
    public var nanoseconds: UInt32

    public init(seconds: Int64, nanoseconds: UInt32 = 0) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }
}

/// What `stat` shows of an inode.
public struct Attributes: Hashable, Sendable {
    /// `st_ino`: what users see; not the node id.
    public var ino: UInt64
    /// Bytes.
    public var size: UInt64
    /// Units of 512 bytes.
    public var blocks: UInt64
    public var atime: Timestamp
    public var mtime: Timestamp
    public var ctime: Timestamp
    /// Type and permission bits (`S_IFMT | 07777`).
    public var mode: UInt32
    public var nlink: UInt32
    public var uid: UInt32
    public var gid: UInt32
    /// Device number of a special file, in the kernel's 32-bit encoding.
    public var rdev: UInt32
    /// Preferred size of input and output, bytes.
    public var blksize: UInt32

    public init(
        ino: UInt64, mode: UInt32, size: UInt64 = 0, blocks: UInt64 = 0,
        atime: Timestamp = Timestamp(seconds: 0), mtime: Timestamp = Timestamp(seconds: 0),
        ctime: Timestamp = Timestamp(seconds: 0), nlink: UInt32 = 1, uid: UInt32 = 0,
        gid: UInt32 = 0, rdev: UInt32 = 0, blksize: UInt32 = 4096
    ) {
        self.ino = ino
        self.size = size
        self.blocks = blocks
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.mode = mode
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.blksize = blksize
    }
}

/// The answer to every request that makes the kernel know a node.
///
/// Each one delivered adds 1 to the node's lookup count, which FORGET takes back. A pair of node id
/// and generation must never be used for two different files during one mount.
public struct EntryOut: Hashable, Sendable {
    /// 0 says "no such name" and may be cached for `entryValid`.
    public var nodeid: UInt64
    public var generation: UInt64
    /// How long the kernel may believe the name without asking again.
    public var entryValid: Duration
    /// How long the kernel may believe the attributes without asking again.
    public var attributesValid: Duration
    public var attributes: Attributes

    public init(
        nodeid: UInt64, generation: UInt64 = 0, entryValid: Duration = .zero,
        attributesValid: Duration = .zero, attributes: Attributes
    ) {
        self.nodeid = nodeid
        self.generation = generation
        self.entryValid = entryValid
        self.attributesValid = attributesValid
        self.attributes = attributes
    }

    /// "No such name", to be remembered for `valid`. Without the memory answer ENOENT instead.
    public static func negative(valid: Duration) -> EntryOut {
        EntryOut(nodeid: 0, entryValid: valid, attributes: Attributes(ino: 0, mode: 0))
    }
}

/// The changes that a SETATTR asks for.
public struct SetAttributes: Hashable, Sendable {
    public struct Fields: OptionSet, Hashable, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let mode = Fields(rawValue: 1 << 0)
        public static let uid = Fields(rawValue: 1 << 1)
        public static let gid = Fields(rawValue: 1 << 2)
        public static let size = Fields(rawValue: 1 << 3)
        public static let atime = Fields(rawValue: 1 << 4)
        public static let mtime = Fields(rawValue: 1 << 5)
        /// `handle` names the open file that `ftruncate` was called on.
        public static let handle = Fields(rawValue: 1 << 6)
        /// The server's present time, not the `atime` that came along.
        public static let atimeNow = Fields(rawValue: 1 << 7)
        public static let mtimeNow = Fields(rawValue: 1 << 8)
        public static let lockOwner = Fields(rawValue: 1 << 9)
        public static let ctime = Fields(rawValue: 1 << 10)
        /// Drop suid, and sgid when the group may execute.
        public static let killPrivileges = Fields(rawValue: 1 << 11)
    }

    public var fields: Fields
    public var handle: UInt64
    public var size: UInt64
    public var lockOwner: UInt64
    public var atime: Timestamp
    public var mtime: Timestamp
    public var ctime: Timestamp
    public var mode: UInt32
    public var uid: UInt32
    public var gid: UInt32

    public init(
        fields: Fields, handle: UInt64 = 0, size: UInt64 = 0, lockOwner: UInt64 = 0,
        atime: Timestamp = Timestamp(seconds: 0), mtime: Timestamp = Timestamp(seconds: 0),
        ctime: Timestamp = Timestamp(seconds: 0), mode: UInt32 = 0, uid: UInt32 = 0,
        gid: UInt32 = 0
    ) {
        self.fields = fields
        self.handle = handle
        self.size = size
        self.lockOwner = lockOwner
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.mode = mode
        self.uid = uid
        self.gid = gid
    }
}

/// What `statfs` shows. Blocks are units of `fragmentSize` bytes.
public struct VolumeStatistics: Hashable, Sendable {
    public var blocks: UInt64
    public var blocksFree: UInt64
    public var blocksAvailable: UInt64
    public var files: UInt64
    public var filesFree: UInt64
    public var blockSize: UInt32
    public var fragmentSize: UInt32
    /// The longest file name, bytes.
    public var nameLengthMax: UInt32

    public init(
        blocks: UInt64 = 0, blocksFree: UInt64 = 0, blocksAvailable: UInt64 = 0,
        files: UInt64 = 0, filesFree: UInt64 = 0, blockSize: UInt32 = 4096,
        fragmentSize: UInt32 = 4096, nameLengthMax: UInt32 = 255
    ) {
        self.blocks = blocks
        self.blocksFree = blocksFree
        self.blocksAvailable = blocksAvailable
        self.files = files
        self.filesFree = filesFree
        self.blockSize = blockSize
        self.fragmentSize = fragmentSize
        self.nameLengthMax = nameLengthMax
    }
}

/// A byte-range lock, as in `fcntl(2)`. `end` is inclusive.
public struct FileLock: Hashable, Sendable {
    public var start: UInt64
    public var end: UInt64
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    public var type: UInt32
    public var pid: UInt32

    public init(start: UInt64, end: UInt64, type: UInt32, pid: UInt32) {
        self.start = start
        self.end = end
        self.type = type
        self.pid = pid
    }
}
