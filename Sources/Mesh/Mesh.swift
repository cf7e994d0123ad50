import Glibc
import NIOCore
import Synchronization
public import Volume

/// The node's place among its peers: finds them, greets them, knows who is online, and carries
/// requests both ways.
///
/// Each node dials every other and says hello each second and at every change; a peer is online
/// when
/// *our* hello to it was answered. An incoming hello makes its sender a candidate, so it is enough
/// that one of two knows the other's address. Hellos use connections of their own, so that bulky
/// requests never make a peer look dead.
///
/// Runs until `stop()`, which must be called.
public final class Mesh: Sendable {
    public struct Configuration: Sendable {
        /// The volume's id, the same on all nodes.
        public var volume: String
        /// See `PeerServer.Configuration`.
        public var host: String?
        public var port = 0
        public var fixedPeers: [Endpoint] = []
        public var heartbeat: Duration = .seconds(1)
        public var helloTimeout: Duration = .seconds(4)
        /// Silence, without a refusal, after which a peer is offline; noticed at the end of the
        /// hello then under way, so at the latest `helloTimeout` later.
        public var offlineAfter: Duration = .seconds(8)
        public var backoffMin: Duration = .seconds(1)
        public var backoffMax: Duration = .seconds(10)
        /// For addresses that were only heard of.
        public var backoffHeardMax: Duration = .seconds(60)
        public var peersMax = 256
        public var candidatesMax = 1024
        public var dialsMax = 16
        public var server = ServerLimits()
        public var client = PeerClient.Configuration()

        public init(volume: String) { self.volume = volume }
    }

    /// Where the hello of protocol version 1 is said.
    static let helloPath = "/v1/hello"

    /// Clocks that differ by more are told of, and not relied upon.
    static let clockDifferenceMax = Duration.seconds(300)

    struct State {
        var table: PeerTable
        var problems = ProblemList()
        var heartbeats: [NodeID: Heartbeat] = [:]
        var dials = 0
        /// The name of our hello that each peer has seen.
        var told: [NodeID: String] = [:]
        /// By how many milliseconds peers' clocks are ahead of this one's.
        var clocks: [NodeID: Int64] = [:]
        var cached: (hello: Hello, bytes: [UInt8], made: ContinuousClock.Instant)?
        var last: Hello?
        var events: [MeshEvent] = []
        var isDelivering = false
        var isStopped = false
        var dialler: Task<Void, Never>?
    }

    struct Heartbeat {
        let task: Task<Void, Never>
        let wakeup: Wakeup
    }

    let configuration: Configuration
    let identity: NodeIdentity
    let authority: VolumeAuthority
    let threads: MeshThreads
    /// Tells this run from another of the same node.
    let instance: UInt64
    let client: PeerClient
    let helloClient: PeerClient
    let dialWakeup = Wakeup()
    let state: Mutex<State>
    private let contents: @Sendable () -> Hello
    private let events: @Sendable (MeshEvent) -> Void
    private let server = Mutex<PeerServer?>(nil)
    private let listeningPort = Atomic<Int>(0)

    /// An unchanged hello is not built anew for this long, unless `pokeAll` says so.
    private static let helloCacheTime: Duration = .milliseconds(100)

    private init(
        _ configuration: Configuration, identity: NodeIdentity, authority: VolumeAuthority,
        threads: MeshThreads, hello: @escaping @Sendable () -> Hello,
        events: @escaping @Sendable (MeshEvent) -> Void
    ) throws {
        self.configuration = configuration
        self.identity = identity
        self.authority = authority
        self.threads = threads
        self.events = events
        contents = hello
        instance = UInt64.random(in: 1 ... .max)
        let bounds = PeerTable.Bounds(
            peersMax: configuration.peersMax, candidatesMax: configuration.candidatesMax,
            backoffMin: configuration.backoffMin, backoffMax: configuration.backoffMax,
            backoffHeardMax: configuration.backoffHeardMax)
        state = Mutex(State(table: PeerTable(bounds: bounds)))
        client = try PeerClient(
            configuration.client, identity: identity, authority: authority, threads: threads)
        var greeting = configuration.client
        greeting.connectionsPerEndpoint = 2
        greeting.waitersPerEndpoint = 8
        helloClient = try PeerClient(
            greeting, identity: identity, authority: authority, threads: threads)
    }

