import Discovery
import Glibc
import Synchronization
import Testing

@Suite(.enabled(if: getuid() == 0), .serialized) struct DiscoveryTests {
    @Test func nodesOfThreeMachinesFindEachOtherWithTheirAddresses() async throws {
        let network = try TestNetwork()
        var nodes: [TestNode] = []
        var hosts: [Host] = []
        for digit in ["a", "b", "c"] as [Character] {
            let host = try network.host()
            try network.connect(host)
            hosts.append(host)
            // The same machine name everywhere, as after an installation from one image.
            nodes.append(TestNode(digit, on: host, port: 7000 + UInt16(host.number)))
        }
        for (index, node) in nodes.enumerated() {
            for (otherIndex, other) in nodes.enumerated() where otherIndex != index {
                #expect(
                    await eventually {
                        node.addresses(of: other).contains(hosts[otherIndex].address)
                            && node.addresses(of: other).contains { $0.hasSuffix("%eth0") }
                    })
                let found = try #require(node.advertisement(of: other))
                #expect(found.port == 7000 + UInt16(hosts[otherIndex].number))
                #expect(found.volume == "bigstore" && found.authority == "0123456789abcdef")
                #expect(found.addresses.count == 2)
            }
            #expect(node.discovery.advertisements.count == 2)
            #expect(node.events.contains(.announced))
        }
        nodes[2].discovery.stop()
        for node in nodes[..<2] {
            #expect(await eventually { node.events.contains(.lost(node: nodes[2].node)) })
            #expect(node.discovery.advertisements.map(\.node).contains(nodes[2].node) == false)
        }
        for node in nodes { node.discovery.stop() }
    }

    @Test func nodesOfOneHostFindEachOtherWhateverTheirMachineNames() async throws {
        let network = try TestNetwork()
        let host = try network.host()
        try network.connect(host)
        let other = try network.host()
        try network.connect(other)
        let nodes = [
            TestNode("a", on: host, machine: "one"), TestNode("b", on: host, machine: "two"),
            TestNode("c", on: host, machine: "one"), TestNode("d", on: other, machine: "one"),
        ]
        for node in nodes {
            for peer in nodes where peer !== node {
                let address = peer === nodes[3] ? other.address : host.address
                #expect(await eventually { node.addresses(of: peer).contains(address) })
            }
        }
        for node in nodes { node.discovery.stop() }
    }

    @Test func aCableThatIsPluggedInLaterIsNoticed() async throws {
        let network = try TestNetwork()
        let early = try network.host()
        let late = try network.host()
        try network.connect(early)
        let nodes = [TestNode("a", on: early), TestNode("b", on: late)]
        #expect(await eventually { nodes[0].events.contains(.announced) })
        #expect(nodes[0].discovery.advertisements.isEmpty)
        try network.connect(late)
        #expect(await eventually { nodes[0].addresses(of: nodes[1]).contains(late.address) })
        #expect(await eventually { nodes[1].addresses(of: nodes[0]).contains(early.address) })
        try ip("-n", late.namespace, "addr", "del", "\(late.address)/24", "dev", "eth0")
        try ip("-n", late.namespace, "addr", "add", "10.9.0.77/24", "dev", "eth0")
        #expect(await eventually { nodes[0].addresses(of: nodes[1]).contains("10.9.0.77") })
        for node in nodes { node.discovery.stop() }
    }

    @Test func hostsWithoutIPv4MeetByLinkLocalAddresses() async throws {
        let network = try TestNetwork()
        var nodes: [TestNode] = []
        for digit in ["a", "b"] as [Character] {
            let host = try network.host()
            try network.connect(host, hasIPv4: false)
            nodes.append(TestNode(digit, on: host))
        }
        #expect(await eventually { nodes[0].addresses(of: nodes[1]).count == 1 })
        let address = try #require(nodes[0].addresses(of: nodes[1]).first)
        #expect(address.hasPrefix("fe80::") && address.hasSuffix("%eth0"))
        for node in nodes { node.discovery.stop() }
    }

    @Test func twoDisksOfAHostWithoutNetworkMeetOnLoopback() async throws {
        let network = try TestNetwork()
        let host = try network.host()
        try ip("-n", host.namespace, "link", "set", "lo", "up")
        let nodes = [TestNode("a", on: host), TestNode("b", on: host)]
        #expect(await eventually { nodes[0].addresses(of: nodes[1]).contains("127.0.0.1") })
        #expect(await eventually { nodes[1].addresses(of: nodes[0]).contains("127.0.0.1") })
        for node in nodes { node.discovery.stop() }
    }

    @Test func twoNodesWithOneIdentityBothStayVisibleAsOne() async throws {
        let network = try TestNetwork()
        var nodes: [TestNode] = []
        for digit in ["a", "a", "b"] as [Character] {
            let host = try network.host()
            try network.connect(host)
            nodes.append(TestNode(digit, on: host))
            #expect(await eventually { nodes.last?.events.contains(.announced) == true })
        }
        #expect(await eventually { nodes[2].addresses(of: nodes[0]).contains("10.9.0.1") })
        #expect(nodes[2].discovery.advertisements.count == 1)
        #expect(
            await eventually {
                nodes[0].discovery.advertisements.map(\.node) == [nodes[2].node]
            })
        nodes[0].discovery.stop()
        #expect(await eventually { nodes[2].addresses(of: nodes[0]).contains("10.9.0.2") })
        for node in nodes { node.discovery.stop() }
    }

    @Test func aTakenPortIsAnEventAndStoppingStillWorks() async throws {
        let network = try TestNetwork()
        let host = try network.host()
        try network.connect(host)
        let port = TakenPort()
        host.enter { port.take() }
        let node = TestNode("a", on: host)
        #expect(
            await eventually {
                node.events.contains { if case .unavailable = $0 { true } else { false } }
            })
        print(node.events)
        node.discovery.stop()
        node.discovery.stop()
        #expect(node.events.count == 1)
        withExtendedLifetime(port) {}
    }
}

/// Port 5353 without sharing, of IPv6 and with it of IPv4.
private final class TakenPort: Sendable {
    private let descriptor = Atomic<CInt>(-1)

    /// In the namespace of the calling thread.
    func take() {
        let file = socket(AF_INET6, CInt(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_in6()
        address.sin6_family = sa_family_t(AF_INET6)
        address.sin6_port = UInt16(5353).bigEndian
        let size = socklen_t(MemoryLayout<sockaddr_in6>.size)
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(file, $0, size) }
        }
        precondition(result == 0)
        descriptor.store(file, ordering: .sequentiallyConsistent)
    }

    deinit { close(descriptor.load(ordering: .sequentiallyConsistent)) }
}
