import Glibc
import Testing

extension EndToEnd {
    @Suite("Refusals", .serialized, .timeLimit(.minutes(5)))
    struct Refusals {
        /// A start that must be refused: exit code, one sentence with these words, nothing written.
        private static func refuse(
            _ node: NodeProcess, _ options: [String] = [], status: Int32 = 1,
            says words: String..., watching places: [String] = [], writes: Bool = false
        ) async throws {
            let places = places + [node.configuration, node.root, "\(node.root)/.."]
            let before = try await listing(places)
            let outcome = try await node.refusedStart(
                options, environment: ["DELUGEFS_LOG": "error"])
            let after = try await listing(places)
            let what = "\(node.name) \(options.joined(separator: " "))"
            guard outcome.status == status else {
                throw Failure("\(what): \(outcome.report)")
            }
            Faults.tell("\(what), refused", outcome.errors)
            for word in words where !outcome.errors.contains(word) {
                throw Failure("\(what): no '\(word)' in: \(outcome.errors)")
            }
            let lines = outcome.errors.split(separator: "\n")
            if status == 1, lines.count != 1 {
                throw Failure("\(what): not one sentence: \(lines)")
            }
            guard writes || before == after else {
                try FileLife.requireEqual(before, after, "What a refused start left: \(what)")
                return
            }
        }

        private static func listing(_ places: [String]) async throws -> [UInt8] {
            try await Shell.script(
                "for place; do find \"$place\" -xdev -printf '%p %y %m %s %T@\\n' 2>/dev/null || true; done | sort",
                places
            ).succeeded().bytes
        }

        /// A node that never ran, with its root's parent made.
        private static func fresh(
            _ name: String, _ host: Host, root: String? = nil, volume: String = "fresh",
            mount: String? = nil
        ) throws -> NodeProcess {
            try NodeProcess(
                name, on: host, root: root, isMounted: false, volume: volume,
                options: mount.map { ["--mount", $0] } ?? [])
        }

        @Test("Roots that cannot be used are refused")
        func roots() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let a = try NodeProcess("a", on: host)
                try await a.create()

                let full = try Self.fresh("full", host)
                try await host.sh("mkdir -m 700 \"$1\"; echo x >\"$1\"/file", full.root).succeeded()
                try await Self.refuse(full, ["--create"], says: "not empty", full.root)
                try await Self.refuse(full, says: "not empty")

                let parentless = try Self.fresh("deep", host, root: "\(workshop.directory)/no/such")
                try await Self.refuse(parentless, ["--create"], says: "\(workshop.directory)/no")

                let second = try Self.fresh("second", host, root: a.root, volume: a.volume)
                try await Self.refuse(second, says: "in use", "stop", writes: true)
                let inside = try Self.fresh("inside", host, root: a["inner"])
                try await Self.refuse(inside, ["--create"], says: "mount")
                #expect(try await a.sh("ls").output.isEmpty)

