import Testing

extension EndToEnd {
    @Suite("How many copies, and where", .serialized, .timeLimit(.minutes(5)))
    struct Copies {
        /// Nodes on a machine each, joined, with the least time of grace.
        private static func volume(
            _ workshop: Workshop, _ names: [String], options: [String: [String]] = [:],
            creation: [String] = []
        ) async throws -> [NodeProcess] {
            let network = try await Network(workshop)
            var nodes: [NodeProcess] = []
            for name in names {
                let node = try NodeProcess(
                    name, on: try await network.host(),
                    options: ["--grace", "2"] + (options[name] ?? []))
                if let first = nodes.first {
                    try await node.join(first)
                } else {
                    try await node.start(["--create"] + creation)
                }
                nodes.append(node)
            }
            for node in nodes {
                try await node.waitForPeers(
                    Set(names).subtracting([node.name]), within: Bounds.online)
            }
            return nodes
        }

        private static func stored(_ node: NodeProcess, _ path: String) async throws -> Set<String>
        {
            Set(try await node.whereIs(path).holders.filter(\.stored).map(\.name))
        }

        private static func objects(_ node: NodeProcess) async throws -> Int {
            let count = try await node.host.sh(
                "find '\(node.root)'/objects/ -type f ! -name '*.layer' | wc -l")
            return Int(count.line) ?? -1
        }

        @Test("When a node comes back its files have one copy too many, and one of each is dropped")
        func returning() async throws {
            try await Workshop.open { workshop in
                let nodes = try await Self.volume(workshop, ["a", "b", "c"])
                let a = nodes[0]
                try await a.sh("for i in $(seq 12); do head -c 100K /dev/urandom >$i; done")
                    .succeeded()
                try await a.waitReplicated()
                let b = nodes[1]
                try await b.kill9()
                try await a.waitForPeers("c", within: Bounds.offline)
                // With two machines left each has everything.
                try await eventually("healed", within: Bounds.replicated) {
                    for index in 1...12 {
                        let names = try await Self.stored(a, "\(index)")
                        guard names.isSuperset(of: ["a", "c"]) else { return false }
                    }
                    return true
                }
                try await b.start()
                try await eventually("nothing is there three times", within: Bounds.replicated) {
                    for index in 1...12 {
                        guard try await Self.stored(a, "\(index)").count == 2 else { return false }
                    }
                    return true
                }
                try await a.waitReplicated()
                try await eventually("the objects are gone", within: Bounds.visible) {
                    var count = 0
                    for node in nodes { count += try await Self.objects(node) }
                    return count == 24
                }
                for index in 1...12 {
                    let sums = Set([
                        try await a.sha256("\(index)"), try await b.sha256("\(index)"),
                        try await nodes[2].sha256("\(index)"),
                    ])
                    #expect(sums.count == 1)
                }
            }
        }

        @Test("A drained disk can be taken away, still has the bytes, and is forgotten")
        func drained() async throws {
            try await Workshop.open { workshop in
                let nodes = try await Self.volume(workshop, ["a", "b", "c"])
                let (a, b, c) = (nodes[0], nodes[1], nodes[2])
                try await b.sh(
                    "for i in $(seq 8); do head -c 100K /dev/urandom >$i; done; echo small >small; head -c 9M /dev/urandom >large"
                ).succeeded()
                try await b.waitReplicated()
                let before = try await Self.objects(b)
                let drain = try await b.command(
                    "drain", "--wait", timeout: Bounds.replicated
                ).succeeded()
                #expect(drain.output.contains("can be taken away"), "\(drain.output)")
                #expect(try await b.status().state == "draining")
                #expect(try await Self.objects(b) == before)
                let names = (1...8).map { "\($0)" } + ["large"]
                for name in names {
                    #expect(try await Self.stored(a, name) == ["a", "c"])
                }
                try await b.stop()
                let refused = try await a.command("forget", "a")
                #expect(refused.status == 1 && refused.errors.contains("this node"))
                let forgotten = try await a.command("forget", "b").succeeded()
                #expect(forgotten.output.contains("shuts nobody out"), "\(forgotten.output)")
                try await eventually("b is gone from the list", within: Bounds.visible) {
                    try await !c.status().peers.contains { $0.name == "b" }
                }
                for name in names {
                    #expect(try await c.sha256(name) == a.sha256(name))
                    #expect(try await a.whereIs(name).copies == 2)
                }
                #expect(try await c.sh("cat small").line == "small")
                // It is a member again when it is started again, and a draining one still.
                try b.launch()
                try await eventually("b is back", within: Bounds.ready) {
                    guard try await b.command("status").status == 0 else { return false }
                    let names = try await a.status().onlinePeers
                    return try await b.status().state == "draining" && names.contains("b")
                }
                try await b.command("drain", "--cancel").succeeded()
                #expect(try await b.status().state == "ready")
            }
        }

