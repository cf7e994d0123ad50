import Glibc
import Testing

extension EndToEnd {
    @Suite("Writes that come late", .serialized, .timeLimit(.minutes(5)))
    struct LateWrites {
        /// Up to 16 KiB a file's root is the SHA-256 of its bytes, so stock tools can check it.
        private static let length = 10_000

        /// Maps a file shared (makes it if there is none), closes it, and stores through the mapping when told: read(2) into
        /// the mapping is a store like any other.
        static let mapper = """
            my ($file, $flag) = @ARGV;
            my ($mmap, $munmap) = `uname -m` =~ /aarch64/ ? (222, 215) : (9, 11);
            open my $f, -e $file ? "+<" : "+>", $file or die "$file: $!";
            -s $f or syswrite $f, "o" x \(length);
            my $at = syscall($mmap, 0, \(length), 3, 1, fileno($f), 0);
            die "mmap: $!" if $at == -1;
            close $f;
            sub wait_for { select undef, undef, undef, 0.02 until -e "$flag.$_[0]" }
            sub say_that { open my $o, ">", "$flag.$_[0]"; close $o }
            say_that("mapped");
            wait_for("store");
            pipe my $r, my $w; syswrite $w, "LATE"; syscall(\(isArm ? 63 : 0), fileno($r), $at + 100, 4) == 4 or die "store: $!";
            say_that("stored");
            wait_for("unmap");
            syscall($munmap, $at, \(length));
            """

        #if arch(arm64)
            private static let isArm = true
        #else
            private static let isArm = false
        #endif

        /// Every object as small as this is named by its own digest.
        private static func requireSoundObjects(_ node: NodeProcess, atLeast: Int) async throws {
            let outcome = try await node.host.sh(
                """
                cd "$1"/objects
                find . -type f -size -17k ! -name '*.*' -printf '%p\\n' | while read -r object; do
                    test "$(sha256sum <"$object")" = "${object##*/}  -" || { echo "changed: $object"; exit 1; }
                    echo "$object"
                done
                """, node.root)
            try outcome.succeeded()
            let count = outcome.output.split(separator: "\n").count
            guard count >= atLeast else { throw Failure("Only \(count) objects in \(node.name).") }
        }

        private static func makeFile(_ node: NodeProcess) async throws {
            try await node.sh("head -c \(length) /dev/zero | tr '\\0' o >file").succeeded()
        }

