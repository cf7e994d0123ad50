import Catalog
import FoundationEssentials
import Logging
import Mesh
import Mount
import Store
import Swarm
import Synchronization
import SystemPackage
import Volume

/// Fetches content that is not on this disk, and serves what is.
///
/// One `Fetch` per extent, shared by all who read it here and by replication. What arrives is kept:
/// verified pieces in `partial/`, whole content as an object.
final class ContentExchange: RemoteContent, Sendable {
    /// Holders asked for one extent at a time.
    static let sourcesMax = 4
    /// A holder that has not answered for this long is joined by the next one.
    static let openStagger = Duration.milliseconds(300)
    /// Peers asked `who-has` when the holder logs name nobody who is online.
    static let whoHasPeersMax = 64
    static let whoHasTimeout = Duration.seconds(2)
    /// How long a holder keeps content loaded after the last transfer.
    static let lease = Duration.seconds(60)
    /// Readers get an error after so long without any progress.
    static let progressTimeout = Duration.seconds(30)

    let catalog: Catalog
    let store: Store
    let swarm: Swarm
    let mesh: Mesh
    let finder: Finder
    let logger: Logger
    /// Called when an extent became an object here, or (`absent`) turned out to be none any more.
    let arrived: @Sendable (Extent, ContentState) -> Void
    /// Called when an extent that was to be stored here will not be.
    let gaveUp: @Sendable (Extent) -> Void
    /// Called when an object could not be read, by a peer (nil: it is to be looked at) or for a range,
    /// which may block on the disk.
    let unreadable: @Sendable (Extent, Unreadable?) -> Void
    /// Between the row of a partial content and its file: one at a time changes both.
    let partials = Mutex<Void>(())
    /// Clones are taken on by one thread at a time, or two would count on the same room.
    let admission = Mutex<Void>(())
    let intake: ObjectIntake
    let failures = FetchFailures()
    private let fetches = Mutex<[Extent: Fetch]>([:])

    init(
        catalog: Catalog, store: Store, swarm: Swarm, mesh: Mesh, finder: Finder,
        logger: Logger,
        arrived: @escaping @Sendable (Extent, ContentState) -> Void,
        gaveUp: @escaping @Sendable (Extent) -> Void,
        unreadable: @escaping @Sendable (Extent, Unreadable?) -> Void
    ) {
        self.catalog = catalog
        self.store = store
        intake = ObjectIntake(store: store)
        self.swarm = swarm
        self.mesh = mesh
        self.finder = finder
        self.logger = logger
        self.arrived = arrived
        self.gaveUp = gaveUp
        self.unreadable = unreadable
        swarm.whenSeedFails { unreadable($0, nil) }
    }

    // MARK: Fetching

    func stream(_ extent: Extent) -> any ContentStream { Interest(fetch(extent)) }

    func findHolder(of extent: Extent, _ body: @escaping @Sendable (Bool) -> Void) {
        Task {
            let known = await logged(extent)
            if known.contains(where: { $0.state != .cloning }) { return body(true) }
            let asked = await ask(mesh.peers.filter(\.isOnline), for: extent)
            if !asked.isEmpty { return body(true) }
            body(await !finder.holders(of: extent).isEmpty)
        }
    }

    func letGo(of extent: Extent, _ body: @escaping @Sendable () -> Void) {
        Task { [swarm] in
            await swarm.unload(extent)
            body()
        }
    }

    func isMissing(_ extent: Extent) {
        Task {
            try? await Blocking.run { [self] in
                // Unless it was fetched again already.
                if try state(of: extent) == .none { arrived(extent, .absent) }
            }
        }
    }

    /// Begins to fetch an extent whole, to be stored here.
    /// - Returns: false when that is under way already.
    func clone(_ extent: Extent) -> Bool { fetch(extent).keepWhole() }

    /// Nobody needs this clone any more; what has arrived stays for a reader.
    func endClone(_ extent: Extent) {
        guard let fetch = fetches.withLock({ $0[extent] }) else { return }
        fetch.endKeeping()
    }

