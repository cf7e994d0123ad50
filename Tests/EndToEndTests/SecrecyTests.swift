import Glibc
import Testing

extension EndToEnd {
    @Suite("Secrets", .serialized, .timeLimit(.minutes(5)))
    struct Secrets {
        private static let name = "xyzzy-name-of-a-file"
        private static let folder = "xyzzy-name-of-a-directory"
        private static let marker = "plugh content that nobody else may read"

        /// Prints each of the words after `--` that occurs in one of the files before it. A word
        /// that begins with `hex:` is searched as bytes.
        private static let search = """
            my (@files, @words); my $list = \\@files;
            for (@ARGV) { if ($_ eq "--") { $list = \\@words } else { push @$list, $_ } }
            local $/;
            for my $file (@files) {
                open my $in, "<:raw", $file or next;
                my $all = <$in>;
                for my $word (@words) {
                    my $bytes = $word =~ /^hex:(.*)/ ? pack("H*", $1) : $word;
                    print "$word in $file\\n" if index($all, $bytes) >= 0;
                }
            }
            """

        private static func find(_ words: [String], in files: [String]) async throws -> String {
            try await Shell.run(
                ["perl", "-e", search] + files + ["--"] + words, timeout: Bounds.transfer
            ).succeeded().output
        }

        @Test(
            "On the wire no name, root or key is visible, and no content with TLS",
            arguments: ["tls", "plain"])
        func wire(transport: String) async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let capture = "\(workshop.directory)/capture"
                let tcpdump = try two.spawn(
                    [
                        "tcpdump", "-i", "eth0", "-s", "0", "-B", "32768", "-U", "-Z", "root", "-w",
                        capture,
                    ],
                    log: "\(workshop.directory)/tcpdump.log")
                try await eventually("tcpdump listens", within: Bounds.command) {
                    FileBytes.text("\(workshop.directory)/tcpdump.log").contains("listening")
                }
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two)
                try await a.create("--transport", transport)
                try await c.join(a)
                try await c.waitForPeers("a")
                // In the metadata, in the answer to an open, by the swarm.
                for bytes in [100, 100_000, 3_000_000] {
                    try await a.sh(
                        "set +o pipefail; mkdir -p \"$1\"; yes \"$2\" | head -c $4 >\"$1/$3.$4\"",
                        Self.folder, Self.marker, Self.name, "\(bytes)"
                    ).succeeded()
                    let path = "\(Self.folder)/\(Self.name).\(bytes)"
                    try await c.sees(path)
                    #expect(try await c.sha256(path) == a.sha256(path))
                }
                try await a.waitReplicated()
                var roots: [String] = []
                for bytes in [100_000, 3_000_000] {
                    roots += try await a.whereIs("\(Self.folder)/\(Self.name).\(bytes)").roots
                }
                let key = try await a.key()
                tcpdump.send(SIGINT)
                _ = try await tcpdump.wait(Bounds.command)

                #expect(roots.count == 2)
                #expect(FileBytes.read(capture).count > 3_000_000, "The capture has the transfer.")
                let publicWords = try await Self.find(["_delugefs"], in: [capture])
                #expect(!publicWords.isEmpty, "The search finds what is there.")
                var words = [Self.name, Self.folder, key, String(key.dropFirst(5).prefix(26))]
                if transport == "tls" {
                    words += [Self.marker] + roots + roots.map { "hex:\($0)" }
                } else {
                    #expect(try await !Self.find([Self.marker], in: [capture]).isEmpty)
                }
                let found = try await Self.find(words, in: [capture])
                #expect(found.isEmpty, "\(found)")
                try await Self.searchLocally(workshop, [a, c], key)
            }
        }

        /// Logs, command lines and JSON. The keys' own files are where they may be.
        private static func searchLocally(
            _ workshop: Workshop, _ nodes: [NodeProcess], _ key: String
        ) async throws {
            let words = [key, String(key.dropFirst(5).prefix(26))]
            var files = nodes.map(\.log)
            for node in nodes {
                let pid = try #require(node.pid)
                files.append("/proc/\(pid)/cmdline")
                for command in [["status", "--json"], ["status"], ["whereis", node["."]]] {
                    let outcome = try await node.host.run(
                        [Machine.binary, command[0], "--root", node.root] + command.dropFirst(),
                        environment: node.environment)
                    for word in words where outcome.output.contains(word) {
                        Issue.record("\(command) of \(node.name) shows the key.")
                    }
                }
                let history = try await Shell.script(
                    "git --git-dir=\"$1\"/history.git log --all -p --format=raw | grep -c \"$2\" || true",
                    [node.root, words[1]])
                #expect(history.line == "0")
            }
            let found = try await find(words, in: files)
            #expect(found.isEmpty, "\(found)")
        }

        @Test("A key given in the environment is in no argv, log or child's environment")
        func environmentKey() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two)
                try await a.create()
                let key = try await a.key()
                workshop.onClose("the node in the background") { _ = try await c.command("stop") }
                let started = try await c.refusedStart(
                    ["--background"], environment: ["DELUGEFS_KEY": key])
                try started.succeeded()
                try await c.waitForPeers("a")
                let processes = try await two.sh(
                    "for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ | grep -q \"XDG_CONFIG_HOME=$1\" && echo $p/environ $p/cmdline; done; true",
                    "\(c.configuration.dropLast("/delugefs".count))")
                let files = processes.output.split { " \n".contains($0) }.map(String.init)
                #expect(files.count >= 2, "The process in the background is found.")
                let found = try await Self.find(
                    [key, String(key.dropFirst(5).prefix(26))], in: files + ["\(c.root)/log"])
                #expect(found.isEmpty, "\(found)")
            }
        }

        @Test("A peer with a certificate of another volume gets nothing")
        func foreignCertificate() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one, options: ["--port", "7500"])
                try await a.create()
                try await a.sh("echo secret >file").succeeded()
                // A self-made authority and a leaf under it, as a stranger can make them.
                try await two.sh(
                    """
                    cd "$1"
                    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
                        -subj "/CN=DelugeFS volume authority" -keyout foreign.key -out foreign.pem 2>/dev/null
                    """, workshop.directory
                ).succeeded()
                for credentials in ["", "-cert foreign.pem -key foreign.key"] {
                    let said = try await two.sh(
                        """
                        cd "$1"
                        { printf 'GET /v1/hello HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'; sleep 2; } |
                            timeout 10 openssl s_client -connect \(one.address):7500 -quiet \(credentials) 2>&1 || true
                        """, workshop.directory)
                    #expect(!said.output.contains("HTTP/1.1 200"), "\(said.output)")
                    #expect(
                        said.output.contains("alert"),
                        "It is refused in the handshake: \(said.output)")
                }
                #expect(try await a.status().peers.isEmpty)
            }
        }
    }
}
