internal import GRDBSQLite
internal import Synchronization
internal import SystemPackage

/// The one connection that serves every read and write, inside an open transaction that the group
/// commit ends: so every request sees every earlier one.
///
/// | state    | rows                         | operations                    |
/// |----------|------------------------------|-------------------------------|
/// | idle     | = committed                  | begin a batch                 |
/// | batch    | committed + redo log         | savepoint each, then kept     |
/// | no room  | as batch                     | as batch, until it is large   |
/// | failed   | = last commit that succeeded | writes: EROFS; reads: allowed |
///
/// `@unchecked Sendable`: everything but `lock` is touched with `lock` held, and the SQLite handle
/// is opened without a mutex of its own.
final class Writer: @unchecked Sendable {
    let lock = Lock()
    /// Held by the committing thread until it has `lock`: threads that take `lock` again and again
    /// win every race for it against one that sleeps, for 90 ms and more.
    private let turnstile = Lock()
    private let isTurnstileClosed = Atomic<Bool>(false)
    private let entries = Atomic<UInt64>(0)
    private let connection: Connection
    private let transaction: Transaction
    private let options: Catalog.Options
    /// The number of the last operation performed, and of the last one inside a COMMIT.
    private(set) var performed: UInt64 = 0
    private(set) var committed: UInt64 = 0
    private(set) var failure: SQLiteFailure?
    /// Frames in the log after the last COMMIT.
    private(set) var walFrames: Int32 = 0
    /// The last COMMIT found no room.
    private var isStarved = false
    private let redoFile: RedoFile
    /// The number of the open batch.
    private var batch: UInt64

    /// A batch larger than this is committed at once: it is held in memory twice, and what is to be
    /// kept of it must fit into the redo file.
    static let batchBytesMax = Int(RedoFile.bytesMax) / 2
    /// What an apply changes lies all over the database: a batch of more than some hundreds of pages, of
    /// which this is a sign, would hold everybody up at its COMMIT.
    static let scatteredBytesMax = 32 << 10

    /// - Parameter redo: the redo file, of which nothing is needed any more.
    init(connection: Connection, redo: FilePath, options: Catalog.Options) throws {
        self.connection = connection
        self.options = options
        // A number that nothing in the file was kept under.
        batch = options.random()
        redoFile = try RedoFile(path: redo, batch: batch, own: options.own)
        connection.isLogging = true
        try connection.control("BEGIN")
        try connection.number(batch)
        try connection.control("COMMIT")
        try connection.control("BEGIN")
        transaction = try Transaction(connection, options: options)
        sqlite3_wal_hook(
            connection.handle,
            { context, _, _, frames in
                // Non-nil: passed below; alive: the hook is removed in `close`.
                Unmanaged<Writer>.fromOpaque(context!).takeUnretainedValue().walFrames = frames
                return SQLITE_OK
            }, Unmanaged.passUnretained(self).toOpaque())
    }

    /// - Returns: the body's result, and whether this operation began a batch.
    func perform<T>(_ body: (Transaction) throws -> T) throws -> (result: T, beganBatch: Bool) {
        enter()
        defer { lock.unlock() }
        guard failure == nil else { throw Errno.readOnlyFileSystem }
        try begin()
        let beganBatch = performed == committed
        let mark = connection.redo.mark
        let volatile = transaction.volatile
        do {
            let result = try apply(body)
            if connection.redo.bytes.count > Self.batchBytesMax {
                do throws(Errno) { try commit() } catch {
                    // Too much waits for room already.
                    performed -= 1
                    throw error
                }
            }
            // Where this fails, only a COMMIT keeps what was answered: `keep`, or the next batch.
            _ = redoFile.append(connection.redo)
            return (result, beganBatch)
        } catch {
            takeBack(to: mark, volatile)
            throw error
        }
    }

    private func apply<T>(_ body: (Transaction) throws -> T) throws -> T {
        try control("SAVEPOINT operation")
        let result = try body(transaction)
        try control("RELEASE operation")
        performed += 1
        return result
    }

    /// After an operation that changed rows all over the database.
    func endScatteredBatch() throws(Errno) {
        enter()
        defer { lock.unlock() }
        if connection.redo.bytes.count > Self.scatteredBytesMax { try commit() }
    }

    /// Takes the lock, after a waiting group commit.
    private func enter() {
        if isTurnstileClosed.load(ordering: .relaxed) { turnstile.withLock {} }
        lock.lock()
        entries.wrappingAdd(1, ordering: .relaxed)
    }

    /// How often anybody has read or changed something.
    var entered: UInt64 { entries.load(ordering: .relaxed) }

    func read<T>(_ body: (Reader) throws -> T) throws -> T {
        enter()
        defer { lock.unlock() }
        try begin()
        return try body(transaction)
    }

    var counts: Counts { lock.withLock { transaction.counts } }
    var local: LocalContent { lock.withLock { transaction.local } }

    func takeContentChanges() -> ContentChanges {
        lock.withLock {
            defer { transaction.changes = .these([]) }
            return transaction.changes
        }
    }