    /// The clones under way.
    struct Clones {
        var count = 0
        var bytes: UInt64 = 0
        /// Of them, what has not arrived.
        var missingBytes: UInt64 = 0
    }

    var clones: Clones {
        let running = fetches.withLock { $0.values.filter(\.isCloning) }
        return running.reduce(into: Clones()) { clones, fetch in
            clones.count += 1
            clones.bytes += fetch.extent.length
            clones.missingBytes += fetch.missingBytes
        }
    }

    func isCloning(_ extent: Extent) -> Bool { fetches.withLock { $0[extent]?.isCloning == true } }

    func isFetching(_ extent: Extent) -> Bool { fetches.withLock { $0[extent] != nil } }

    private func fetch(_ extent: Extent) -> Fetch {
        fetches.withLock { fetches in
            let known = fetches[extent]
            if let known, known.join() { return known }
            let new = Fetch(extent: extent, exchange: self)
            _ = new.join()
            fetches[extent] = new
            new.start(after: known)
            return new
        }
    }

    func ended(_ fetch: Fetch) {
        fetches.withLock { fetches in
            if fetches[fetch.extent] === fetch { fetches[fetch.extent] = nil }
        }
    }

    /// Ends all fetches; what is verified stays on the disk.
    func stop() async {
        for fetch in fetches.withLock({ Array($0.values) }) { await fetch.stop() }
    }

    // MARK: Finding holders

    /// What the holder logs say.
    private func logged(_ extent: Extent) async -> [Holder] {
        guard finder.ways.contains(.logs) else { return [] }
        let known = try? await Blocking.run { [catalog] in
            try catalog.read { try $0.holders(of: extent.root) }
        }
        return known ?? []
    }

    /// Online nodes that have the extent by the holder logs, and the others.
    func holders(of extent: Extent) async -> (named: [Peer], others: [Peer]) {
        let online = mesh.peers.filter(\.isOnline)
        let named = Set(await logged(extent).filter { $0.state != .cloning }.map(\.node))
        return (
            online.filter { named.contains($0.node) }, online.filter { !named.contains($0.node) }
        )
    }

    /// Online nodes that have the extent, by the holder logs, else by asking, else by the DHT; in
    /// random order.
    func sources(of extent: Extent) async -> [Peer] {
        let (named, others) = await holders(of: extent)
        if !named.isEmpty { return named.shuffled() }
        let asked = await ask(others, for: extent)
        return (asked.isEmpty ? await finder.holders(of: extent) : asked).shuffled()
    }

    /// Online nodes that are fetching the extent to store it. Of two such the one with the lower id
    /// dials: who is dialed while dialing drops both connections.
    func partialSources(of extent: Extent) async -> [Peer] {
        let cloning = Set(await logged(extent).filter { $0.state == .cloning }.map(\.node))
        return mesh.peers.filter { $0.isOnline && cloning.contains($0.node) }
    }

    /// The first good offer of those that the holder logs name, else of those that say they have it,
    /// else of those that the DHT leads to.
    func offer(of extent: Extent) async -> Offer? {
        let (named, others) = await holders(of: extent)
        if let offer = await firstOffer(of: extent, among: named.shuffled()) { return offer }
        let asked = await ask(others, for: extent).shuffled()
        if let offer = await firstOffer(of: extent, among: asked) { return offer }
        return await firstOffer(of: extent, among: await finder.holders(of: extent).shuffled())
    }

    private enum Turn {
        case answered(Offer?)
        case elapsed
    }

