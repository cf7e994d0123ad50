public import Catalog
public import FUSE
import Glibc
public import Logging
public import Store
import Synchronization
import SystemPackage
public import Volume

/// The volume as a file system: FUSE requests answered from the catalog, the store and, for content
/// that is not on this disk, from peers.
///
/// Called on FUSE reader threads, concurrently. Nothing here waits for the network: a request that
/// must wait hands its reply to the waiter.
public final class VolumeFileSystem: FileSystem {
    public struct Options: Sendable {
        public var passthrough = true
        /// nil: ids pass unchanged.
        public var owners: OwnerMapping?

        /// The disk is about to be full: nothing new is made, so that the catalog can always be
        /// written. Removals go on.
        public var isFull: @Sendable () -> Bool = { false }

        public init() {}
    }

    /// How long the kernel may believe names and attributes: every change from elsewhere is pushed.
    static let cacheLifetime = Duration.seconds(3600)
    /// While a passthrough writer may change size and times behind our back.
    static let writingLifetime = Duration.seconds(1)

    let catalog: Catalog
    let store: Store
    let remote: any RemoteContent
    let options: Options
    let logger: Logger
    let handles = HandleTable<Handle>()
    /// Runs what would keep a reader thread waiting for the disk: copies before a write, truncations.
    let preparation = WorkQueue(name: "prepare", threads: 2)
    /// Runs what an fsync waits for: as many at once as a disk orders well among themselves.
    let synchronization = WorkQueue(name: "fsync", threads: 8)
    let contents: ContentOpener
    let failures: FailureLog
    let derived: DerivedXattrs
    let virtual: VirtualDirectory
    public let publisher: Publisher
    var vnodes: VnodeTable { publisher.vnodes }
    /// What the volume has and can take, for statfs. Set by the composition.
    let statistics: @Sendable () -> VolumeStatistics
    /// Returns when so many disks have confirmed content that was published here, and its commit.
    let replicated: @Sendable ([Extent], Int) async throws -> Void
    /// Called after every change of names, attributes or content.
    let changed: @Sendable () -> Void
    /// The disk can copy a file without copying its bytes.
    let sharesBlocks: Bool
    /// The disk can tell what was written from what was not.
    let makesOverlays: Bool
    /// Invalidations that found no room; see `VolumeFileSystem+Invalidation`.
    let postponed = Mutex(Invalidation())
    private let attached = Mutex<Session?>(nil)

    public init(
        catalog: Catalog, store: Store, remote: any RemoteContent, publisher: Publisher,
        options: Options, logger: Logger, past: PastSource,
        status: @escaping @Sendable () -> [UInt8],
        statistics: @escaping @Sendable () -> VolumeStatistics,
        holders: @escaping @Sendable ([Extent]) -> [String],
        replicated: @escaping @Sendable ([Extent], Int) async throws -> Void,
        sharesBlocks: Bool, makesOverlays: Bool, changed: @escaping @Sendable () -> Void
    ) {
        self.catalog = catalog
        self.store = store
        self.remote = remote
        self.publisher = publisher
        self.options = options
        self.logger = logger
        self.statistics = statistics
        self.replicated = replicated
        self.changed = changed
        self.sharesBlocks = sharesBlocks
        self.makesOverlays = makesOverlays
        failures = FailureLog(logger: logger)
        contents = ContentOpener(
            catalog: catalog, store: store, remote: remote, users: publisher.users,
            failures: failures)
        derived = DerivedXattrs(catalog: catalog, failures: failures, holders: holders)
        virtual = VirtualDirectory(
            status: status, statistics: statistics,
            past: PastTree(source: past, owners: options.owners),
            files: PastFiles(
                catalog: catalog, remote: remote, users: publisher.users, contents: contents,
                store: store, failures: failures),
            derived: derived)
        virtual.copying.withLock {
            $0 = { [weak self] source, object, request, copy, reply in
                guard let self else {
                    reply.error(.ioError)
                    return
                }
                self.copy(from: source, object, request, copy, reply)
            }
        }
        publisher.setObserver { [weak self] in self?.invalidate($0) }
    }

