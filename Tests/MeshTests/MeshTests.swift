import Synchronization
import Testing
import Volume

@testable import Mesh

/// A node of the mesh on loopback, with quick heartbeats.
final class Member: Sendable {
    let identity: NodeIdentity
    let mesh: Mesh
    let shared: SharedHello
    let sharedEvents: SharedEvents

    private init(
        identity: NodeIdentity, mesh: Mesh, said: SharedHello, events: SharedEvents
    ) {
        self.identity = identity
        self.mesh = mesh
        shared = said
        sharedEvents = events
    }

    final class SharedHello: Sendable {
        let hello: Mutex<Hello>
        init(_ hello: Hello) { self.hello = Mutex(hello) }
    }

    final class SharedEvents: Sendable {
        let events = Mutex<[String]>([])
    }

    static func start(
        _ name: String, authority: VolumeAuthority, threads: MeshThreads,
        identity: NodeIdentity? = nil, volume: String = "v", fixed: [Endpoint] = [], port: Int = 0,
        adjust: (inout Mesh.Configuration) -> Void = { _ in }
    ) async throws -> Member {
        let identity = try identity ?? NodeIdentity.generate(authority: authority)
        let hello = SharedHello(Hello(name: name, machine: "m", version: "1"))
        let events = SharedEvents()
        var configuration = Mesh.Configuration(volume: volume)
        configuration.host = "127.0.0.1"
        configuration.port = port
        configuration.fixedPeers = fixed
        configuration.backoffMin = .milliseconds(50)
        configuration.backoffMax = .milliseconds(200)
        configuration.backoffHeardMax = .milliseconds(400)
        adjust(&configuration)
        let mesh = try await Mesh.start(
            configuration, identity: identity, authority: authority, threads: threads,
            bodyLimit: { _, path in path == "/echo" ? 1000 : nil },
            handler: { request in
                PeerResponse(body: .bytes(Array("\(name) ".utf8) + request.body))
            },
            hello: { hello.hello.withLock { $0 } },
            events: { event in
                let text =
                    switch event {
                    case .online(let peer): "online \(peer.hello.name)"
                    case .offline(let peer): "offline \(peer.hello.name)"
                    case .changed(let peer): "changed \(peer.hello.name)"
                    }
                events.events.withLock { $0.append(text) }
            })
        return Member(identity: identity, mesh: mesh, said: hello, events: events)
    }