                try await a.stop()
                let other = try Self.fresh("other", host, root: a.root, volume: "another")
                try await Self.refuse(other, says: a.volume, "another")
                try await Self.refuse(a, ["--create"], says: "--create")
                try await host.sh("chmod 755 \"$1\"", a.root).succeeded()
                try await Self.refuse(a, says: "chmod 700")
                try await host.sh("chmod 700 \"$1\"; chmod 644 \"$1\"/key", a.root).succeeded()
                try await Self.refuse(a, says: "chmod")
                try await host.sh("chmod 600 \"$1\"/key", a.root).succeeded()
                try await a.start()
            }
        }

        @Test("Mount points that cannot be used are refused")
        func mountPoints() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let base = try workshop.make("points")
                try await host.sh("cd \"$1\"; mkdir full; touch full/x file", base).succeeded()
                func refuse(_ name: String, _ mount: String, _ words: String) async throws {
                    let node = try Self.fresh(name, host, mount: mount)
                    try await Self.refuse(node, ["--create"], says: words, watching: [base])
                }
                try await refuse("n1", "\(base)/full", "not empty")
                try await refuse("n2", "\(base)/file", "not a directory")
                try await refuse("n3", "\(base)/no/such", "does not exist")
                let over = try Self.fresh("over", host, mount: "\(workshop.directory)/place-over")
                try await Self.refuse(over, ["--create"], says: "inside the mount")
                let under = try Self.fresh(
                    "under", host, mount: "\(workshop.directory)/place-under/db/mnt")
                try await Self.refuse(under, ["--create"], says: "inside the root")
            }
        }

        @Test("Names, sizes and options that are none are usage errors")
        func usage() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let lines = [
                    ["--id", "-dash"], ["--id", "a/b"], ["--id", ""], ["--name", "a b"],
                    ["--machine", "é"], ["--name", String(repeating: "x", count: 64)],
                    ["--copies", "0"], ["--copies", "x"], ["--capacity", "much"],
                    ["--port", "70000"], ["--peer", "nowhere"], ["--transport", "none"],
                    ["--map-owner", "me"], ["--grace", "-1"], ["--unknown"],
                ]
                for (number, line) in lines.enumerated() {
                    let node = try Self.fresh("n\(number)", host)
                    try await Self.refuse(node, ["--create"] + line, status: 2)
                }
            }
        }

        @Test("Without the key, with a wrong one, or without a peer a node does not join")
        func keys() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two, alone) = (
                    try await network.host(), try await network.host(), try await network.host()
                )
                let a = try NodeProcess("a", on: one)
                try await a.create("--port", "7500")
                let other = try NodeProcess("other", on: alone, isMounted: false)
                try await alone.cutOff()
                try await other.create()
                let wrong = try workshop.write(try await other.key(), to: "wrong.key")
                let right = try workshop.write(try await a.key(), to: "right.key")
                let garbage = try workshop.write("dfs1-garbage\n", to: "garbage.key")

                let volume = a.volume
                func fresh(_ name: String, _ host: Host) throws -> NodeProcess {
                    try Self.fresh(name, host, volume: volume)
                }
                try await other.stop()
                let (none, spoiled, lonely) = (
                    try fresh("none", two), try fresh("garbage", two), try fresh("lonely", alone)
                )
                let (mistaken, told, second) = (
                    try fresh("wrong", two), try fresh("wrong-peer", two), try fresh("served", two)
                )
                try await Self.refuse(
                    none,
                    says:
                        "No key for volume \(volume) here. On a machine that has it run `delugefs key --root DIR`, then pass it with --key-file."
                )
                try await Self.refuse(spoiled, ["--key-file", garbage], says: "not a key")
                try await Self.refuse(second, ["--create"], says: volume, "\(one.address)")
                // Each looks for peers for some seconds.
                async let lost: Void = Self.refuse(
                    lonely, ["--key-file", right], says: volume, "10 s")
                async let unheard: Void = Self.refuse(
                    mistaken, ["--key-file", wrong],
                    says: "The key given is for another volume named \(volume) (ours ",
                    ", peers serve ")
                async let unmet: Void = Self.refuse(
                    told, ["--key-file", wrong, "--no-discovery", "--peer", "\(one.address):7500"],
                    says: "The key given is for another volume named \(volume) (ours ")
                _ = try await (lost, unheard, unmet)
                #expect(try await a.status().peers.isEmpty)
            }
        }

        @Test("A taken port, a copied root and a machine without /dev/fuse are refused")
        func resources() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one)
                try await a.create("--port", "7500")
                for port in ["7500", "7499"] {
                    try await Self.refuse(
                        try Self.fresh("port\(port)", one), ["--create", "--port", port],
                        says: "7500", "--port")
                }

                for host in [one, two] {
                    let copy = try Self.fresh("copy-\(host.number)", host, volume: a.volume)
                    try await host.sh("cp -a \"$1\" \"$2\"", a.root, copy.root).succeeded()
                    try await Self.refuse(copy, says: "copy", "empty root", writes: true)
                }
                #expect(try await a.sh("echo fine >f; cat f").output == "fine\n")

                try await two.separateMounts(
                    "mount -t tmpfs e2e /mnt; cp -a /dev/null /dev/zero /dev/random /dev/urandom /mnt; mount --move /mnt /dev"
                )
                let fuseless = try NodeProcess("fuseless", on: two, volume: "fresh")
                try await Self.refuse(fuseless, ["--create"], says: "/dev/fuse", writes: true)
            }
        }

        @Test("A disk that is not mounted after a reboot is not taken for a new one")
        func missingDisk() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "removable", .ext4(megabytes: 700))
                for root in ["\(disk.path)/.db", disk.path] {
                    let name = root == disk.path ? "whole" : "part"
                    let node = try NodeProcess(name, on: host, root: root, volume: name)
                    try await host.sh("rm -rf \"$1\"/.db; chmod 700 \"$1\"", disk.path).succeeded()
                    try await node.create()
                    try await node.sh("echo kept >file").succeeded()
                    try await node.stop()
                    try await disk.unmount()
                    for option in [[], ["--create"]] {
                        try await Self.refuse(
                            node, option, says: "disk of node \(name) is not mounted at \(root)",
                            "--new-node")
                    }
                    try await disk.mount()
                    try await node.start()
                    #expect(try await node.sh("cat file").output == "kept\n")
                    try await node.stop()
                }
            }
        }

        @Test("A stopped node's commands say that it is not running")
        func commands() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let a = try NodeProcess("a", on: host)
                try await a.create()
                try await a.sh("echo x >file").succeeded()
                let missing = try await a.command("whereis", a["missing"])
                #expect(missing.status == 1 && missing.errors.contains("missing"))
                let late = try await a.command("wait", "--replicated", "--timeout", "0")
                #expect([1, 75].contains(late.status), "\(late.report)")
                try await a.stop()
                for command in ["status", "stop", "wait"] {
                    let outcome = try await a.command(command)
                    #expect(outcome.status == 1, "\(outcome.report)")
                    #expect(outcome.errors.contains("running"))
                }
                #expect(try await a.key().hasPrefix("dfs1-"))
            }
        }
    }
}
