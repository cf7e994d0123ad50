import Glibc
import Testing

extension EndToEnd {
    /// Large published files that are changed, on a disk that cannot share blocks.
    @Suite("Changing large files", .serialized, .timeLimit(.minutes(5)))
    struct Overlays {
        /// The same random writes and truncations of `$1` for the same seed `$2`; at most 80 MB long.
        private static let editor = """
            my ($file, $seed, $count) = @ARGV;
            srand $seed;
            open my $f, "+<:raw", $file or die "$file: $!";
            for (1 .. $count) {
                my $kind = int rand 12;
                if ($kind == 0) { truncate $f, int rand 80e6 or die "truncate: $!"; next }
                my $offset = $kind == 1 ? -s $f : int rand 78e6;
                my $length = 1 + int rand($kind == 2 ? 2e6 : 9000);
                sysseek $f, $offset, 0;
                syswrite($f, chr(int rand 256) x $length) == $length or die "write: $!";
            }
            close $f or die "close: $!";
            """
        private static let length = 72_000_000

        private struct Pair {
            let workshop: Workshop
            let node: NodeProcess
            /// An ordinary file, which everything is done to as well.
            let twin: String

            /// Does the same to both.
            func both(_ script: String, _ arguments: String...) async throws {
                for file in [node["file"], twin] {
                    try await node.host.run(
                        Shell.bash(script, [file] + arguments), timeout: Bounds.transfer
                    ).succeeded()
                }
            }

            func edit(seed: Int, count: Int = 150) async throws {
                try await both("perl -e '\(Overlays.editor)' \"$1\" \(seed) \(count)")
            }

            func requireEqual(_ when: String) async throws {
                let outcome = try await node.host.run(
                    ["cmp", node["file"], twin], timeout: Bounds.transfer)
                guard outcome.isSuccess else { throw Failure("\(when): \(outcome.report)") }
            }

            /// Files of changed blocks.
            func overlays() async throws -> Int {
                let found = try await node.host.sh(
                    "find \"$1\"/staging -name '*.base*' | wc -l", node.root)
                return Int(found.line) ?? -1
            }
        }

        private static func open(
            _ options: [String] = [], _ body: (Pair) async throws -> Void
        ) async throws {
            try await Solo.open(on: .ext4(megabytes: 1500), options) { solo in
                let node = solo.node
                let pair = Pair(
                    workshop: solo.workshop, node: node, twin: "\(solo.workshop.directory)/twin")
                try await solo.host.sh(
                    "head -c \(length) /dev/urandom >\"$1\"; cp \"$1\" \"$2\"", pair.twin,
                    node["file"], timeout: Bounds.transfer
                ).succeeded()
                try await node.settle()
                try await body(pair)
            }
        }

        @Test(
            "Random changes of a large file give what they give on an ordinary disk",
            arguments: [[], ["--no-passthrough"]])
        func randomChanges(options: [String]) async throws {
            try await Self.open(options) { pair in
                for seed in 1...3 {
                    // Looked at while it is open, so while nothing is put together.
                    try await pair.both("exec 3<>\"$1\"; sleep 0.1; exec 3>&-")
                    try await pair.edit(seed: seed)
                    try await pair.requireEqual("Closed, seed \(seed)")
                    try await pair.node.settle()
                    try await pair.requireEqual("Published, seed \(seed)")
                    #expect(try await pair.overlays() == 0)
                    #expect(try await pair.node.whereIs("file").copies == 1)
                }
                try await pair.node.stop()
                try await pair.node.start()
                try await pair.requireEqual("After a restart")
            }
        }

        @Test("While a large file is being changed, all who have it open see all changes")
        func openDescriptors() async throws {
            try await Self.open { pair in
                let outcome = try await pair.node.sh(
                    """
                    stat -c '%s %b' file
                    exec 3<>file 4<file
                    find "$1"/staging -name '*.base*' | wc -l
                    dd of=file bs=1 seek=5000000 conv=notrunc status=none <<<changed
                    dd iflag=skip_bytes skip=5000000 bs=7 count=1 status=none <&4; echo
                    stat -c '%s %b' file
                    truncate -s 70000000 file; truncate -s 71000000 file
                    dd if=file iflag=skip_bytes,count_bytes skip=70000000 count=1000000 bs=1M status=none | tr -d '\\0' | wc -c
                    fallocate -p -o 1000 -l 10000000 file
                    head -c 10001000 file | tail -c 10000000 | tr -d '\\0' | wc -c
                    fallocate -z -o 71000000 -l 100 file; stat -c %s file
                    fallocate -l 100000 -o 0 file || echo refused
                    """, pair.node.root)
                let blocks = (Self.length + 4095) / 4096 * 8
                #expect(
                    outcome.output == """
                        \(Self.length) \(blocks)
                        1
                        changed
                        \(Self.length) \(blocks)
                        0
                        0
                        71000100
                        refused

                        """, "\(outcome.report)")
            }
        }