    var endpoint: Endpoint {
        get throws { try #require(Endpoint(host: "127.0.0.1", port: mesh.port)) }
    }

    /// Names of the peers that are online, sorted.
    var online: [String] { mesh.peers.filter(\.isOnline).map(\.hello.name).sorted() }

    /// What has happened, without changes.
    var comings: [String] {
        sharedEvents.events.withLock { $0.filter { !$0.hasPrefix("changed") } }
    }

    var codes: Set<MeshProblem.Code> { Set(mesh.problems.map(\.code)) }
}

/// Starts what a test needs and stops all of it at the end.
actor Gathering {
    nonisolated let threads = MeshThreads()
    nonisolated let authority: VolumeAuthority
    private var members: [Member] = []

    init() throws { authority = try VolumeAuthority(key: .generate()) }

    func start(
        _ name: String, authority: VolumeAuthority? = nil, identity: NodeIdentity? = nil,
        volume: String = "v", fixed: [Endpoint] = [], port: Int = 0,
        adjust: @Sendable (inout Mesh.Configuration) -> Void = { _ in }
    ) async throws -> Member {
        let member = try await Member.start(
            name, authority: authority ?? self.authority, threads: threads, identity: identity,
            volume: volume, fixed: fixed, port: port, adjust: adjust)
        members.append(member)
        return member
    }

    func stopAll() async {
        for member in members { await member.mesh.stop() }
        await threads.stop()
    }

    static func hold(_ body: (Gathering) async throws -> Void) async throws {
        let gathering = try Gathering()
        do { try await body(gathering) } catch {
            await gathering.stopAll()
            throw error
        }
        await gathering.stopAll()
    }
}

@Suite struct MeshTests {
    @Test func allFindEachOtherThroughOneAddress() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            let b = try await gathering.start("b", fixed: [a.endpoint])
            let c = try await gathering.start("c", fixed: [a.endpoint])
            try await eventually("all are online for all") {
                a.online == ["b", "c"] && b.online == ["a", "c"] && c.online == ["a", "b"]
            }
            let reply = try await c.mesh.request(b.mesh.node, path: "/echo", body: [0x21])
            #expect(reply.body == Array("b !".utf8))
            await #expect(throws: PeerError.offline(NodeID(high: 1, low: 1))) {
                try await c.mesh.request(NodeID(high: 1, low: 1), path: "/echo")
            }
            #expect(a.mesh.problems.isEmpty && b.mesh.problems.isEmpty && c.mesh.problems.isEmpty)
        }
    }

    @Test func aChangeReachesEveryPeerAtOnce() async throws {
        try await Gathering.hold { gathering in
            // Heartbeats so rare that only the poke can have carried the change.
            let rare: @Sendable (inout Mesh.Configuration) -> Void = { $0.heartbeat = .seconds(60) }
            let a = try await gathering.start("a", adjust: rare)
            let b = try await gathering.start("b", fixed: [a.endpoint], adjust: rare)
            try await eventually("they meet") { a.online == ["b"] && b.online == ["a"] }
            let head = try #require(ObjectID(bytes: [UInt8](repeating: 9, count: 20)))
            for step in 1...5 {
                a.shared.hello.withLock {
                    $0.head = head
                    $0.announced = [head, head]
                    $0.freeBytes = UInt64(step)
                    $0.holderLogs = [
                        HolderLogHead(node: a.mesh.node, epoch: 3, count: .max, hash: [1, 2, 3])
                    ]
                }
                a.mesh.pokeAll()
                try await eventually("b hears of it") {
                    b.mesh.peer(a.mesh.node)?.hello.freeBytes == UInt64(step)
                }
            }
            let hello = try #require(b.mesh.peer(a.mesh.node)?.hello)
            #expect(hello.head == head && hello.announced == [head, head])
            #expect(hello.holderLogs == a.shared.hello.withLock { $0.holderLogs })
            #expect(hello.apiPort == a.mesh.port && hello.volume == "v")
            try await eventually("an event tells it") {
                b.sharedEvents.events.withLock { $0.contains("changed a") }
            }
        }
    }

    @Test func aStoppedPeerIsOfflineAndComesBack() async throws {
        try await Gathering.hold { gathering in
            let rare: @Sendable (inout Mesh.Configuration) -> Void = { $0.heartbeat = .seconds(60) }
            let a = try await gathering.start("a")
            let b = try await gathering.start("b", fixed: [a.endpoint], adjust: rare)
            try await eventually("they meet") { a.online == ["b"] && b.online == ["a"] }
            let endpoint = try a.endpoint
            await a.mesh.stop()
            // Its connections end, which is noticed without waiting for a heartbeat.
            try await eventually("b sees it go") { b.online == [] }
            #expect(b.mesh.peers.map(\.isOnline) == [false])
            await #expect(throws: PeerError.offline(a.mesh.node)) {
                try await b.mesh.request(a.mesh.node, path: "/echo")
            }
            let again = try await gathering.start(
                "a2", identity: a.identity, port: endpoint.port)
            try await eventually("it is back") { b.online == ["a2"] && again.online == ["b"] }
            #expect(b.comings == ["online a", "offline a", "online a2"])
        }
    }

    @Test func aPeerThatMovedIsFoundAtItsNewAddress() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            let b = try await gathering.start("b", fixed: [a.endpoint])
            try await eventually("they meet") { a.online == ["b"] && b.online == ["a"] }
            await b.mesh.stop()
            let moved = try await gathering.start(
                "b2", identity: b.identity, fixed: [a.endpoint])
            try await eventually("a has it anew") { a.online == ["b2"] && moved.online == ["a"] }
            let movedTo = try moved.endpoint
            #expect(a.mesh.peer(b.mesh.node)?.endpoint == movedTo)
            #expect(!a.codes.contains(.copiedRoot))
        }
    }

    @Test func anUnpluggedPeerIsOfflineAfterSilence() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a") {
                $0.heartbeat = .milliseconds(50)
                $0.helloTimeout = .milliseconds(300)
                $0.offlineAfter = .milliseconds(600)
            }
            let stall = Atomic<Bool>(false)
            // A member whose answers stop, though its machine still acknowledges every packet.
            let identity = try NodeIdentity.generate(authority: gathering.authority)
            var hello = Hello(name: "mute", machine: "m", version: "1")
            hello.volume = "v"
            hello.node = identity.node
            hello.instance = 1
            hello.sequence = 1
            hello.apiPort = 1
            let bytes = hello.encoded()
            var configuration = PeerServer.Configuration()
            configuration.host = "127.0.0.1"
            let mute = try await PeerServer.start(
                configuration, identity: identity, authority: gathering.authority,
                threads: gathering.threads, bodyLimit: { _, _ in 1 << 20 },
                handler: { _ in
                    while stall.load(ordering: .relaxed), !Task.isCancelled {
                        try? await Task.sleep(for: .milliseconds(50))
                    }
                    return PeerResponse(body: .bytes(bytes))
                })
            a.mesh.addCandidate(
                try #require(Endpoint(host: "127.0.0.1", port: mute.port)), source: .discovered)
            try await eventually("it is online") { a.online == ["mute"] }
            stall.store(true, ordering: .relaxed)
            try await eventually("it is offline") { a.online == [] }
            stall.store(false, ordering: .relaxed)
            try await eventually("it is online again") { a.online == ["mute"] }
            await mute.stop()
        }
    }

    @Test func aCopiedRootIsAProblemAndNotTwoPeers() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            let b = try await gathering.start("b", fixed: [a.endpoint])
            try await eventually("they meet") { a.online == ["b"] && b.online == ["a"] }
            let copy = try await gathering.start(
                "copy", identity: b.identity, fixed: [a.endpoint, b.endpoint])
            try await eventually("a notices two") { a.codes.contains(.copiedRoot) }
            try await eventually("the nodes themselves notice") {
                copy.codes.contains(.copiedRoot) && b.codes.contains(.copiedRoot)
            }
            #expect(a.online == ["b"])
        }
    }

    @Test func strangersAreProblemsAndNeverPeers() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            let other = try await gathering.start(
                "other", authority: VolumeAuthority(key: .generate()), fixed: [a.endpoint])
            let namesake = try await gathering.start("namesake", volume: "w", fixed: [a.endpoint])
            let ours = gathering.authority.ca16
            try await eventually("they see why") {
                other.mesh.problems.contains {
                    $0.code == .wrongAuthority && $0.text.contains("peers serve \(ours)")
                } && namesake.codes.contains(.wrongVolume) && a.codes.contains(.wrongVolume)
            }
            #expect(a.mesh.peers.isEmpty && other.mesh.peers.isEmpty && namesake.mesh.peers.isEmpty)
        }
    }

    @Test func anotherFormatIsAProblemThatNamesTheCure() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            let identity = try NodeIdentity.generate(authority: gathering.authority)
            let client = try PeerClient(
                identity: identity, authority: gathering.authority, threads: gathering.threads)
            func say(_ json: String) async throws -> PeerReply {
                try await client.request(
                    a.endpoint, path: "/v1/hello", headers: [("delugefs-hello", "1.1")],
                    body: Array(json.utf8))
            }
            let preamble = "\"volume\":\"v\",\"node\":\"\(identity.node)\",\"version\":\"9\\u001b\""
            let reply = try await say("{\"format\":2,\"rules\":1,\(preamble),\"new\":[]}")
            #expect(reply.status == 409)
            #expect(a.mesh.problems.first?.code == .upgrade)
            #expect(a.mesh.problems.first?.text.contains("upgrade the older one") == true)
            #expect(a.mesh.problems.first?.text.contains("\u{1B}") == false)
            #expect(try await say("{\"format\":1,\"rules\":1,\(preamble)}").status == 409)
            for rubbish in ["[]", "x", "{}", "{\"format\":1e99}", "\u{0}"] {
                #expect(try await say(rubbish).status == 409)
            }
            #expect(a.codes == [.upgrade, .invalidPeer])
            #expect(a.mesh.peers.isEmpty)
            await client.stop()
        }
    }

    @Test func aNodeDoesNotBecomeItsOwnPeer() async throws {
        try await Gathering.hold { gathering in
            let a = try await gathering.start("a")
            a.mesh.addCandidate(try a.endpoint, source: .discovered)
            let b = try await gathering.start("b", fixed: [a.endpoint])
            try await eventually("they meet") { a.online == ["b"] && b.online == ["a"] }
            a.mesh.addCandidate(try a.endpoint, source: .fixed)
            try await Task.sleep(for: .milliseconds(300))
            #expect(a.online == ["b"] && a.mesh.problems.isEmpty)
        }
    }
}