    private func begin() throws(Errno) {
        guard !connection.isInTransaction else { return }
        try control("BEGIN")
        // Only after an error did SQLite end a batch by itself.
        guard !connection.redo.isEmpty else { return }
        do throws(SQLiteFailure) {
            try connection.runAgain(connection.redo)
        } catch {
            fail(error)
            throw .ioError
        }
    }

    private func control(_ sql: StaticString) throws(Errno) {
        do throws(SQLiteFailure) {
            try connection.control(sql)
        } catch {
            options.log(error.description)
            throw error.errno
        }
    }

    /// Undoes the operation that has just thrown. On some errors (a full disk) SQLite has rolled
    /// back the whole transaction by itself; then the operations before it are run again.
    private func takeBack(to mark: RedoLog.Mark, _ volatile: Transaction.Volatile) {
        guard failure == nil else { return }
        connection.redo.truncate(to: mark)
        transaction.volatile = volatile
        transaction.forgetCached()
        do throws(SQLiteFailure) {
            if connection.isInTransaction {
                try connection.control("ROLLBACK TO operation")
                try connection.control("RELEASE operation")
            } else {
                try connection.control("BEGIN")
                try connection.runAgain(connection.redo)
            }
        } catch {
            fail(error)
        }
    }

    /// Ends the batch. Returns what is in it and before it, and the length of the log.
    func endBatch() throws(Errno) -> (operation: UInt64, frames: Int32) {
        turnstile.lock()
        isTurnstileClosed.store(true, ordering: .relaxed)
        lock.lock()
        isTurnstileClosed.store(false, ordering: .relaxed)
        turnstile.unlock()
        defer { lock.unlock() }
        try commit()
        return (committed, walFrames)
    }

    /// Ends the batch. With the lock held.
    ///
    /// - Throws: ENOSPC or EDQUOT while the disk has no room: the batch stays. EIO once the catalog has
    ///   failed.
    func commit() throws(Errno) {
        guard failure == nil else { throw .ioError }
        try begin()
        makeReady()
        do throws(SQLiteFailure) {
            try endTransaction()
        } catch {
            try commitAgain(error)
        }
        isStarved = false
        committed = performed
        guard !connection.redo.isEmpty else { return }
        connection.redo.removeAll()
        batch &+= 1
        redoFile.began(batch)
    }

    /// What came since `beforeCommit` was called without the lock.
    private func makeReady() {
        guard performed != committed, let correction = options.beforeCommit() else { return }
        let mark = connection.redo.mark
        let volatile = transaction.volatile
        do {
            try apply(correction)
            _ = redoFile.append(connection.redo)
        } catch {
            takeBack(to: mark, volatile)
            options.log("what could not be made durable is not noted: \(error)")
        }
    }

    /// What was kept of this batch does not count from here on, for its rows do.
    private func endTransaction() throws(SQLiteFailure) {
        if !connection.redo.isEmpty { try connection.number(batch &+ 1) }
        try connection.control("COMMIT")
    }

    /// What was performed survives a kill of this process from now on. With the lock held.
    ///
    /// - Throws: as `commit`.
    func keep() throws(Errno) {
        guard failure == nil else { throw .ioError }
        if !redoFile.append(connection.redo) { try commit() }
    }

    /// SQLite has discarded the batch, most likely because the disk was full: make room, run it again,
    /// for as long as there is room to be made. Others may take what becomes free.
    private func commitAgain(_ first: SQLiteFailure) throws(Errno) {
        if !isStarved { options.log("committing: \(first)") }
        var last = first
        var mayHelp = false
        repeat {
            mayHelp = options.makeRoom()
            do throws(SQLiteFailure) {
                try discard()
                try connection.control("BEGIN")
                try connection.runAgain(connection.redo)
                try endTransaction()
                return options.log("committed again after a failure")
            } catch { last = error }
        } while mayHelp && last.noRoom != nil
        guard let noRoom = last.noRoom, (try? discard()) != nil else {
            fail(last)
            throw .ioError
        }
        if !isStarved { options.log("the catalog waits for room on the disk") }
        isStarved = true
        // The batch stays in the redo log: the next one who needs its rows runs it again.
        throw noRoom
    }

    private func discard() throws(SQLiteFailure) {
        if connection.isInTransaction { try connection.control("ROLLBACK") }
    }

    /// No way back: answered operations are lost, and the mount must say so.
    private func fail(_ error: SQLiteFailure) {
        failure = error
        connection.redo.removeAll()
        if connection.isInTransaction { _ = try? connection.control("ROLLBACK") }
        transaction.forgetCached()
        _ = try? transaction.recount()
    }

    /// With the lock held: the log could not be made durable.
    func failDurability() {
        guard failure == nil else { return }
        fail(SQLiteFailure(connection.handle, statement: nil))
    }

    func close() {
        lock.withLock {
            sqlite3_wal_hook(connection.handle, nil, nil)
            connection.close()
            redoFile.close()
        }
    }
}