        @Test(
            "Draining is refused where the copies could not go, forgetting where files would be lost"
        )
        func refused() async throws {
            try await Workshop.open { workshop in
                let nodes = try await Self.volume(
                    workshop, ["a", "b"], options: ["a": ["--capacity", "0"]],
                    creation: ["--copies", "1"])
                let (a, b) = (nodes[0], nodes[1])
                try await b.sh("for i in $(seq 8); do head -c 100K /dev/urandom >$i; done")
                    .succeeded()
                try await b.waitReplicated()
                try await a.sees("8")
                let online = try await a.command("forget", "b")
                #expect(online.status == 1 && online.errors.contains("is online"), "\(online)")
                let unknown = try await a.command("forget", "nobody")
                #expect(unknown.status == 1 && unknown.errors.contains("no node nobody"))
                let drain = try await b.command("drain")
                #expect(drain.status == 1, "\(drain)")
                #expect(
                    drain.errors.contains("no other disk that stores anything"), "\(drain.errors)")
                try await b.kill9()
                try await a.waitForPeers([], within: Bounds.offline)
                let only = try await a.command("forget", "b")
                #expect(only.status == 1, "\(only)")
                #expect(only.errors.contains("on no other disk"), "\(only.errors)")
                try await a.command("forget", "b", "--accept-loss").succeeded()
                #expect(try await a.status().peers.isEmpty)
            }
        }

        @Test("Directories ask for more copies or fewer, by command or attribute")
        func policies() async throws {
            try await Workshop.open { workshop in
                let nodes = try await Self.volume(workshop, ["a", "b", "c"])
                let a = nodes[0]
                try await a.sh(
                    """
                    mkdir -p careful/deep careless
                    setfattr -n user.delugefs.copies -v 1 careless
                    head -c 100K /dev/urandom >careful/deep/file
                    head -c 100K /dev/urandom >careless/file
                    head -c 100K /dev/urandom >file
                    """
                ).succeeded()
                try await a.waitReplicated()
                #expect(try await a.whereIs("careful/deep/file").target == 2)
                #expect(try await a.whereIs("careless/file").copies == 1)
                let set = try await a.command("policy", "/careful", "--copies", "3").succeeded()
                #expect(set.line == "/careful: 3 copies, as set here")
                try await eventually("the other mount says so", within: Bounds.visible) {
                    let deep = try await nodes[1].host.run([
                        Machine.binary, "policy", nodes[1]["careful/deep"],
                    ])
                    return deep.line.contains("3 copies, as set above")
                }
                try await a.waitReplicated()
                #expect(try await a.whereIs("careful/deep/file").copies == 3)
                #expect(try await a.whereIs("file").copies == 2)
                try await a.command("policy", "/careful", "--inherit").succeeded()
                try await eventually("the third copy is dropped", within: Bounds.replicated) {
                    try await Self.stored(a, "careful/deep/file").count == 2
                }
                let four = try await a.command("policy", "/careful", "--copies", "4").succeeded()
                #expect(four.line.contains("4 copies"))
                let wait = try await a.command("wait", "--replicated")
                #expect(wait.status == 1 && wait.errors.contains("only 3 online disks"), "\(wait)")
            }
        }

        @Test(
            "What is written on a disk beyond its capacity is moved to others, cached copies first")
        func beyondCapacity() async throws {
            try await Workshop.open { workshop in
                let nodes = try await Self.volume(
                    workshop, ["a", "b", "c"], options: ["a": ["--capacity", "8M"]])
                let (a, b) = (nodes[0], nodes[1])
                try await b.sh("head -c 3M /dev/urandom >read").succeeded()
                try await b.waitReplicated()
                let read = try await a.sha256("read")
                try await a.sh("for i in $(seq 40); do head -c 1M /dev/urandom >$i; done")
                    .succeeded()
                let written = try await a.sh("sha256sum {1..40}").output
                try await eventually("a has no more than its capacity", within: Bounds.replicated) {
                    let size = try await a.host.sh(
                        "find '\(a.root)'/objects -type f -printf '%s\n' | awk '{ n += $1 } END { print n }'"
                    )
                    return Int(size.line).map { $0 <= 8 << 20 } == true
                }
                try await a.waitReplicated()
                for node in nodes {
                    #expect(try await node.sh("sha256sum {1..40}").output == written)
                    #expect(try await node.sha256("read") == read)
                }
            }
        }
    }
}
