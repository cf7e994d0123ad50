import CStore
import Glibc
public import SystemPackage
public import Volume

/// What a file gets besides its bytes.
public struct FileAttributes: Hashable, Sendable {
    /// 0o7777
    public var mode: UInt16
    /// nil: who runs this.
    public var owner: Owner?
    public var xattrs: [[UInt8]: [UInt8]]
    public var modified: Timestamp

    public init(
        mode: UInt16, owner: Owner? = nil, xattrs: [[UInt8]: [UInt8]] = [:], modified: Timestamp
    ) {
        self.mode = mode
        self.owner = owner
        self.xattrs = xattrs
        self.modified = modified
    }
}

/// A tree of files that is made anew in a directory outside of any root. Used by one thread.
///
/// **Invariant:** what is beneath the directory is reached from its descriptor, name by name, and no
/// link is followed: whatever names a damaged history has, nothing is written elsewhere.
///
/// **Invariant:** a file that has its name is whole: it is made in `.delugefs/`, a name that no volume
/// has at its top, and moved from there.
///
/// What makes something returns what kept its attributes from being set; it is there all the same.
/// Paths are relative to the directory.
public final class OutputTree {
    public static let scratchName = ".delugefs"
    private static let new = [UInt8]("new".utf8).map(CChar.init(bitPattern:)) + [0]

    private let top: Directory
    private let scratch: Directory
    /// What was opened last: files come directory by directory.
    private var last: (path: [FileName], directory: Directory)

    /// - Parameter path: of a directory that is empty, or not there yet; it is followed as usual.
    /// - Throws: `StoreError`: ENOTEMPTY, ENOENT when the directory above is missing …
    public init(at path: FilePath) throws(StoreError) {
        let made = path.withPlatformString { cstore_mkdirat(AT_FDCWD, $0, 0o700) }
        guard made == 0 || Errno(rawValue: -made) == .fileExists else {
            throw StoreError("mkdir", Errno(rawValue: -made))
        }
        let raw = try system("open target") {
            path.withPlatformString { cstore_openat(AT_FDCWD, $0, O_RDONLY | O_DIRECTORY, 0) }
        }
        let top = Directory(raw: raw, label: "target")
        self.top = top
        var listing: OpaquePointer?
        try system("list target") { cstore_listing_open(top.raw, &listing) }
        defer { cstore_listing_close(listing) }
        var name = [CChar](repeating: 0, count: 256)
        guard try system("list target", { cstore_listing_next(listing, &name) }) == 0 else {
            throw StoreError("list target", .directoryNotEmpty)
        }
        scratch = try top.subdirectory(Self.scratchName)
        last = ([], top)
    }

    /// Removes `.delugefs/`, if nothing is left in it. Everything made is durable then.
    ///
    /// - Parameter attributes: of the top.
    public func finish(_ attributes: FileAttributes? = nil) throws(StoreError) -> StoreError? {
        _ = cstore_unlinkat(scratch.raw, Self.new)
        _ = unlinkat(top.raw, Self.scratchName, AT_REMOVEDIR)
        let failure = attributes.flatMap { set($0, of: [0x2E, 0], in: top, isLink: false) }
        try system("syncfs") { cstore_syncfs(top.raw) }
        return failure
    }

    // MARK: Making

    /// 0700 until `finishDirectory`, so that it can be filled.
    public func makeDirectory(at path: [FileName]) throws(StoreError) {
        let (parent, name) = try place(path)
        try system("mkdir") { cstore_mkdirat(parent.raw, name, 0o700) }
    }

    /// When all that belongs in it is there.
    public func finishDirectory(
        at path: [FileName], _ attributes: FileAttributes
    ) throws(StoreError) -> StoreError? {
        set(attributes, of: [0x2E, 0], in: try directory(at: path), isLink: false)
    }

    /// Takes back what `finishDirectory` did to who may write in it.
    public func reopenDirectory(at path: [FileName]) throws(StoreError) {
        let (parent, name) = try place(path)
        try system("chmod") { cstore_fchmodat(parent.raw, name, 0o700) }
    }

