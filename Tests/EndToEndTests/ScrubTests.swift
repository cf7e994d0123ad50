import Glibc
import Testing

extension EndToEnd {
    /// Bytes that the disk has changed or lost: found, fetched again, and nobody gets wrong ones.
    @Suite("Scrubbing", .serialized, .timeLimit(.minutes(5)))
    struct Scrubbing {
        /// `object PATH`: the file of the object that the file is; `spoil PATH AT`: another byte there.
        private static let tools = """
            object() { root=$(getfattr --only-values -n user.delugefs.root "$1"); echo "$objects/${root:0:2}/$root"; }
            spoil() { chmod u+w "$1"; printf 'x%.0s' {1..40} | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

            """

        private static func damage(_ node: NodeProcess, _ script: String) async throws {
            try await node.sh("objects=\"$1/objects\"\n\(tools)\(script)", node.root).succeeded()
        }

        /// Every object of one node that the other has too is the same there.
        private static func compare(_ a: NodeProcess, _ b: NodeProcess) async throws {
            let outcome = try await a.host.sh(
                """
                cd "$1/objects"
                find . -type f | while read -r file; do cmp "$file" "$2/objects/$file" || exit 1; done
                find . -type f | wc -l
                """, a.root, b.root
            ).succeeded()
            #expect(Int(outcome.line) ?? 0 > 0)
        }

        @Test("Whatever was done to objects, a scrub finds it and fetches what is damaged alone")
        func repairs() async throws {
            try await Duo.open { a, b in
                try await a.sh(
                    """
                    head -c 24M /dev/urandom >flipped
                    for name in cut gone one two layer both; do head -c 1500K /dev/urandom >$name; done
                    head -c 90K /dev/urandom >small; sha256sum * >../sums
                    """
                ).succeeded()
                try await a.waitReplicated()
                try await b.sees("small")
                try await b.settle()
                let sound = try await b.command("scrub", "--wait").succeeded()
                #expect(sound.output.contains("0 errors found"), "\(sound.report)")
                try await Self.damage(
                    b,
                    """
                    spoil "$(object flipped)" 1000000
                    spoil "$(object flipped)" 23000000
                    chmod u+w "$(object cut)"; truncate -s 700K "$(object cut)"
                    rm "$(object gone)"
                    mv "$(object one)" ../swap; mv "$(object two)" "$(object one)"; mv ../swap "$(object two)"
                    chmod u+w "$(object layer).layer"; head -c 768 /dev/urandom >"$(object layer).layer"
                    spoil "$(object both)" 70000; rm "$(object both).layer"
                    spoil "$(object small)" 5
                    """)
                let before = try await b.host.receivedBytes()
                let outcome = try await b.command("scrub", "--wait").succeeded()
                let received = try await b.host.receivedBytes() - before
                print("\(outcome.line) \(received) bytes were received")
                // Of `flipped` 128 KiB, of `both` 64, of `cut` a half, three others whole.
                #expect(received < 8 << 20)
                let scrub = try await b.status().scrub
                #expect(scrub.errorsFound == 8 && scrub.errorsRepaired == 8, "\(scrub)")
                #expect(scrub.lastCompleted != nil)
                #expect(scrub.bytesChecked > 30 << 20)
                try await Self.compare(a, b)
                try await b.sh("sha256sum --quiet -c \"$1/sums\"", "\(a.mount ?? "")/..")
                    .succeeded()
                #expect(try await b.command("status", "--check").isSuccess)
                let log = FileBytes.text(b.log)
                #expect(log.contains("/flipped") && log.contains("2 of 384 pieces are damaged"))
            }
        }

