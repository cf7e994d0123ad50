import Glibc
import Testing

extension EndToEnd {
    @Suite("Finding content", .serialized, .timeLimit(.minutes(5)))
    struct Finding {
        /// More than what comes with the reply to an open.
        private static let bytes = 3 << 20

        @Test("Without holder logs and without asking, the private DHT leads to the one holder")
        func privateDHT() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: Self.bytes, seed: 31)
                let network = try await Network(workshop)
                func node(_ name: String, _ options: String...) async throws -> NodeProcess {
                    try NodeProcess(name, on: try await network.host(), options: options)
                }
                let writer = try await node("writer")
                try await writer.create("--copies", "1")
                let others = [
                    try await node("a"), try await node("b"), try await node("c"),
                    try await node("d"), try await node("e"),
                ]
                let reader = try await node("reader", "--find-by", "dht")
                // No way at all is left to it.
                let control = try await node("control", "--find-by", "none")
                let all = others + [reader, control]
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for node in all { group.addTask { try await node.join(writer) } }
                    try await group.waitForAll()
                }
                try await writer.waitForPeers(Set(all.map(\.name)), within: Bounds.offline)
                try await writer.sh("cp \"$1\" file", source).succeeded()
                for node in [reader, control] { try await node.sees("file") }
                let holders = try await others[0].whereIs("file").holders.map(\.name)
                #expect(holders == ["writer"])

                let start = ContinuousClock.now
                #expect(try await reader.sha256("file") == Shell.sha256(source))
                print("read by the DHT alone \(ContinuousClock.now - start) after the open")
                #expect(FileBytes.text(reader.log).contains("the DHT knows 1 places"))
                if Bounds.isLong {
                    let outcome = try await control.sh(
                        "cat file >/dev/null", timeout: Bounds.starvedRead)
                    #expect(outcome.status != 0 && outcome.errors.contains("Input/output error"))
                    print("without any way the read failed \(outcome.duration) after the open")
                }
                try await Self.onlyMembersAreHeard(writer, by: others[0], network)
            }
        }

        /// A node answers a DHT ping from a member's host, and none from another one.
        private static func onlyMembersAreHeard(
            _ node: NodeProcess, by member: NodeProcess, _ network: Network
        ) async throws {
            let ports = try await node.host.sh(
                "ss -lunH | awk '{print $4}' | sed 's/.*://' | grep -vx 5353 | sort -un"
            ).succeeded().output.split(separator: "\n").map(String.init)
            guard ports.count == 1, let port = ports.first else {
                throw Failure("UDP ports besides mDNS: \(ports)")
            }
            let ping = """
                exec 3<>/dev/udp/$1/$2
                printf 'd1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe' >&3
                timeout 1 head -c 1 <&3 | wc -c
                """
            func answer(to host: Host) async throws -> String {
                try await host.run(Shell.bash(ping, [node.host.address, port])).line
            }
            #expect(try await answer(to: member.host) == "1")
            #expect(try await answer(to: network.host()) == "0")
        }
    }
}
