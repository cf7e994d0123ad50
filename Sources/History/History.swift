import CGit
import Glibc
import Synchronization
public import SystemPackage
public import Volume

/// The volume's metadata with all its past: one bare Git repository that stock `git` can read.
///
/// Blocking; called from threads that may block. May be used by several threads at once: readers
/// share a few handles, every pack is written through a handle of its own, references have one.
/// One process per repository: the caller holds the root's lock.
///
/// Three invariants carry it. A commit is in the graph only if all it needs is here. A reference
/// names only commits in the graph. Whatever a method says it wrote is fsynced when it returns.
public final class History: Sendable {
    public let path: FilePath
    let packs: PackFiles
    let readers: Readers
    let references: References
    let table = Mutex(CommitTable())
    /// Names for directories of their own below `quarantine`.
    private let sequence = Atomic<Int>(0)
    /// Held by a repack: one at a time.
    let repacking = Mutex(())
    /// Held while the heads of peers change.
    let notingHeads = Mutex(())

    /// The reference that stands for this node's state.
    public static let main = "refs/heads/main"

    // MARK: Opening

    /// Creates an empty repository; nothing may be at `path`. Whole or absent after a crash.
    public static func create(_ path: FilePath) throws -> History {
        try Library.require()
        let temporary = Files.sibling(path, ".new")
        try Files.removeTree(temporary)
        guard Files.size(path) == nil else {
            throw HistoryError(.system, "create", "\(path) exists", libraryCode: EEXIST)
        }
        try initialise(temporary)
        try configure(temporary)
        for directory in ["objects/pack", "objects", "refs/heads", "refs", "config", "HEAD", ""] {
            try Files.synchronize(directory.isEmpty ? temporary : temporary.appending(directory))
        }
        try Files.rename(temporary, to: path)
        let parent = path.removingLastComponent()
        try Files.synchronize(parent.isEmpty ? "." : parent)
        return try open(path)
    }

    private static func initialise(_ path: FilePath) throws {
        var options = git_repository_init_options()
        try check(
            git_repository_init_options_init(&options, UInt32(GIT_REPOSITORY_INIT_OPTIONS_VERSION)),
            "create")
        options.flags =
            GIT_REPOSITORY_INIT_BARE.rawValue | GIT_REPOSITORY_INIT_NO_REINIT.rawValue
            | GIT_REPOSITORY_INIT_MKDIR.rawValue
        var created: OpaquePointer?
        defer { git_repository_free(created) }
        let code = "main".withCString { head in
            options.initial_head = head
            return path.withPlatformString { git_repository_init_ext(&created, $0, &options) }
        }
        try check(code, "create")
    }

    /// Stock `git` must never collect or pack behind our back; the packbuilder's memory is bounded.
    private static func configure(_ path: FilePath) throws {
        var opened: OpaquePointer?
        defer { git_config_free(opened) }
        let file = path.appending("config")
        try check(file.withPlatformString { git_config_open_ondisk(&opened, $0) }, "configure")
        for (key, value) in [
            ("gc.auto", 0), ("pack.windowMemory", 16 << 20), ("pack.deltaCacheSize", 16 << 20),
        ] as [(String, Int64)] {
            try check(git_config_set_int64(opened, key, value), "configure \(key)")
        }
    }

    /// For packs of what is new: similar objects are not stored as differences there, for looking for
    /// them took half of a commit's time. Repacking does it.
    var newPackSettings: FilePath { path.appending("new-packs.config") }

    /// libgit2 1.5 takes `pack.deltaCacheSize` for the threshold by mistake (`packbuilder_config` in
    /// its `pack-objects.c`). Missing or cut short by a crash, the file costs time, nothing else.
    private func writeNewPackSettings() throws {
        let file = try FileDescriptor.open(
            newPackSettings, .writeOnly, options: [.create, .truncate, .closeOnExec],
            permissions: .ownerReadWrite)
        _ = try file.closeAfter {
            try file.writeAll(
                "[core]\n\tbigFileThreshold = 1\n[pack]\n\tdeltaCacheSize = 1\n".utf8)
        }
    }

    /// Opens a repository made by `create`, sweeps what a crash left, reads the commit graph.
    public static func open(_ path: FilePath) throws -> History { try History(path) }