        @Test(
            "What was written into a large file survives kill -9, and what was cut off stays away",
            arguments: [[], ["--no-passthrough"]])
        func kill(options: [String]) async throws {
            try await Self.open(options) { pair in
                // Who has it open for writing keeps it from being put together.
                let flag = "\(pair.workshop.directory)/open"
                let writer = try pair.node.host.spawn(
                    Shell.bash(
                        "exec 3<>\"$1\"; touch \"$2\"; exec sleep 60", [pair.node["file"], flag]),
                    log: "\(pair.workshop.directory)/writer.log")
                try await eventually("it is open", within: Bounds.command) {
                    access(flag, F_OK) == 0
                }
                try await pair.edit(seed: 7)
                try await pair.both("truncate -s 30000000 \"$1\"")
                try await pair.both("printf x | dd of=\"$1\" bs=1 seek=60000000 conv=notrunc")
                try await pair.both("fallocate -p -o 12345678 -l 9000000 \"$1\"")
                #expect(try await pair.overlays() == 1)
                try await pair.node.kill9()
                writer.kill9()
                try await pair.node.start()
                try await pair.requireEqual("After kill -9")
                // While it is being put together.
                try await pair.edit(seed: 8)
                try await pair.node.kill9()
                try await pair.node.start()
                try await pair.node.settle()
                try await pair.requireEqual("After another one")
                #expect(try await pair.overlays() == 0)
            }
        }

        @Test("A large file that is changed here while it is replaced elsewhere is kept twice")
        func replacedElsewhere() async throws {
            try await Self.open { pair in
                let other = try NodeProcess("c", on: try await pair.node.host.network.host())
                try await other.join(pair.node)
                try await other.sees("file")
                let outcome = try await pair.node.sh(
                    """
                    exec 3<>file
                    printf here >&3
                    echo there >"$1"/file
                    sleep 1
                    printf HERE >&3
                    exec 3>&-
                    until test -e file*conflict*; do sleep 0.02; done
                    cmp <(printf hereHERE; tail -c +9 "$2") file
                    cat file*conflict*
                    """, other[""], pair.twin, timeout: Bounds.transfer)
                #expect(outcome.output == "there\n", "\(outcome.report)")
            }
        }

        @Test("A reader never sees an end before the end while changes are put together")
        func readersMeanwhile() async throws {
            try await Self.open(["--no-passthrough"]) { pair in
                let outcome = try await pair.node.sh(
                    """
                    perl -MFcntl -e '
                        sysopen my $f, "file", O_RDONLY | 040000 or die "open: $!";
                        until (-e $ARGV[0]) {
                            sysseek $f, 4096, 0;
                            my $count = sysread $f, my $bytes, 4096;
                            $count == 4096 or die defined $count ? "only $count" : "read: $!";
                        }' "$1" &
                    for i in {1..12}; do
                        printf $i | dd of=file bs=1 seek=9000000 conv=notrunc status=none
                        sleep 0.4
                    done
                    touch "$1"; wait $!
                    """, "\(pair.workshop.directory)/end", timeout: Bounds.transfer)
                #expect(outcome.isSuccess, "\(outcome.report)")
            }
        }

        @Test("A large file that is opened for writing, and not written to, is left alone")
        func untouched() async throws {
            try await Self.open { pair in
                try await pair.both("touch -d 2001-02-03 \"$1\"")
                try await pair.node.settle()
                let roots = try await pair.node.whereIs("file").roots
                try await pair.both("sleep 1.1; exec 3<>\"$1\"; exec 3>&-")
                try await pair.node.settle()
                #expect(try await pair.overlays() == 0)
                #expect(try await pair.node.whereIs("file").roots == roots)
                #expect(try await pair.node.sh("date -r file +%Y").line == "2001")
            }
        }

        @Test("Changing a file of 10 GiB takes room for what is changed")
        func hugeFile() async throws {
            try await Self.open { pair in
                try await pair.node.sh(
                    "truncate -s 10G huge; dd if=file of=huge bs=1M count=8 seek=9000 conv=notrunc status=none"
                ).succeeded()
                try await pair.node.settle()
                let outcome = try await pair.node.sh(
                    """
                    exec 3<>huge
                    printf word >&3
                    cd "$1"/staging; du -k --exclude '*.base*' . | cut -f1
                    exec 3>&-
                    """, pair.node.root)
                #expect(Int(outcome.line) ?? .max < 1000, "\(outcome.report)")
                try await pair.node.settle()
                let read = try await pair.node.sh(
                    """
                    stat -c %s huge; head -c 8 huge | tr '\\0' .; echo
                    cmp <(head -c 8M file) <(tail -c +9437184001 huge | head -c 8M)
                    """, timeout: Bounds.transfer)
                #expect(read.output == "10737418240\nword....\n", "\(read.report)")
            }
        }
    }
}