@Suite struct PeerTableTests {
    static let bounds = PeerTable.Bounds(
        peersMax: 4, candidatesMax: 8, backoffMin: .seconds(1), backoffMax: .seconds(10),
        backoffHeardMax: .seconds(60))

    static func endpoint(_ port: Int) -> Endpoint {
        // The port is valid: the tests use small ones.
        Endpoint(host: "10.0.0.1", port: port)!
    }

    static func hello(_ node: UInt64, instance: UInt64 = 1, sequence: UInt64 = 1) -> Hello {
        var hello = Hello(name: "n\(node)", machine: "m", version: "1")
        hello.node = NodeID(high: 0, low: node)
        hello.instance = instance
        hello.sequence = sequence
        return hello
    }

    @Test func fixedAddressesAreTriedForEverWithBoundedPauses() {
        var table = PeerTable(bounds: Self.bounds)
        var now = ContinuousClock.now
        table.add(Self.endpoint(1), source: .fixed, now: now)
        var pauses: [Duration] = []
        for _ in 0..<50 {
            #expect(table.takeDue(now: now, limit: 9).endpoints == [Self.endpoint(1)])
            #expect(table.takeDue(now: now, limit: 9).endpoints.isEmpty)
            table.failed(Self.endpoint(1), now: now)
            guard let next = table.takeDue(now: now, limit: 9).next else {
                Issue.record("no next try")
                return
            }
            pauses.append(next - now)
            now = next
        }
        #expect(
            pauses.prefix(5) == [.seconds(1), .seconds(2), .seconds(4), .seconds(8), .seconds(10)])
        #expect(pauses.max() == .seconds(10))
    }

    @Test func theTableIsBoundedAndKeepsTheBetterAddresses() {
        var table = PeerTable(bounds: Self.bounds)
        let now = ContinuousClock.now
        for port in 1...100 { table.add(Self.endpoint(port), source: .heard, now: now) }
        #expect(table.candidateCount == 8)
        for port in 101...108 { table.add(Self.endpoint(port), source: .fixed, now: now) }
        for port in 201...300 { table.add(Self.endpoint(port), source: .discovered, now: now) }
        #expect(table.candidateCount == 8)
        let due = table.takeDue(now: now, limit: 100).endpoints
        #expect(Set(due) == Set((101...108).map(Self.endpoint)))
    }

    @Test func peersAreBoundedAndTheLongestGoneMakesRoom() {
        var table = PeerTable(bounds: Self.bounds)
        let now = ContinuousClock.now
        func admit(_ node: UInt64, at offset: Int) -> PeerTable.Admission {
            table.admit(
                Self.hello(node), at: Self.endpoint(Int(node)), replacing: false,
                now: now + .seconds(offset), wall: 0)
        }
        for node in 1...4 { _ = admit(UInt64(node), at: node) }
        #expect(admit(5, at: 5) == .full)
        _ = table.lost(NodeID(high: 0, low: 3), now: now)
        _ = table.lost(NodeID(high: 0, low: 2), now: now)
        #expect(admit(5, at: 5) != .full)
        #expect(Set(table.entries.keys.map(\.low)) == [1, 3, 4, 5])
    }

    @Test func anOlderHelloNeverReplacesANewerOne() {
        var table = PeerTable(bounds: Self.bounds)
        let now = ContinuousClock.now
        _ = table.admit(
            Self.hello(1, sequence: 5), at: Self.endpoint(1), replacing: false, now: now, wall: 0)
        #expect(table.heard(Self.hello(1, sequence: 4)) == [])
        #expect(table.heard(Self.hello(1, sequence: 6))?.count == 1)
        #expect(table.heard(Self.hello(1, instance: 2, sequence: 9)) == nil)
        #expect(table.entries.values.first?.peer.hello.sequence == 6)
    }

    @Test func twoAddressesOfOneInstanceAreOnePeerAndTwoInstancesAreRivals() {
        var table = PeerTable(bounds: Self.bounds)
        let now = ContinuousClock.now
        func admit(_ instance: UInt64, _ port: Int, replacing: Bool = false) -> PeerTable.Admission
        {
            table.admit(
                Self.hello(1, instance: instance), at: Self.endpoint(port), replacing: replacing,
                now: now, wall: 0)
        }
        _ = admit(1, 1)
        #expect(admit(1, 2) == .admitted([]))
        #expect(table.entries.values.first?.peer.endpoint == Self.endpoint(1))
        #expect(admit(2, 3) == .rival(Self.endpoint(1)))
        guard case .admitted(let events) = admit(2, 3, replacing: true) else {
            Issue.record("not admitted")
            return
        }
        #expect(events.count == 2)
        #expect(table.entries.values.first?.peer.endpoint == Self.endpoint(3))
    }
}

