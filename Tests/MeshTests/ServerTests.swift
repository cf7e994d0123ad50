import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing
import Volume

@testable import Mesh

/// What a server refused.
final class Refusals: Sendable {
    let list = Mutex<[HandshakeRefusal]>([])

    var all: [HandshakeRefusal] { list.withLock { $0 } }
}

/// A node's half of the peer API, on loopback.
struct Party: Sendable {
    let threads: MeshThreads
    let authority: VolumeAuthority
    let identity: NodeIdentity

    init(authority: VolumeAuthority, threads: MeshThreads) throws {
        self.authority = authority
        self.threads = threads
        identity = try NodeIdentity.generate(authority: authority)
    }

    func client(_ configuration: PeerClient.Configuration = .init()) throws -> PeerClient {
        try PeerClient(configuration, identity: identity, authority: authority, threads: threads)
    }

    func server(
        limits: ServerLimits = ServerLimits(), refusals: Refusals? = nil,
        routes: [String: Int]? = nil,
        handler: @escaping PeerHandler = { PeerResponse(body: .bytes($0.body)) }
    ) async throws -> (PeerServer, Endpoint) {
        var configuration = PeerServer.Configuration()
        configuration.host = "127.0.0.1"
        configuration.limits = limits
        if let refusals {
            configuration.refused = { _, refusal in refusals.list.withLock { $0.append(refusal) } }
        }
        let server = try await PeerServer.start(
            configuration, identity: identity, authority: authority, threads: threads,
            bodyLimit: { _, path in routes.map { $0[path] } ?? 1 << 20 }, handler: handler)
        return (server, try #require(Endpoint(host: "127.0.0.1", port: server.port)))
    }
}

/// Two members of one volume and a stranger with a key of his own.
struct Company: Sendable {
    let threads = MeshThreads()
    let alice: Party
    let bob: Party
    let mallory: Party

    init() throws {
        let authority = try VolumeAuthority(key: .generate())
        alice = try Party(authority: authority, threads: threads)
        bob = try Party(authority: authority, threads: threads)
        mallory = try Party(authority: VolumeAuthority(key: .generate()), threads: threads)
    }

    static func meet(_ body: (Company) async throws -> Void) async throws {
        let company = try Company()
        do { try await body(company) } catch {
            await company.threads.stop()
            throw error
        }
        await company.threads.stop()
    }
}

/// Waits until something is so; the limit only ends a test that would never end.
func eventually(
    _ what: Comment, sourceLocation: SourceLocation = #_sourceLocation,
    _ condition: () async throws -> Bool
) async throws {
    let end = ContinuousClock.now + .seconds(30)
    while ContinuousClock.now < end {
        if try await condition() { return }
        try await Task.sleep(for: .milliseconds(20))
    }
    Issue.record(what, sourceLocation: sourceLocation)
}

/// A TCP connection that says nothing by itself.
func openSocket(to endpoint: Endpoint) throws -> CInt {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(endpoint.port).bigEndian
    inet_pton(AF_INET, endpoint.host, &address.sin_addr)
    let result = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
    guard result == 0 else { throw Errno(rawValue: errno) }
    return descriptor
}

/// A TCP socket with a port of its own on loopback, not listening.
func boundSocket() throws -> (descriptor: CInt, endpoint: Endpoint) {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr)
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let result = withUnsafeMutablePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            bind(descriptor, $0, size) == 0 ? getsockname(descriptor, $0, &size) : -1
        }
    }
    guard result == 0 else { throw Errno(rawValue: errno) }
    let endpoint = Endpoint(host: "127.0.0.1", port: Int(UInt16(bigEndian: address.sin_port)))
    return (descriptor, try #require(endpoint))
}

