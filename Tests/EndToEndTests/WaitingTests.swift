import Glibc
import Testing

extension EndToEnd {
    /// A writer of content that is elsewhere waits for all of it.
    @Suite("Waiting for bytes to write to", .serialized, .timeLimit(.minutes(5)))
    struct Waiting {
        private static let bytes = 300_000

        /// `file` is on a, which does not answer, and is used on c.
        private static func meet(
            _ body: (_ a: NodeProcess, _ c: NodeProcess, _ digest: String) async throws -> Void
        ) async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: bytes, seed: 21)
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let c = try NodeProcess(
                    "c", on: try await network.host(), options: ["--capacity", "0"])
                try await a.create("--copies", "1")
                try await c.join(a)
                try await c.waitForPeers("a")
                try await a.sh("cp \"$1\" file", source).succeeded()
                try await c.sees("file")
                try signal(a, SIGSTOP)
                defer { try? signal(a, SIGCONT) }
                try await body(a, c, try await Shell.sha256(source))
            }
        }

        private static func signal(_ node: NodeProcess, _ signal: Int32) throws {
            let pid = try #require(node.pid)
            kill(pid, signal)
        }

        @Test("A truncation that was interrupted while it waited truncates nothing")
        func interruptedTruncation() async throws {
            try await Self.meet { a, c, digest in
                let outcome = try await c.sh(
                    "timeout 1 perl -e 'truncate(\"file\", 5) or die $!'")
                #expect(outcome.status == 124, "\(outcome.report)")
                try Self.signal(a, SIGCONT)
                #expect(try await c.sha256("file") == digest)
                try await c.settle()
                #expect(try await c.sh("stat -c %s file").line == "\(Self.bytes)")
                try await c.sh("truncate -s 5 file").succeeded()
                #expect(try await c.sh("stat -c %s file").line == "5")
            }
        }

        @Test("A file can be opened for reading while a writer waits for its bytes")
        func readersMeanwhile() async throws {
            try await Self.meet { a, c, digest in
                let log = "\(c.host.network.workshop.directory)/writer.log"
                let writer = try c.host.spawn(
                    Shell.bash("printf end >>\"$1\"", [c["file"]]), log: log)
                try await Task.sleep(for: .seconds(1))
                #expect(writer.status == nil)
                let reader = try await c.sh("timeout 5 bash -c 'exec 3<file'")
                #expect(reader.isSuccess, "\(reader.report)")
                #expect(writer.status == nil)
                try Self.signal(a, SIGCONT)
                #expect(try await writer.wait(Bounds.command) == 0)
                #expect(try await c.sh("head -c \(Self.bytes) file | sha256sum").digest == digest)
                #expect(try await c.sh("tail -c 3 file").output == "end")
            }
        }

        /// Opens for writing, and gets the signal of a child's end meanwhile.
        private static let opener = """
            use Fcntl;
            my $children = 0;
            $SIG{CHLD} = sub { $children++ };
            unless (fork) { select undef, undef, undef, 0.5; exit }
            sysopen my $file, "file", O_RDWR or die "open: $!";
            print "$children\\n";
            """

        @Test("A signal that does not end a program does not end its wait, one that does ends it")
        func signals() async throws {
            try await Self.meet { a, c, _ in
                let ended = try await c.sh("timeout -s INT 2 perl -e '\(Self.opener)'")
                #expect(ended.status == 124, "\(ended.report)")
                #expect(ended.duration < .seconds(6))
                let log = "\(c.host.network.workshop.directory)/opener.log"
                let opener = try c.host.spawn(
                    Shell.bash("cd \"$1\"; exec perl -e '\(Self.opener)'", [c[""]]), log: log)
                try await Task.sleep(for: .seconds(2))
                #expect(opener.status == nil, "\(FileBytes.text(log))")
                try Self.signal(a, SIGCONT)
                #expect(try await opener.wait(Bounds.command) == 0, "\(FileBytes.text(log))")
                #expect(FileBytes.text(log) == "1\n")
            }
        }
    }
}
