import Catalog
import Discovery
import FUSE
import Foundation
import History
public import Logging
import Mesh
import Mount
import Store
import Swarm
import Synchronization
import SystemPackage
import Volume

/// One disk of a volume: builds the parts, owns the order in which they start and stop.
///
/// Start: root and key are checked, the root is locked, peers are greeted (a joining node adopts
/// their state before it writes anything), then catalog and history, content, the mount, and last
/// the control socket. Stop is the reverse; what was closed is published and committed first.
public final class Node: Sendable {
    public static let version = "0.1.0"
    /// How long a joining node waits for a member of its volume.
    static let joinTimeout = Duration.seconds(10)
    /// How long `--create` looks for peers that serve the id already.
    static let createProbe = Duration.milliseconds(1500)
    /// How long a start looks for a node that runs under the same id elsewhere: at a root that was
    /// started before, at one that may be a copy (answers by mDNS may be held back for a second),
    /// and, where there is a sign of such a node, until it is met.
    static let knownRootProbe = Duration.milliseconds(300)
    static let copyProbe = Duration.milliseconds(3000)
    static let copyProbeMax = Duration.seconds(6)
    static let readerThreads = 4
    /// Ports tried for content where any will do.
    static let anyPortAttemptsMax = 5
    static let stopTimeout = Duration.seconds(60)

    let configuration: Configuration
    let root: FilePath
    let file: VolumeFile
    let settings: VolumeSettings
    let identity: NodeIdentity
    let store: Store
    let catalog: Catalog
    let mesh: Mesh
    let link: MeshLink
    let swarm: Swarm
    let finder: Finder
    let exchange: ContentExchange
    let holderLogs: HolderLogs
    let timeline: Timeline
    let gossip: Gossip
    let replicator: Replicator
    let publisher: Publisher
    let threads: MeshThreads
    let logger: Logger
    let key: VolumeKey
    let authority: VolumeAuthority
    /// Bytes that this node may store.
    let capacityBytes: UInt64
    let cloneReserveBytes: UInt64
    /// Free space that somebody waits for.
    let roomWanted = Atomic<UInt64>(0)
    let space: SpaceGuard
    let collector: Collector
    let scrubber: Scrubber

    struct Running {
        var discovery: Discovery?
        var control: ControlServer?
        var mount: (path: FilePath, madeByUs: Bool, session: Session, fileSystem: VolumeFileSystem)?
        var replication: Task<Void, Never>?
        var housekeeping: Task<Void, Never>?
        var collection: Task<Void, Never>?
        var repairs: Task<Void, Never>?
        var finding: Task<Void, Never>?
        var state = "starting"
        /// What a start had to do, until the next one.
        var notices: [String: String] = [:]
        /// Since when each problem has been there, by code; milliseconds since 1970.
        var problemsSince: [String: Int64] = [:]
        /// Local content that no file has any more.
        var historyBytes: UInt64 = 0
        /// What is stored here is to get copies elsewhere, so that the disk can be taken away.
        var isDraining = false
    }

    let running = Mutex(Running())
    private let stopRequested = AsyncStream<Void>.makeStream(bufferingPolicy: .bufferingNewest(1))

    // MARK: Start

    public static func start(_ configuration: Configuration, logger: Logger) async throws -> Node {
        let known = KnownRoots(directory: configuration.configurationDirectory)
        let root = try RootDirectory(configuration, known: known)
        let mountPoint = try RootDirectory.mountPoint(configuration, root: root.path)
        let membership = try Membership(configuration, root: root)
        let link = MeshLink()
        let threads = MeshThreads()
        let mesh = try await startMesh(configuration, root, membership, link, threads)
        do {
            let discovery = startDiscovery(configuration, membership, mesh, root, logger)
            do {
                let node = try await Node(
                    configuration, root, membership, mesh, link, threads, discovery, known, logger)
                try await node.begin(mountPoint)
                return node
            } catch {
                discovery?.stop()
                throw error
            }
        } catch {
            await mesh.stop()
            await threads.stop()
            throw error
        }
    }

