import Glibc
import Testing

@testable import Swarm

@Suite("The private DHT", .serialized, .timeLimit(.minutes(1)))
struct DHTTests {
    private static let key: [UInt8] = Array(1...20)
    /// Until nodes have met and an announcement is kept.
    private static let settling = Duration.seconds(15)

    /// Sessions on 127.0.0.N that all admit and know each other.
    private static func together(_ numbers: [Int]) throws -> [DHT] {
        let addresses = numbers.map { "127.0.0.\($0)" }
        let tables = try addresses.map { try DHT(addresses: [$0]) }
        for table in tables { try table.admit(addresses) }
        for table in tables {
            for (address, other) in zip(addresses, tables) where other !== table {
                table.add(SwarmEndpoint(address: address, port: other.port))
            }
        }
        return tables
    }

    /// Announces and looks until it is found.
    private static func find(
        _ key: [UInt8], of announcer: DHT, port: UInt16, by finder: DHT
    ) async -> Set<SwarmEndpoint> {
        let start = ContinuousClock.now
        while ContinuousClock.now - start < settling {
            announcer.announce(key, port: port)
            let found = await finder.lookUp(key, within: .seconds(1))
            if !found.isEmpty {
                print("found \(ContinuousClock.now - start) after the start: \(found)")
                return found
            }
        }
        return []
    }

    private static func stop(_ tables: [DHT]) async { for table in tables { await table.stop() } }

    @Test("what one node announces the others find, and nothing else")
    func announceAndFind() async throws {
        let tables = try Self.together([2, 3, 4])
        for finder in tables[1...] {
            let found = await Self.find(Self.key, of: tables[0], port: 7600, by: finder)
            #expect(found == [SwarmEndpoint(address: "127.0.0.2", port: 7600)])
        }
        let start = ContinuousClock.now
        let none = await tables[1].lookUp(Array(2...21), within: .milliseconds(500))
        #expect(none.isEmpty)
        #expect(ContinuousClock.now - start < .seconds(2), "a look-up ends when it is to")
        await Self.stop(tables)
    }

    @Test("a stranger's packets reach nobody until its address is admitted")
    func strangers() async throws {
        let members = try Self.together([5, 6])
        #expect(
            await Self.find(Self.key, of: members[0], port: 7600, by: members[1])
                == [SwarmEndpoint(address: "127.0.0.5", port: 7600)])
        // It would hear everybody, and nobody hears it.
        let stranger = try DHT(addresses: ["127.0.0.7"])
        try stranger.admit((1...9).map { "127.0.0.\($0)" })
        func ask() async -> Set<SwarmEndpoint> {
            for (number, member) in zip([5, 6], members) {
                stranger.add(SwarmEndpoint(address: "127.0.0.\(number)", port: member.port))
            }
            return await stranger.lookUp(Self.key, within: .milliseconds(700))
        }
        for _ in 1...3 { #expect(await ask().isEmpty) }
        #expect(try Self.ping(from: "127.0.0.7", port: members[0].port) == false)
        #expect(try Self.ping(from: "127.0.0.6", port: members[0].port), "a member is answered")
        for member in members { try member.admit((5...7).map { "127.0.0.\($0)" }) }
        #expect(try Self.ping(from: "127.0.0.7", port: members[0].port))
        var found: Set<SwarmEndpoint> = []
        let start = ContinuousClock.now
        while found.isEmpty, ContinuousClock.now - start < Self.settling { found = await ask() }
        #expect(found == [SwarmEndpoint(address: "127.0.0.5", port: 7600)])
        await Self.stop(members + [stranger])
    }

    @Test(
        "IPv6 senders are told apart as well, and more addresses than a filter holds are no failure"
    )
    func manyAddresses() async throws {
        let tables = [try DHT(addresses: ["::1"]), try DHT(addresses: ["::1"])]
        tables[0].add(SwarmEndpoint(address: "::1", port: tables[1].port))
        let strangers = (1...4000).map { "fd00::\(String($0, radix: 16))" }
        for table in tables { try table.admit(strangers + ["127.0.0.1"]) }
        // What they listen on counts as their own.
        for (table, other) in [(tables[0], tables[1]), (tables[1], tables[0])] {
            table.add(SwarmEndpoint(address: "::1", port: other.port))
        }
        let found = await Self.find(Self.key, of: tables[0], port: 7600, by: tables[1])
        #expect(found == [SwarmEndpoint(address: "::1", port: 7600)])
        await Self.stop(tables)
    }

    @Test("it takes no TCP connection")
    func noConnections() async throws {
        let table = try DHT(addresses: ["127.0.0.8"])
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = Self.address("127.0.0.8", table.port)
        let code = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        #expect(code == -1 && errno == ECONNREFUSED)
        await table.stop()
        await table.stop()
        #expect(await table.lookUp(Self.key, within: .seconds(5)).isEmpty)
    }

    private static func address(_ text: String, _ port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        inet_pton(AF_INET, text, &address.sin_addr)
        return address
    }

    /// Sends a DHT ping from an address to 127.0.0.5.
    /// - Returns: whether it is answered.
    private static func ping(from source: String, port: UInt16) throws -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        defer { close(descriptor) }
        var (own, other) = (address(source, 0), address("127.0.0.5", port))
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        func named<Result>(
            _ address: inout sockaddr_in, _ body: (UnsafePointer<sockaddr>) -> Result
        ) -> Result {
            withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0) }
            }
        }
        let query = Array("d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe".utf8)
        guard named(&own, { bind(descriptor, $0, size) }) == 0,
            named(&other, { sendto(descriptor, query, query.count, 0, $0, size) }) == query.count
        else { throw SwarmError.torrent("no packet: \(errno)") }
        var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&waiting, 1, 1000) == 1
    }
}