        @Test("A last copy that is damaged is named, its good part is read, and a peer repairs it")
        func lastCopy() async throws {
            try await Duo.open { a, b in
                try await a.sh("head -c 16M /dev/urandom | tee ../good >big").succeeded()
                let good = "\(a.mount ?? "")/../good"
                try await a.waitReplicated()
                try await b.sees("big")
                try await a.kill9()
                try await Self.damage(b, "spoil \"$(object big)\" 9000000")
                let outcome = try await b.command("scrub", "--wait")
                #expect(outcome.status == 1)
                #expect(outcome.errors.contains("/big"), "\(outcome.report)")
                #expect(outcome.errors.contains("delugefs whereis"))
                #expect(try await b.status().problems.contains { $0.code == "damaged-content" })
                try await b.sh("cmp -n 8000000 big \"$1\"", good).succeeded()
                let bad = try await b.sh(
                    "timeout 1 dd if=big of=../read bs=64K skip=137 count=1 status=none || test ! -s ../read"
                )
                #expect(bad.isSuccess, "Wrong bytes were read: \(bad.report)")
                // What is known of it is kept.
                try await b.kill9()
                try await b.start()
                let before = try await b.host.receivedBytes()
                try await a.start()
                try await eventually("it is repaired", within: Bounds.offline) {
                    let status = try await b.status()
                    return status.scrub.errorsRepaired == 1
                        && !status.problems.contains { $0.code == "damaged-content" }
                }
                let received = try await b.host.receivedBytes() - before
                #expect(received < 4 << 20, "The good pieces were fetched again.")
                try await b.sh("cmp big \"$1\"", good).succeeded()
                try await Self.compare(a, b)
            }
        }

        @Test("A gentle pass begins a month after the last one and goes on after kill -9")
        func resumes() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let node = try NodeProcess("a", on: host, options: ["--scrub-rate", "8M"])
                try await node.create()
                try await node.sh("for i in {1..12}; do head -c 3M /dev/urandom >$i; done")
                    .succeeded()
                try await node.settle()
                #expect(try await node.status().scrub.lastCompleted == nil)
                try await node.stop()
                try await host.sh(
                    """
                    sqlite3 "$1"/catalog.sqlite "UPDATE meta SET value = CAST(json_set(CAST(value AS TEXT), '\\$.since', 1) AS BLOB)
                        WHERE key = CAST('scrub' AS BLOB)"
                    """, node.root
                ).succeeded()
                try await node.start()
                func checked() async throws -> Int { try await node.status().scrub.bytesChecked }
                try await eventually("a part is checked", within: Bounds.transfer) {
                    try await checked() > 28 << 20
                }
                try await node.kill9()
                try await node.start()
                #expect(try await checked() > 0)
                try await eventually("all is checked", within: Bounds.transfer) {
                    try await node.status().scrub.lastCompleted != nil
                }
                // What was read between the last save and the kill is read again.
                let total = try await checked()
                #expect(total >= 36 << 20 && total < 72 << 20, "\(total)")
            }
        }

        /// btrfs tells by its checksums that a block is not what was written.
        @Test(
            "A block that cannot be read is served from a peer, where the node reads, and repaired",
            arguments: [["--no-passthrough"], []])
        func unreadable(options: [String]) async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let disk = try await Disk(workshop, "rotten", .btrfs(megabytes: 512))
                let b = try NodeProcess(
                    "b", on: try await network.host(), disk: disk, options: options)
                try await a.create()
                try await b.join(a)
                try await b.waitForPeers("a")
                try await a.sh(
                    "{ head -c 4M /dev/urandom; echo rotten-block; head -c 4M /dev/urandom; } | tee ../good >file"
                ).succeeded()
                try await a.waitReplicated()
                try await b.stop()
                try await disk.unmount()
                try await b.host.sh(
                    """
                    place=$(grep -obUa rotten-block "$1" | cut -d: -f1)
                    for at in $place; do printf ROTTEN | dd of="$1" bs=1 seek=$at conv=notrunc status=none; done
                    """, disk.image
                ).succeeded()
                try await disk.mount()
                try await b.start()
                try await b.waitForPeers("a")
                if options.isEmpty {
                    // The kernel reads by itself, and tells nobody.
                    #expect(try await !b.sh("cat file >/dev/null").isSuccess)
                    try await b.command("scrub", "--wait").succeeded()
                }
                let good = "\(a.mount ?? "")/../good"
                try await b.sh("cmp file \"$1\"", good).succeeded()
                try await eventually("it is repaired", within: Bounds.offline) {
                    try await b.status().scrub.errorsRepaired == 1
                }
                try await Self.compare(a, b)
            }
        }
    }
}
