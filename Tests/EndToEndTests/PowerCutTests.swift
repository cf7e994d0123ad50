import Glibc
import Simulation
import Synchronization
import Testing

extension EndToEnd {
    /// The node's disk is an image on XFS. A clone of the image (FICLONE) is one moment of what had
    /// been written to the disk, without anything that only the kernel's memory had: what a power
    /// cut leaves on a disk that loses nothing it has taken. The boot is another one for the node
    /// that starts from it, so that its redo file does not count.
    @Suite("Power cuts", .serialized, .timeLimit(.minutes(Bounds.isLong ? 90 : 5)))
    struct PowerCuts {
        private static let cuts = Bounds.isLong ? 200 : 4
        private static let busy = Duration.seconds(Bounds.isLong ? 60 : 8)
        private static let writers = 3

        @Test(
            "After a power cut at any moment all that was acknowledged is there, and nothing is torn"
        )
        func atAnyMoment() async throws {
            let seed = ModelGenerator.seed
            print("Power cuts of DELUGEFS_TEST_SEED=\(seed)")
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let store = try await Disk(workshop, "store", .xfs(megabytes: 16_000))
                let disk = try await Disk(workshop, "root", .ext4(megabytes: 3000), in: store)
                let node = try NodeProcess("a", on: try await network.host(), disk: disk)
                try await node.create()
                let ledger = PowerCutLedger(BytePool(seed: seed))
                let cuts = try await Self.cut(node, disk, ledger, seed: seed)
                try await node.kill9()
                print("\(ledger.acknowledgedCount) changes were acknowledged")
                let host = try await network.host()
                try await host.separateMounts(
                    """
                    echo 00000000-0000-4000-8000-000000000000 >\(workshop.directory)/boot
                    mount --bind \(workshop.directory)/boot /proc/sys/kernel/random/boot_id
                    """)
                let place = try workshop.make("cut")
                let after = try NodeProcess(
                    "after", on: host, root: "\(place)/.db", options: ["--no-discovery"])
                for cut in cuts { try await Self.check(cut, after, place, ledger) }
            }
        }

        /// - Returns: the disk at random moments while it is written to.
        private static func cut(
            _ node: NodeProcess, _ disk: Disk, _ ledger: PowerCutLedger, seed: UInt64
        ) async throws -> [PowerCutLedger.Cut] {
            var cuts: [PowerCutLedger.Cut] = []
            try await withThrowingTaskGroup(of: Void.self) { group in
                for number in 0..<writers {
                    let writer = PowerCutWriter(
                        node, ledger, "w\(number)", seed: seed &+ UInt64(number) &+ 1)
                    try await node.sh("mkdir \(writer.directory)").succeeded()
                    group.addTask {
                        while !ledger.isOver { try await writer.round() }
                    }
                }
                try await node.settle()
                var random = SeededGenerator(seed: seed)
                for number in 0..<Self.cuts {
                    let pause = busy / Self.cuts * Double.random(in: 0...2, using: &random)
                    try await Task.sleep(for: pause)
                    let image = "\(disk.image).\(number)"
                    let begin = ContinuousClock.now
                    try await Shell.run(
                        ["cp", "--reflink=always", disk.image, image], timeout: Bounds.transfer
                    ).succeeded()
                    cuts.append(
                        PowerCutLedger.Cut(image: image, begin: begin, end: ContinuousClock.now))
                }
                ledger.end()
                try await group.waitForAll()
            }
            return cuts
        }

        private static func check(
            _ cut: PowerCutLedger.Cut, _ node: NodeProcess, _ place: String,
            _ ledger: PowerCutLedger
        ) async throws {
            try await node.host.sh("mount -o loop \"$1\" \"$2\"", cut.image, place).succeeded()
            try await node.start()
            try await compare(cut, node, ledger, "started")
            try await node.settle()
            try await compare(cut, node, ledger, "published")
            try await node.checkHistory()
            try await node.stop()
            try await node.host.sh("umount \"$2\"; rm \"$1\"", cut.image, place).succeeded()
        }

        private static func compare(
            _ cut: PowerCutLedger.Cut, _ node: NodeProcess, _ ledger: PowerCutLedger,
            _ what: String
        ) async throws {
            // The mount is in a mount namespace of its host.
            let top = "/proc/\(node.pid ?? 0)/root\(node[""])"
            let faults = try await onThread {
                let names = (0..<writers).flatMap { number in
                    Leftovers.names(in: "\(top)w\(number)").filter { $0 != "." && $0 != ".." }
                        .map { "w\(number)/\($0)" }
                }
                return try ledger.faults(cut, names: names) { try Calls.read(top + $0) }
            }
            guard faults.isEmpty else {
                throw Failure(
                    "\(cut.image), \(what): \(faults.count) faults\n\(faults.prefix(20).joined(separator: "\n"))"
                )
            }
        }
    }
}

