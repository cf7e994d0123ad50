public import Catalog
public import Foundation
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
public final class Publisher: Sendable {
    /// Files handled with one wait for the disk.
    static let batchFilesMax = 128
    /// Between looks at a file that a mapping or an orphaned descriptor can still write to.
    static let leaseRetryMilliseconds: UInt64 = 500
    /// A batch of this many objects costs less as one sync of the disk than one per file.
    static let wholeDiskSyncFilesMin = 8

    let catalog: Catalog
    let store: Store
    let vnodes = VnodeTable()
    private let logger: Logger
    private let published: @Sendable ([Extent]) -> Void
    private let condition = NSCondition()
    private let queue = Mutex(Queue())
    private let stagingNumber: Atomic<UInt64>

    fileprivate struct Queue {
        var ready: [InodeNumber] = []
        var waiting: Set<InodeNumber> = []
        var later: [(due: UInt64, ino: InodeNumber)] = []
        var inWork = 0
        var stopping = false
        var running = false
    }

    /// - Parameter published: called on the publisher's thread with content that became an object
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

    /// Inodes that the kernel or a descriptor holds.
    public var heldInodes: Set<InodeNumber> { vnodes.held }

    // MARK: Queue

    /// Closed files that are not published yet.
    public var unpublished: Int {
        queue.withLock { $0.waiting.count + $0.inWork }
    }

    /// Takes on what an earlier run left, drops what no row names, and starts the thread.
    public func start() throws {
        var after = InodeNumber(rawValue: 0)
        var named: Set<StagingName> = []
        while true {
            let rows = try catalog.read { try $0.unpublished(after: after, limit: 1000) }
            guard let last = rows.last else { break }
            for row in rows {
                if let name = StagingName(row.name) { named.insert(name) }
                submit(row.ino)
            }
            after = last.ino
        }
        for name in try store.listStaging() where !named.contains(name) {
            try store.removeStaging(name)
        }
        queue.withLock { $0.running = true }
        let thread = Thread { self.run() }
        thread.name = "publish"
        thread.start()
    }

    public func submit(_ ino: InodeNumber) {
        _ = vnodes.pin(ino)
        let isNew = queue.withLock { queue in
            guard queue.waiting.insert(ino).inserted else { return false }
            queue.ready.append(ino)
            return true
        }
        if !isNew { unpin(ino) }
        condition.withLock { condition.broadcast() }
    }

    /// Waits until everything submitted before is published; what a writer or a mapping still
    /// holds does not count.
    /// - Returns: false when the deadline passed.
    public func settle(until deadline: Date) -> Bool {
        condition.withLock {
            while queue.withLock({ !$0.ready.isEmpty || $0.inWork > 0 }) {
                guard condition.wait(until: deadline) else { return false }
            }
            return true
        }
    }

    public func stop() {
        queue.withLock { $0.stopping = true }
        condition.withLock {
            condition.broadcast()
            while queue.withLock({ $0.running }) { condition.wait() }
        }
    }

    private func run() {
        while let batch = nextBatch() {
            publish(batch)
            queue.withLock { $0.inWork = 0 }
            condition.withLock { condition.broadcast() }
        }
        queue.withLock { $0.running = false }
        condition.withLock { condition.broadcast() }
    }

    private func nextBatch() -> [InodeNumber]? {
        condition.withLock {
            while true {
                let (batch, due) = queue.withLock { $0.take(now: Monotonic.milliseconds) }
                if let batch, batch.isEmpty { return nil }
                if let batch { return batch }
                let wait = due.map { max(1, Int64($0) - Int64(Monotonic.milliseconds)) } ?? 60_000
                _ = condition.wait(until: Date(timeIntervalSinceNow: Double(wait) / 1000))
            }
        }
    }

    private func retry(_ ino: InodeNumber, after milliseconds: UInt64) {
        queue.withLock { queue in
            queue.waiting.insert(ino)
            queue.later.append((Monotonic.milliseconds + milliseconds, ino))
        }
    }

    private func unpin(_ ino: InodeNumber) {
        if let vnode = vnodes.existing(ino), vnodes.unpin(vnode) { reap(ino) }
    }

