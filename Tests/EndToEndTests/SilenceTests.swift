import Glibc
import Testing

extension EndToEnd {
    @Suite("Strangers on the ports", .serialized, .timeLimit(.minutes(5)))
    struct Strangers {
        /// Opens 200 connections to each port of `$1`, says how many, and sends at most a byte a
        /// second on every other one.
        private static let silence = """
            use IO::Socket::INET;
            $SIG{PIPE} = "IGNORE";
            my ($file, $host, @ports) = @ARGV;
            my @all;
            for my $port (@ports) {
                push @all, IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Timeout => 5)
                    for 1 .. 200;
            }
            open my $out, ">", $file; print $out scalar(grep { defined } @all); close $out;
            while (1) {
                for my $i (0 .. $#all) { syswrite $all[$i], "\\x16" if $i % 2 && defined $all[$i] }
                sleep 1;
            }
            """

        @Test("200 silent or one-byte-a-second connections to every port keep no peer out")
        func silentConnections() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: 8 << 20, seed: 13)
                let network = try await Network(workshop)
                let (one, two, three) = (
                    try await network.host(), try await network.host(), try await network.host()
                )
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two, options: ["--capacity", "0"])
                try await a.create()
                try await a.sh("cp \"$1\" file", source).succeeded()
                try await a.settle()
                let ports = try await Self.ports(one)
                #expect(ports.count == 2, "The peer API and the bulk port: \(ports)")
                let count = "\(workshop.directory)/count"
                _ = try three.spawn(
                    ["perl", "-e", Self.silence, count, one.address] + ports,
                    log: "\(workshop.directory)/silence.log")
                try await eventually("the strangers are connected", within: Bounds.transfer) {
                    !FileBytes.read(count).isEmpty
                }
                print("\(FileBytes.text(count)) silent connections to ports \(ports)")
                try await c.join(a)
                try await c.waitForPeers("a")
                #expect(try await c.sha256("file") == Shell.sha256(source))
                try await c.sh("echo answer >answer").succeeded()
                try await a.sees("answer")
                #expect(try await a.status().onlinePeers == ["c"])
            }
        }

        private static func ports(_ host: Host) async throws -> [String] {
            let list = try await host.sh(
                "ss -ltnH | awk '{print $4}' | sed 's/.*://' | sort -un"
            ).succeeded()
            return list.output.split(separator: "\n").map(String.init)
        }

        private static func udpPorts(_ host: Host) async throws -> String {
            try await host.sh(
                "ss -lunH | awk '{print $4}' | sed 's/.*://' | sort -un | paste -sd,"
            ).succeeded().line
        }

        @Test("A node of a small volume listens on two TCP ports and on mDNS, nothing else")
        func listensOnNothingElse() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let host = try await network.host()
                let a = try NodeProcess("a", on: host, options: ["--port", "7600"])
                try await a.create()
                let tcp = try await Self.ports(host)
                #expect(tcp == ["7600", "7601"])
                #expect(try await Self.udpPorts(host) == "5353")
                let b = try NodeProcess("b", on: try await network.host())
                try await b.join(a)
                try await a.waitForPeers("b")
                #expect(try await Self.ports(host) == ["7600", "7601"])
                #expect(try await Self.udpPorts(host) == "5353")
            }
        }
    }
}