    private static func startMesh(
        _ configuration: Configuration, _ root: RootDirectory, _ membership: Membership,
        _ link: MeshLink, _ threads: MeshThreads
    ) async throws -> Mesh {
        var options = Mesh.Configuration(volume: configuration.volume)
        options.host = configuration.listenAddress
        options.port = configuration.port
        options.fixedPeers = configuration.peers.compactMap {
            Endpoint(host: $0.host, port: $0.port)
        }
        let machine = membership.machine
        let name = membership.name
        do {
            return try await Mesh.start(
                options, identity: membership.identity, authority: membership.authority,
                threads: threads,
                bodyLimit: { _, path in PeerService.bodyLimit(path) },
                handler: { await link.answer($0) },
                hello: {
                    link.node?.hello() ?? Hello(name: name, machine: machine, version: version)
                },
                events: { link.node?.heard($0) })
        } catch let error as ServerError { throw NodeError("\(error)") }
    }

    private static func startDiscovery(
        _ configuration: Configuration, _ membership: Membership, _ mesh: Mesh,
        _ root: RootDirectory, _ logger: Logger
    ) -> Discovery? {
        guard configuration.discovery else { return nil }
        let ca16 = membership.authority.ca16
        let own = "\(membership.identity.node)"
        let discovery = Discovery(
            Discovery.Configuration(
                volume: configuration.volume, node: own, authority: ca16,
                port: UInt16(mesh.port), machine: membership.machine)
        ) { event in
            switch event {
            case .found(let advertisement), .twin(let advertisement):
                guard advertisement.volume == configuration.volume else { return }
                if case .found = event {
                    membership.seen(
                        advertisement.authority, advertisement.addresses.first ?? "?")
                }
                guard advertisement.authority == ca16 else { return }
                for address in advertisement.addresses {
                    guard let endpoint = Endpoint(host: address, port: Int(advertisement.port))
                    else { continue }
                    mesh.addCandidate(endpoint, source: .discovered)
                }
            case .nameTaken: membership.noteTwin()
            case .lost: break
            default: logger.info("discovery: \(event)")
            }
        }
        discovery.start()
        return discovery
    }