/// Changes files in a directory of its own, and notes from when on what had to be safe.
private final class PowerCutWriter: Sendable {
    private static let filesMax = 50
    private static let sizes = [40, 3000, 4097, 20_000, 150_000, 150_000, 700_000]
    /// What a disk writes at once.
    private static let blockBytes = 4096
    private static let operationsPerWait = 60

    let directory: String
    private let node: NodeProcess
    private let ledger: PowerCutLedger
    private let state: Mutex<(random: SeededGenerator, number: Int)>

    init(_ node: NodeProcess, _ ledger: PowerCutLedger, _ directory: String, seed: UInt64) {
        self.node = node
        self.ledger = ledger
        self.directory = directory
        state = Mutex((SeededGenerator(seed: seed), 0))
    }

    private func draw<Value: Sendable>(_ body: @Sendable (inout SeededGenerator) -> Value) -> Value
    {
        state.withLock { body(&$0.random) }
    }

    /// Operations, and then a `wait` for them.
    func round() async throws {
        let touched = try await onThread {
            try (0..<Self.operationsPerWait).map { _ in try self.step() }
        }
        try await node.settle()
        ledger.acknowledge(touched.flatMap { $0 })
    }

    /// - Returns: the files that were changed.
    private func step() throws -> [String] {
        let number = state.withLock { state in
            state.number += 1
            return state.number
        }
        let path = "\(directory)/\(draw { Int.random(in: 0..<Self.filesMax, using: &$0) })"
        let isSynced = draw { !$0.once(in: 3) }
        let isKnown = ledger.content(path) != nil && ledger.isAcknowledged(path)
        switch draw({ Int.random(in: 0..<10, using: &$0) }) {
        case 0..<3: try write(path, isSynced)
        case 3..<5: try replace(path, "\(path).new-\(number)")
        case 5..<7 where isKnown: try edit(path, isSynced)
        case 7 where isKnown:
            // From a fresh name, so that nothing else is ever done to the two.
            let fresh = "\(directory)/from-\(number)"
            try write(fresh, true)
            try rename(fresh, "\(directory)/to-\(number)", isSynced)
            return [fresh, "\(directory)/to-\(number)"]
        case 8 where isKnown: try remove(path, isSynced)
        default: try write(path, isSynced)
        }
        return [path]
    }

    private func write(_ path: String, _ isSynced: Bool) throws {
        let content = draw { random in
            let size = random.pick(Self.sizes)
            return DrawnContent(count: Int.random(in: size / 2...size, using: &random), &random)
        }
        ledger.begin(path, content, isInPlace: true)
        try Calls.write(content.bytes(ledger.pool), to: node[path], isSynced: isSynced)
        if isSynced { ledger.acknowledge(path) }
    }

    private func replace(_ path: String, _ temporary: String) throws {
        try write(temporary, true)
        ledger.begin(path, ledger.content(temporary))
        ledger.begin(temporary, nil)
        try Calls.rename(node[temporary], to: node[path])
        try Calls.syncDirectory(node[directory])
        ledger.acknowledge(path, temporary)
    }

    /// Within one block, which is there or not.
    private func edit(_ path: String, _ isSynced: Bool) throws {
        guard let before = ledger.content(path) else { return }
        let start = draw { Int.random(in: 0..<before.count, using: &$0) }
        let room = min(Self.blockBytes - start % Self.blockBytes, before.count - start)
        let count = draw { Int.random(in: 1...room, using: &$0) }
        let content = draw { random in
            var content = before
            content.write(count: count, at: start, &random)
            return content
        }
        ledger.begin(path, content)
        let bytes = content.bytes(ledger.pool)[start..<start + count]
        try Calls.edit(node[path], bytes, at: start, isSynced: isSynced)
        if isSynced { ledger.acknowledge(path) }
    }

    private func rename(_ path: String, _ other: String, _ isSynced: Bool) throws {
        ledger.beginRename(path, other)
        try Calls.rename(node[path], to: node[other])
        guard isSynced else { return }
        try Calls.syncDirectory(node[directory])
        ledger.acknowledge(path, other)
    }

    private func remove(_ path: String, _ isSynced: Bool) throws {
        ledger.begin(path, nil)
        try Calls.unlink(node[path])
        guard isSynced else { return }
        try Calls.syncDirectory(node[directory])
        ledger.acknowledge(path)
    }
}
