import Testing

extension EndToEnd {
    @Suite("What was removed or changed comes back", .serialized, .timeLimit(.minutes(5)))
    struct Restoring {
        /// 10,000 files in nested directories of `$1`, with modes, owners and times of their own.
        private static let manyFiles = #"""
            mkdir "$1"; cd "$1"
            perl -MTime::HiRes=utime -e '
                for my $i (0 .. \#(Bounds.isLong ? 9999 : 3999)) {
                    my @at = (int($i / 1000), int($i / 100) % 10, int($i / 50) % 2);
                    my $dir = "d$at[0]/$at[1]/x$at[2]";
                    my $path = "";
                    for (split m{/}, $dir) { $path .= "$_/"; mkdir $path }
                    my $name = "$dir/file $i";
                    if ($i % 100 == 7) { symlink "file $i", $name; next }
                    if ($i % 100 == 8) { link "$dir/file " . ($i - 2), $name; next }
                    open my $f, ">", $name or die "$name: $!";
                    print $f "content of $i\n" x ($i % 500 == 1 ? 2000 : 1);
                    close $f;
                    chmod((0600, 0644, 0755, 0440, 04755)[$i % 5], $name);
                    chown $i % 3, $i % 7, $name if $i % 11 == 0;
                    utime $i, 1e9 + $i + 0.123456, $name;
                }
                for my $i (0 .. 9) { chmod 0700 + $i, "d$i"; utime 5, 1e9 + $i, "d$i" }'
            """#

        /// Everything that can be seen of the tree `$1`, times to the nanosecond, names that share
        /// an inode, access control lists, bytes.
        private static let listing = #"""
            cd "$1"
            find . -printf '%P\t%y %m %U:%G %l %T@ %D %i %n\0' | LC_ALL=C sort -z |
                perl -0ne 'chomp; my ($n, $r) = /^(.*)\t(.*)$/s;
                    my @facts = split / /, $r, -1; my $links = pop @facts; my $inode = pop @facts;
                    pop @facts; $first{$inode} //= $n;
                    push @facts, $links, $first{$inode} if $facts[0] ne "d";
                    $_ = "$n @facts"; s/([^ -~])/sprintf "\\x%02x", ord $1/ge; print "$_\n"'
            find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
            find . -print0 | LC_ALL=C sort -z | xargs -0r getfattr -h -d -m '^user\.test\.' -e hex
            getfacl -R --absolute-names --numeric . | LC_ALL=C sort | uniq -c
            """#

        private static func list(_ node: NodeProcess, _ path: String) async throws -> [UInt8] {
            try await node.host.sh(listing, node[path], timeout: Bounds.transfer).succeeded().bytes
        }

        /// A time after all that has happened, and before all that will.
        private static func now(_ node: NodeProcess) async throws -> String {
            try await node.settle()
            let time = try await node.host.sh("sleep 0.01; date +@%s.%3N; sleep 0.01").succeeded()
            return time.line
        }

        @Test("A tree of thousands of files is removed, and is there again on every node")
        func wholeTree() async throws {
            try await Duo.open { a, b in
                try await a.sh(Self.manyFiles, "tree", timeout: Bounds.transfer).succeeded()
                try await a.sh("mkdir tree/life; chmod 3775 tree/life").succeeded()
                try await FileLife.run(on: a.host, in: a["tree/life"])
                try await a.sh(
                    """
                    setfacl -m u:5:rw,g:61:r tree/life/log; setfacl -d -m u:5:rwx tree/life/a
                    touch -d @1234567890.000000001 tree
                    """
                ).succeeded()
                let time = try await Self.now(a)
                let before = try await Self.list(a, "tree")
                try await a.sh("rm -rf tree", timeout: Bounds.transfer).succeeded()
                try await a.settle()
                try await b.sees("tree", false)
                let clock = ContinuousClock()
                let start = clock.now
                let outcome = try await a.command(
                    "restore", a["tree"], "--at", time, timeout: Bounds.transfer
                ).succeeded()
                print("restored in \(clock.now - start): \(outcome.line)")
                try FileLife.requireEqual(before, try await Self.list(a, "tree"), "The mount")
                try await a.settle()
                try await eventually("b has the same state", within: Bounds.visible) {
                    try await a.status().head == b.status().head
                }
                try FileLife.requireEqual(
                    before, try await Self.list(b, "tree"), "The other node's mount")
                // Once more changes nothing.
                let again = try await a.command("restore", a["tree"], "--at", time).succeeded()
                #expect(!again.line.contains("brought") && !again.line.contains("changed"))
                try await a.checkHistory()
            }
        }

        @Test("A file gets its old content as an edit, and what came since stays")
        func changed() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh(
                    """
                    mkdir d d/sub; echo old >d/file; chmod 640 d/file; echo gone >d/sub/gone
                    echo linked >d/one; ln d/one d/two; ln -s there d/link; echo kind >d/kind
                    echo outside >outside; echo apart >d/apart
                    """
                ).succeeded()
                let time = try await Self.now(node)
                let before = try await Self.list(node, "d")
                try await node.sh(
                    """
                    exec 5<d/file; inode=$(stat -c %i d/file)
                    echo new >d/file; chmod 600 d/file; rm -r d/sub; echo since >d/since
                    rm d/two; echo other >d/two; ln -sf elsewhere d/link
                    rm d/kind; mkdir d/kind; rm d/apart; ln outside d/apart
                    """
                ).succeeded()
                let between = try await Self.now(node)
                try await node.command("restore", node["d"], "--at", time).succeeded()
                #expect(try await node.sh("cat d/since outside").output == "since\noutside\n")
                #expect(try await node.sh("rm d/since").isSuccess)
                try await node.command("restore", node["d"], "--at", time).succeeded()
                try FileLife.requireEqual(before, try await Self.list(node, "d"), "The mount")
                // That can be undone as well.
                try await node.command("restore", node["d/file"], "--at", between).succeeded()
                let undone = try await node.sh("cat d/file; stat -c %a d/file; cat d/since")
                #expect(undone.output == "new\n600\n")
            }
        }

        @Test("Another place takes a copy, and what is in the way is named")
        func elsewhere() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh("mkdir -p d/a; echo 1 >d/a/file; echo 2 >d/b; ln d/b d/c")
                    .succeeded()
                let time = try await Self.now(node)
                let before = try await Self.list(node, "d")
                try await node.sh("rm -r d/b d/a; mkdir -p d/b/full; mkdir empty; echo x >file")
                    .succeeded()
                for target in ["copy", "empty"] {
                    try await node.command(
                        "restore", node["d"], "--at", time, "--to", node[target]
                    ).succeeded()
                    try FileLife.requireEqual(before, try await Self.list(node, target), target)
                }
                let blocked = try await node.command("restore", node["d"], "--at", time)
                #expect(blocked.status == 1, "\(blocked.report)")
                #expect(blocked.errors.contains("/d/b: a directory with entries"))
                #expect(try await node.sh("cat d/a/file; ls d/b").output == "1\nfull\n")

                let refusals: [([String], Int32, String)] = [
                    ([node["d"], "--at", time, "--to", node["file"]], 1, "already"),
                    ([node["d"], "--at", time, "--to", node["no/where"]], 1, "does not exist"),
                    ([node["d"], "--at", time, "--to", "/tmp/x"], 1, "no DelugeFS mount"),
                    ([node["never"], "--at", time], 1, "There was no /never"),
                    ([node["d"], "--at", "2001-01-01"], 1, "no commit before"),
                    ([node["d"], "--at", "01234567"], 1, "no commit 01234567"),
                    ([node["d"], "--at", "yesterday"], 2, "neither a commit nor a time"),
                    ([node[".delugefs/status"], "--at", time], 1, "not a part of the volume"),
                    (["/tmp", "--at", time], 1, "no DelugeFS mount"),
                ]
                for (arguments, status, sentence) in refusals {
                    let outcome = try await solo.host.run(
                        [Machine.binary, "restore"] + arguments, environment: node.environment)
                    #expect(outcome.status == status, "\(outcome.report)")
                    #expect(outcome.errors.contains(sentence), "\(outcome.report)")
                }
            }
        }

        @Test("Of what no online disk has the disk is named, and all else is restored")
        func missingContent() async throws {
            try await Duo.open(creation: ["--copies", "1"]) { a, b in
                try await a.sh("mkdir d; head -c 1M /dev/urandom >d/large; echo x >d/small")
                    .succeeded()
                let time = try await Self.now(a)
                let digest = try await a.sha256("d/large")
                try await b.sees("d/small")
                try await a.sh("rm -r d").succeeded()
                try await a.settle()
                try await b.sees("d", false)
                try await a.stop()
                let outcome = try await b.command("restore", b["d"], "--at", time)
                #expect(outcome.status == 1, "\(outcome.report)")
                #expect(outcome.errors.contains("/d/large: its content is on a"))
                #expect(try await b.sh("ls d").output == "small\n")
                try await a.start()
                try await b.waitForPeers("a")
                try await b.command("restore", b["d"], "--at", time).succeeded()
                #expect(try await b.sha256("d/large") == digest)
            }
        }

        @Test("The log follows a file, and tells of a tree, with commits to restore from")
        func log() async throws {
            try await Solo.open { solo in
                let node = solo.node
                for step in [
                    "mkdir d", "echo 1 >d/a", "echo 2 >d/a", "chmod 600 d/a", "mv d/a d/b",
                    "echo other >d/other", "rm d/b",
                ] {
                    try await node.sh(step).succeeded()
                    try await node.settle()
                }
                let outcome = try await node.command("log", node["d/b"]).succeeded()
                let lines = outcome.output.split(separator: "\n")
                let told = lines.filter { $0.hasPrefix("  ") }.map {
                    $0.split(separator: " ").joined(separator: " ")
                }
                #expect(
                    told == [
                        "removed /d/b", "renamed /d/b from /d/a", "mode /d/a: 644 to 600",
                        "edited /d/a", "created /d/a",
                    ], "\(outcome.output)")
                // Each commit can be restored from: the one before the removal, by what is shown.
                let commits = lines.filter { !$0.hasPrefix("  ") }.map { $0.prefix(12) }
                #expect(commits.count == 5)
                let commit = String(try #require(commits.dropFirst().first))
                try await node.command("restore", node["d/b"], "--at", commit).succeeded()
                #expect(try await node.sh("cat d/b; ls -A d").output == "2\nb\nother\n")

                let json = try await node.command("log", "/d", "--json", "--limit", "3").succeeded()
                let entries = json.output.split(separator: "\n").count {
                    $0.contains("\"commit\"")
                }
                #expect(entries == 3)
                let all = try await solo.host.run(
                    [Machine.binary, "log", "--root", node.root], environment: node.environment)
                #expect(try all.succeeded().output.contains("created  /d/other"))
                let never = try await node.command("log", node["never"])
                #expect(never.status == 1 && never.errors.contains("never in the volume"))
            }
        }

        @Test("When another node removes most of the volume, the command that undoes it is told")
        func massRemoval() async throws {
            try await Duo.open { a, b in
                try await a.sh(
                    "mkdir -p 'my photos/x' other; touch other/{1..99}; touch 'my photos'/{1..600} 'my photos'/x/{1..600}",
                    timeout: Bounds.transfer
                ).succeeded()
                let before = try await Self.list(a, "my photos")
                try await a.settle()
                try await b.sees("my photos/x/600")
                try await a.sh("rm -r 'my photos'", timeout: Bounds.transfer).succeeded()
                try await a.settle()
                let text = try await eventually("b tells of it", within: Bounds.visible) {
                    try await b.status().problems.first { $0.code == "mass-removal" }?.text
                }
                #expect(FileBytes.text(b.log).contains("critical"))
                let words = text.split(separator: " ").drop { $0 != "delugefs" }
                let command = "'\(Machine.binary)' \(words.dropFirst().joined(separator: " "))"
                try await b.sees("my photos", false)
                try await b.host.run(Shell.bash(command, []), environment: b.environment)
                    .succeeded()
                try await b.settle()
                try FileLife.requireEqual(before, try await Self.list(b, "my photos"), "b's mount")
            }
        }

        @Test("Purged bytes are gone from every disk, and what is in use stays")
        func purge() async throws {
            try await Duo.open { a, b in
                try await a.sh(
                    """
                    mkdir d; head -c 1M /dev/urandom >d/gone; head -c 1M /dev/urandom >d/kept
                    head -c 1M /dev/urandom >elsewhere; cp d/kept copy
                    """
                ).succeeded()
                try await a.waitReplicated()
                let time = try await Self.now(a)
                try await a.sh("rm -r d elsewhere").succeeded()
                try await a.settle()
                try await eventually("status counts what history holds", within: Bounds.online) {
                    try await a.command("status", "--json").output.contains(
                        "\"historyBytes\" : 2097152")
                }
                let outcome = try await a.command("purge", a["d"]).succeeded()
                #expect(outcome.output.contains("Told: b"), "\(outcome.output)")
                // The copy and what was elsewhere are left.
                for node in [a, b] {
                    try await eventually("\(node.name) gave it up", within: Bounds.replicated) {
                        try await node.host.sh(
                            "find '\(node.root)'/objects/ -type f -size +900k | wc -l"
                        ).line == "2"
                    }
                }
                let restored = try await a.command("restore", a["d"], "--at", time)
                #expect(restored.status == 1)
                #expect(restored.errors.contains("/d/gone: its content was given up"))
                #expect(try await a.sh("cmp d/kept copy").isSuccess)
            }
        }
    }
}