    private init(
        _ configuration: Configuration, _ root: RootDirectory, _ membership: Membership,
        _ mesh: Mesh, _ link: MeshLink, _ threads: MeshThreads, _ discovery: Discovery?,
        _ known: KnownRoots, _ logger: Logger
    ) async throws {
        self.configuration = configuration
        self.root = root.path
        self.mesh = mesh
        self.threads = threads
        self.link = link
        self.logger = logger
        identity = membership.identity
        key = membership.key
        authority = membership.authority
        let origin = try await Origin.find(configuration, root, membership, mesh)

        try RootDirectory.checkPorts(configuration)
        try root.make()
        store = try Node.openStore(root.path)
        file = VolumeFile(
            volume: configuration.volume, node: "\(membership.identity.node)",
            name: membership.uniqueName(among: mesh.peers.map(\.hello.name)),
            machine: membership.machine)
        try membership.keep(root.path, file: file)
        let facts = try store.diskFacts()
        capacityBytes = configuration.capacityBytes ?? facts.capacityBytes / 20 * 19
        cloneReserveBytes = min(Node.cloneReserveBytes, facts.capacityBytes / 8)
        space = SpaceGuard(store: store, diskBytes: facts.capacityBytes)
        try? known.keep(KnownRoots.Record(root: root.path, file, fileSystem: facts.uuid))

        let state = try DurableState(root.path, identity.node, file.name, store, link, logger)
        catalog = state.catalog
        running.withLock { ($0.notices, $0.isDraining) = (state.notices, state.isDraining) }
        settings = try await Origin.adopt(origin, configuration, state.salvage, mesh, file)
        timeline = try Timeline(
            catalog: catalog, history: state.history, node: identity.node, logger: logger)
        let swarm = try Node.startSwarm(configuration, settings, membership, mesh.port)
        self.swarm = swarm
        let logs = try HolderLogs(
            catalog: catalog, identity: identity, capacity: state.isDraining ? 0 : capacityBytes,
            logger: logger)
        holderLogs = logs
        finder = Finder(
            configuration, copies: settings.copies, catalog: catalog, mesh: mesh,
            authority: authority, logger: logger)
        exchange = Node.exchange(catalog, store, swarm, mesh, finder, link, logger)
        scrubber = try Node.scrubber(exchange, configuration, link)
        collector = Collector(
            catalog: catalog, store: store, history: state.history, mesh: mesh, exchange: exchange,
            node: identity.node, diskBytes: facts.capacityBytes, logger: logger,
            surroundings: Collector.Surroundings(
                isFull: { [space] in space.isFull },
                note: { extent in try logs.note([extent]) { mesh.pokeAll() } }))
        gossip = Gossip(mesh: mesh, timeline: timeline, logger: logger)
        let usual = Replicator.Options(
            copies: settings.copies, machine: file.machine, capacity: capacityBytes,
            graceSeconds: configuration.graceSeconds, lacksRoom: false)
        replicator = Replicator(
            catalog: catalog, mesh: mesh, node: identity.node, logger: logger,
            dropper: Dropper(
                catalog: catalog, store: store, exchange: exchange, holderLogs: logs, mesh: mesh,
                logger: logger),
            options: { link.node?.options(usual) ?? usual },
            promote: { extent in try link.node?.promote(extent) })
        publisher = Publisher(catalog: catalog, store: store, logger: logger) { extents in
            link.node?.published(extents)
        }
        running.withLock { $0.discovery = discovery }
        link.connect(self)
    }

    /// For what a start tries on the disk and writes to it.
    private static let startBytes: UInt64 = 8 << 20

    private static func openStore(_ root: FilePath) throws -> Store {
        do throws(StoreError) {
            let store = try Store(root: Array(root.string.utf8))
            try store.acquireLock()
            try store.removeTemporaries()
            _ = try store.createReserve()
            // A start needs some room itself, and on a full disk is what leads to more.
            while try store.freeBytes() < startBytes, try store.shrinkReserve() {
                try store.synchronizeDisk()
            }
            _ = try store.diskFacts()
            return store
        } catch {
            switch error.reason {
            case .system where error.errno == .noSpace:
                throw NodeError(
                    "The disk of \(root) is full: a start needs some room. Make \(startBytes >> 20) MiB free on it, then start again."
                )
            case .rootInUse:
                throw NodeError(
                    "\(root) is in use by another delugefs process. Stop that one first: delugefs stop --root \(root)"
                )
            case .rootTooWide:
                throw NodeError("\(root) can be entered by other users. Run: chmod 700 \(root)")
            default: throw NodeError("\(root) cannot be used: \(error)")
            }
        }
    }

    private static func exchange(
        _ catalog: Catalog, _ store: Store, _ swarm: Swarm, _ mesh: Mesh, _ finder: Finder,
        _ link: MeshLink, _ logger: Logger
    ) -> ContentExchange {
        ContentExchange(
            catalog: catalog, store: store, swarm: swarm, mesh: mesh, finder: finder,
            logger: logger, arrived: { link.node?.arrived($0, $1) },
            gaveUp: { link.node?.gaveUp($0) }, unreadable: { link.node?.unreadable($0, $1) })
    }