    /// Nothing holds the inode any more: if it has no name left, it goes.
    public func reap(_ ino: InodeNumber) {
        do {
            let staging = try catalog.perform { tx -> String? in
                guard let inode = try tx.inode(ino), inode.linkCount == 0 else { return nil }
                let staging = try tx.staging(of: ino)?.name
                _ = try tx.reap(ino)
                return staging
            }
            if let staging, let name = StagingName(staging) { try store.removeStaging(name) }
        } catch { logger.error("removing inode \(ino.rawValue) failed: \(error)") }
    }

    /// Removes a staging name once the row that replaced it is durable.
    func removeWhenDurable(_ name: StagingName) {
        catalog.afterDurable { [store, logger] failure in
            guard failure == nil else { return }
            do { try store.removeStaging(name) } catch {
                logger.warning("a published staging file could not be removed: \(error)")
            }
        }
    }

    // MARK: Publishing

    /// A closed file, seen under its lock to have no writer.
    private struct Candidate {
        let vnode: Vnode
        let name: StagingName
        let file: SharedDescriptor
        let generation: UInt64
        let length: UInt64
        let modified: Timestamp
    }

    private func publish(_ batch: [InodeNumber]) {
        var objects: [(Candidate, HashedExtent)] = []
        for ino in batch {
            guard let vnode = vnodes.existing(ino) else { continue }
            do {
                guard let candidate = try candidate(vnode) else {
                    unpin(ino)
                    continue
                }
                if candidate.length <= Limits.inlineBytesMax {
                    try publishInline(candidate)
                } else {
                    let result = try Merkle.hash(candidate.file.descriptor, length: candidate.length)
                    if result.extents.count == 1 {
                        objects.append((candidate, result.extents[0]))
                        continue
                    }
                    try publishSplit(candidate, result)
                }
                unpin(ino)
            } catch { failed(ino, error) }
        }
        guard !objects.isEmpty else { return }
        do { try publishObjects(objects) } catch {
            for (candidate, _) in objects { failed(candidate.vnode.ino, error) }
        }
    }

    private func failed(_ ino: InodeNumber, _ error: any Error) {
        logger.warning("publishing inode \(ino.rawValue) failed, will try again: \(error)")
        retry(ino, after: 2000)
    }

    /// - Returns: nil when there is nothing to publish, or somebody has it open for writing and
    ///   will submit it again, or can still write to it and it was put off.
    private func candidate(_ vnode: Vnode) throws -> Candidate? {
        vnode.lock()
        defer { vnode.unlock() }
        guard vnode.state.writers == 0, vnode.state.waiting == nil else { return nil }
        guard let row = try catalog.read({ try $0.staging(of: vnode.ino) }),
            let name = StagingName(row.name)
        else { return nil }
        // The daemon's own writable descriptor would count against the lease.
        let file = SharedDescriptor(try store.openStaging(name, .read))
        if case .staging(let staging) = vnode.state.bytes {
            vnode.state.bytes = .staging(StagingFile(name: staging.name, file: file))
        }
        if try store.hasWriters(file.descriptor) {
            retry(vnode.ino, after: Self.leaseRetryMilliseconds)
            _ = vnodes.pin(vnode.ino)
            return nil
        }
        guard let status = fileStatus(file.descriptor) else { throw Errno(rawValue: errno) }
        return Candidate(
            vnode: vnode, name: name, file: file, generation: vnode.state.writeGeneration,
            length: UInt64(status.st_size), modified: Timestamp(status.st_mtim))
    }

    private func publishInline(_ candidate: Candidate) throws {
        var bytes = [UInt8](repeating: 0, count: Int(candidate.length))
        let count = try bytes.withUnsafeMutableBytes {
            try candidate.file.descriptor.read(fromAbsoluteOffset: 0, into: $0)
        }
        guard count == bytes.count else { throw Errno.ioError }
        try finish(candidate, .inline(bytes), isObject: false)
        published([])
    }