    /// Asks one after the other, without waiting longer than `openStagger` for any.
    private func firstOffer(of extent: Extent, among peers: [Peer]) async -> Offer? {
        await withTaskGroup(of: Turn.self) { group in
            defer { group.cancelAll() }
            var peers = peers[...]
            var asked = 0
            func askNext() {
                guard asked < Self.sourcesMax, let peer = peers.popFirst() else { return }
                asked += 1
                group.addTask { .answered(await self.tryOpen(extent, at: peer)) }
                group.addTask {
                    try? await Task.sleep(for: Self.openStagger)
                    return .elapsed
                }
            }
            askNext()
            while let turn = await group.next() {
                switch turn {
                case .answered(let offer?): return offer
                case .answered(nil):
                    asked -= 1
                    askNext()
                case .elapsed: askNext()
                }
                if asked == 0, peers.isEmpty { return nil }
            }
            return nil
        }
    }

    private func tryOpen(_ extent: Extent, at peer: Peer) async -> Offer? {
        do { return try await open(extent, at: peer) } catch {
            logger.debug("\(peer.hello.name) does not give \(extent.root): \(error)")
            return nil
        }
    }

    private func ask(_ peers: [Peer], for extent: Extent) async -> [Peer] {
        guard finder.ways.contains(.ask) else { return [] }
        return await withTaskGroup(of: Peer?.self) { group in
            for peer in peers.prefix(Self.whoHasPeersMax) {
                group.addTask {
                    let states = try? await self.whoHas([extent], peer.node)
                    return states?.first.map { $0 != .none } == true ? peer : nil
                }
            }
            return await group.reduce(into: []) { if let peer = $1 { $0.append(peer) } }
        }
    }

    func whoHas(
        _ extents: [Extent], _ node: NodeID
    ) async throws -> [PeerMessage.WhoHasReply.State] { try await ask(extents, of: node).states }

    func ask(_ extents: [Extent], of node: NodeID) async throws -> PeerMessage.WhoHasReply {
        let body = try JSONEncoder().encode(
            PeerMessage.WhoHas(extents: extents.map(PeerMessage.ExtentName.init)))
        let response = try await mesh.request(
            node, path: "/v1/who-has", body: Array(body), timeout: Self.whoHasTimeout
        ).successful()
        let reply = try JSONDecoder().decode(
            PeerMessage.WhoHasReply.self, from: Data(response.body))
        guard reply.states.count == extents.count else {
            throw NodeError("A peer's answer is too short.")
        }
        return reply
    }

    /// What a holder gives: the bytes themselves, or a place in its swarm and the piece layer.
    enum Offer: Sendable {
        case content([UInt8])
        case swarm([SwarmEndpoint], layer: [UInt8])
    }

    func open(_ extent: Extent, at peer: Peer) async throws -> Offer {
        let body = try JSONEncoder().encode(PeerMessage.ExtentName(extent))
        let reply = try await mesh.request(
            peer.node, path: "/v1/open", body: Array(body), timeout: .seconds(10),
            replyBytesMax: 4 << 20
        ).successful()
        let (header, payload) = try PeerMessage.unframe(
            reply.body, as: PeerMessage.OpenReply.self)
        switch header.form {
        case .content: return .content(payload)
        case .swarm:
            guard let port = UInt16(exactly: header.bulkPort), port > 0 else {
                throw NodeError("A peer named no port for content.")
            }
            let hosts =
                BulkAddress.isDialable(peer.endpoint.host)
                ? [peer.endpoint.host]
                : (header.addresses ?? []).filter(BulkAddress.isDialable)
            guard !hosts.isEmpty else {
                throw NodeError(
                    "\(peer.hello.name) has only link-local IPv6 addresses, which cannot carry content; give the network IPv4 or routed IPv6 addresses."
                )
            }
            return .swarm(
                hosts.prefix(BulkAddress.countMax).map { SwarmEndpoint(address: $0, port: port) },
                layer: payload)
        }
    }

    // MARK: Serving

    func state(of extent: Extent) throws -> PeerMessage.WhoHasReply.State {
        let known = try catalog.read { try $0.content(extent.root) }
        // The length is the asker's claim: one that is wrong names nothing.
        guard let known, known.extent == extent else { return .none }
        return switch known.state {
        case .stored: .stored
        case .cached: .cached
        default: .none
        }
    }

