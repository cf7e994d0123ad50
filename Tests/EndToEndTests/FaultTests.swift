import Glibc
import Testing

extension EndToEnd {
    /// Faults, and the words in which a person hears of each. Every row prints its message.
    ///
    /// | fault | where |
    /// |---|---|
    /// | objects cut, flipped, swapped, deleted, without permissions, of another owner | here |
    /// | a peer that claims what it has not, serves garbage, serves a byte a second | here |
    /// | a peer that accepts a clone and never finishes it | here |
    /// | a link that loses 5 % both ways, or all one way | here |
    /// | a last copy that is damaged, a block that cannot be read and is elsewhere | `ScrubTests` |
    /// | disk full | `FullDiskTests` |
    /// | quota, lost or read-only disk, block that cannot be read, no descriptors | `FailingDiskTests` |
    /// | power cut | `PowerCutTests` |
    /// | root from an old backup | `RestoredRootTests` |
    /// | copied root, missing disk, wrong key | `RefusalTests` |
    /// | wrong clocks | `ClockTests` |
    /// | forged commits | `MadMemberTests`; damaged history and catalog: `DamagedHistoryTests`, `LostCatalogTests` |
    /// | strangers that connect and say nothing | `SilenceTests` |
    @Suite("What a person is told of faults", .serialized, .timeLimit(.minutes(5)))
    struct Faults {
        static func tell(_ fault: String, _ message: some StringProtocol) {
            print("fault: \(fault) -> \(message.split(separator: "\n").joined(separator: " | "))")
        }

        /// Waits for a problem in `status` and prints it.
        @discardableResult
        static func problem(
            _ code: String, on node: NodeProcess, after fault: String,
            within bound: Duration = Bounds.offline
        ) async throws -> String {
            let text = try await eventually("\(node.name) tells of \(code)", within: bound) {
                try await node.status().problems.first { $0.code == code }?.text
            }
            tell(fault, "status: \(text)")
            return text
        }

        /// The last line of a node's log with these words.
        static func logged(
            _ words: String..., on node: NodeProcess, after fault: String
        ) async throws {
            let line = try await eventually("\(node.name) logs \(words)", within: Bounds.offline) {
                FileBytes.text(node.log).split(separator: "\n")
                    .last { line in words.allSatisfy { line.contains($0) } }
            }
            tell(fault, "log: \(line.drop { $0 != " " }.dropFirst())")
        }

        static func expect(_ text: String, says words: String...) {
            for word in words { #expect(text.contains(word), "no '\(word)' in: \(text)") }
        }

        // MARK: Objects

        /// What is done to an object, and what its own node's readers get before a scrub.
        private struct ObjectFault {
            enum Read { case right, error, unchecked }

            let name: String
            /// `$1`: the object; `$2`: that of `other`.
            let script: String
            var other: String?
            let read: Read
            /// Of the log.
            let words: [String]

            static let all = [
                Self(
                    name: "cut", script: "chmod u+w \"$1\"; truncate -s 100K \"$1\"", read: .right,
                    words: ["is not on the disk, or not whole", "from other disks"]),
                Self(
                    name: "deleted", script: "rm \"$1\"", read: .right,
                    words: ["is not on the disk, or not whole", "from other disks"]),
                Self(
                    name: "flipped",
                    script:
                        "chmod u+w \"$1\"; for at in {1..40}; do printf x | dd of=\"$1\" bs=1 seek=$((at * 50000)) conv=notrunc status=none; done",
                    read: .unchecked, words: ["pieces are damaged", "they are fetched again"]),
                Self(
                    name: "swapped",
                    script: "mv \"$1\" \"$1.x\"; mv \"$2\" \"$1\"; mv \"$1.x\" \"$2\"",
                    other: "other", read: .unchecked,
                    words: ["pieces are damaged", "they are fetched again"]),
                Self(name: "closed", script: "chmod 000 \"$1\"", read: .right, words: []),
                Self(
                    name: "foreign", script: "chown 0:0 \"$1\"; chmod 600 \"$1\"", read: .error,
                    words: ["cannot be opened", "(chown), then run `delugefs scrub`"]),
            ]
        }

        private static func object(_ path: String, by node: NodeProcess, at holder: NodeProcess)
            async throws -> String
        {
            let root = try await node.sh(
                "getfattr --only-values -n user.delugefs.root \"$1\"", path
            ).succeeded().line
            return "\(holder.root)/objects/\(root.prefix(2))/\(root)"
        }

        @Test("Whatever happens to objects, no peer gets a wrong byte, and the owner is told")
        func objects() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let host = try await network.host()
                try await Unprivileged.openFuse(host)
                try await Unprivileged.requireReadable(host)
                // Not root, whom no permission keeps out.
                let b = try NodeProcess("b", on: host, account: Unprivileged.nobody)
                let c = try NodeProcess(
                    "c", on: try await network.host(), options: ["--capacity", "0"])
                try await a.create()
                try await b.join(a)
                try await c.join(a)
                try await c.waitForPeers("a", "b")
                let sums = "\(workshop.directory)/sums"
                let names = ObjectFault.all.flatMap { [$0.name] + ($0.other.map { [$0] } ?? []) }
                try await a.sh(
                    "for name in \(names.joined(separator: " ")); do head -c 2100K /dev/urandom >$name; done; sha256sum * >\"$1\"",
                    sums
                ).succeeded()
                try await a.waitReplicated()
                for node in [b, c] { try await node.sees(names.max() ?? "") }
                try await b.settle()
                for fault in ObjectFault.all {
                    let object = try await Self.object(fault.name, by: a, at: b)
                    let other = try await Self.object(fault.other ?? fault.name, by: a, at: b)
                    try await a.host.sh(fault.script, object, other).succeeded()
                }
                try await c.sh("sha256sum --quiet -c \"$1\"", sums, timeout: Bounds.transfer)
                    .succeeded()
                try await Self.readBeforeScrub(b, sums)
                try await Self.scrub(a, b, sums)
            }
        }