        @Test(
            "A store through a mapping after the close never changes a published object",
            arguments: [[], ["--no-passthrough"]])
        func storeAfterClose(options: [String]) async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one, options: options)
                let c = try NodeProcess("c", on: two)
                try await a.create()
                try await c.join(a)
                try await c.waitForPeers("a")
                let flag = "\(workshop.directory)/flag"
                func tell(_ what: String) throws { _ = try workshop.write("", to: "flag.\(what)") }
                func hear(_ what: String) async throws {
                    try await eventually("the program has \(what)", within: Bounds.command) {
                        access("\(flag).\(what)", F_OK) == 0
                    }
                }
                try await Self.makeFile(a)
                // Without passthrough a file counts as open, and a new one stays unknown elsewhere, as
                // long as it is mapped.
                try await a.settle()
                let child = try one.spawn(
                    ["perl", "-e", Self.mapper, a["file"], flag],
                    log: "\(workshop.directory)/mapper.log")
                try await hear("mapped")
                // A result is due, so what is there now is published, as a copy.
                try await a.settle()
                try await c.sees("file")
                try await a.waitReplicated()
                let before = try await c.sha256("file")
                try await Self.requireSoundObjects(c, atLeast: 1)
                try tell("store")
                try await hear("stored")
                for node in [a, c] { try await Self.requireSoundObjects(node, atLeast: 1) }
                try tell("unmap")
                #expect(try await child.wait(Bounds.command) == 0)
                let stored = try await a.sh("dd if=file bs=1 skip=100 count=4 status=none")
                #expect(stored.output == "LATE", "The file has what was stored: \(stored.report)")
                try await eventually("the store is published too", within: Bounds.offline) {
                    try await c.sh("dd if=file bs=1 skip=100 count=4 status=none").output == "LATE"
                }
                #expect(try await c.sha256("file") != before)
                for node in [a, c] { try await Self.requireSoundObjects(node, atLeast: 1) }
            }
        }

        @Test(
            "A new file that is still mapped after its first close is committed when wait returns")
        func mappedNewborn() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two)
                try await a.create()
                try await c.join(a)
                try await c.waitForPeers("a")
                let flag = "\(workshop.directory)/flag"
                let child = try one.spawn(
                    ["perl", "-e", Self.mapper, a["file"], flag],
                    log: "\(workshop.directory)/mapper.log")
                try await eventually("the program has mapped it", within: Bounds.command) {
                    access("\(flag).mapped", F_OK) == 0
                }
                try await a.settle()
                try await c.sees("file")
                #expect(try await c.sh("wc -c <file").succeeded().line == "\(Self.length)")
                for step in ["store", "unmap"] { _ = try workshop.write("", to: "flag.\(step)") }
                #expect(try await child.wait(Bounds.command) == 0)
            }
        }

        @Test("What a program writes that opened its files just before kill -9 is not lost")
        func openJustBeforeCrash() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let a = try NodeProcess("a", on: host)
                try await a.create()
                try await a.sh("echo old >file").succeeded()
                try await a.settle()
                let pid = try #require(a.pid)
                let flag = "\(workshop.directory)/written"
                let writer = try host.spawn(
                    Shell.bash(
                        """
                        cd "$1"; exec 3>>file 4>new; kill -9 $2; sleep 0.5; echo late >&3; echo late >&4
                        touch "$3"; exec sleep 60
                        """, [a[""], "\(pid)", flag]),
                    log: "\(workshop.directory)/writer.log")
                try await eventually("it has written", within: Bounds.command) {
                    access(flag, F_OK) == 0
                }
                _ = try await a.exited(within: Bounds.reaped)
                try await a.start()
                writer.send(SIGKILL)
                _ = try await writer.wait(Bounds.command)
                #expect(try await a.sh("cat file").output == "old\nlate\n")
                #expect(try await a.sh("cat new").output == "late\n")
            }
        }

        @Test("A write by a program that outlived the node never changes a published object")
        func writeAfterCrash() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let a = try NodeProcess("a", on: host)
                try await a.create()
                let flag = "\(workshop.directory)/flag"
                let writer = """
                    exec 3<>"$1"
                    head -c \(Self.length) /dev/zero | tr '\\0' o >&3
                    touch "$2.written"
                    for step in one two; do
                        until test -e "$2.$step"; do sleep 0.02; done
                        printf "LATE" >&3 || echo "refused $step"
                        touch "$2.$step.done"
                    done
                    """
                let child = try host.spawn(
                    Shell.bash("set +e\n\(writer)", [a["file"], flag]),
                    log: "\(workshop.directory)/writer.log")
                func hear(_ what: String) async throws {
                    try await eventually("the program has \(what)", within: Bounds.command) {
                        access("\(flag).\(what)", F_OK) == 0
                    }
                }
                try await hear("written")
                try await a.sh("sync file").succeeded()
                try await a.kill9()
                _ = try workshop.write("", to: "flag.one")
                try await hear("one.done")
                try await a.start()
                try await a.settle()
                let published = try await a.whereIs("file")
                #expect(published.length >= Self.length)
                try await Self.requireSoundObjects(a, atLeast: 1)
                _ = try workshop.write("", to: "flag.two")
                try await hear("two.done")
                try await Self.requireSoundObjects(a, atLeast: 1)
                _ = try await child.wait(Bounds.command)
                print(
                    "the program that outlived: \(FileBytes.text("\(workshop.directory)/writer.log"))"
                )
                try await a.settle()
                try await Self.requireSoundObjects(a, atLeast: 1)
                #expect(
                    try await a.sh("head -c \(Self.length) file | tr -d o | wc -c").line == "0")
            }
        }
    }
}
