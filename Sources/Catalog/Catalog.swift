internal import GRDB
internal import GRDBSQLite
internal import Glibc
internal import Synchronization
public import SystemPackage
public import Volume

/// The live state of the volume on this node: SQLite, answering every request of the mount.
///
/// Every operation is performed inside the open transaction of one writer connection and sees every
/// earlier one. A group commit ends that transaction every `commitInterval` and makes it durable;
/// `flush` waits for that. All methods block and are called on threads made for that.
public final class Catalog: Sendable {
    public struct Options: Sendable {
        /// This node: named by every stamp it gives.
        public var node: NodeID
        /// Milliseconds since 1970, for stamps.
        public var wallMilliseconds: @Sendable () -> UInt64 = {
            var now = timespec()
            clock_gettime(CLOCK_REALTIME, &now)
            return UInt64(now.tv_sec) * 1000 + UInt64(now.tv_nsec) / 1_000_000
        }
        /// 64 random bits, for inode number prefixes and link ids.
        public var random: @Sendable () -> UInt64 = { UInt64.random(in: .min ... .max) }
        /// How long an operation may wait for its COMMIT when nobody asks for it.
        public var commitInterval: Duration = .milliseconds(50)
        /// Memory for pages of the writer connection; the reader's is a quarter.
        public var cacheBytes = 32 << 20
        /// A change from elsewhere of at most so many records and names is applied in one operation.
        public var appliedAtOnceMax = 256
        /// Gives a file the blocks of its first bytes without changing its size (`Store.own`); false:
        /// it could not. Called on threads of the catalog.
        public var own: @Sendable (UInt64, FileDescriptor) -> Bool = { _, _ in false }
        /// Makes durable what rows lead to outside of the database and what no row may outlive: called
        /// for every batch before its COMMIT, whose pages the kernel may write to the disk at any
        /// moment. First with no lock held, and then for what came meanwhile with the catalog's; must
        /// not call the catalog. What it returns is performed in the batch.
        public var beforeCommit: @Sendable () -> (@Sendable (Transaction) throws -> Void)? = {
            nil
        }
        /// The disk is full: gives it some of what is held back; false: nothing is. Called with the
        /// catalog's lock held; must not call the catalog.
        public var makeRoom: @Sendable () -> Bool = { false }
        /// The catalog has failed for good: operations that were answered are lost, all further
        /// ones throw EROFS. Called once, on a thread of the catalog, with no lock held.
        public var onFailure: @Sendable () -> Void = {}
        /// The database has something in it that cannot be; only what needs that fails. Called any number
        /// of times, perhaps with the catalog's lock held; must not call the catalog.
        public var onDamage: @Sendable (String) -> Void = { _ in }
        /// What SQLite said, for the log.
        public var log: @Sendable (String) -> Void = { _ in }

        public init(node: NodeID) { self.node = node }
    }

    private let writer: Writer
    private let groupCommit: GroupCommit
    private let checkpointer: Checkpointer
    private let durableReader: DurableReader
    private let preallocation: Preallocation
    let appliedAtOnceMax: Int
    /// The inodes of an `apply` under way that nothing visible leads to.
    let unseen = Mutex<Set<LineageID>>([])

    /// Opens or makes the database. One process at a time: the caller holds the root's lock.
    ///
    /// Throws when it is of a later version or damaged, or the file system refuses.
    public init(path: FilePath, options: Options) throws {
        Self.useOwnMemory
        appliedAtOnceMax = options.appliedAtOnceMax
        let name = path.string
        guard FilePath(name) == path else { throw Errno.illegalByteSequence }
        // SQLite would make it readable for others; log and index take the database's mode.
        try FileDescriptor.open(
            path, .readWrite, options: [.create, .closeOnExec], permissions: .ownerReadWrite
        ).close()
        let queue = try DatabaseQueue(
            path: name, configuration: Self.configuration(options, cache: options.cacheBytes))
        let redo = FilePath(name + "-redo")
        if let batch = try queue.unsafeReentrantWrite({ try Schema.batch($0) }) {
            // Before tables change: statements are of the schema that they were run in.
            let operations = try RedoFile.operations(at: redo, of: batch)
            if !operations.isEmpty {
                try Self.perform(operations, path: name, options: options)
            }
        }
        try queue.unsafeReentrantWrite { try Schema.migrate($0) }
        let walName = name + "-wal"
        let wal = try FileDescriptor.open(walName, .readOnly, options: .closeOnExec)
        try Self.syncDirectory(of: path)

        writer = try Writer(
            connection: Connection(queue: queue, options), redo: redo, options: options)
        preallocation = try Preallocation(path: name, own: options.own)
        let moving = try DatabaseQueue(
            path: name, configuration: Self.configuration(options, cache: 1 << 20))
        checkpointer = Checkpointer(
            connection: try Connection(queue: moving, options), writer: writer,
            preallocation: preallocation, options: options)
        groupCommit = GroupCommit(
            writer: writer, log: wal, checkpointer: checkpointer, preallocation: preallocation,
            options: options)
        let reading = try DatabaseQueue(
            path: name,
            configuration: Self.configuration(
                options, cache: options.cacheBytes / 4, pragmas: ["query_only = ON"]))
        durableReader = DurableReader(
            connection: try Connection(queue: reading, options), writer: writer,
            groupCommit: groupCommit)
        checkpointer.start()
        groupCommit.start()
    }