struct HelloTests {
    @Test func thePlaceInTheDHTIsBoundedAndMayBeAbsent() throws {
        func hello(port: Int, addresses: [String]) -> Hello {
            var hello = Hello(
                name: "n", machine: "m", version: "1", dhtPort: port, dhtAddresses: addresses)
            hello.volume = "v"
            hello.apiPort = 1
            return hello
        }
        let good = hello(port: 7602, addresses: ["10.0.0.1", "fd00::1"])
        let read = try Hello(parsing: good.encoded())
        #expect(read.dhtPort == 7602 && read.dhtAddresses == ["10.0.0.1", "fd00::1"])
        for bad in [
            hello(port: 65_536, addresses: []), hello(port: -1, addresses: []),
            hello(port: 1, addresses: Array(repeating: "10.0.0.1", count: 9)),
            hello(port: 1, addresses: [String(repeating: "1", count: 46)]),
        ] { #expect(throws: HelloError.self) { try Hello(parsing: bad.encoded()) } }
        // As an earlier version says it.
        let text = String(decoding: good.encoded(), as: UTF8.self).replacing("\"dht", with: "\"no")
        let old = try Hello(parsing: Array(text.utf8))
        #expect(old.dhtPort == 0 && old.dhtAddresses.isEmpty)
    }

    @Test func aDiskLargerThanAnyIsRefusedSoThatSumsOfAllPeersDoNotOverflow() throws {
        func hello(_ bytes: UInt64) -> Hello {
            var hello = Hello(
                name: "n", machine: "m", version: "1", freeBytes: bytes, capacityBytes: bytes)
            hello.volume = "v"
            hello.apiPort = 1
            return hello
        }
        #expect(try Hello(parsing: hello(1 << 50).encoded()).capacityBytes == 1 << 50)
        #expect(throws: HelloError.self) { try Hello(parsing: hello(.max).encoded()) }
        let peers = UInt64(Mesh.Configuration(volume: "v").peersMax)
        #expect(!Hello.diskBytesMax.multipliedReportingOverflow(by: peers + 1).overflow)
    }
}
