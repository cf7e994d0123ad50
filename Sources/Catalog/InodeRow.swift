public import Volume

/// A row of the namespace: what a directory entry leads to. (swift-system has the name `Inode`.)
public struct InodeRow: Hashable, Sendable {
    public enum Kind: UInt8, Sendable {
        case file = 1
        case directory, symlink, fifo, socket, characterDevice, blockDevice
    }

    public var ino: InodeNumber
    public var id: LineageID
    public var kind: Kind
    /// Permission bits, 0o7777.
    public var mode: UInt16
    public var owner: Owner
    /// Device numbers; 0 for anything else.
    public var major: UInt32
    public var minor: UInt32
    /// 0: linked nowhere. A directory has 2 and one for every subdirectory.
    public var linkCount: UInt32
    /// Bytes of the published content, of a symlink's target; 0 for anything else.
    public var size: UInt64
    /// Local to this node.
    public var accessed: Timestamp
    public var modified: Timestamp
    public var changed: Timestamp
    public var contentStamp: Stamp
    public var modeStamp: Stamp
    public var ownerStamp: Stamp
    /// Of a directory: where `..` leads. The top directory is its own parent.
    public var parent: InodeNumber?

    public var isDirectory: Bool { kind == .directory }

    /// Whether an entry leads here. While a commit is applied a directory may be linked nowhere and
    /// yet have subdirectories, and so a link count.
    public var isLinked: Bool { isDirectory ? parent != nil : linkCount > 0 }

    /// With the file type, as `stat` shows it.
    public var fullMode: UInt32 {
        let type: UInt32 =
            switch kind {
            case .file: 0o100000
            case .directory: 0o040000
            case .symlink: 0o120000
            case .fifo: 0o010000
            case .socket: 0o140000
            case .characterDevice: 0o020000
            case .blockDevice: 0o060000
            }
        return type | UInt32(mode)
    }
}

/// For modules that import another `InodeRow` too: a module with a class of its own name cannot qualify.
public typealias CatalogInode = InodeRow

extension Body {
    public var kind: InodeRow.Kind {
        switch self {
        case .file: .file
        case .directory: .directory
        case .symlink: .symlink
        case .fifo: .fifo
        case .socket: .socket
        case .characterDevice: .characterDevice
        case .blockDevice: .blockDevice
        }
    }

    var device: (major: UInt32, minor: UInt32) {
        switch self {
        case .characterDevice(let major, let minor), .blockDevice(let major, let minor):
            (major, minor)
        default: (0, 0)
        }
    }

    /// `st_size`.
    var size: UInt64 {
        switch self {
        case .file(let content): content.length
        case .symlink(let target): UInt64(target.count)
        default: 0
        }
    }
}

/// What a new inode starts as.
public struct NewInode: Sendable {
    public var body: Body
    /// Permission bits after the umask.
    public var mode: UInt16
    public var owner: Owner
    /// Taken from the mode, unless the directory has a default access control list.
    public var umask: UInt16
    /// A file that is created open: its staging file.
    public var staging: String?

    public init(
        body: Body, mode: UInt16, owner: Owner, umask: UInt16 = 0, staging: String? = nil
    ) {
        self.body = body
        self.mode = mode
        self.owner = owner
        self.umask = umask
        self.staging = staging
    }
}

/// A file that is being written: where its bytes are.
public struct Staging: Hashable, Sendable {
    public var ino: InodeNumber
    /// The staging file's name in its directory.
    public var name: String
    /// The content stamp that it began from: if at publishing the file carries another one, both
    /// versions must be kept.
    public var base: Stamp
    /// Base reference and changed ranges of an overlay, in the caller's encoding.
    public var overlay: [UInt8]?
    /// The file was created open and no commit has it: until it is published, commits leave it out,
    /// so that no other node takes it for an empty file.
    public var isNewborn: Bool

    /// The file took the place of older bytes and could not be synced: publishing keeps these beside
    /// it, for what is read of it may not be what was written. (No content has stamp 0.)
    public var isDoubtful: Bool { base.milliseconds == 0 }

    public mutating func doubt() {
        base = Stamp(milliseconds: 0, counter: 0, node: base.node)
    }

    public init(
        ino: InodeNumber, name: String, base: Stamp, overlay: [UInt8]? = nil,
        isNewborn: Bool = false
    ) {
        self.isNewborn = isNewborn
        self.ino = ino
        self.name = name
        self.base = base
        self.overlay = overlay
    }
}

/// What led to a file that was removed elsewhere while it was being written here: the edit outlives
/// the removal, and publishing gives it a name again.
public struct LostName: Hashable, Sendable {
    public var parent: InodeNumber
    public var name: FileName
}

/// One entry of a directory listing.
public struct DirectoryEntry<Target: Sendable>: Sendable {
    /// Pass it as `after` to continue behind this entry.
    public var cookie: UInt64
    public var name: FileName
    public var target: Target
}

/// One name of an inode.
public struct NamedLink: Hashable, Sendable {
    public var parent: InodeNumber
    public var name: FileName
    public var link: LinkID
}

/// What is linked in the volume.
public struct Counts: Hashable, Sendable {
    /// Inodes of every kind.
    public var inodes: UInt64 = 0
    public var files: UInt64 = 0
    /// Sum of the regular files' published sizes; a file with two names counts once.
    public var bytes: UInt64 = 0

    public init(inodes: UInt64 = 0, files: UInt64 = 0, bytes: UInt64 = 0) {
        self.inodes = inodes
        self.files = files
        self.bytes = bytes
    }
}

extension Timestamp {
    /// Clamped to the years 1677 to 2262.
    var totalNanoseconds: Int64 {
        let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        let (sum, overflowed) = product.addingReportingOverflow(Int64(nanoseconds))
        return overflow || overflowed ? (seconds < 0 ? .min : .max) : sum
    }

    init(totalNanoseconds: Int64) {
        let (seconds, rest) = totalNanoseconds.quotientAndRemainder(dividingBy: 1_000_000_000)
        self.init(
            seconds: rest < 0 ? seconds - 1 : seconds,
            nanoseconds: UInt32(rest < 0 ? rest + 1_000_000_000 : rest))
    }
}

extension Stamp {
    /// Time and counter as one column; positive for every valid stamp (below the year 2200).
    var time: UInt64 { milliseconds << 16 | UInt64(counter) }

    init(time: UInt64, node: NodeID) {
        self.init(milliseconds: time >> 16, counter: UInt16(time & 0xFFFF), node: node)
    }
}