    /// One process has the catalog: the log's index is in its memory. As a mapped file, which SQLite
    /// makes of it otherwise, an error of the disk would be SIGBUS for the whole process.
    static let useOwnMemory: Void = {
        guard let system = sqlite3_vfs_find("unix-excl") else { return }
        sqlite3_vfs_register(system, 1)
    }()

    /// What was answered, and not committed when the process was killed.
    private static func perform(
        _ operations: [RedoFile.Operation], path: String, options: Options
    ) throws {
        let queue = try DatabaseQueue(
            path: path, configuration: configuration(options, cache: options.cacheBytes))
        let connection = try Connection(queue: queue, options)
        defer { connection.close() }
        try connection.control("BEGIN")
        try connection.perform(operations)
        try connection.number(options.random())
        try connection.control("COMMIT")
        options.log("performed again what was not committed: \(operations.count) operations")
    }

    private static func configuration(
        _ options: Options, cache: Int, pragmas: [String] = []
    ) -> Configuration {
        var configuration = Configuration()
        configuration.foreignKeysEnabled = false
        configuration.allowsUnsafeTransactions = true
        // The log's few shared locks are held for microseconds.
        configuration.busyMode = .timeout(10)
        configuration.journalMode = .wal
        configuration.prepareDatabase { db in
            for pragma in [
                "synchronous = NORMAL", "wal_autocheckpoint = 0",
                "cache_size = -\(cache / 1024)",
                // Dirty pages reach the disk by COMMIT alone, so that a full disk shows only there.
                "cache_spill = OFF", "temp_store = MEMORY",
                // No mmap: a bad sector would be SIGBUS for the whole process.
                "mmap_size = 0",
            ] + pragmas {
                try db.execute(sql: "PRAGMA \(pragma)")
            }
        }
        return configuration
    }

    /// The database's and the log's names must survive power loss too.
    private static func syncDirectory(of path: FilePath) throws {
        let parent = path.removingLastComponent()
        let directory = try FileDescriptor.open(
            parent.isEmpty ? "." : parent, .readOnly, options: [.directory, .closeOnExec])
        defer { _ = try? directory.close() }
        guard fsync(directory.rawValue) == 0 else { throw Errno(rawValue: errno) }
    }

    /// Makes everything durable and closes the database. Nothing may be called afterwards.
    public func close() {
        groupCommit.stop()
        checkpointer.stop()
        durableReader.close()
        writer.close()
        preallocation.close()
    }

    // MARK: - Operations

    /// Performs one operation: when the body throws, nothing of it has happened. It is durable only
    /// after a `flush`.
    ///
    /// The body runs with the catalog's lock held: it must be short and must not call the catalog.
    /// Throws what the body throws, EROFS once the catalog has failed, ENOSPC, EDQUOT, EIO.
    public func perform<T>(_ body: (Transaction) throws -> T) throws -> T {
        do {
            let (result, beganBatch) = try writer.perform(body)
            if beganBatch { groupCommit.batchBegan() }
            return result
        } catch {
            if writer.lock.withLock({ writer.failure != nil }) { groupCommit.failed() }
            throw error
        }
    }

    /// Asks about the present state, every earlier operation included. The same rules as `perform`.
    public func read<T>(_ body: (Reader) throws -> T) throws -> T { try writer.read(body) }

    /// Asks about a durable state no older than the last group commit, on a connection of its own:
    /// may take long without holding up operations. One at a time.
    public func snapshot<T>(_ body: (Snapshot) throws -> T) throws -> T {
        try durableReader.snapshot(body)
    }

    /// What is linked in the volume, without a query.
    public var counts: Counts { writer.counts }

    /// What is complete on this disk, without a query.
    public var local: LocalContent { writer.local }

    /// Contents whose holders or references changed since this was called last.
    public func takeContentChanges() -> ContentChanges { writer.takeContentChanges() }

    /// An inode number or link id that is not in use here. Throws EROFS once the catalog has failed.
    public func nextIdentity() throws -> UInt64 {
        try perform { try $0.nextIdentity() }
    }

    // MARK: - Durability

    /// Blocks until every operation performed before this call survives power loss. Callers share
    /// one sync. Throws ENOSPC or EDQUOT while there is no room for that, EIO once the catalog has failed.
    public func flush() throws(Errno) {
        try groupCommit.waitUntilDurable(writer.lock.withLock { writer.performed })
    }

    /// How often anybody has read or changed something.
    var entered: UInt64 { writer.entered }

    func endScatteredBatch() throws(Errno) { try writer.endScatteredBatch() }

    /// Sees to it that everything performed so far survives a kill of this process, though not power
    /// loss; it does without this too, unless the disk is full. Never waits for the disk. Throws as
    /// `flush`.
    public func commitBatch() throws(Errno) {
        writer.lock.lock()
        defer { writer.lock.unlock() }
        try writer.keep()
    }

    /// Calls the body when every operation performed before this call survives power loss, or for
    /// now cannot (the error, as of `flush`): on a thread of the catalog that others wait for, or at once on this one. It must
    /// be short and must not block.
    public func afterDurable(_ body: @escaping @Sendable (Errno?) -> Void) {
        groupCommit.afterDurable(writer.lock.withLock { writer.performed }, body)
    }

    public var hasFailed: Bool { writer.lock.withLock { writer.failure != nil } }
}
