import Testing

extension EndToEnd {
    /// The model's operations on the mounts of two nodes in turn: after each turn all is closed and
    /// waited for, and then both mounts must show what ext4 has. `DELUGEFS_TEST_SEED` repeats a run.
    @Suite("The model on two mounts", .serialized, .timeLimit(.minutes(Bounds.isLong ? 240 : 5)))
    struct TwoMountModel {
        /// Each is a directory of its own.
        private static let sequences = 16
        private static let turns = Bounds.isLong ? 400 : 12
        private static let operationsPerTurn = 25

        @Test("Random operations on two nodes in turn come out as on ext4, and both nodes agree")
        func turns() async throws {
            print(
                "Seeds of the model on two mounts begin at DELUGEFS_TEST_SEED=\(ModelGenerator.seed)"
            )
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let oracle = try await Disk.oracle(workshop)
                var nodes: [NodeProcess] = []
                for name in ["a", "b"] {
                    let disk = try await Disk(workshop, "root-\(name)", .ext4(megabytes: 4096))
                    nodes.append(try NodeProcess(name, on: await network.host(), disk: disk))
                }
                try await nodes[0].create()
                try await nodes[1].join(nodes[0])
                try await nodes[1].waitForPeers("a")
                let mounts = [oracle.path] + nodes.compactMap(\.mount)
                let sequences = try (0..<Self.sequences).map { number in
                    try Sequence(
                        seed: ModelGenerator.seed &+ UInt64(number), mounts: mounts,
                        count: Self.turns * Self.operationsPerTurn)
                }
                try await nodes[0].settle()
                for turn in 0..<Self.turns {
                    try await onThread {
                        for sequence in sequences {
                            try sequence.perform(Self.operationsPerTurn, on: 1 + turn % 2)
                        }
                    }
                    try await nodes[turn % 2].settle()
                    try await onThread {
                        for sequence in sequences { try sequence.compare(turn) }
                    }
                }
                for sequence in sequences where sequence.isSuperseded {
                    print("Seed \(sequence.seed) met an earlier version")
                }
                for node in nodes { try await node.checkHistory() }
            }
        }
    }
}

/// The same operations on an ext4 directory and on one mount at a time.
private final class Sequence: @unchecked Sendable {
    // Sendable: used by one thread after the other.
    let seed: UInt64
    private(set) var isSuperseded = false
    private let directories: [String]
    private let operations: [ModelOperation]
    private var done = 0

    /// - Parameter mounts: the first is the ext4; on the second the directory is made.
    init(seed: UInt64, mounts: [String], count: Int) throws {
        self.seed = seed
        directories = mounts.map { "\($0)/seed-\(seed)" }
        operations = ModelGenerator.sequence(seed: seed, count: count)
        for directory in directories.prefix(2) { _ = try ModelWorld(directory) }
    }

    private func world(_ index: Int) throws -> ModelWorld {
        try ModelWorld(directories[index], isNew: false, ofOneNode: false)
    }

    func perform(_ count: Int, on mount: Int) throws {
        guard !isSuperseded else { return }
        let (expected, seen) = (try world(0), try world(mount))
        for _ in 0..<count where done < operations.count {
            let operation = operations[done]
            done += 1
            if operation.isPause { continue }
            let words = (expected.perform(operation), seen.perform(operation))
            if seen.holdsSuperseded {
                isSuperseded = true
                return
            }
            guard words.0 == words.1 else {
                throw Failure(
                    "\(story)\n\(operation) on mount \(mount)\nexpected: \(words.0)\n    seen: \(words.1)"
                )
            }
        }
    }

    func compare(_ turn: Int) throws {
        guard !isSuperseded else { return }
        let expected = try world(0).state()
        for index in 1..<directories.count {
            let seen = try world(index).state()
            guard seen == expected else {
                throw Failure(
                    """
                    \(story)
                    Mount \(index) after turn \(turn), on mount \(1 + turn % 2)
                    expected: \(expected.filter { !seen.contains($0) }.joined(separator: "\n          "))
                        seen: \(seen.filter { !expected.contains($0) }.joined(separator: "\n          "))
                    """)
            }
        }
    }

    private var story: String {
        let last = operations.prefix(done).suffix(60).map { "    \($0)," }
        return
            "Seed \(seed), \(done) operations done, the last of which\n\(last.joined(separator: "\n"))"
    }
}
