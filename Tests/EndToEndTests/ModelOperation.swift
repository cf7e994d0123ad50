import CModel
import Glibc

/// One system call of one actor, or one step that is a few of them. Files are named by paths below
/// the directory of the comparison, descriptors and mappings by slots: so every part of a sequence
/// is a sequence too, and a failing one can be shrunk. As text it is the Swift that makes it.
struct ModelOperation: CustomStringConvertible, Sendable {
    let actor: Int
    let call: Call

    init(_ actor: Int, _ call: Call) {
        self.actor = actor
        self.call = call
    }

    var description: String { ".init(\(actor), .\(call))" }

    /// Who the actors are; each has descriptors of its own.
    static let actors: [Account] = [
        .root, .root, Account(uid: 1000, gid: 1000), Account(uid: 1001, gid: 1000),
    ]
    /// Descriptors of each actor.
    static let slots = 4
    static let mappings = 2

    enum Call: Sendable {
        case open(slot: Int, path: String, flags: OpenFlags, mode: Octal)
        case close(slot: Int)
        case read(slot: Int, count: Int)
        case write(slot: Int, count: Int, fill: UInt8)
        case readAt(slot: Int, offset: Int, count: Int)
        case writeAt(slot: Int, offset: Int, count: Int, fill: UInt8)
        case truncateOpen(slot: Int, size: Int)
        case seek(slot: Int, offset: Int, whence: Int32)
        /// Where the next data or hole is: each side may know of fewer holes.
        case seekHole(slot: Int, offset: Int, isHole: Bool)
        case allocate(slot: Int, mode: Int32, offset: Int, length: Int)
        /// Negative offsets: the descriptors' own.
        case copy(from: Int, at: Int, to: Int, target: Int, count: Int)
        /// Everything from the one file to the other by read and write.
        case transfer(from: Int, to: Int)
        case synchronize(slot: Int, dataOnly: Bool)
        case statusOpen(slot: Int)
        case changeModeOpen(slot: Int, mode: Octal)
        case listOpen(slot: Int)
        case linkOpen(slot: Int, path: String)

        case truncate(path: String, size: Int)
        case makeDirectory(path: String, mode: Octal)
        case removeDirectory(path: String)
        case unlink(path: String)
        case rename(path: String, to: String, flags: UInt32)
        case link(path: String, to: String)
        case symlink(path: String, target: String)
        case readLink(path: String)
        case makeNode(path: String, mode: Octal)
        case changeMode(path: String, mode: Octal)
        case changeOwner(path: String, uid: UInt32, gid: UInt32)
        /// Seconds since the epoch; negative: now.
        case setTimes(path: String, accessed: Int64, modified: Int64)
        case setXattr(path: String, name: String, count: Int, fill: UInt8, flags: Int32)
        case getXattr(path: String, name: String)
        case removeXattr(path: String, name: String)
        case status(path: String, followsLinks: Bool)
        case list(path: String)
        case readFile(path: String)

        /// Maps the file shared, from its beginning.
        case map(slot: Int, mapping: Int, count: Int)
        /// Stores below the end of the file, and msync.
        case store(mapping: Int, offset: Int, count: Int, fill: UInt8)
        case load(mapping: Int, offset: Int, count: Int)
        case unmap(mapping: Int)

        /// Time for what goes on behind the mount.
        case pause(milliseconds: UInt32)
    }

    var isPause: Bool {
        if case .pause = call { return true }
        return false
    }
}

struct Octal: ExpressibleByIntegerLiteral, CustomStringConvertible, Sendable {
    let rawValue: UInt32
    init(_ rawValue: UInt32) { self.rawValue = rawValue }
    init(integerLiteral value: UInt32) { rawValue = value }
    var description: String { "0o" + String(rawValue, radix: 8) }
}

/// The flags of `open(2)`.
struct OpenFlags: OptionSet, CustomStringConvertible, Sendable {
    let rawValue: Int32

    static let write = Self(rawValue: O_WRONLY)
    static let readWrite = Self(rawValue: O_RDWR)
    static let create = Self(rawValue: O_CREAT)
    static let exclusive = Self(rawValue: O_EXCL)
    static let truncate = Self(rawValue: O_TRUNC)
    static let append = Self(rawValue: O_APPEND)
    static let directory = Self(rawValue: O_DIRECTORY)
    static let noFollow = Self(rawValue: O_NOFOLLOW)
    static let pathOnly = Self(rawValue: cmodel_o_path)
    static let temporary = Self(rawValue: cmodel_o_tmpfile & ~O_DIRECTORY)

    private static let names: [(Self, String)] = [
        (.write, "write"), (.readWrite, "readWrite"), (.create, "create"),
        (.exclusive, "exclusive"), (.truncate, "truncate"), (.append, "append"),
        (.directory, "directory"), (.noFollow, "noFollow"), (.pathOnly, "pathOnly"),
        (.temporary, "temporary"),
    ]

    var description: String {
        let set = Self.names.filter { contains($0.0) }.map { ".\($0.1)" }
        return "[\(set.joined(separator: ", "))]"
    }
}