        private static func readBeforeScrub(_ node: NodeProcess, _ sums: String) async throws {
            for fault in ObjectFault.all {
                let read = try await node.sh(
                    "grep ' \(fault.name)$' \"$1\" | sha256sum --quiet -c", sums)
                switch fault.read {
                case .right:
                    #expect(read.isSuccess, "\(fault.name): \(read.report)")
                    tell("object \(fault.name), read", "right bytes")
                case .error:
                    let error = try await node.sh("cat \(fault.name) >/dev/null")
                    #expect(error.errors.contains("Input/output error"), "\(error.report)")
                    tell("object \(fault.name), read", error.errors)
                // The node's own disk is believed until it is scrubbed.
                case .unchecked: break
                }
            }
        }

        private static func scrub(
            _ a: NodeProcess, _ b: NodeProcess, _ sums: String
        ) async throws {
            let first = try await b.command("scrub", "--wait")
            tell("object foreign, scrub --wait", first.errors)
            #expect(first.status == 1, "\(first.report)")
            expect(
                first.errors, says: "1 content on this disk may not be read by this node",
                "/foreign", "(chown)", "delugefs scrub")
            let text = try await problem("damaged-content", on: b, after: "object foreign")
            #expect(text == first.errors.drop { $0 != "1" }.split(separator: "\n").first ?? "")
            for fault in ObjectFault.all where !fault.words.isEmpty {
                let root = try await object(fault.name, by: a, at: b).split(separator: "/").last
                var words = fault.words
                if let root { words.append(String(root)) }
                let line = FileBytes.text(b.log).split(separator: "\n").last { line in
                    words.allSatisfy { line.contains($0) }
                }
                #expect(line != nil, "\(words)")
                tell("object \(fault.name)", "log: \((line ?? "").drop { $0 != " " }.dropFirst())")
            }
            try await a.host.sh("chown -R 65534:65534 \"$1\"/objects", b.root).succeeded()
            let second = try await b.command("scrub", "--wait").succeeded()
            tell("object foreign, given back, scrub --wait", second.output)
            #expect(try await b.command("status", "--check").isSuccess)
            try await b.sh("sha256sum --quiet -c \"$1\"", sums).succeeded()
            try await a.host.sh("diff -r \"$1\"/objects \"$2\"/objects", a.root, b.root).succeeded()
        }

        // MARK: Peers

