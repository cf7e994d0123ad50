import Foundation
import Glibc
import Simulation
import Synchronization
import Testing

extension EndToEnd {
    /// The node is killed in the middle of each operation of a script. What was answered must be
    /// there after the restart; the operation that was under way may be there, or not.
    @Suite("Kills in the middle", .serialized, .timeLimit(.minutes(Bounds.isLong ? 240 : 5)))
    struct Kills {
        private static let kills = Bounds.isLong ? 400 : 12

        @Test(
            "Killed in any operation, a node has all that was answered before, and nothing torn",
            arguments: [[], ["--no-passthrough"]])
        func anyOperation(options: [String]) async throws {
            print("Seeds of the kills begin at DELUGEFS_TEST_SEED=\(ModelGenerator.seed)")
            try await Solo.open(on: .ext4(megabytes: 2048), options) { solo in
                let (host, node) = (solo.host, solo.node)
                let oracle = try await Disk.oracle(solo.workshop)
                let mount = try #require(node.mount)
                var met: [Int: Int] = [:]
                for number in 0..<Self.kills {
                    var random = SeededGenerator(seed: ModelGenerator.seed &+ UInt64(number))
                    let kill = Kill(
                        seed: ModelGenerator.seed &+ UInt64(number), oracle: oracle.path,
                        mount: mount,
                        number: number,
                        of: Self.kills, &random)
                    let pid = try #require(node.pid)
                    let answered = try await onThread { try kill.run(killing: pid) }
                    met[answered, default: 0] += 1
                    try await node.kill9()
                    try await node.start()
                    try await onThread { try kill.compare(answered, "restarted") }
                    try await node.settle()
                    try await onThread { try kill.compare(answered, "published") }
                }
                print("Killed in \(met.count) different operations \(options)")
                try await eventually("no staging file is left", within: Bounds.command) {
                    try await host.sh("ls \"$1\"/staging", node.root).output.isEmpty
                }
                try await node.checkHistory()
            }
        }
    }
}

/// One pass through the script, in a directory of its own.
private struct Kill: Sendable {
    /// Most operations take less.
    private static let microsecondsMax: Double = 4000

    let seed: UInt64
    private let oracle: String
    private let subject: String
    private let operation: Int
    private let microseconds: UInt32

    init(
        seed: UInt64, oracle: String, mount: String, number: Int, of count: Int,
        _ random: inout SeededGenerator
    ) {
        self.seed = seed
        self.oracle = "\(oracle)/kill-\(number)"
        subject = "\(mount)/kill-\(number)"
        // Spread over the script, however few there are.
        let all = KillScript.operations.count
        operation = (number * all / count + Int.random(in: 0..<max(1, all / count), using: &random))
        // As often within the first 60 microseconds as between 60 and 4000.
        let exponent = Double.random(in: 0...1, using: &random)
        var delay = 1.0
        for _ in 0..<Int(exponent * 12) { delay *= 2 }
        microseconds = UInt32(min(delay, Self.microsecondsMax))
    }

    private var story: String {
        "Seed \(seed): killed \(microseconds) us after operation \(operation), \(KillScript.operations[operation])"
    }

    /// - Returns: how many operations were answered.
    func run(killing pid: pid_t) throws -> Int {
        for side in [oracle, subject] {
            guard mkdir(side, 0o755) == 0 else { throw Failure("\(side) cannot be made.") }
        }
        let (expected, seen) = (try ModelWorld("\(oracle)/whole"), try ModelWorld(subject + "/top"))
        let isKilled = Atomic(false)
        for (index, operation) in KillScript.operations.enumerated() {
            if index == self.operation {
                let delay = microseconds
                Thread.detachNewThread {
                    usleep(delay)
                    isKilled.store(true, ordering: .sequentiallyConsistent)
                    kill(pid, SIGKILL)
                }
            }
            if case .pause(let milliseconds) = operation.call { usleep(milliseconds * 1000) }
            let words = (expected.perform(operation), seen.perform(operation))
            guard words.0 != words.1 else { continue }
            guard isKilled.load(ordering: .sequentiallyConsistent) else {
                throw Failure(
                    "\(story): \(operation)\nexpected: \(words.0)\n    seen: \(words.1)")
            }
            return index
        }
        return KillScript.operations.count
    }

    /// The state is that after the operations that were answered, or after one more. Of the bytes
    /// that this one was to change some may be changed.
    func compare(_ answered: Int, _ what: String) throws {
        let operations = KillScript.operations
        let before = try stateOnOracle(answered)
        let after = try stateOnOracle(answered + 1)
        var seen = try ModelWorld(subject + "/top", isNew: false).state()
        if seen == before || seen == after { return }
        if answered < operations.count, operations[answered].changesBytesInPlace,
            seen.count == before.count
        {
            for (index, line) in seen.enumerated()
            where before[index] != after[index] && path(line) == path(before[index]) {
                seen[index] = before[index]
            }
            if seen == before { return }
        }
        let either = [before, after].map { state in
            state.filter { !seen.contains($0) }.joined(separator: "\n          ")
        }
        throw Failure(
            """
            \(story), \(what); \(answered) were answered, the last \(operations[max(0, answered - 1)])
            expected: \(either[0])
                  or: \(either[1])
                seen: \(seen.filter { !before.contains($0) }.joined(separator: "\n          "))
            """)
    }

    private func path(_ line: String) -> Substring { line.prefix { $0 != ":" } }

    private func stateOnOracle(_ count: Int) throws -> [String] {
        let path = "\(oracle)/\(count)"
        guard access(path, F_OK) != 0 else { return try ModelWorld(path, isNew: false).state() }
        let world = try ModelWorld(path)
        for operation in KillScript.operations.prefix(count) { _ = world.perform(operation) }
        world.closeAll()
        return world.state()
    }
}

extension ModelOperation {
    /// The file keeps its inode; whoever's call was not answered does not know how far it came.
    fileprivate var changesBytesInPlace: Bool {
        switch call {
        case .write, .writeAt, .store, .copy, .allocate: true
        default: false
        }
    }
}