    /// As `state(of:)`, with a look at the disk: a copy that is gone is taken back.
    func confirmedState(of extent: Extent) throws -> PeerMessage.WhoHasReply.State {
        let known = try state(of: extent)
        guard known != .none, try store.objectLength(extent.root) != extent.length else {
            return known
        }
        let isGone = try catalog.perform { tx in
            // Unless it was stored again meanwhile.
            let state = try tx.content(extent.root)?.state
            guard state == .stored || state == .cached,
                try store.objectLength(extent.root) != extent.length
            else { return false }
            // What is not whole is no object, and may be good for something.
            let isNone = try store.objectLength(extent.root) == nil
            try tx.setContentState(
                extent, isNone ? .absent : .partial, at: Monotonic.wallMilliseconds)
            return true
        }
        guard isGone else { return try state(of: extent) }
        let path = Node.path(of: extent.root, in: catalog) ?? "old content"
        logger.error(
            "\(path) (\(extent.root)) is not on the disk, or not whole: it counts as no copy here, and is made anew from other disks"
        )
        arrived(extent, .absent)
        return .none
    }

    func serve(_ extent: Extent) async throws -> PeerResponse {
        guard try await Blocking.run(.answers, { try self.confirmedState(of: extent) }) != .none
        else {
            // Those who fetch the same give each other what they have.
            if let layer = fetches.withLock({ $0[extent] })?.servedLayer {
                return try swarmReply(layer)
            }
            return .refusal(404, "This node does not have that content.")
        }
        if extent.length <= Limits.openReplyBytesMax {
            let bytes = try await Blocking.run(.content) { [store, unreadable] in
                do { return try store.read(extent) } catch Errno.ioError {
                    unreadable(extent, nil)
                    throw Errno.ioError
                }
            }
            return PeerResponse(
                body: .bytes(
                    try PeerMessage.frame(
                        PeerMessage.OpenReply(form: .content, bulkPort: 0), payload: bytes)))
        }
        let (layer, directory) = try await Blocking.run(.content) { [store] in
            (try store.layer(of: extent) ?? [], try store.objectDirectoryPath(extent.root))
        }
        do {
            try await swarm.seed(
                extent, path: String(decoding: directory, as: UTF8.self) + "/\(extent.root)",
                layer: layer, lease: Self.lease)
        } catch SwarmError.invalidLayer {
            unreadable(extent, nil)
            throw SwarmError.invalidLayer
        }
        return try swarmReply(layer)
    }

    private func swarmReply(_ layer: [UInt8]) throws -> PeerResponse {
        PeerResponse(
            body: .bytes(
                try PeerMessage.frame(
                    PeerMessage.OpenReply(
                        form: .swarm, bulkPort: Int(swarm.port), addresses: BulkAddress.own()),
                    payload: layer)
            ))
    }
}

extension Store {
    /// The bytes of a small object.
    func read(_ extent: Extent) throws -> [UInt8] {
        guard let file = try openObject(extent.root) else { throw Errno.noSuchFileOrDirectory }
        return try file.closeAfter {
            var bytes = [UInt8](repeating: 0, count: Int(extent.length))
            let count = try bytes.withUnsafeMutableBytes {
                try file.read(fromAbsoluteOffset: 0, into: $0)
            }
            guard count == bytes.count else { throw Errno.ioError }
            return bytes
        }
    }
}

/// One reader's interest in a fetch; ends with the last reference to it.
private final class Interest: ContentStream {
    private let fetch: Fetch

    init(_ fetch: Fetch) { self.fetch = fetch }

    deinit { fetch.leave() }

    func whenReadable(
        _ range: Range<UInt64>,
        _ body: @escaping @Sendable (Result<SharedDescriptor, Errno>) -> Void
    ) -> ContentWait { fetch.whenReadable(range, body) }

    func whenComplete(_ body: @escaping @Sendable (Result<Void, Errno>) -> Void) {
        _ = fetch.keepWhole()
        fetch.whenComplete(body)
    }
}