        /// Two volumes at once: in the one readers wait for their time limit.
        @Test("Peers that lie, crawl or fall silent, and lossy links, hold nobody up for ever")
        func peers() async throws {
            async let only: Void = Workshop.open { try await Self.onlyHolder($0) }
            async let links: Void = Workshop.open { try await Self.otherHolders($0) }
            _ = try await (only, links)
        }

        /// The only disk with the content has spoiled or lost it, or sends a byte a second.
        private static func onlyHolder(_ workshop: Workshop) async throws {
            let network = try await Network(workshop)
            let a = try NodeProcess(
                "a", on: try await network.host(), options: ["--port", "7600"])
            let c = try NodeProcess(
                "c", on: try await network.host(), options: ["--capacity", "0"])
            try await a.create("--copies", "1")
            try await c.join(a)
            try await c.waitForPeers("a")
            try await a.sh(
                "for name in claimed crawling garbage; do head -c 1500K /dev/urandom >$name; done"
            ).succeeded()
            try await a.settle()
            try await c.sees("garbage")
            try await a.host.sh("rm \"$1\"", object("claimed", by: a, at: a)).succeeded()
            try await a.host.sh(
                "chmod u+w \"$1\"; head -c 1500K /dev/urandom >\"$1\"",
                object("garbage", by: a, at: a)
            ).succeeded()
            func read(_ name: String) throws -> (name: String, child: Child, log: String) {
                let log = "\(workshop.directory)/read-\(name)"
                let child = try c.host.spawn(["cat", c[name]], log: log)
                return (name, child, log)
            }
            let before = try await c.host.receivedBytes()
            var readers = [try read("garbage")]
            try await eventually("garbage arrives", within: Bounds.command) {
                try await c.host.receivedBytes() - before > 100_000
            }
            try await a.host.crawl(fromPort: 7601)
            readers += [try read("crawling"), try read("claimed")]
            try await eventually("the claim is taken back", within: Bounds.offline) {
                try await c.whereIs("claimed").copies == 0
            }
            let unavailable = try await problem("unavailable", on: c, after: "only claimed")
            expect(unavailable, says: "on no disk that is online", "`delugefs whereis` names")
            try await logged("is not on the disk", on: a, after: "only claimed")
            for reader in readers {
                guard let status = try await reader.child.wait(Bounds.starvedRead) else {
                    throw Failure("The reader of \(reader.name) hung.")
                }
                let said = FileBytes.text(reader.log)
                tell("\(reader.name) at the only holder, cat", said)
                #expect(status == 1)
                expect(said, says: "cat: \(c[reader.name]): Input/output error")
            }
            try await logged(
                "/garbage could not be read: what came from a is not its content",
                on: c, after: "garbage at the only holder")
            try await logged(
                "/crawling could not be read: nothing of its content came from a for 30 s",
                on: c, after: "crawling at the only holder")
            try await logged(
                "/claimed could not be read: no disk that is online has its content",
                on: c, after: "claimed by the only holder")
            let text = try await problem(
                "content-not-given", on: c, after: "reads that ended in EIO")
            expect(text, says: "could not be read", "2 other files")
        }

        /// Others have it, or can take it.
        private static func otherHolders(_ workshop: Workshop) async throws {
            let network = try await Network(workshop)
            var nodes: [NodeProcess] = []
            for (name, options) in [
                ("a", ["--port", "7600"]), ("b", []), ("d", []), ("r", ["--capacity", "0"]),
            ] {
                let node = try NodeProcess(name, on: try await network.host(), options: options)
                if let first = nodes.first {
                    try await node.join(first)
                } else {
                    try await node.create()
                }
                nodes.append(node)
            }
            let (a, b, d, r) = (nodes[0], nodes[1], nodes[2], nodes[3])
            try await a.waitForPeers("b", "d", "r")
            try await r.waitForPeers("a", "b", "d")
            let other = try await unfinishedClone(a, [b, d])
            try await crawlingHolder(a, other, r)
            try await lossyLink(a, r)
            try await oneWayLink(a, r)
        }

