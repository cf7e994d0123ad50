import Testing

extension EndToEnd {
    @Suite("Nodes that meet", .serialized, .timeLimit(.minutes(5)))
    struct Meeting {
        @Test("Three nodes find each other with nothing configured; another mDNS client lists them")
        func discovery() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                let start = ContinuousClock.now
                try await trio.waitForAll()
                print("all see all \(ContinuousClock.now - start) after the last was ready")
                let status = try await trio.a.status()
                #expect(status.peers.first { $0.name == "b" }?.machine == "near")
                #expect(status.peers.first { $0.name == "c" }?.machine == "far")
                let scan = try await trio.far.sh("timeout 4 mdns-scan 2>&1 || true")
                let found = scan.output.split(separator: "\n").filter {
                    $0.contains("_delugefs._tcp")
                }
                #expect(found.count >= 3, "\(scan.output)")
            }
        }

        @Test("A peer that multicast does not reach is found by --peer")
        func fixedPeer() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess(
                    "a", on: one, options: ["--no-discovery", "--port", "7400"])
                let c = try NodeProcess(
                    "c", on: two, options: ["--no-discovery", "--peer", "\(one.address):7400"])
                try await a.create()
                try await c.join(a)
                try await c.waitForPeers("a")
                try await a.waitForPeers("c")
                try await a.sh("echo over >file").succeeded()
                try await c.sees("file")
            }
        }

        @Test("Nodes that met by a link-local address exchange content all the same")
        func linkLocalPeer() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess(
                    "a", on: one, options: ["--no-discovery", "--port", "7400"])
                try await a.create()
                let address = try await eventually(
                    "eth0 has its own address", within: Bounds.online
                ) {
                    let list = try await one.sh(
                        "ip -6 -o addr show dev eth0 scope link -tentative | awk '{print $4}'")
                    return list.line.split(separator: "/").first.map(String.init)
                }
                let c = try NodeProcess(
                    "c", on: two,
                    options: [
                        "--no-discovery", "--peer", "[\(address)%eth0]:7400", "--capacity", "0",
                    ])
                try await c.join(a)
                try await c.waitForPeers("a")
                try await a.sh("head -c 3M /dev/urandom >file").succeeded()
                try await c.sees("file")
                #expect(try await c.sha256("file") == a.sha256("file"))
            }
        }

        @Test("Nodes stop and start in any order and everything is as before")
        func restarts() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                try await trio.a.sh("mkdir d; echo one >d/one; head -c 1M /dev/urandom >d/big")
                    .succeeded()
                try await trio.a.waitReplicated()
                let digest = try await trio.a.sha256("d/big")
                let orders = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
                for (round, order) in orders.enumerated() {
                    for index in order { try await trio.all[index].stop() }
                    for index in orders[(round + 1) % orders.count] {
                        try await trio.all[index].start()
                    }
                    try await trio.waitForAll()
                    for node in trio.all {
                        #expect(try await node.sha256("d/big") == digest)
                        #expect(try await node.sh("cat d/one").output == "one\n")
                    }
                }
                for node in trio.all { try await node.checkHistory() }
            }
        }

        @Test("A holder that is switched off is named by whereis")
        func offlineHolder() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                try await trio.a.sh("head -c 1M /dev/urandom >file").succeeded()
                try await trio.a.waitReplicated()
                try await trio.c.stop()
                try await eventually("c is named as offline", within: Bounds.offline) {
                    let file = try await trio.a.whereIs("file")
                    return file.stored.contains { $0.name == "c" && !$0.online } && file.copies == 1
                }
            }
        }

        @Test("What two nodes write while they are cut apart is on both when they meet again")
        func partition() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                try await trio.a.sh("mkdir shared; echo before >shared/before").succeeded()
                try await trio.c.sees("shared/before")
                try await trio.far.cutOff()
                try await trio.a.sh(
                    "cd shared; echo a >a; mkdir from-a; echo a >from-a/in; mv before after"
                )
                .succeeded()
                try await trio.c.sh("cd shared; echo c >c; mkdir from-c; echo c >from-c/in")
                    .succeeded()
                try await eventually("the cut is seen", within: Bounds.offline) {
                    try await trio.c.status().onlinePeers.isEmpty
                }
                try await trio.c.sh("echo later >shared/later").succeeded()
                try await trio.far.heal()
                let expected = "a:after:c:from-a:from-a/in:from-c:from-c/in:later"
                for node in trio.all {
                    try await eventually("\(node.name) has both", within: Bounds.offline) {
                        let list = try await node.sh(
                            "cd shared; find . -mindepth 1 -printf '%P\\n' | sort | paste -sd:")
                        guard list.line == expected else { throw Failure(list.line) }
                        return true
                    }
                    #expect(
                        try await node.sh("cat shared/a shared/c shared/*/in").output
                            == "a\nc\na\nc\n")
                }
                for node in trio.all { try await node.settle() }
                for node in trio.all { try await node.checkHistory() }
            }
        }

        @Test("Two nodes that write different files at the same time both win")
        func concurrentWriters() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                let script = "mkdir -p d; for i in {1..50}; do echo $1 $i >d/$1.$i; done"
                async let first = trio.a.sh(script, "a", timeout: Bounds.transfer)
                async let second = trio.c.sh(script, "c", timeout: Bounds.transfer)
                try await first.succeeded()
                try await second.succeeded()
                for node in trio.all {
                    try await eventually("\(node.name) has all files", within: Bounds.offline) {
                        let list = try await node.sh("find . -type f | wc -l")
                        guard list.line == "100" else { throw Failure(list.line) }
                        return true
                    }
                    let content = try await node.sh("cat d/a.17 d/c.50 2>&1")
                    #expect(content.output == "a 17\nc 50\n", "on \(node.name)")
                    #expect(
                        try await node.sh("ls").output == "d\n", "one directory, not a conflict")
                }
            }
        }
    }
}
