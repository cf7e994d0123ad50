import Glibc
import Testing

extension EndToEnd {
    @Suite("Without root", .serialized, .timeLimit(.minutes(5)))
    struct Unprivileged {
        // Users that every Debian has: fusermount3 looks its caller up.
        static let nobody = Account(uid: 65534, gid: 65534)
        private static let games = Account(uid: 5, gid: 60)
        private static let backup = Account(uid: 34, gid: 34)

        /// Machines where everybody may mount, as most have it.
        static func openFuse(_ host: Host, mode: String = "0666") async throws {
            let node = "\(host.network.workshop.directory)/fuse-\(host.number)"
            try await host.separateMounts(
                "mknod -m \(mode) \(node) c 10 229; chmod \(mode) \(node); mount --bind \(node) /dev/fuse"
            )
        }

        static func requireReadable(_ host: Host) async throws {
            let version = try await host.run([Machine.binary, "--version"], as: nobody)
            guard version.isSuccess else {
                throw Failure(
                    "\(Machine.binary) must be executable by other users for this test: \(version.report)"
                )
            }
        }

        @Test("File life without root is that of a plain directory")
        func fileLife() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                // Before the host has mounts of its own, or it would not see the disk.
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await Self.openFuse(host)
                try await Self.requireReadable(host)
                try await host.sh(
                    "rmdir \"$1\"/lost+found; chown 65534:65534 \"$1\"", oracle.path
                ).succeeded()
                // Without root nobody makes devices or gives files away.
                let script = FileLife.script
                    .replacing("chown 12:34 a/b/large", with: "")
                    .replacing("mknod null c 1 3", with: "")
                try await host.sh(script, oracle.path, as: Self.nobody).succeeded()
                let expected = try await host.sh(FileLife.listing, oracle.path, as: Self.nobody)
                let node = try NodeProcess("a", on: host, account: Self.nobody)
                try await node.create()
                let mount = try #require(node.mount)
                #expect(try await !node.status().passthrough)
                try await host.sh(script, mount, as: Self.nobody, timeout: Bounds.transfer)
                    .succeeded()
                let seen = try await host.sh(FileLife.listing, mount, as: Self.nobody)
                try FileLife.requireEqual(expected.bytes, seen.bytes, "The mount of nobody")
                try await node.settle()
                try await node.stop()
                try await node.start()
                let again = try await host.sh(FileLife.listing, mount, as: Self.nobody)
                try FileLife.requireEqual(
                    expected.bytes, again.bytes, "The restarted mount of nobody")
                let past = try await host.sh(
                    FileLife.listing, node[".delugefs/at/0s"], as: Self.nobody)
                try FileLife.requireEqual(expected.bytes, past.bytes, "The past of nobody")
                let root = try await host.sh("ls \(node[".delugefs/at/0s"])")
                #expect(!root.isSuccess)
                // A crash leaves a dead mount that its user can recover.
                try await node.kill9()
                try await node.start()
                try await node.sh("test -e a/greeting").succeeded()
            }
        }

        @Test("Two users of different ids edit each other's files; a third one gets nowhere")
        func twoUsers() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                for host in [one, two] { try await Self.openFuse(host) }
                try await Self.requireReadable(one)
                let a = try NodeProcess("a", on: one, account: Self.nobody)
                let c = try NodeProcess("c", on: two, account: Self.games)
                try await a.create()
                try await c.join(a)
                try await c.waitForPeers("a")
                try await a.sh("echo from a >of-a; mkdir dir; echo x >dir/x").succeeded()
                try await c.sees("dir/x")
                #expect(try await c.sh("stat -c %u:%g of-a").line == "5:60")
                try await c.sh("echo edited by c >>of-a; echo from c >dir/of-c").succeeded()
                try await a.sees("dir/of-c")
                #expect(try await a.sh("stat -c %u:%g dir/of-c").line == "65534:65534")
                try await eventually("a sees the edit of c", within: Bounds.visible) {
                    try await a.sh("cat of-a").output == "from a\nedited by c\n"
                }
                try await a.sh("echo edited by a >>dir/of-c; rm dir/x").succeeded()
                try await eventually("c sees the edit of a", within: Bounds.visible) {
                    try await c.sh("cat dir/of-c").output == "from c\nedited by a\n"
                }
                try await Self.requireShut(a)
            }
        }

        private static func requireShut(_ node: NodeProcess) async throws {
            let connect = """
                use IO::Socket::UNIX;
                my $s = IO::Socket::UNIX->new(Peer => "control.sock") or die "no: $!\\n"; print "yes";
                """
            let reach = "cd \"$1\"; perl -e \"$2\""
            let owner = try await node.host.sh(reach, node.root, connect, as: node.account)
            #expect(owner.output == "yes", "Its owner is answered: \(owner.report)")
            let attempts = [
                "ls \"$1\"", "cat \"$1\"/key", "cat \"$1\"/volume.json", "ls \"$1\"/objects",
                "stat \"$1\"/control.sock", "cat \"$1\"/log", "ls \"$2\"",
            ]
            for attempt in attempts {
                let outcome = try await node.host.sh(
                    attempt, node.root, node.mount ?? "", as: backup)
                #expect(!outcome.isSuccess, "\(outcome.report)")
            }
            // Also where the way to it is open: the socket itself is shut.
            let wide = try await node.host.sh(
                """
                chmod 711 "$1"; trap 'chmod 700 "$1"' EXIT
                setpriv --reuid=34 --regid=34 --clear-groups -- bash -c "cd \\"$1\\"; perl -e '$2'"
                """, node.root, connect)
            #expect(!wide.output.contains("yes"), "\(wide.report)")
            // No way around by an abstract name.
            let abstract = try await node.host.sh(
                "awk '$8 ~ /^@/ {print $8}' /proc/net/unix | grep -i deluge || true")
            #expect(abstract.output.isEmpty)
        }

        @Test("Where only root may mount the doctor and the start say so")
        func shutFuse() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                try await Self.openFuse(host, mode: "0600")
                try await Self.requireReadable(host)
                let doctor = try await host.run([Machine.binary, "doctor"], as: Self.nobody)
                #expect(!doctor.isSuccess)
                #expect(doctor.output.contains("/dev/fuse"), "\(doctor.report)")
                let node = try NodeProcess("a", on: host, account: Self.nobody)
                let start = try await node.refusedStart(["--create"])
                #expect(start.status == 1)
                #expect(start.errors.contains("/dev/fuse"), "\(start.report)")
            }
        }

        @Test("A root whose path is longer than a socket's name works as any other")
        func longRoot() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let deep = String(repeating: "d", count: 120)
                let base = try workshop.make(deep)
                let node = try NodeProcess("a", on: host, root: "\(base)/db")
                try await node.create()
                #expect(try await node.status().state == "ready")
                try await node.sh("echo x >file; cat file").succeeded()
                try await node.stop()
            }
        }
    }
}
