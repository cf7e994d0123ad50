internal import GRDBSQLite

/// Moves the log's pages into the database, on a thread and a connection of its own: the sync of
/// the database must hold up neither requests nor fsync.
///
/// `@unchecked Sendable`: `state` is guarded by `gate`; the connection is used by the thread alone
/// until it has been joined.
final class Checkpointer: @unchecked Sendable {
    private struct State {
        var frames: Int32 = 0
        /// In the log, but no longer needed there.
        var moved: Int32 = 0
        var isStopping = false
    }

    private let gate = Lock()
    private var state = State()
    private let connection: Connection
    private let writer: Writer
    private let preallocation: Preallocation
    private let options: Catalog.Options
    private var thread: WorkerThread?

    /// Pages in the log beyond which it is moved while operations go on: 16 MiB.
    static let framesSoftMax: Int32 = 4096
    /// Pages beyond which the last rest is moved with operations held up: under a load without any
    /// pause the log would never be empty, and so never start over. 128 MiB.
    static let framesHardMax: Int32 = 32768
    /// Before that, so often it is moved once more, for the rest to be short.
    private static let passesMax = 4

    init(
        connection: Connection, writer: Writer, preallocation: Preallocation,
        options: Catalog.Options
    ) {
        self.connection = connection
        self.writer = writer
        self.preallocation = preallocation
        self.options = options
    }

    func start() {
        thread = WorkerThread(name: "catalog-moves") { [self] in run() }
    }

    func logGrew(to frames: Int32) {
        gate.withLock {
            // The log has started over.
            if frames < state.frames { state.moved = 0 }
            state.frames = frames
            if frames - state.moved >= Self.framesSoftMax { gate.signalAll() }
        }
    }

    func stop() {
        gate.withLock {
            state.isStopping = true
            gate.signalAll()
        }
        thread?.join()
        thread = nil
        connection.close()
    }

    private func run() {
        while let frames = awaitWork() {
            move()
            if frames >= Self.framesHardMax {
                for _ in 1..<Self.passesMax where left > Self.framesSoftMax / 4 { move() }
                writer.lock.withLock {
                    // A failure shows in the next group commit.
                    _ = try? writer.commit()
                    move()
                }
            }
        }
    }

    private func awaitWork() -> Int32? {
        gate.lock()
        defer { gate.unlock() }
        while state.frames - state.moved < Self.framesSoftMax {
            if state.isStopping { return nil }
            gate.wait()
        }
        return state.isStopping ? nil : state.frames
    }

    private var left: Int32 { gate.withLock { state.frames - state.moved } }

    private func move() {
        var frames: Int32 = 0
        var moved: Int32 = 0
        let code = sqlite3_wal_checkpoint_v2(
            connection.handle, nil, SQLITE_CHECKPOINT_PASSIVE, &frames, &moved)
        // Busy: the log's head was being written, which happens; the next attempt comes soon.
        if code != SQLITE_OK, code != SQLITE_BUSY {
            options.log("\(SQLiteFailure(connection.handle, statement: nil))")
        }
        preallocation.databaseMoved()
        gate.withLock {
            // Also after an error: the next attempt comes when the log has grown again.
            state.moved = code == SQLITE_OK ? max(moved, 0) : state.frames
        }
    }
}