@Suite struct ServerTests {
    @Test func membersKnowEachOtherByTheirCertificates() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server { request in
                PeerResponse(
                    headers: [("x-test", "1")],
                    body: .bytes(Array("\(request.node!) \(request.remoteHost!)".utf8)))
            }
            let client = try company.bob.client()
            let reply = try await client.request(endpoint, path: "/any")
            #expect(reply.node == company.alice.identity.node)
            #expect(reply.status == 200)
            #expect(reply.header("X-Test") == "1")
            let text = String(decoding: reply.body, as: UTF8.self)
            #expect(text == "\(company.bob.identity.node) 127.0.0.1")
            let expected = company.bob.identity.node
            await #expect(
                throws: PeerError.wrongNode(
                    expected: expected, found: company.alice.identity.node)
            ) { try await client.request(endpoint, expecting: expected, path: "/any") }
            await client.stop()
            await #expect(throws: PeerError.stopped) {
                try await client.request(endpoint, path: "/any")
            }
            await server.stop()
            // A port that is taken, so that nobody else can listen there, but not listened on.
            let (taken, idle) = try boundSocket()
            defer { close(taken) }
            let late = try company.bob.client()
            await #expect {
                try await late.request(idle, path: "/any")
            } throws: {
                if case PeerError.refused = $0 { true } else { false }
            }
            await late.stop()
        }
    }

    @Test func anotherAuthorityIsRefusedOnBothSidesAndCanBeNamed() async throws {
        try await Company.meet { company in
            let refusals = Refusals()
            let calls = Atomic<Int>(0)
            let (server, endpoint) = try await company.alice.server(
                refusals: refusals,
                handler: { _ in
                    calls.add(1, ordering: .relaxed)
                    return PeerResponse()
                })
            let client = try company.mallory.client()
            await #expect(throws: PeerError.wrongAuthority) {
                try await client.request(endpoint, path: "/any")
            }
            try await eventually("the server notices") {
                refusals.all.count == 1
            }
            #expect(await client.presentedAuthority(endpoint) == company.alice.authority.ca16)

            // An impostor: trusts our authority, but has no certificate of it.
            let directory = try TemporaryDirectory()
            try directory.write("ca.pem", company.alice.authority.certificatePEM)
            try directory.write("leaf.pem", company.mallory.identity.certificatePEM)
            try directory.write("leaf.key", company.mallory.identity.privateKeyPEM)
            let path = directory.path.string
            for credentials in [["-cert", "leaf.pem", "-key", "leaf.key"], []] {
                let arguments = credentials.map { $0.hasPrefix("-") ? $0 : "\(path)/\($0)" }
                let answer = try await runArguments(
                    [
                        "openssl", "s_client", "-quiet", "-connect", endpoint.description,
                        "-CAfile", "\(path)/ca.pem",
                    ] + arguments, input: "GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                #expect(answer.output.contains("alert"), "\(answer.output)")
                #expect(!answer.output.contains("HTTP/1.1 200"), "\(answer.output)")
            }
            // The client, its question for the name, and the two impostors.
            try await eventually("the server notices all") { refusals.all.count == 4 }
            // Those whom the server itself refused; the others' alerts may have been lost.
            #expect(refusals.all.suffix(2) == [.wrongAuthority, .wrongAuthority])
            #expect(Set(refusals.all).isSubset(of: [.wrongAuthority, .unfinished]))
            #expect(calls.load(ordering: .relaxed) == 0)
            await client.stop()
            await server.stop()
        }
    }

    @Test func anOlderTLSIsRefusedEvenFromMembers() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server()
            let directory = try TemporaryDirectory()
            try directory.write("ca.pem", company.bob.authority.certificatePEM)
            try directory.write("leaf.pem", company.bob.identity.certificatePEM)
            try directory.write("leaf.key", company.bob.identity.privateKeyPEM)
            let path = directory.path.string
            for (version, isAccepted) in [("-tls1_2", false), ("-tls1_3", true)] {
                let answer = try await run(
                    "openssl", "s_client", "-quiet", "-connect", endpoint.description, version,
                    "-CAfile", "\(path)/ca.pem", "-cert", "\(path)/leaf.pem", "-key",
                    "\(path)/leaf.key",
                    input: "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                #expect(answer.output.contains("HTTP/1.1 200") == isAccepted, "\(answer.output)")
            }
            await server.stop()
        }
    }

    @Test func silentStrangersDoNotLockMembersOut() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server()
            var silent: [CInt] = []
            defer { for descriptor in silent { close(descriptor) } }
            let client = try company.bob.client()
            for _ in 0..<200 { silent.append(try openSocket(to: endpoint)) }
            // Some say a little: half a TLS record.
            for descriptor in silent.suffix(50) { _ = send(descriptor, "\u{16}\u{3}", 2, 0x4000) }
            let reply = try await client.request(endpoint, path: "/any", body: [1, 2])
            #expect(reply.body == [1, 2])
            for _ in 0..<200 { silent.append(try openSocket(to: endpoint)) }
            let other = try company.bob.client()
            #expect(try await other.request(endpoint, path: "/any", body: [3]).body == [3])
            #expect(server.pendingHandshakes <= 17)
            await client.stop()
            await other.stop()
            await server.stop()
        }
    }

    @Test func handshakesThatDoNotEndAreCut() async throws {
        try await Company.meet { company in
            var limits = ServerLimits()
            limits.handshake = .milliseconds(100)
            let refusals = Refusals()
            let (server, endpoint) = try await company.alice.server(
                limits: limits, refusals: refusals)
            let descriptor = try openSocket(to: endpoint)
            try await eventually("it is cut") {
                server.pendingHandshakes == 0 && !refusals.all.isEmpty
            }
            #expect(refusals.all == [.unfinished])
            close(descriptor)
            await server.stop()
        }
    }

    @Test func bodiesAreBoundedBySizeAndByProgress() async throws {
        try await Company.meet { company in
            var limits = ServerLimits()
            limits.progressWindow = .milliseconds(300)
            let (server, endpoint) = try await company.alice.server(
                limits: limits, routes: ["/small": 100, "/slow": 1 << 20])
            let client = try company.bob.client()
            func status(_ path: String, _ count: Int) async throws -> Int {
                try await client.request(
                    endpoint, path: path, body: [UInt8](repeating: 1, count: count)
                ).status
            }
            #expect(try await status("/small", 100) == 200)
            #expect(try await status("/small", 101) == 413)
            #expect(try await status("/nowhere", 1) == 404)
            #expect(try await status("/slow", 1 << 20) == 200)
            #expect(try await status("/slow", 1 << 20 | 1) == 413)
            let reply = try await client.request(endpoint, path: "/nowhere")
            #expect(throws: PeerError.status(404, "no such route")) { try reply.successful() }

            // A byte now and then is no progress; openssl plays the slow member.
            let directory = try TemporaryDirectory()
            try directory.write("leaf.pem", company.bob.identity.certificatePEM)
            try directory.write("leaf.key", company.bob.identity.privateKeyPEM)
            let path = directory.path.string
            let script = """
                (printf 'POST /slow HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 1000\\r\\n\\r\\n'
                 for i in $(seq 40); do printf x; sleep 0.1; done) |
                openssl s_client -quiet -connect \(endpoint) -cert \(path)/leaf.pem \
                -key \(path)/leaf.key 2>&1
                """
            let answer = try await run("bash", "-c", script)
            #expect(answer.output.contains("HTTP/1.1 408"), "\(answer.output)")
            await client.stop()
            await server.stop()
        }
    }

    static func content(words: Int) -> (bytes: [UInt8], seed: UInt64) {
        let seed = UInt64.random(in: .min ... .max)
        var random = SeededRandom(seed: seed)
        let words = (0..<words).map { _ in random.next() }
        return (words.withUnsafeBytes { Array($0) }, seed)
    }

    @Test func filesAndStreamsArriveWhole() async throws {
        try await Company.meet { company in
            let directory = try TemporaryDirectory()
            let (content, seed) = Self.content(words: 700_000)
            let source = directory.path.appending("source")
            let file = try FileDescriptor.open(
                source, .writeOnly, options: [.create], permissions: [.ownerReadWrite])
            try file.writeAll(content)
            try file.close()
            let (server, endpoint) = try await company.alice.server { request in
                switch request.path {
                case "/file":
                    let descriptor = open(source.string, O_RDONLY)
                    return PeerResponse(
                        body: .file(
                            FileRegion(
                                owning: descriptor, offset: 5, length: Int64(content.count - 5))))
                case "/short":
                    let descriptor = open(source.string, O_RDONLY)
                    return PeerResponse(
                        body: .file(
                            FileRegion(
                                owning: descriptor, offset: 5, length: Int64(content.count))))
                case "/stream":
                    return PeerResponse(
                        body: .stream { writer in
                            for start in stride(from: 0, to: content.count, by: 99_999) {
                                let end = min(start + 99_999, content.count)
                                try await writer.write(Array(content[start..<end]))
                            }
                        })
                default: return .refusal(410, "gone")
                }
            }
            let client = try company.bob.client()
            let target = try FileDescriptor.open(
                directory.path.appending("target"), .readWrite, options: [.create],
                permissions: [.ownerReadWrite])
            defer { try? target.close() }
            func download(_ path: String, _ limit: Int64) async throws -> PeerReply {
                try await client.download(
                    endpoint, path: path, to: target.rawValue, replyBytesMax: limit)
            }
            func stored() throws -> [UInt8] {
                try Array(Data(contentsOf: URL(fileURLWithPath: "\(directory.path)/target")))
            }
            let reply = try await download("/file", 1 << 30)
            #expect(reply.fileBytes == Int64(content.count - 5))
            #expect(try stored() == Array(content.dropFirst(5)), "seed \(seed)")
            #expect(try await download("/stream", 1 << 30).fileBytes == Int64(content.count))
            #expect(try stored() == content, "seed \(seed)")
            await #expect(throws: PeerError.tooLarge(limit: 1000)) {
                try await download("/file", 1000)
            }
            await #expect(throws: PeerError.disconnected("in the middle of the reply")) {
                try await download("/short", 1 << 30)
            }
            let gone = try await download("/gone", 2)
            #expect(gone.fileBytes == 0)
            #expect(throws: PeerError.status(410, "gone")) { try gone.successful() }
            let inMemory = try await client.request(
                endpoint, path: "/stream", replyBytesMax: 1 << 30)
            #expect(inMemory.body == content, "seed \(seed)")
            await #expect(throws: PeerError.tooLarge(limit: 1000)) {
                try await client.request(endpoint, path: "/stream", replyBytesMax: 1000)
            }
            await client.stop()
            await server.stop()
        }
    }

    @Test func connectionsAreReusedAndTheirNumberBounded() async throws {
        try await Company.meet { company in
            let running = Atomic<Int>(0)
            let most = Atomic<Int>(0)
            let (server, endpoint) = try await company.alice.server { request in
                let now = running.add(1, ordering: .relaxed).newValue
                most.max(now, ordering: .relaxed)
                try? await Task.sleep(for: .milliseconds(1))
                running.subtract(1, ordering: .relaxed)
                return PeerResponse(body: .bytes(request.body))
            }
            var configuration = PeerClient.Configuration()
            configuration.connectionsPerEndpoint = 3
            configuration.waitersPerEndpoint = 100
            let client = try company.bob.client(configuration)
            let closed = Atomic<Int>(0)
            client.whenClosed { _ in closed.add(1, ordering: .relaxed) }
            try await withThrowingTaskGroup { group in
                for index in 0..<100 {
                    group.addTask {
                        let body = [UInt8(index)]
                        let reply = try await client.request(
                            endpoint, path: "/", body: body, timeout: .seconds(60))
                        #expect(reply.body == body)
                    }
                }
                try await group.waitForAll()
            }
            #expect(most.load(ordering: .relaxed) <= 3)
            #expect(closed.load(ordering: .relaxed) == 0)
            await client.stop()
            await server.stop()
        }
    }

    @Test func aKeptConnectionThatDiedIsReplaced() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server()
            let client = try company.bob.client()
            #expect(try await client.request(endpoint, path: "/", body: [1]).body == [1])
            await server.stop()
            var configuration = PeerServer.Configuration()
            configuration.host = "127.0.0.1"
            configuration.port = endpoint.port
            let again = try await PeerServer.start(
                configuration, identity: company.alice.identity, authority: company.alice.authority,
                threads: company.threads, bodyLimit: { _, _ in 10 },
                handler: { _ in PeerResponse(body: .bytes([7])) })
            #expect(try await client.request(endpoint, path: "/", body: [1]).body == [7])
            await client.stop()
            await again.stop()
        }
    }

    @Test func silenceIsATimeout() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server { _ in
                try? await Task.sleep(for: .seconds(60))
                return PeerResponse()
            }
            let client = try company.bob.client()
            await #expect(throws: PeerError.timeout) {
                try await client.request(endpoint, path: "/", timeout: .milliseconds(300))
            }
            // A server that accepts and says nothing.
            let (descriptor, mute) = try boundSocket()
            defer { close(descriptor) }
            #expect(listen(descriptor, 5) == 0)
            await #expect(throws: PeerError.timeout) {
                try await client.request(mute, path: "/", timeout: .milliseconds(300))
            }
            await client.stop()
            await server.stop()
        }
    }

    @Test func aTakenPortIsSaidSo() async throws {
        try await Company.meet { company in
            let (server, endpoint) = try await company.alice.server()
            var configuration = PeerServer.Configuration()
            configuration.host = "127.0.0.1"
            configuration.port = endpoint.port
            await #expect {
                _ = try await PeerServer.start(
                    configuration, identity: company.bob.identity,
                    authority: company.bob.authority, threads: company.threads,
                    bodyLimit: { _, _ in 1 }, handler: { _ in PeerResponse() })
            } throws: {
                if case ServerError.portInUse(_, endpoint.port) = $0 { true } else { false }
            }
            await server.stop()
        }
    }

    @Test func bothInternetProtocolsReachTheDefaultAddress() async throws {
        try await Company.meet { company in
            let server = try await PeerServer.start(
                PeerServer.Configuration(), identity: company.alice.identity,
                authority: company.alice.authority, threads: company.threads,
                bodyLimit: { _, _ in 1 },
                handler: { PeerResponse(body: .bytes(Array(($0.remoteHost ?? "").utf8))) })
            let client = try company.bob.client()
            let hasIPv6 =
                (try? String(contentsOfFile: "/proc/net/if_inet6", encoding: .utf8))
                .map { $0.contains("00000000000000000000000000000001") } ?? false
            for host in ["127.0.0.1"] + (hasIPv6 ? ["::1"] : []) {
                let endpoint = try #require(Endpoint(host: host, port: server.port))
                let reply = try await client.request(endpoint, path: "/")
                #expect(String(decoding: reply.body, as: UTF8.self) == host)
            }
            await client.stop()
            await server.stop()
        }
    }
}