    private func publishSplit(_ candidate: Candidate, _ result: MerkleResult) throws {
        candidate.vnode.lock()
        let isCurrent =
            candidate.vnode.state.writeGeneration == candidate.generation
            && candidate.vnode.state.opens == 0
        guard isCurrent else {
            candidate.vnode.unlock()
            retry(candidate.vnode.ino, after: Self.leaseRetryMilliseconds)
            _ = vnodes.pin(candidate.vnode.ino)
            return
        }
        defer { candidate.vnode.unlock() }
        try store.publish(Publication(staging: candidate.name, result: result))
        try record(candidate, result.content)
        published(result.content.extents)
    }

    private func publishObjects(_ objects: [(Candidate, HashedExtent)]) throws {
        let together = objects.count >= Self.wholeDiskSyncFilesMin
        var prepared: [(Candidate, HashedExtent, PreparedObject)] = []
        for (candidate, hashed) in objects {
            do {
                prepared.append(
                    (candidate, hashed,
                     try store.prepareObject(candidate.name, hashed, synchronizing: !together)))
            } catch { failed(candidate.vnode.ino, error) }
        }
        if together { try store.synchronizeDisk() }
        var linked: [(Candidate, HashedExtent)] = []
        for (candidate, hashed, object) in prepared {
            do {
                if try link(candidate, object) { linked.append((candidate, hashed)) }
                else { unpin(candidate.vnode.ino) }
            } catch { failed(candidate.vnode.ino, error) }
        }
        try store.synchronizeNames(of: linked.map(\.1.extent.root))
        for (candidate, hashed) in linked {
            do {
                try finish(candidate, .extents([hashed.extent]), isObject: true)
                published([hashed.extent])
                unpin(candidate.vnode.ino)
            } catch { failed(candidate.vnode.ino, error) }
        }
    }

    /// Gives the staging file's inode the object's name: from here on a writer gets a copy.
    private func link(_ candidate: Candidate, _ object: PreparedObject) throws -> Bool {
        let vnode = candidate.vnode
        vnode.lock()
        defer { vnode.unlock() }
        guard vnode.state.writeGeneration == candidate.generation else {
            store.discard(object)
            return false
        }
        if try store.link(object) == .linked { vnode.state.sealed = object.hashed.extent }
        return true
    }

    private func finish(_ candidate: Candidate, _ content: Content, isObject: Bool) throws {
        let vnode = candidate.vnode
        vnode.lock()
        defer { vnode.unlock() }
        guard vnode.state.writeGeneration == candidate.generation else {
            // A writer has a newer staging file; this one's name is not needed.
            if isObject { removeWhenDurable(candidate.name) }
            return
        }
        try record(candidate, content)
        let sealed = vnode.state.sealed
        vnode.state.sealed = nil
        vnode.state.closed = nil
        if vnode.state.opens > 0, let sealed {
            vnode.state.bytes = .object(sealed, candidate.file)
            removeWhenDurable(candidate.name)
        } else if vnode.state.opens > 0 {
            vnode.state.isPublished = true
        } else {
            vnode.state.bytes = nil
            removeWhenDurable(candidate.name)
        }
    }

    private func record(_ candidate: Candidate, _ content: Content) throws {
        try catalog.perform { tx in
            let now = Monotonic.wallMilliseconds
            for extent in content.extents {
                try tx.setContentState(extent, .stored, at: now)
            }
            _ = try tx.setContent(
                candidate.vnode.ino, content, modified: candidate.modified, now: .now)
            try tx.clearStaging(candidate.vnode.ino)
        }
    }
}

extension Publisher.Queue {
    /// - Returns: a batch, or empty when it is over, or nil and when to look again.
    fileprivate mutating func take(now: UInt64) -> ([InodeNumber]?, UInt64?) {
        let due = later.filter { $0.due <= now }.map(\.ino)
        if !due.isEmpty {
            later.removeAll { $0.due <= now }
            ready += due
        }
        if !ready.isEmpty {
            let batch = Array(ready.prefix(Publisher.batchFilesMax))
            ready.removeFirst(batch.count)
            waiting.subtract(batch)
            inWork = batch.count
            return (batch, nil)
        }
        if stopping { return ([], nil) }
        return (nil, later.map(\.due).min())
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