        /// The node that was chosen stops in the middle.
        /// - Returns: the one that took its place.
        private static func unfinishedClone(
            _ a: NodeProcess, _ others: [NodeProcess]
        ) async throws -> NodeProcess {
            try await a.host.throttle(megabitsPerSecond: 16)
            try await a.sh("head -c 8M /dev/urandom >file").succeeded()
            let name = try await eventually("a clone has begun", within: Bounds.visible) {
                try await a.whereIs("file").holders.first { $0.name != "a" && !$0.complete }?.name
            }
            guard let chosen = others.first(where: { $0.name == name }),
                let other = others.first(where: { $0.name != name }), let pid = chosen.pid
            else { throw Failure("\(name) was not expected.") }
            kill(pid, SIGSTOP)
            defer { kill(pid, SIGCONT) }
            try await eventually("another disk has it", within: Bounds.replicated) {
                try await a.whereIs("file").stored.contains { $0.name == other.name }
            }
            let status = try await a.command("status").succeeded()
            let line =
                status.output.split(separator: "\n").first { $0.contains("  \(name) ") } ?? ""
            tell("clone accepted and never finished, status", line)
            expect(String(line), says: "offline for")
            let whereis = try await a.host.run([Machine.binary, "whereis", a["file"]]).succeeded()
            tell("clone accepted and never finished, whereis", whereis.output)
            expect(whereis.output, says: "2 of 2 copies", "offline")
            try await a.host.unthrottle()
            return other
        }

        /// From the middle of a read on.
        private static func crawlingHolder(
            _ a: NodeProcess, _ other: NodeProcess, _ r: NodeProcess
        ) async throws {
            try await r.sees("file")
            for node in [a, other] { try await node.host.throttle(megabitsPerSecond: 16) }
            let before = try await r.host.receivedBytes()
            let result = "\(r.host.network.workshop.directory)/read"
            let reader = try r.host.spawn(
                Shell.bash("sha256sum <\"$1\"", [r["file"]]), log: result)
            try await eventually("a part is read", within: Bounds.command) {
                try await r.host.receivedBytes() - before > 2 << 20
            }
            try await a.host.crawl(fromPort: 7601)
            let start = ContinuousClock.now
            let status = try await reader.wait(Bounds.starvedRead)
            tell(
                "a holder at one byte a second from the middle on, and another one",
                "the rest was read in \(ContinuousClock.now - start)")
            #expect(status == 0, "\(FileBytes.text(result))")
            #expect(try await FileBytes.text(result).hasPrefix(a.sha256("file")))
            for node in [a, other] { try await node.host.unthrottle() }
        }

        private static func lossyLink(_ a: NodeProcess, _ r: NodeProcess) async throws {
            try await r.host.lose(0.05)
            try await a.sh("head -c 3M /dev/urandom >lossy; head -c 100K /dev/urandom >unread")
                .succeeded()
            try await r.sees("lossy")
            #expect(try await r.sha256("lossy") == a.sha256("lossy"))
            try await r.sh("echo back >back").succeeded()
            try await a.sees("back")
            let status = try await a.status()
            #expect(status.onlinePeers.contains("r"))
            #expect(!status.problems.contains { $0.text.contains("r ") }, "\(status.problems)")
            let lost = try await r.host.loseNothing()
            #expect(lost > 0)
            tell(
                "5 % lost both ways, \(lost) packets",
                "files arrive, problems: \(status.problems.map(\.text))")
        }

        private static func oneWayLink(_ a: NodeProcess, _ r: NodeProcess) async throws {
            let start = ContinuousClock.now
            try await r.host.lose(1, [.sent])
            try await eventually("both count the other as offline", within: .seconds(20)) {
                let seen = try await r.status().onlinePeers
                let isSeen = try await a.status().onlinePeers.contains("r")
                return seen.isEmpty && !isSeen
            }
            let status = try await r.command("status").succeeded()
            tell(
                "all lost one way, after \(ContinuousClock.now - start)",
                status.output.split(separator: "\n").filter { $0.contains("offline") }
                    .joined(separator: "\n"))
            expect(status.output, says: "Peers: 0 of 3 online", "offline for")
            try await r.sh("echo alone >alone; cat back alone; ls").succeeded()
            let text = try await problem("unavailable", on: r, after: "all lost one way")
            expect(text, says: "on no disk that is online")
            try await r.host.loseNothing()
            try await r.waitForPeers(["a", "b", "d"], within: Bounds.offline)
            try await a.sees("alone")
        }
    }
}