    /// Starts to listen and to look for peers.
    ///
    /// - Parameters:
    ///   - bodyLimit, handler: for all requests of members but the hello.
    ///   - hello: what the node says of itself; called often, must return at once.
    ///   - events: called in order, never concurrently, with no lock held; must return soon and
    /// must
    ///     not wait for the mesh.
    /// - Throws: `ServerError`.
    public static func start(
        _ configuration: Configuration, identity: NodeIdentity, authority: VolumeAuthority,
        threads: MeshThreads, bodyLimit: @escaping BodyLimit, handler: @escaping PeerHandler,
        hello: @escaping @Sendable () -> Hello,
        events: @escaping @Sendable (MeshEvent) -> Void = { _ in }
    ) async throws -> Mesh {
        precondition(Hello.isName(configuration.volume))
        let mesh = try Mesh(
            configuration, identity: identity, authority: authority, threads: threads,
            hello: hello, events: events)
        mesh.helloClient.whenClosed { [weak mesh] in mesh?.connectionClosed($0) }
        var serverConfiguration = PeerServer.Configuration()
        serverConfiguration.host = configuration.host
        serverConfiguration.port = configuration.port
        serverConfiguration.limits = configuration.server
        let server = try await PeerServer.start(
            serverConfiguration, identity: identity, authority: authority, threads: threads,
            bodyLimit: { method, path in
                path == helloPath ? Hello.bytesMax : bodyLimit(method, path)
            },
            handler: { [weak mesh] request in
                guard request.path == helloPath else { return await handler(request) }
                return mesh?.answerHello(request) ?? .refusal(503, "stopping")
            })
        mesh.listeningPort.store(server.port, ordering: .releasing)
        mesh.server.withLock { $0 = server }
        let now = ContinuousClock.now
        mesh.state.withLock { state in
            for endpoint in configuration.fixedPeers {
                state.table.add(endpoint, source: .fixed, now: now)
            }
            state.dialler = Task { await mesh.dialForEver() }
        }
        return mesh
    }

    /// Says nothing more, cuts every connection; returns when all has ended.
    public func stop() async {
        let tasks = state.withLock { state in
            state.isStopped = true
            let tasks = state.heartbeats.values.map(\.task) + (state.dialler.map { [$0] } ?? [])
            state.heartbeats = [:]
            state.dialler = nil
            return tasks
        }
        for task in tasks { task.cancel() }
        await helloClient.stop()
        await client.stop()
        let server = server.withLock { $0.take() }
        await server?.stop()
        for task in tasks { await task.value }
    }

    // MARK: - What others ask

    public var node: NodeID { identity.node }

    /// The TCP port of the peer API.
    public var port: Int { listeningPort.load(ordering: .acquiring) }

    /// Every peer known, online or not, by node id.
    public var peers: [Peer] {
        state.withLock { $0.table.entries.values.map(\.peer) }.sorted { $0.node < $1.node }
    }

    public func peer(_ node: NodeID) -> Peer? {
        state.withLock { $0.table.entries[node]?.peer }
    }

    /// Online peers whose clocks tell another time, and by how much they are ahead.
    public var otherClocks: [(peer: Peer, ahead: Duration)] {
        state.withLock { state in
            state.clocks.compactMap { node, milliseconds in
                guard let peer = state.table.entries[node]?.peer, peer.isOnline else { return nil }
                let ahead = Duration.milliseconds(milliseconds)
                let isFar =
                    ahead > Self.clockDifferenceMax || ahead < .zero - Self.clockDifferenceMax
                return isFar ? (peer, ahead) : nil
            }
        }
    }

    /// Whether nothing may be given up because of the time that has passed.
    public var isClockDoubtful: Bool { !otherClocks.isEmpty }

    public var problems: [MeshProblem] {
        state.withLock { $0.problems.current(now: .now) }
    }

    /// Adds an address to try, or tries it again soon.
    public func addCandidate(_ endpoint: Endpoint, source: CandidateSource) {
        _ = state.withLock { $0.table.add(endpoint, source: source, now: .now, hurry: true) }
        dialWakeup.signal()
    }

    /// Takes back a discovered address; a peer that it led to stays.
    public func withdrawCandidate(_ endpoint: Endpoint) {
        state.withLock { $0.table.withdraw(endpoint) }
    }

    /// Says hello to every online peer at once, because something changed. Never blocks; calls that
    /// come faster than peers answer are merged.
    public func pokeAll() {
        let wakeups = state.withLock { state in
            state.cached = nil
            return state.heartbeats.values.map(\.wakeup)
        }
        for wakeup in wakeups { wakeup.signal() }
    }

    /// One request to an online peer; see `PeerClient.request`.
    public func request(
        _ node: NodeID, method: String = "POST", path: String,
        headers: [(name: String, value: String)] = [], body: [UInt8] = [],
        timeout: Duration = .seconds(10), replyBytesMax: Int = 1 << 20
    ) async throws(PeerError) -> PeerReply {
        let endpoint = try endpoint(of: node)
        do {
            return try await client.request(
                endpoint, expecting: node, method: method, path: path, headers: headers,
                body: body, timeout: timeout, replyBytesMax: replyBytesMax)
        } catch {
            doubt(node, error)
            throw error
        }
    }

