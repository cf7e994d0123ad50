import Glibc
import Testing

extension EndToEnd {
    /// Publishing runs behind the back of whoever uses a file, and must not be seen.
    @Suite("Publishing behind open files", .serialized, .timeLimit(.minutes(5)))
    struct Publishing {
        private static func one(
            _ options: [String] = [], _ body: (NodeProcess) async throws -> Void
        ) async throws {
            try await Solo.open(options) { try await body($0.node) }
        }

        @Test("A file that is looked at while it is published never shows an earlier size")
        func attributesAreThoseAfterPublishing() async throws {
            try await Self.one { node in
                // Each listing meets files at the moment when they are published; a later one would
                // correct what it got wrong.
                try await node.sh(
                    """
                    for round in {1..40}; do
                        mkdir $round
                        for i in {1..200}; do printf '%s' text >$round/$i; done &
                        sleep 0.0$((round % 10)); ls -l $round >/dev/null
                        wait
                    done
                    """, timeout: Bounds.transfer
                ).succeeded()
                try await node.settle()
                let wrong = try await node.sh(
                    "stat -c %s {1..40}/{1..200} | grep -vx 4 | wc -l", timeout: Bounds.transfer)
                #expect(wrong.line == "0")
                let bytes = try await node.sh("cat {1..40}/{1..200} | wc -c")
                #expect(bytes.line == "32000")
            }
        }

        @Test("A file that is removed while it is hashed is read no further, and goes")
        func removedWhileHashed() async throws {
            try await Self.one { node in
                func bytesRead() async throws -> UInt64 {
                    let pid = try #require(node.pid)
                    let line = try await node.sh("grep ^rchar /proc/$1/io", "\(pid)").line
                    return try #require(UInt64(line.dropFirst("rchar: ".count)))
                }
                let before = try await bytesRead()
                try await node.sh(
                    "head -c 3G /dev/zero | tr '\\0' x >large", timeout: Bounds.transfer
                ).succeeded()
                try await eventually("it is being read", within: Bounds.command) {
                    try await bytesRead() > before + 1 << 24
                }
                try await node.sh("rm large").succeeded()
                try await eventually("its bytes are gone", within: Bounds.command) {
                    try await node.sh("ls -A \"$1\"/staging | wc -l", node.root).line == "0"
                }
                #expect(try await bytesRead() - before < 3 << 30)
            }
        }

        @Test("Truncating a published empty file changes its modification time")
        func truncationOfEmptyFile() async throws {
            try await Self.one { node in
                try await node.sh(": >empty; touch -d 2001-02-03 empty").succeeded()
                try await node.settle()
                let year = try await node.sh(": >empty; date -r empty +%Y").line
                #expect(year != "2001")
            }
        }

        @Test("Opening a file for writing alone changes none of its times")
        func openingChangesNoTime() async throws {
            try await Self.one { node in
                try await node.sh(
                    """
                    head -c 10000 /dev/urandom >file; echo small >inline
                    touch -d 2001-02-03 file inline
                    """
                ).succeeded()
                try await node.settle()
                let outcome = try await node.sh(
                    """
                    for name in file inline; do
                        before=$(stat -c '%y %z' $name)
                        sleep 0.1
                        exec 3<>$name
                        sleep 1.1
                        test "$(stat -c '%y %z' $name)" = "$before" || stat -c '%n %y %z' $name
                        printf x >&3
                        sleep 1.1
                        test "$(stat -c '%z' $name)" != "${before#*00 }" || echo $name is old
                        exec 3>&-
                    done
                    """)
                #expect(outcome.isSuccess && outcome.output.isEmpty, "\(outcome.report)")
            }
        }

        @Test("A dense file keeps its number of blocks when it is published")
        func blocks() async throws {
            try await Self.one { node in
                let before = try await node.sh(
                    """
                    for size in 1 4096 4097 10000 300000; do head -c $size /dev/urandom >$size; done
                    sync; stat -c '%n %b' *
                    """)
                try await node.settle()
                let after = try await node.sh("sleep 1.1; stat -c '%n %b' *")
                #expect(before.output == after.output)
            }
        }

        @Test("A writer of one file changes no byte of another with the same content")
        func equalContent() async throws {
            try await Self.one { node in
                try await node.sh(
                    "head -c 200000 /dev/zero | tr '\\0' o >a; cp a b; cp a c"
                ).succeeded()
                try await node.settle()
                // The first reader is the kernel's, the second ours.
                let outcome = try await node.sh(
                    """
                    exec 3<a 4<b
                    exec 5<>a
                    printf LATE >&5
                    head -c 4 <&4; head -c 4 a; head -c 4 b; head -c 4 c
                    exec 3<&- 4<&- 5>&-
                    """)
                #expect(outcome.output == "ooooLATEoooooooo", "\(outcome.report)")
                try await node.settle()
                #expect(
                    try await node.sh("head -c 4 a; head -c 4 b; head -c 4 c").output
                        == "LATEoooooooo")
            }
        }

        @Test("A copy that shares its blocks with a file is known as that, a changed one is not")
        func copies() async throws {
            try await Solo.open(on: .btrfs(megabytes: 800)) { solo in
                let node = solo.node
                try await node.sh("head -c 90M /dev/urandom >file").succeeded()
                try await node.settle()
                try await node.sh(
                    """
                    cp --reflink=auto file copy
                    cp --reflink=auto file changed
                    exec 3<>changed; printf x >&3; exec 3>&-
                    { head -c 5M file; cat file; } >longer
                    """, timeout: Bounds.transfer
                ).succeeded()
                try await node.settle()
                let roots = try await node.whereIs("file").roots
                #expect(try await node.whereIs("copy").roots == roots)
                #expect(try await node.whereIs("changed").roots != roots)
                let outcome = try await node.sh(
                    """
                    cmp file copy
                    cmp <(printf x; tail -c +2 file) changed
                    cmp <(head -c 5M file; cat file) longer
                    """, timeout: Bounds.transfer)
                #expect(outcome.isSuccess, "\(outcome.report)")
            }
        }

        @Test("Waiting for what is closed does not fail because a file was removed")
        func removedWhilePublished() async throws {
            try await Self.one { node in
                let outcome = try await node.host.run(
                    Shell.bash(
                        """
                        cd "$1"
                        for i in {1..600}; do head -c 10000 /dev/urandom >t$i; rm t$i; done &
                        for i in {1..40}; do "$2" wait --root "$3" --timeout 30; done
                        wait
                        """, [node[""], Machine.binary, node.root]),
                    environment: node.environment, timeout: Bounds.transfer)
                #expect(outcome.isSuccess, "\(outcome.report)")
            }
        }

        @Test("What was open when the connection was aborted is published")
        func abortedConnection() async throws {
            try await Self.one { node in
                let control = try node.host.network.workshop.make("fusectl")
                try await node.host.sh("mount -t fusectl fusectl \"$1\"", control).succeeded()
                node.host.network.workshop.onClose("fusectl") {
                    try await node.host.sh("umount \"$1\"", control).succeeded()
                }
                try await node.sh(
                    """
                    exec 3>file; head -c 10000 /dev/urandom >&3
                    echo 1 >"$1"/$(mountpoint -d . | cut -d: -f2)/abort
                    """, control
                ).succeeded()
                try await node.settle()
                let objects = try await node.host.sh(
                    "find \"$1\"/objects -type f -size 10000c | wc -l", node.root)
                #expect(objects.line == "1")
            }
        }
    }
}
