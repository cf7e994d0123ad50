/// Seconds and nanoseconds since 1970, as in `struct timespec`.
public struct Timestamp: Hashable, Sendable, Comparable {
    public let seconds: Int64
    /// 0 ..< 1,000,000,000
    public let nanoseconds: UInt32

    public init(seconds: Int64, nanoseconds: UInt32) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }

    /// The moment a stamp was given.
    public init(_ stamp: Stamp) {
        self.init(
            seconds: Int64(stamp.milliseconds / 1000),
            nanoseconds: UInt32(stamp.milliseconds % 1000) * 1_000_000)
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.seconds, a.nanoseconds) < (b.seconds, b.nanoseconds)
    }
}

/// A value and the stamp of the write that gave it.
public struct Stamped<Value: Hashable & Sendable>: Hashable, Sendable {
    public var value: Value
    public var stamp: Stamp

    public init(_ value: Value, _ stamp: Stamp) {
        self.value = value
        self.stamp = stamp
    }
}

/// What an inode holds besides its attributes.
public enum Body: Hashable, Sendable {
    case file(Content)
    case directory
    case symlink([UInt8])
    case fifo
    case socket
    /// Device numbers, major and minor, stored and shown exactly.
    case characterDevice(major: UInt32, minor: UInt32)
    case blockDevice(major: UInt32, minor: UInt32)
}

/// The `content` group of a record: what travels together under one stamp. For a directory only
/// the modification time changes.
public struct BodyGroup: Hashable, Sendable {
    public var body: Body
    public var modified: Timestamp

    public init(body: Body, modified: Timestamp) {
        self.body = body
        self.modified = modified
    }
}

public struct Owner: Hashable, Sendable {
    public var uid: UInt32
    public var gid: UInt32

    public init(uid: UInt32, gid: UInt32) {
        self.uid = uid
        self.gid = gid
    }
}

/// An inode as the volume's history knows it: one stamp per field group.
///
/// The change time is not stored: it is the greatest of the stamps. The access time is local.
public struct Record: Hashable, Sendable {
    public let id: LineageID
    public var ino: InodeNumber
    public var content: Stamped<BodyGroup>
    /// Permission bits only, 0o7777.
    public var mode: Stamped<UInt16>
    public var owner: Stamped<Owner>
    /// By xattr name (with namespace). A removed xattr is absent.
    public var xattrs: [[UInt8]: Stamped<[UInt8]>]

    public init(
        id: LineageID, ino: InodeNumber, content: Stamped<BodyGroup>, mode: Stamped<UInt16>,
        owner: Stamped<Owner>, xattrs: [[UInt8]: Stamped<[UInt8]>] = [:]
    ) {
        self.id = id
        self.ino = ino
        self.content = content
        self.mode = mode
        self.owner = owner
        self.xattrs = xattrs
    }

    public var isDirectory: Bool { content.value.body == .directory }

    /// The greatest stamp of all groups.
    public var newestStamp: Stamp {
        xattrs.values.reduce(max(content.stamp, max(mode.stamp, owner.stamp))) {
            max($0, $1.stamp)
        }
    }
}

/// Where a directory entry stands.
public struct Place: Hashable, Sendable, Comparable {
    public let directory: LineageID
    public let name: FileName

    public init(directory: LineageID, name: FileName) {
        self.directory = directory
        self.name = name
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.directory, a.name) < (b.directory, b.name)
    }
}

/// One directory entry: its own identity, the stamp of the write that put it there, its target.
public struct Link: Hashable, Sendable {
    public let id: LinkID
    public var stamp: Stamp
    public let target: LineageID

    public init(id: LinkID, stamp: Stamp, target: LineageID) {
        self.id = id
        self.stamp = stamp
        self.target = target
    }
}