    private init(_ path: FilePath) throws {
        try Library.require()
        self.path = path
        packs = PackFiles(directory: path.appending("objects/pack"))
        let quarantine = path.appending("quarantine")
        try Files.removeTree(quarantine)
        try Files.makeDirectory(quarantine)
        try Self.sweepLocks(in: path, below: false)
        try Self.sweepLocks(in: path.appending("refs"), below: true)
        try packs.sweep(reindexIn: quarantine)
        readers = try Readers(path.appending("objects"))
        references = try References(path)
        try writeNewPackSettings()
        try loadGraph()
    }

    /// A lock file that a crash left would refuse every later change.
    private static func sweepLocks(in directory: FilePath, below: Bool) throws {
        for name in try Files.names(in: directory) {
            let path = directory.appending(name)
            if name.hasSuffix(".lock") {
                try Files.remove(path)
            } else if below, Files.isDirectory(path) {
                try sweepLocks(in: path, below: true)
            }
        }
    }

    // MARK: Reading

    /// The commit; nil if there is none with this id. Throws `malformed` if it is something else.
    public func commit(_ id: ObjectID) throws -> Commit? {
        let bytes = try readers.with { database -> [UInt8]? in
            guard let object = try database.read(id) else { return nil }
            guard object.kind == .commit else {
                throw HistoryError(.malformed, "read", "\(id) is a \(object.kind)")
            }
            return object.bytes
        }
        return try bytes.map { try Commit(decoding: $0) }
    }

    func contains(_ key: ObjectID) throws -> Bool { try readers.with { $0.contains(key) } }

    // MARK: Writing

    /// Gathers what `body` writes into one pack, durable when this returns; then its commits are in
    /// the graph. Nothing is kept if `body` throws.
    public func write<T>(_ body: (inout Batch) throws -> T) throws -> T {
        var batch = Batch(history: self)
        let result = try body(&batch)
        try batch.spill()
        try enter(batch.commits)
        return result
    }

    /// Writes a pack of exactly these objects; nothing for none.
    func writePack(_ objects: [ObjectID: StagedObject]) throws {
        guard !objects.isEmpty else { return }
        let bytes = objects.values.reduce(0) { $0 + $1.bytes.count + 100 }
        try Files.requireSpace(bytes, at: packs.directory)
        let writer = try PackWriter(
            objects: objects.map { ($0.key, $0.value) }, settings: newPackSettings)
        for kind in [ObjectKind.commit, .tree, .blob] {
            for (key, object) in objects where object.kind == kind { try writer.insert(key) }
        }
        _ = try writer.write(into: packs.directory)
        try readers.refresh()
    }

    // MARK: References

    /// What `refs/heads/main` names; nil before the first commit.
    public func head() throws -> ObjectID? { try references.get(Self.main) }

    /// Moves `refs/heads/main`, atomically and durably. Throws `incomplete` unless the commit is in
    /// the graph.
    public func setHead(_ id: ObjectID) throws { try setReference(Self.main, to: id) }

    /// Name is a full one, `refs/…`, ASCII.
    public func reference(_ name: String) throws -> ObjectID? { try references.get(name) }

    /// Atomic and durable. Throws `incomplete` unless the commit is in the graph.
    public func setReference(_ name: String, to id: ObjectID) throws {
        guard graph.contains(id) else {
            throw HistoryError(.incomplete, "set \(name)", "\(id) is not a known commit")
        }
        try references.set(name, to: id)
    }

    /// Absence is success. The commit stays in the graph until the repository is opened anew.
    public func deleteReference(_ name: String) throws { try references.delete(name) }

    /// Lets go of the parts of packs that are mapped.
    public func releaseFiles() throws { try readers.reopen() }

    /// Gives memory back to the system that walks, packs and whoever else used and freed: the
    /// allocator keeps it, a gigabyte after some 100,000 changes at once. Takes milliseconds.
    public static func releaseMemory() { cgit_release_memory() }

    /// References below `prefix`, such as `refs/peers/`, by full name.
    public func references(below prefix: String = "refs/") throws -> [String: ObjectID] {
        try references.list(prefix)
    }

    /// A fresh directory below `quarantine`, laid out as an `objects` directory; the caller
    /// removes it.
    func makeQuarantine() throws -> FilePath {
        let number = sequence.wrappingAdd(1, ordering: .relaxed).newValue
        let directory = path.appending("quarantine").appending(String(number))
        try Files.makeDirectory(directory)
        try Files.makeDirectory(directory.appending("pack"))
        return directory
    }
}

extension History: TreeSource {
    public func tree(_ id: ObjectID) throws -> [TreeEntry] {
        try readers.tree(id).unpacked
    }

    public func blob(_ id: ObjectID) throws -> [UInt8] {
        try readers.with { try $0.read(id, as: .blob) }
    }
}