    /// The session that serves this file system; set once it is mounted.
    public var session: Session? {
        get { attached.withLock { $0 } }
        set {
            attached.withLock { $0 = newValue }
            if options.passthrough { virtual.files.attach(newValue) }
        }
    }

    /// `.delugefs` is a file system of its own.
    public func part(of nodeid: UInt64) -> any FileSystem {
        VirtualDirectory.has(nodeid) ? virtual : self
    }

    /// What the kernel may do by itself now.
    var passthrough: Features.Passthrough {
        guard options.passthrough else { return .none }
        return session?.features?.passthrough ?? .none
    }

    // MARK: Names to vnodes

    func vnode(_ request: RequestHeader) throws(Errno) -> Vnode { try vnode(request.nodeid) }

    /// - Throws: ESTALE; EROFS in `.delugefs`, of which only changes of two nodes come here.
    func vnode(_ nodeid: UInt64) throws(Errno) -> Vnode {
        guard !VirtualDirectory.has(nodeid) else { throw .readOnlyFileSystem }
        guard let vnode = vnodes.vnode(nodeid) else { throw .staleNFSFileHandle }
        return vnode
    }

    func name(_ bytes: [UInt8]) throws(Errno) -> FileName {
        guard bytes.count <= Limits.nameBytesMax else { throw .fileNameTooLong }
        guard let name = FileName(bytes) else { throw .invalidArgument }
        return name
    }

    /// A name that may be created or removed in this directory.
    func mutableName(_ bytes: [UInt8], in directory: Vnode) throws(Errno) -> FileName {
        let name = try name(bytes)
        guard directory.ino != .root || name != VirtualDirectory.name else {
            throw .notPermitted
        }
        return name
    }

    /// Answers with the inode as an entry; takes the lookup back when the kernel did not want it.
    func answer(_ inode: Inode, readAt time: UInt64, _ reply: consuming Reply) {
        let vnode = vnodes.lookUp(inode.ino)
        if !reply.entry(entry(inode, readAt: time, vnode)) {
            forget(nodeid: vnode.nodeid, count: 1)
        }
    }

    func entry(_ inode: Inode, readAt time: UInt64, _ vnode: Vnode) -> EntryOut {
        let (attributes, valid) = shown(inode, readAt: time, vnode)
        return EntryOut(
            nodeid: vnode.nodeid, entryValid: Self.cacheLifetime, attributesValid: valid,
            attributes: attributes)
    }

    // MARK: Attributes

    /// What stat shows, and for how long. A staging file knows its own size and times.
    ///
    /// - Parameter time: `vnodes.recorded` before the row was read. If the file was published in
    ///   between, neither that row nor the vnode knows its size: the row is read again.
    func shown(
        _ inode: Inode, readAt time: UInt64, _ vnode: Vnode
    ) -> (Attributes, Duration) {
        guard inode.kind == .file else { return (catalogAttributes(inode), Self.cacheLifetime) }
        return vnode.locked {
            let isOutdated = vnode.state.recorded > time
            let (attributes, valid) = shownLocked(isOutdated ? newest(inode) : inode, vnode)
            vnode.state.shownSize = attributes.size
            return (attributes, valid)
        }
    }

    private func shownLocked(_ inode: Inode, _ vnode: Vnode) -> (Attributes, Duration) {
        var attributes = catalogAttributes(inode)
        if let version = vnode.state.version {
            if vnode.state.isSuperseded {
                attributes.mtime = FUSE.Timestamp(version.modified)
            }
            // The row may be of a version that has come from elsewhere since the open.
            if vnode.state.isSuperseded || vnode.state.staged == nil {
                attributes.setSize(version.content.length)
            }
        }
        guard let staged = vnode.state.staged else { return (attributes, Self.cacheLifetime) }
        switch staged.phase {
        case .published: return (attributes, Self.cacheLifetime)
        case .sealed(_, let facts):
            show(facts, &attributes)
            return (attributes, Self.cacheLifetime)
        case .unpublished:
            // Also what is closed: a mapping may still write to it.
            // The copy's times are no change of the file's while nothing is written to it.
            if let facts = try? facts(of: staged), !staged.isUntouched(facts) {
                show(facts, &attributes)
                // What the changed blocks take says nothing.
                if staged.overlay != nil { attributes.setSize(facts.size) }
            }
            return (attributes, staged.mayBeMapped ? .zero : Self.writingLifetime)
        }
    }

