public import Catalog
import FUSE
import Glibc
public import Logging
public import Store
import Synchronization
import SystemPackage
public import Volume

/// Turns closed staging files into content: small ones into their catalog row, others into objects.
///
/// Order, so that a crash at any moment keeps the old or the new version: bytes and piece layer are
/// synced, the object gets its name beside the staging name (a link), the directory is synced, the
/// catalog row changes, and the staging name goes only when that row is durable. Until then a
/// restart publishes again.
///
/// **Invariant:** an object is never written to. From the link on, a writer gets a copy; before it,
/// a read lease proves that no descriptor and no mapping can still write, and a writer that opens
/// the file meanwhile makes the publish give up (`writeGeneration`).
///
/// Locks, outermost first: a vnode's, the catalog's, the vnode table's, `condition`.
public final class Publisher: @unchecked Sendable {
    // Sendable: `queue`, `isStopping`, `running` and `failure` are touched with `condition` locked only; all
    // else is constant or guards itself.

    /// Files handled with one wait for the disk, and bytes hashed before the first of them is done.
    static let batchFilesMax = 128
    static let batchBytesMax: UInt64 = 256 << 20
    /// From this size on a file has the other thread, so that small ones do not wait behind it.
    static let largeBytesMin: UInt64 = 64 << 20
    /// Between looks at a file that a mapping or an orphaned descriptor can still write to.
    static let leaseRetryMilliseconds: UInt64 = 500
    static let failureRetryMilliseconds: UInt64 = 2000
    static let failureLifetime = Duration.seconds(10)
    /// How often a snapshot is tried while a file is opened and published, and the pause between.
    static let snapshotTriesMax = 500
    static let snapshotPauseMicroseconds: UInt32 = 10_000
    /// A batch of this many objects costs less as one sync of the disk than one per file.
    static let wholeDiskSyncFilesMin = 8

    typealias Queue = PublishQueue<Vnode>

    let catalog: Catalog
    let store: Store
    let logger: Logger
    let vnodes = VnodeTable()
    let users = ObjectUsers()
    let published: @Sendable ([Extent]) -> Void
    private let observer = Mutex<(@Sendable (VolumeChange) -> Void)?>(nil)
    private let stagingNumber: Atomic<UInt64>
    private let condition = TimedCondition()
    private var queue = Queue()
    private var isStopping = false
    private var running = 0
    private var failure: (text: String, time: ContinuousClock.Instant)?

    /// - Parameter published: called on the publisher's threads with content that became an object
    ///   here (or already was one), after its row changed.
    public init(
        catalog: Catalog, store: Store, logger: Logger,
        published: @escaping @Sendable ([Extent]) -> Void
    ) {
        self.catalog = catalog
        self.store = store
        self.logger = logger
        self.published = published
        // Numbers of earlier runs are in use by what they left: begin behind them.
        stagingNumber = Atomic(Monotonic.wallMilliseconds << 20)
    }

    func stagingName(for ino: InodeNumber) -> StagingName {
        StagingName(
            ino: ino, number: stagingNumber.wrappingAdd(1, ordering: .relaxed).newValue)
    }

    /// Whether the kernel, a descriptor or an unpublished version holds the inode.
    public func holds(_ ino: InodeNumber) -> Bool { vnodes.holds(ino) }

    /// Called when publishing changed names, as an apply would.
    func setObserver(_ body: @escaping @Sendable (VolumeChange) -> Void) {
        observer.withLock { $0 = body }
    }

    func notify(_ change: VolumeChange) { observer.withLock { $0 }?(change) }

    // MARK: Life

    /// Takes on what an earlier run left, drops what no row names, and starts the threads.
    public func start() throws {
        try recover()
        for lane in Queue.Lane.allCases {
            condition.withLock { running += 1 }
            OwnThread.start(lane == .small ? "publish" : "publish-large", .background) {
                self.run(lane)
            }
        }
    }

    /// Ends the threads after what is ready; what is put off stays for the next start.
    public func stop() {
        condition.withLock {
            isStopping = true
            condition.broadcast()
            while running > 0 { condition.wait() }
        }
    }

    /// Closed files that are not published yet.
    public var unpublished: Int { condition.withLock { queue.unpublished } }

    /// Which file could not be published lately, and why. What fails is tried again sooner than this
    /// is forgotten.
    public var lastFailure: String? {
        condition.withLock {
            failure.flatMap { ContinuousClock.now - $0.time < Self.failureLifetime ? $0.text : nil }
        }
    }

    func noteFailure(_ ino: InodeNumber, _ error: any Error) {
        let names = (try? catalog.read { try $0.path(of: ino) }) ?? []
        let path = names.isEmpty ? "a removed file" : names.map { "/\($0)" }.joined()
        condition.withLock { failure = ("\(path): \(error)", .now) }
    }

    /// Publishes everything submitted before, at once, a copy of what a mapping still holds; what
    /// a writer has open does not count.
    /// - Returns: false when the deadline passed, or something could not be published.
    public func settle(until deadline: ContinuousClock.Instant) -> Bool {
        condition.withLock {
            let round = queue.hurry()
            defer { queue.endHurry(round) }
            condition.broadcast()
            while true {
                switch queue.progress(of: round) {
                case .settled: return true
                case .failed: return false
                case .busy: guard condition.wait(until: deadline) else { return false }
                }
            }
        }
    }