    /// One request to an online peer whose reply goes into a file; see `PeerClient.download`.
    public func download(
        _ node: NodeID, method: String = "POST", path: String,
        headers: [(name: String, value: String)] = [], body: [UInt8] = [], to descriptor: CInt,
        at offset: Int64 = 0, timeout: Duration = .seconds(10), replyBytesMax: Int64
    ) async throws(PeerError) -> PeerReply {
        let endpoint = try endpoint(of: node)
        do {
            return try await client.download(
                endpoint, expecting: node, method: method, path: path, headers: headers,
                body: body, to: descriptor, at: offset, timeout: timeout,
                replyBytesMax: replyBytesMax)
        } catch {
            doubt(node, error)
            throw error
        }
    }

    private func endpoint(of node: NodeID) throws(PeerError) -> Endpoint {
        guard let peer = peer(node), peer.isOnline else { throw .offline(node) }
        return peer.endpoint
    }

    /// A request failed in a way that the next hello may explain: say it now.
    private func doubt(_ node: NodeID, _ error: PeerError) {
        switch error {
        case .refused, .disconnected, .wrongNode, .wrongAuthority:
            state.withLock { $0.heartbeats[node]?.wakeup }?.signal()
        default: break
        }
    }

    private func connectionClosed(_ endpoint: Endpoint) {
        let wakeups = state.withLock { state in
            state.heartbeats.filter { state.table.entries[$0.key]?.peer.endpoint == endpoint }
                .map(\.value.wakeup)
        }
        for wakeup in wakeups { wakeup.signal() }
    }

    // MARK: - Our own hello

    /// What we say now, with its encoding.
    func currentHello() -> (hello: Hello, bytes: [UInt8]) {
        let now = ContinuousClock.now
        let cached = state.withLock { state in
            state.cached.flatMap { now - $0.made < Self.helloCacheTime ? $0 : nil }
        }
        if let cached { return (cached.hello, cached.bytes) }
        // The closure is foreign code: called with no lock held.
        var hello = contents()
        return state.withLock { state in
            hello.volume = configuration.volume
            hello.node = identity.node
            hello.instance = instance
            hello.apiPort = port
            hello.neighbours = neighbours(state)
            hello.sequence = state.last?.sequence ?? 0
            if let last = state.last, last == hello, let cached = state.cached {
                state.cached?.made = now
                return (cached.hello, cached.bytes)
            }
            if state.last != hello { hello.sequence += 1 }
            let bytes = hello.encoded()
            state.last = hello
            state.cached = (hello, bytes, now)
            return (hello, bytes)
        }
    }

    /// Peers that others may reach as we do: not by an address of one link only.
    private func neighbours(_ state: State) -> [Hello.Neighbour] {
        state.table.entries.values.filter {
            $0.peer.isOnline && !$0.peer.endpoint.host.contains("%")
        }
        .sorted { $0.peer.node < $1.peer.node }
        .prefix(Hello.neighboursMax)
        .map { Hello.Neighbour(node: $0.peer.node, endpoint: $0.peer.endpoint) }
    }

    // MARK: - Events

    /// Hands events over in the order in which the table changed: whoever finds nobody delivering
    /// delivers, also what others add meanwhile.
    func deliver() {
        let isOurs = state.withLock { state in
            guard !state.isDelivering, !state.events.isEmpty else { return false }
            state.isDelivering = true
            return true
        }
        guard isOurs else { return }
        while true {
            let batch = state.withLock { state in
                let batch = state.events
                state.events = []
                if batch.isEmpty { state.isDelivering = false }
                return batch
            }
            if batch.isEmpty { return }
            for event in batch { events(event) }
        }
    }

    /// Milliseconds since 1970.
    static func wallMilliseconds() -> Int64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
    }
}

/// Problems, each kept as long as it keeps occurring.
struct ProblemList: Sendable {
    private struct Kept {
        var problem: MeshProblem
        var last: ContinuousClock.Instant
    }

    private var kept: [String: Kept] = [:]

    private static let lifetime: Duration = .seconds(60)
    private static let countMax = 64

    mutating func record(
        _ code: MeshProblem.Code, _ subject: String, _ text: String,
        now: ContinuousClock.Instant, wall: Int64
    ) {
        let key = "\(code.rawValue) \(subject)"
        kept = kept.filter { now - $0.value.last < Self.lifetime }
        guard kept[key] != nil || kept.count < Self.countMax else { return }
        let since = kept[key]?.problem.sinceMilliseconds ?? wall
        kept[key] = Kept(
            problem: MeshProblem(
                code: code, subject: subject, text: text, sinceMilliseconds: since),
            last: now)
    }

    mutating func clear(subject: String) {
        kept = kept.filter { $0.value.problem.subject != subject }
    }

    func current(now: ContinuousClock.Instant) -> [MeshProblem] {
        kept.values.filter { now - $0.last < Self.lifetime }.map(\.problem)
            .sorted { ($0.sinceMilliseconds, $0.subject) < ($1.sinceMilliseconds, $1.subject) }
    }
}