@Suite struct HandshakeGateTests {
    /// Stands for a connection.
    final class Connection: Sendable {
        private let closed = Atomic<Bool>(false)

        var isClosed: Bool { closed.load(ordering: .relaxed) }

        func begin(_ gate: HandshakeGate, _ address: String) -> HandshakeGate.Ticket {
            gate.begin(ObjectIdentifier(self), address: address) {
                self.closed.store(true, ordering: .relaxed)
            }
        }
    }

    @Test func theOldestGivesWayWhicheverIsTakenUpFirst() {
        let gate = HandshakeGate(limits: ServerLimits())
        let connections = (0..<40).map { _ in Connection() }
        for connection in connections { gate.accept(ObjectIdentifier(connection)) }
        // The newest first, as a quick event loop may do.
        for connection in connections.reversed() { _ = connection.begin(gate, "10.0.0.1") }
        let closed = connections.map(\.isClosed)
        #expect(closed == (0..<40).map { $0 < 24 })
        #expect(gate.pendingCount == 16)
    }

    @Test func membersAreCountedApartAndNetworksTogether() {
        let gate = HandshakeGate(limits: ServerLimits())
        let member = Connection()
        gate.accept(ObjectIdentifier(member))
        gate.end(member.begin(gate, "10.9.9.9"), memberAt: "10.9.9.9")
        gate.accept(ObjectIdentifier(member))
        _ = member.begin(gate, "10.9.9.9")
        var strangers: [Connection] = []
        for index in 0..<1000 {
            let stranger = Connection()
            gate.accept(ObjectIdentifier(stranger))
            _ = stranger.begin(gate, "10.0.\(index / 250).\(index % 250)")
            strangers.append(stranger)
        }
        #expect(gate.pendingCount == 257)
        #expect(!member.isClosed)
        let other = HandshakeGate(limits: ServerLimits())
        for index in 0..<40 {
            let stranger = Connection()
            other.accept(ObjectIdentifier(stranger))
            _ = stranger.begin(other, "2001:db8:1:2:\(index)::1")
            strangers.append(stranger)
        }
        #expect(other.pendingCount == 16)
    }
}

@Suite struct EndpointTests {
    @Test func endpointsAreReadStrictly() {
        #expect(Endpoint(parsing: "host.example:80") == Endpoint(host: "host.example", port: 80))
        #expect(Endpoint(parsing: "[fe80::1%2]:80")?.host == "fe80::1%2")
        #expect(Endpoint(parsing: "[::1]:65535")?.description == "[::1]:65535")
        for text in [
            "", ":", "a", "a:", "a:0", "a:65536", "a:+1", "::1:80", "[::1]", ":80", "a b:1",
        ] {
            #expect(Endpoint(parsing: text) == nil, "\(text)")
        }
    }

    @Test func aPeersWordsCannotCommandATerminal() {
        let nasty = "a\u{1B}[2Jb\r\n\u{202E}c\u{85}"
        #expect(PeerError.printable(nasty.utf8) == "a [2Jb   c ")
        #expect(PeerError.printable(Array(repeating: 0x61, count: 9999)).count == 512)
    }
}
