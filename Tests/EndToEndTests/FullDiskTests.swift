import Glibc
import Testing

extension EndToEnd {
    @Suite("Full disks", .serialized, .timeLimit(.minutes(5)))
    struct FullDisks {
        /// Creates small files until it is told to end; notes each acknowledged one in `$1`.
        private static let storm = """
            mkdir -p small
            for i in {1..100000}; do
                test -e "$2" && exit 0
                { echo "content $i" >small/$i; } 2>>"$1.errors" && echo $i >>"$1" || sleep 0.02
            done
            """

        @Test("A writer that fills the disk gets ENOSPC, and no acknowledged name is lost")
        func storm() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "small", .ext4(megabytes: 700))
                let node = try NodeProcess("a", on: host, disk: disk)
                try await node.create()
                let ledger = try workshop.write("", to: "ledger")
                let end = "\(workshop.directory)/end"
                let storm = try host.spawn(
                    Shell.bash("cd \"$3\"; set +e\n\(Self.storm)", [ledger, end, node[""]]),
                    log: "\(workshop.directory)/storm.log")
                let large = try await node.sh(
                    "dd if=/dev/urandom of=large bs=1M count=2000 2>&1", timeout: Bounds.transfer)
                #expect(!large.isSuccess)
                #expect(large.output.contains("No space left on device"), "\(large.report)")
                try await Task.sleep(for: .seconds(1))
                _ = try workshop.write("", to: "end")
                #expect(try await storm.wait(Bounds.command) == 0)
                let kept = try await Self.check(node, ledger)
                print("\(kept) acknowledged names, all there; dd: \(large.output.suffix(120))")
                try await node.sh("rm large", timeout: Bounds.command).succeeded()
                try await eventually("writing goes on", within: Bounds.offline) {
                    try await node.sh("echo again >again").isSuccess
                }
                try await node.settle()
                try await node.stop()
                try await node.start()
                #expect(try await Self.check(node, ledger) == kept)
                #expect(try await node.sh("cat again").output == "again\n")
                try await node.checkHistory()
            }
        }

        @Test("The reserve is there again as soon as there is room; without it only room is made")
        func reserve() async throws {
            try await Solo.open(on: .ext4(megabytes: 400)) { solo in
                let (host, disk, node) = (solo.host, solo.disk, solo.node)
                try await node.sh("head -c 1M /dev/urandom >large; seq 100 >small").succeeded()
                try await node.settle()
                let reserve = "\(node.root)/reserve"
                func hasReserve() -> Bool { access(reserve, F_OK) == 0 }
                // As the catalog gives it away.
                unlink(reserve)
                try await eventually("it is there again", within: Bounds.command) { hasReserve() }
                try await host.sh(
                    "cd \"$1\"; fallocate -l $(($(df --output=avail -B1M . | tail -1) - 32))M filler; rm .db/reserve",
                    disk.path
                ).succeeded()
                try await eventually("nothing new is made", within: Bounds.command) {
                    try await !node.sh("mktemp -p .").isSuccess
                }
                let told = try await Faults.problem("disk-full", on: node, after: "disk full")
                Faults.expect(
                    told, says: "The disk of this node is full", "Remove files or make room")
                #expect(!hasReserve())
                #expect(try await !node.sh("echo more >>large").isSuccess)
                try await node.sh(">large; echo less >small; rm large").succeeded()
                unlink("\(disk.path)/filler")
                try await eventually("it is there again", within: Bounds.command) { hasReserve() }
                try await eventually("writing goes on", within: Bounds.command) {
                    try await node.sh("echo new >new").isSuccess
                }
                #expect(try await node.sh("cat small new").output == "less\nnew\n")
            }
        }

        @Test("When the catalog cannot be written any more, the kernel forgets what was lost")
        func catalogFailure() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "broken", .ext4(megabytes: 700))
                let node = try NodeProcess("a", on: host, disk: disk)
                try await node.create()
                try await node.sh("mkdir kept; touch kept/{renamed,removed,open}; ls -l kept")
                    .succeeded()
                try await node.settle()
                // As after an error of the disk: it is read-only from one moment to the next.
                try await host.sh(
                    """
                    mount -o remount,errors=remount-ro "$1"
                    echo 1 >/sys/fs/ext4/$(basename $(findmnt -no SOURCE "$1"))/trigger_fs_error
                    """, disk.path
                ).succeeded()
                // Answered from memory, until the next COMMIT, which a slow machine may meet half way.
                _ = try await node.sh(
                    "mkdir lost; chmod 700 kept; rm kept/removed; mv kept/renamed kept/new; ls -l . kept"
                )
                try await eventually("the catalog has failed", within: Bounds.command) {
                    try await node.sh("mkdir more 2>&1 || true").output.contains("Read-only")
                }
                try await eventually("what was lost is forgotten", within: Bounds.command) {
                    try await node.sh(
                        "test ! -e lost; test $(stat -c %a kept) = 755; cat kept/{removed,renamed}; ls -l kept | grep removed"
                    ).isSuccess
                }
                #expect(
                    try await node.sh("{ echo >>kept/open; } 2>&1 || true").output.contains(
                        "Read-only"))
                // Writable again, it has what was durable.
                _ = try await node.command("stop")
                _ = try await node.exited(within: Bounds.stop)
                try await disk.repair()
                try await node.start()
                try await node.sh(
                    "test ! -e lost; test $(stat -c %a kept) = 755; cat kept/{removed,renamed,open}; echo new >new; sync new"
                ).succeeded()
                try await node.settle()
                try await node.checkHistory()
            }
        }

        @Test(
            "On a full disk every operation is done or refused, and a restart changes nothing",
            arguments: zip(
                [Disk.Kind.ext4(megabytes: 400), .xfs(megabytes: 400)],
                [["--no-passthrough"], []]))
        func anyOperation(kind: Disk.Kind, options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "small", kind)
                let node = try NodeProcess("a", on: host, disk: disk, options: options)
                try await node.create()
                let mount = try #require(node.mount)
                func fill(leaving megabytes: Int) async throws {
                    try await host.sh(
                        """
                        cd "$1"; free=$(($(df --output=avail -B1K . | tail -1) - $2 * 1024))
                        test $free -le 0 || fallocate -l ${free}K filler-$2 || cat /dev/zero >filler-$2 || true
                        """, disk.path, "\(megabytes)"
                    ).succeeded()
                }
                var refusals: [String: Int] = [:]
                var before: [String] = []
                for (number, megabytes) in [200, 40, 10, 1, 0].enumerated() {
                    try await fill(leaving: megabytes)
                    let operations = ModelGenerator.sequence(
                        seed: UInt64(number), count: Bounds.isLong ? 5000 : 600)
                    let words: [String]
                    (words, before) = try await onThread {
                        let world = try ModelWorld("\(mount)/top", isNew: number == 0)
                        let words = operations.map { world.perform($0) }
                        world.closeAll()
                        return (words, world.state())
                    }
                    for word in words where word.hasPrefix("E") { refusals[word, default: 0] += 1 }
                }
                print("refused: \(refusals) \(kind) \(options)")
                #expect(refusals["ENOSPC", default: 0] > 0)
                for wrong in ["EIO", "ENOTCONN", "ESTALE", "EROFS", "EINTR"] {
                    #expect(refusals[wrong] == nil, "\(wrong)")
                }
                func compare(_ what: String) async throws {
                    let after = try await onThread {
                        try ModelWorld("\(mount)/top", isNew: false).state()
                    }
                    let lost = before.filter { !after.contains($0) }
                    let new = after.filter { !before.contains($0) }
                    #expect(lost.isEmpty && new.isEmpty, "\(what): \(lost) are \(new)")
                }
                try await compare("full")
                try await node.kill9()
                try await node.start()
                try await compare("restarted while full")
                try await host.sh("rm \"$1\"/filler-*", disk.path).succeeded()
                try await node.settle()
                try await compare("with room again")
                try await node.kill9()
                try await node.start()
                try await compare("restarted")
                try await node.checkHistory()
            }
        }

        private static func check(_ node: NodeProcess, _ ledger: String) async throws -> Int {
            let outcome = try await node.sh(
                "while read -r i; do test \"$(<small/$i)\" = \"content $i\" || { echo lost $i; exit 1; }; done <\"$1\"; wc -l <\"$1\"",
                ledger, timeout: Bounds.transfer
            ).succeeded()
            return Int(outcome.line) ?? 0
        }

        @Test("Removed content makes room for new, but not before every node knows of the removal")
        func collection() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let disk = try await Disk(workshop, "small", .ext4(megabytes: 1000))
                let a = try NodeProcess("a", on: one, disk: disk)
                let b = try NodeProcess("b", on: two)
                try await a.create("--copies", "1")
                try await b.join(a)
                try await a.sh(
                    "head -c 300M /dev/urandom >old; head -c 100M /dev/urandom >kept; sha256sum kept >sum",
                    timeout: Bounds.transfer
                ).succeeded()
                try await a.settle()
                try await b.sees("old")
                try await b.stop()
                try await a.sh("rm old").succeeded()
                try await a.settle()
                try await one.sh(
                    "cd \"$1\"; fallocate -l $(($(df --output=avail -B1M . | tail -1) - 60))M filler",
                    disk.path
                ).succeeded()
                // Several rounds of the collector.
                try await Task.sleep(for: .seconds(5))
                let bytes = try await one.sh(
                    "find \"$1\"/objects -type f -size +1M -printf '%s\n' | awk '{sum += $1} END {print sum}'",
                    a.root
                ).succeeded()
                #expect(bytes.line == "\(400 << 20)", "Both are there while b knows of both.")
                try await b.start()
                try await eventually("the removed file's room is free", within: Bounds.replicated) {
                    let free = try await one.sh(
                        "df --output=avail -B1M \"$1\" | tail -1", disk.path)
                    return Int(free.line.filter(\.isNumber)) ?? 0 > 300
                }
                try await a.sh("sha256sum --quiet -c sum; test ! -e old").succeeded()
                try await a.stop()
                try await a.start()
                try await a.sh("sha256sum --quiet -c sum").succeeded()
            }
        }

        @Test("A full node refuses a clone and another one takes it")
        func cloneElsewhere() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: 96 << 20, seed: 9)
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let small = try await Disk(workshop, "small", .ext4(megabytes: 900))
                // Another machine is always preferred: without a refusal it would be the small one.
                let a = try NodeProcess("a", on: one, home: "one", options: ["--machine", "one"])
                let b = try NodeProcess("b", on: one, home: "one", options: ["--machine", "one"])
                let c = try NodeProcess("c", on: two, disk: small, options: ["--machine", "two"])
                try await a.create()
                try await b.start()
                try await c.join(a)
                try await a.waitForPeers("b", "c")
                // What is left free is enough to go on, and too little for the file on top.
                try await two.sh(
                    "cd \"$1\"; fallocate -l $(($(df --output=avail -B1M . | tail -1) - 190))M filler",
                    small.path
                ).succeeded()
                try await a.sh("cp \"$1\" file", source, timeout: Bounds.transfer).succeeded()
                try await eventually("the other large disk has it", within: Bounds.replicated) {
                    let file = try await a.whereIs("file")
                    guard Set(file.stored.map(\.name)) == ["a", "b"] else {
                        throw Failure("\(file)")
                    }
                    return true
                }
                try await c.sees("file")
                #expect(try await c.sha256("file") == Shell.sha256(source), "It is still readable.")
                try await c.sh("echo fits >fits; cat fits").succeeded()
            }
        }
    }
}