    private static func startSwarm(
        _ configuration: Configuration, _ settings: VolumeSettings, _ membership: Membership,
        _ apiPort: Int
    ) throws -> Swarm {
        let transport: SwarmConfiguration.Transport =
            switch settings.transport {
            case .plain: .plain
            case .tls:
                .tls(
                    caPEM: membership.authority.certificatePEM,
                    certificatePEM: membership.identity.certificatePEM,
                    keyPEM: membership.identity.privateKeyPEM)
            }
        var attempts = configuration.port == 0 ? anyPortAttemptsMax : 1
        while true {
            attempts -= 1
            do {
                return try Swarm(
                    SwarmConfiguration(
                        listenAddress: configuration.listenAddress ?? "::",
                        port: configuration.port == 0
                            ? FreePort.find() : UInt16(configuration.port + 1),
                        transport: transport, infoSalt: membership.authority.infoSalt))
            } catch  where attempts > 0 {
                // Somebody was faster, or has the number for UDP.
            } catch {
                throw NodeError(
                    "The port for content could not be opened: \(error). Choose another with --port."
                )
            }
        }
    }

    // MARK: Running

    private func begin(_ mountPoint: (FilePath, isMissing: Bool)?) async throws {
        let (timeline, mesh, publisher, identity) = (timeline, mesh, publisher, identity)
        let store = store
        let gossip = gossip
        timeline.setHooks(
            Timeline.Hooks(
                announce: { mesh.pokeAll() },
                applied: { [weak self] in self?.applied($0) },
                isPinned: { publisher.holds($0) },
                rank: { mesh.peers.filter { $0.isOnline && $0.node < identity.node }.count },
                isAwaiting: { gossip.isAwaiting },
                isGone: { gossip.isGone($0) },
                makeRoom: {
                    (try? store.shrinkReserve(leaving: Store.catalogReserveFiles)) == true
                },
                removedMuch: { [weak self] alarm in
                    guard let self else { return }
                    logger.critical("\(text(of: alarm))")
                }))
        space.start()
        // First of all: what a crash left is known to it before anything from elsewhere is applied.
        try publisher.start()
        timeline.start()
        do {
            if let (path, isMissing) = mountPoint { try mount(path, isMissing) }
            let replication = Task { [replicator] in await replicator.run() }
            let collection = Task { [collector] in await collector.run() }
            scrubber.start()
            let repairs = Task { [scrubber] in await scrubber.repair() }
            let finding = Task { [finder] in await finder.run() }
            let housekeeping = Task { [weak self] in await self?.keepHouse() ?? () }
            // At once: a failure from here on has to find and end them.
            running.withLock {
                $0.replication = replication
                $0.housekeeping = housekeeping
                $0.collection = collection
                $0.repairs = repairs
                $0.finding = finding
            }
            let control = try await ControlServer.start(
                root: root, threads: threads, bodyLimit: { _, _ in 1 << 20 },
                handler: { [weak self] in
                    await self?.control($0) ?? .refusal(503, "The node is stopping.")
                })
            running.withLock {
                $0.control = control
                $0.state = "ready"
            }
            mesh.pokeAll()
        } catch {
            await stop()
            throw error
        }
    }