    private func newest(_ inode: Inode) -> Inode {
        let row = try? query("stat") { reader throws(Errno) in try reader.inode(inode.ino) }
        // One that is gone by now shows what it had.
        return (row ?? nil) ?? inode
    }

    private func facts(of staged: StagedFile) throws(StoreError) -> FileFacts {
        if let file = staged.file { return try store.facts(of: file.descriptor) }
        return try store.stagingFacts(staged.name)
    }

    func catalogAttributes(_ inode: Inode) -> Attributes {
        let owner = options.owners?.shown(inode.owner) ?? inode.owner
        var attributes = Attributes(
            ino: inode.ino.rawValue, mode: inode.fullMode,
            atime: FUSE.Timestamp(inode.accessed), mtime: FUSE.Timestamp(inode.modified),
            ctime: FUSE.Timestamp(inode.changed), nlink: inode.linkCount, uid: owner.uid,
            gid: owner.gid, rdev: DeviceNumber.encode(major: inode.major, minor: inode.minor))
        attributes.setSize(inode.size)
        return attributes
    }

    private func show(_ file: FileFacts, _ attributes: inout Attributes) {
        attributes.size = file.size
        attributes.blocks = file.blocks
        attributes.mtime = FUSE.Timestamp(file.modified)
        if Volume.Timestamp(attributes.ctime) < file.changed {
            attributes.ctime = FUSE.Timestamp(file.changed)
        }
    }

    // MARK: Errors

    func errno(_ error: any Error, _ what: StaticString) -> Errno { failures.errno(error, what) }

    public func forget(nodeid: UInt64, count: UInt64) {
        if let vnode = vnodes.forget(nodeid, count: count) { publisher.reap(vnode) }
    }

    /// Gives back a pin on a vnode that is not locked.
    func unpin(_ vnode: Vnode) {
        if vnodes.unpin(vnode) { publisher.reap(vnode) }
    }

    /// One operation of the catalog.
    func perform<T>(
        _ what: StaticString, _ body: (Transaction) throws(Errno) -> T
    ) throws(Errno) -> T {
        do { return try catalog.perform(body) } catch { throw errno(error, what) }
    }

    /// What was performed on a file survives a kill of this process from now on. Under its lock.
    func commitRows(of vnode: Vnode, _ what: StaticString) throws(Errno) {
        guard vnode.state.isUncommitted else { return }
        do { try catalog.commitBatch() } catch { throw errno(error, what) }
        vnode.state.isUncommitted = false
    }

    /// As `perform`, for what takes room: refused while the disk is about to be full.
    func performMaking<T>(
        _ what: StaticString, _ body: (Transaction) throws(Errno) -> T
    ) throws(Errno) -> T {
        guard !options.isFull() else { throw .noSpace }
        return try perform(what, body)
    }

    /// One look at the catalog: works even when it can no longer be written.
    func query<T>(
        _ what: StaticString, _ body: (Reader) throws(Errno) -> T
    ) throws(Errno) -> T {
        do { return try catalog.read(body) } catch { throw errno(error, what) }
    }
}

extension Volume.Timestamp {
    /// The wall clock's.
    public static var now: Self {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Self(seconds: Int64(time.tv_sec), nanoseconds: UInt32(time.tv_nsec))
    }

    init(_ time: FUSE.Timestamp) {
        self.init(seconds: time.seconds, nanoseconds: time.nanoseconds)
    }
}

extension FUSE.Timestamp {
    init(_ time: Volume.Timestamp) {
        self.init(seconds: time.seconds, nanoseconds: time.nanoseconds)
    }
}

extension Attributes {
    /// What disks allocate at least.
    private static let blockBytes: UInt64 = 4096

    /// As many blocks as nearly every disk takes for it, so that publishing changes nothing that is
    /// shown. The row does not know of holes.
    mutating func setSize(_ size: UInt64) {
        self.size = size
        blocks = (size + Self.blockBytes - 1) / Self.blockBytes * (Self.blockBytes / 512)
    }
}