    // MARK: Queue

    /// A file that nobody writes to any more is to be published. Under the vnode's lock.
    func submitIfClosed(_ vnode: Vnode) {
        guard vnode.state.writers == 0, let staged = vnode.state.staged, staged.isUnpublished
        else { return }
        let size = (try? store.stagingFacts(staged.name))?.size ?? 0
        vnodes.pin(vnode)
        let isNew = condition.withLock {
            defer { condition.broadcast() }
            return queue.add(
                vnode.nodeid, vnode, size: size, size < Self.largeBytesMin ? .small : .large)
        }
        if !isNew { unpin(vnode) }
    }

    /// Gives back the pin of something taken from the queue, or puts it back.
    func postpone(_ entry: Queue.Entry, milliseconds: UInt64, _ delay: Queue.Delay) {
        let lane: Queue.Lane = entry.size < Self.largeBytesMin ? .small : .large
        let isBack = condition.withLock {
            defer { condition.broadcast() }
            return queue.postpone(
                entry, lane, until: Monotonic.milliseconds + milliseconds, delay)
        }
        if !isBack { unpin(entry.item) }
    }

    private func run(_ lane: Queue.Lane) {
        while let batch = nextBatch(lane) {
            publish(batch)
            condition.withLock {
                queue.done(batch)
                condition.broadcast()
            }
        }
        condition.withLock {
            running -= 1
            condition.broadcast()
        }
    }

    private func nextBatch(_ lane: Queue.Lane) -> [Queue.Entry]? {
        condition.withLock {
            while true {
                let now = Monotonic.milliseconds
                let (batch, due) = queue.take(
                    lane, now: now, filesMax: Self.batchFilesMax, bytesMax: Self.batchBytesMax)
                if !batch.isEmpty { return batch }
                if isStopping { return nil }
                if let due {
                    let wait = due > now ? due - now : 1
                    condition.wait(until: .now + .milliseconds(Int64(wait)))
                } else {
                    condition.wait()
                }
            }
        }
    }

    // MARK: Vnodes

    func unpin(_ vnode: Vnode) {
        if vnodes.unpin(vnode) { reap(vnode) }
    }

    /// An inode lost its last name: when nobody holds it, it goes.
    public func unlinked(_ ino: InodeNumber) {
        if vnodes.unlinked(ino) { return reap(ino) }
        // Nobody needs its hash any more, but on a full disk its room. Under the vnode's lock, so
        // that a new name submits it after this.
        guard let vnode = vnodes.current(ino) else { return }
        vnode.locked {
            guard let hashing = vnode.state.hashing,
                (try? catalog.read { try $0.inode(ino)?.isLinked }) != true
            else { return }
            hashing.cancel()
        }
    }

    /// Nothing holds the vnode any more: if its inode has no name left, it goes.
    func reap(_ vnode: Vnode) { reap(vnode.ino, vnode.locked { vnode.state.staged }) }

    /// - Parameter held: the inode's staging file, with its claims to the objects it consists of.
    private func reap(_ ino: InodeNumber, _ held: StagedFile? = nil) {
        do {
            let staging = try catalog.perform { tx -> String? in
                let staging = try tx.staging(of: ino)?.name
                return try tx.reap(ino) ? staging : nil
            }
            if let staging, let name = StagingName(staging) {
                removeWhenDurable(
                    held.flatMap { $0.name == name ? $0 : nil } ?? StagedFile(name: name))
            }
        } catch { logger.error("removing inode \(ino.rawValue) failed: \(error)") }
    }

    /// Removes a staging name once what replaced it in the catalog is durable.
    func removeWhenDurable(_ staged: StagedFile) {
        var staged = staged
        staged.close()
        catalog.afterDurable { [store, logger, staged] failure in
            // While it has this name a restart may take it for the inode's bytes: until then nobody
            // else may have the files of objects that it is or lies over, to write to.
            defer { withExtendedLifetime(staged) {} }
            guard failure == nil else { return }
            do { try store.removeStaging(staged.name) } catch {
                logger.warning("a staging file that nobody needs could not be removed: \(error)")
            }
        }
    }

    /// The kernel no longer reads the vnode's object, or it is no object any more. Under its lock.
    func releaseClaim(_ vnode: Vnode) {
        guard let root = vnode.state.claimed else { return }
        users.release(root, for: vnode.nodeid)
        vnode.state.claimed = nil
    }

    /// Gives up the bytes of an inode that nobody uses. Under its lock.
    func unloadIfIdle(_ vnode: Vnode) {
        guard !vnode.state.isInUse else { return }
        if var staged = vnode.state.staged {
            if staged.isUnpublished {
                staged.close()
                vnode.state.bytes = .staging(staged)
                return
            }
            removeWhenDurable(staged)
        }
        vnode.state.unload()
    }
}

/// Clock readings in milliseconds.
public enum Monotonic {
    public static var milliseconds: UInt64 { read(CLOCK_MONOTONIC) }
    public static var wallMilliseconds: UInt64 { read(CLOCK_REALTIME) }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1000 + UInt64(time.tv_nsec) / 1_000_000
    }
}
