internal import Glibc
internal import SystemPackage

/// Ends the writer's batch every so often, makes it durable with no lock held, and tells whoever
/// waits for that.
///
/// `synchronous=NORMAL` means that COMMIT only writes the log; the thread here then calls
/// fdatasync on a descriptor of its own. With FULL, SQLite would sync inside COMMIT, and every
/// request would stand still behind the disk for as long.
///
/// `@unchecked Sendable`: `state` is guarded by `gate`; all else is constant.
final class GroupCommit: @unchecked Sendable {
    private struct State {
        /// The number of the last operation that survives power loss.
        var durable: UInt64 = 0
        /// Somebody waits for this one.
        var wanted: UInt64 = 0
        var isPending = false
        var isStopping = false
        var hasFailed = false
        /// How often there was no room, and what the disk said.
        var refusals: (count: UInt64, last: Errno) = (0, .noSpace)
        var waiting: [(operation: UInt64, body: @Sendable (Errno?) -> Void)] = []
    }

    private let gate = Lock()
    private var state = State()
    private let writer: Writer
    private let log: FileDescriptor
    private let checkpointer: Checkpointer
    private let preallocation: Preallocation
    private let options: Catalog.Options
    private var thread: WorkerThread?

    /// How often `beforeCommit` is called without a lock: what comes during a second one is little.
    private static let unlockedRounds = 2

    /// Bodies waiting for durability at one time: FUSE requests in flight are fewer.
    static let waitingMax = 65_536

    /// - Parameter log: of the file `-wal`; closed by `stop`.
    init(
        writer: Writer, log: FileDescriptor, checkpointer: Checkpointer,
        preallocation: Preallocation, options: Catalog.Options
    ) {
        self.writer = writer
        self.log = log
        self.checkpointer = checkpointer
        self.preallocation = preallocation
        self.options = options
    }

    func start() {
        thread = WorkerThread(name: "catalog-commit") { [self] in run() }
    }

    /// The first operation of a batch has been performed.
    func batchBegan() {
        gate.withLock {
            state.isPending = true
            gate.signalAll()
        }
    }

    /// Blocks until the operation survives power loss. Throws EIO once the catalog has failed, ENOSPC or
    /// EDQUOT when there is no room: then it may still become durable, later.
    func waitUntilDurable(_ operation: UInt64) throws(Errno) {
        gate.lock()
        defer { gate.unlock() }
        guard state.durable < operation else { return }
        if state.wanted < operation {
            state.wanted = operation
            gate.signalAll()
        }
        let refusals = state.refusals.count
        while state.durable < operation {
            guard !state.hasFailed else { throw .ioError }
            guard state.refusals.count == refusals else { throw state.refusals.last }
            gate.wait()
        }
    }

    /// Calls the body, on the committing thread or at once here, when the operation survives power
    /// loss, or with what `waitUntilDurable` would throw.
    func afterDurable(_ operation: UInt64, _ body: @escaping @Sendable (Errno?) -> Void) {
        enum Outcome { case now(Errno?), later, full }
        let outcome: Outcome = gate.withLock {
            if state.durable >= operation { return .now(nil) }
            if state.hasFailed { return .now(.ioError) }
            if state.waiting.count >= Self.waitingMax { return .full }
            state.waiting.append((operation, body))
            if state.wanted < operation {
                state.wanted = operation
                gate.signalAll()
            }
            return .later
        }
        switch outcome {
        case .now(let error): body(error)
        case .later: break
        case .full:
            do throws(Errno) {
                try waitUntilDurable(operation)
                body(nil)
            } catch {
                body(error)
            }
        }
    }

    /// The writer has failed outside this thread.
    func failed() {
        gate.withLock {
            state.isPending = true
            state.wanted = max(state.wanted, state.durable + 1)
            gate.signalAll()
        }
    }

    /// Commits what is left. Nothing is performed afterwards.
    func stop() {
        gate.withLock {
            state.isStopping = true
            gate.signalAll()
        }
        thread?.join()
        thread = nil
        _ = try? log.close()
    }

    private func run() {
        while awaitBatch() {
            do throws(Errno) {
                let (operation, frames) = try endBatch()
                finish(durable: operation)
                preallocation.logGrew(to: frames)
                checkpointer.logGrew(to: frames)
            } catch {
                let hasFailed = writer.lock.withLock { writer.failure != nil }
                if hasFailed || !refuse(error) { return finishFailed() }
            }
        }
    }

    /// False: stopping, and everything performed is durable.
    private func awaitBatch() -> Bool {
        gate.lock()
        defer { gate.unlock() }
        while !state.isPending, state.wanted <= state.durable {
            if state.isStopping { return false }
            gate.wait()
        }
        if state.wanted <= state.durable, !state.isStopping {
            gate.wait(atMost: options.commitInterval)
        }
        state.isPending = false
        return true
    }

    private func endBatch() throws(Errno) -> (operation: UInt64, frames: Int32) {
        for _ in 0..<Self.unlockedRounds {
            guard let correction = options.beforeCommit() else { continue }
            do { _ = try writer.perform(correction) } catch {
                options.log("what could not be made durable is not noted: \(error)")
            }
        }
        let result = try writer.endBatch()
        // The errno is read before anything else is called.
        if fdatasync(log.rawValue) != 0 {
            let error = Errno(rawValue: errno)
            options.log("fdatasync of the catalog's log: \(error)")
            // What the kernel dropped cannot be synced again: a second fdatasync would lie.
            writer.lock.withLock { writer.failDurability() }
            throw error
        }
        return result
    }

    private func finish(durable operation: UInt64) {
        gate.lock()
        state.durable = max(state.durable, operation)
        let durable = state.durable
        let ready = state.waiting.filter { $0.operation <= durable }
        state.waiting.removeAll { $0.operation <= durable }
        gate.signalAll()
        gate.unlock()
        for (_, body) in ready { body(nil) }
    }

    /// Whoever waits learns that there is no room now; the batch is tried again, for there may be.
    ///
    /// - Returns: false: stopping, there is no later.
    private func refuse(_ error: Errno) -> Bool {
        gate.lock()
        let waiting = state.waiting
        state.waiting = []
        state.wanted = state.durable
        state.refusals = (state.refusals.count + 1, error)
        state.isPending = true
        let isStopping = state.isStopping
        gate.signalAll()
        gate.unlock()
        for (_, body) in waiting { body(error) }
        return !isStopping
    }

    private func finishFailed() {
        gate.lock()
        state.hasFailed = true
        let waiting = state.waiting
        state.waiting = []
        gate.signalAll()
        gate.unlock()
        for (_, body) in waiting { body(.ioError) }
        options.onFailure()
    }
}