    /// - Parameter write: fills the empty file, or throws: then there is none.
    public func makeFile(
        at path: [FileName], _ attributes: FileAttributes, _ write: (FileDescriptor) throws -> Void
    ) throws -> StoreError? {
        try make(at: path, attributes) {
            _ = cstore_unlinkat(scratch.raw, Self.new)
            let raw = try system("create") {
                cstore_openat(scratch.raw, Self.new, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
            }
            let file = OwnedDescriptor(raw: raw)
            try write(file.descriptor)
        }
    }

    public func makeSymbolicLink(
        at path: [FileName], to target: [UInt8], _ attributes: FileAttributes
    ) throws -> StoreError? {
        let target = target.map(CChar.init(bitPattern:)) + [0]
        return try make(at: path, attributes, isLink: true) {
            try system("symlink") { cstore_symlinkat(target, scratch.raw, Self.new) }
        }
    }

    /// - Parameter type: S_IFIFO, S_IFSOCK, S_IFCHR or S_IFBLK.
    public func makeSpecial(
        at path: [FileName], type: UInt32, major: UInt32 = 0, minor: UInt32 = 0,
        _ attributes: FileAttributes
    ) throws -> StoreError? {
        try make(at: path, attributes) {
            try system("mknod") {
                cstore_mknodat(scratch.raw, Self.new, type | 0o600, major, minor)
            }
        }
    }

    /// A further name for what was made before.
    public func link(_ existing: [FileName], at path: [FileName]) throws(StoreError) {
        let (from, name) = try place(existing)
        let (parent, newName) = try place(path)
        try system("link") { cstore_linkat(from.raw, name, parent.raw, newName) }
    }

    public func exists(_ path: [FileName]) throws(StoreError) -> Bool {
        let (parent, name) = try place(path)
        return try exists(name, in: parent)
    }

    private func exists(_ name: [CChar], in directory: Directory) throws(StoreError) -> Bool {
        var status = cstore_stat()
        do throws(StoreError) {
            try system("stat") { cstore_fstatat(directory.raw, name, &status) }
            return true
        } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return false
        }
    }

    private func make(
        at path: [FileName], _ attributes: FileAttributes, isLink: Bool = false,
        _ create: () throws -> Void
    ) throws -> StoreError? {
        let (parent, name) = try place(path)
        do {
            try create()
            let failure = set(attributes, of: Self.new, in: scratch, isLink: isLink)
            try move(to: parent, name)
            return failure
        } catch {
            _ = cstore_unlinkat(scratch.raw, Self.new)
            throw error
        }
    }

    /// Never over another file: names that differ here may be one for the file system of the target.
    private func move(to parent: Directory, _ name: [CChar]) throws(StoreError) {
        let result = cstore_rename_new(scratch.raw, Self.new, parent.raw, name)
        if result == 0 { return }
        guard Errno(rawValue: -result) == .invalidArgument else {
            throw StoreError("rename", Errno(rawValue: -result))
        }
        // A file system without this kind of rename.
        guard try !exists(name, in: parent) else { throw StoreError("rename", .fileExists) }
        try system("rename") { cstore_renameat(scratch.raw, Self.new, parent.raw, name) }
    }

    /// The owner first, for a change of it takes bits and capabilities away; the mode last, for it may
    /// forbid the rest.
    private func set(
        _ attributes: FileAttributes, of name: [CChar], in directory: Directory, isLink: Bool
    ) -> StoreError? {
        var failure: StoreError?
        func attempt(_ operation: String, _ call: () -> CInt) {
            do throws(StoreError) { try system(operation, call) } catch {
                failure = failure ?? error
            }
        }
        if let owner = attributes.owner {
            attempt("chown") { cstore_fchownat(directory.raw, name, owner.uid, owner.gid) }
        }
        let file = Array("/proc/self/fd/\(directory.raw)/".utf8CString.dropLast()) + name
        for (key, value) in attributes.xattrs {
            let key = key.map(CChar.init(bitPattern:)) + [0]
            attempt("setxattr") { cstore_lsetxattr(file, key, value, UInt64(value.count)) }
        }
        let modified = attributes.modified
        attempt("utimensat") {
            cstore_set_modified_at(directory.raw, name, modified.seconds, modified.nanoseconds)
        }
        if !isLink {
            attempt("chmod") { cstore_fchmodat(directory.raw, name, UInt32(attributes.mode)) }
        }
        return failure
    }

    // MARK: Finding

    private func place(_ path: [FileName]) throws(StoreError) -> (Directory, [CChar]) {
        guard let name = path.last else { return (top, [0x2E, 0]) }
        return (try directory(at: Array(path.dropLast())), Self.text(name))
    }

    private func directory(at path: [FileName]) throws(StoreError) -> Directory {
        if last.path == path { return last.directory }
        var directory = top
        for name in path {
            let text = Self.text(name)
            let raw = try system("open directory") {
                cstore_openat(
                    directory.raw, text, cstore_o_path | O_DIRECTORY | O_NOFOLLOW, 0)
            }
            directory = Directory(raw: raw, label: "directory")
        }
        last = (path, directory)
        return directory
    }

    private static func text(_ name: FileName) -> [CChar] {
        name.bytes.map(CChar.init(bitPattern:)) + [0]
    }
}