    private func mount(_ path: FilePath, _ isMissing: Bool) throws {
        if isMissing, mkdir(path.string, 0o755) != 0 {
            throw NodeError("The mount point \(path) cannot be created: \(Errno(rawValue: errno)).")
        }
        var options = VolumeFileSystem.Options()
        let facts = try store.diskFacts()
        options.passthrough = configuration.passthrough && geteuid() == 0 && facts.supportsLeases
        if let owner = configuration.mapOwner
            ?? (geteuid() == 0 ? nil : Owner(uid: geteuid(), gid: getegid()))
        {
            options.owners = OwnerMapping(volume: settings.owner, local: owner)
        }
        options.isFull = { [space] in space.isFull }
        let fileSystem = VolumeFileSystem(
            catalog: catalog, store: store, remote: exchange, publisher: publisher,
            options: options, logger: logger, past: past(),
            status: { [weak self] in self.map { $0.statusText() } ?? [] },
            statistics: { [weak self] in self?.statistics() ?? VolumeStatistics() },
            holders: { [weak self] in self?.holderNames($0) ?? [] },
            replicated: { [weak self] extents, copies in
                guard let self else { throw Errno.ioError }
                try await confirm(extents, copies: copies)
            },
            sharesBlocks: facts.supportsReflink, makesOverlays: facts.supportsOverlays,
            changed: { [timeline] in timeline.changed() })
        do {
            var mounting = MountOptions(source: root.string, subtype: RootDirectory.mountSubtype)
            mounting.allowOther = geteuid() == 0 || configuration.allowOther
            mounting.allowsPrivileged = configuration.honourSetID
            let channel = try Mounting.mount(at: path, options: mounting)
            var sessionOptions = SessionOptions()
            sessionOptions.passthrough = options.passthrough
            sessionOptions.posixACL = true
            sessionOptions.report = { [logger] in logger.warning("fuse: \($0)") }
            let session = try Session(
                fileSystem: fileSystem, channel: channel, options: sessionOptions)
            fileSystem.session = session
            // Before the first request: what is applied from then on the kernel has to hear of.
            running.withLock { $0.mount = (path, isMissing, session, fileSystem) }
            try session.start(threads: Self.readerThreads)
        } catch {
            if isMissing { rmdir(path.string) }
            throw NodeError("\(error)")
        }
        watchMount()
    }

    /// A mount that somebody else removed ends the node's business with it, not the node.
    private func watchMount() {
        guard let session = running.withLock({ $0.mount?.session }) else { return }
        OwnThread.start("mount-watch") { [weak self] in
            session.wait()
            self?.running.withLock { running in
                if running.state == "ready" { running.mount = nil }
            }
        }
    }

    /// Waits until `requestStop` was called, then stops everything.
    public func runUntilStopped() async {
        for await _ in stopRequested.stream { break }
        await stop()
    }

    public func requestStop() { stopRequested.continuation.yield() }

    /// Unmounts, publishes, commits, and closes, in this order.
    public func stop() async {
        let parts = running.withLock { running in
            running.state = "stopping"
            return running
        }
        space.stop()
        parts.replication?.cancel()
        parts.housekeeping?.cancel()
        parts.collection?.cancel()
        parts.repairs?.cancel()
        parts.finding?.cancel()
        await scrubber.stop()
        if let mount = parts.mount {
            try? await Blocking.alone {
                try? Mounting.unmountAtAnyRate(at: mount.path)
                mount.session.stop()
                mount.fileSystem.drain()
                if mount.madeByUs { rmdir(mount.path.string) }
            }
        }
        let deadline = ContinuousClock.now + Self.stopTimeout
        _ = try? await Blocking.alone { [publisher, timeline] in
            _ = publisher.settle(until: deadline)
            publisher.stop()
            timeline.stop()
        }
        await handOver()
        parts.discovery?.stop()
        await exchange.stop()
        await finder.stop()
        await swarm.stop()
        await mesh.stop()
        await parts.control?.stop()
        await threads.stop()
        _ = try? await Blocking.run { [catalog] in catalog.close() }
    }
}

extension Node {
    /// How long a stopping node waits for its peers to take in its last changes.
    static let handOverTimeout = Duration.seconds(2)

    private func handOver() async {
        mesh.pokeAll()
        let heads = timeline.announced
        let deadline = ContinuousClock.now + Self.handOverTimeout
        while ContinuousClock.now < deadline, await unacknowledged(heads) != nil {
            try? await Task.sleep(for: Self.waitPoll)
        }
    }
}

/// What the mesh calls before the node is whole.
final class MeshLink: Sendable {
    private let target = Mutex<Weak>(Weak())
    /// What the catalog met that cannot be.
    let damaged = Mutex<String?>(nil)

    private struct Weak { weak var node: Node? }

    var node: Node? { target.withLock { $0.node } }

    func connect(_ node: Node) { target.withLock { $0.node = node } }

    func answer(_ request: PeerRequest) async -> PeerResponse {
        guard let node else { return .refusal(503, "The node is starting.") }
        return await PeerService(node: node).answer(request)
    }
}
