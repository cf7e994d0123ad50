import Foundation
import Synchronization
import Testing

extension EndToEnd {
    /// A mount and a directory on ext4 get the same operations; every result and the trees at the
    /// end must be the same. `DELUGEFS_TEST_SEED` repeats a run.
    @Suite("The model", .serialized, .timeLimit(.minutes(Bounds.isLong ? 240 : 5)))
    struct Model {
        static let modes: [[String]] = [[], ["--no-passthrough"]]
        private static let operationsPerSequence = 200
        /// Of each mode; each is a directory of its own on the same mount.
        private static let sequences = Bounds.isLong ? 2500 : 120
        /// Sequences at once.
        private static let threads = 4
        /// Trees to look at once more after a restart.
        private static let keptEvery = Bounds.isLong ? 50 : 8

        @Test("Random operations of several actors come out as on ext4", arguments: modes)
        func randomOperations(options: [String]) async throws {
            print("Seeds of the model begin at DELUGEFS_TEST_SEED=\(ModelGenerator.seed)")
            try await Self.compare(options) { comparison, node in
                let next = Atomic<Int>(0)
                let failure = Mutex<(any Error)?>(nil)
                let start = ContinuousClock.now
                await onThreads(Self.threads) {
                    do {
                        while failure.withLock({ $0 == nil }) {
                            let number = next.wrappingAdd(1, ordering: .relaxed).oldValue
                            guard number < Self.sequences else { return }
                            try Self.run(number, comparison)
                        }
                    } catch { failure.withLock { $0 = $0 ?? error } }
                }
                if let failure = failure.withLock({ $0 }) { throw failure }
                print(
                    "\(Self.sequences * Self.operationsPerSequence) operations in \(ContinuousClock.now - start) \(options), \(comparison.supersededCount) sequences met an earlier version"
                )
                #expect(comparison.supersededCount <= Self.sequences / 200 + 1)
                try await node.settle()
                try await node.stop()
                try await node.start()
                let found = try await onThread { try comparison.keptDifference("restarted") }
                if let found { throw Failure("\(found)") }
            }
        }

        @Test("What once came out otherwise comes out as on ext4", arguments: modes)
        func knownSequences(options: [String]) async throws {
            try await Self.compare(options) { comparison, _ in
                for (name, operations) in ModelSequences.all {
                    let found = try await onThread { try comparison.difference(operations) }
                    if let found { Issue.record("\(name): \(found)") }
                }
            }
        }

        private static func compare(
            _ options: [String],
            _ body: (ModelComparison, NodeProcess) async throws -> Void
        ) async throws {
            try await Solo.open(on: .ext4(megabytes: 4096), options) { solo in
                let oracle = try await Disk.oracle(solo.workshop)
                let mount = try #require(solo.node.mount)
                try await body(ModelComparison(oracle: oracle.path, subject: mount), solo.node)
            }
        }

        /// - Throws: `Failure` with a short sequence that fails.
        private static func run(_ number: Int, _ comparison: ModelComparison) throws {
            let operations = ModelGenerator.sequence(
                seed: ModelGenerator.seed &+ UInt64(number), count: operationsPerSequence)
            let keeps = number % keptEvery == 0
            guard let found = try comparison.difference(operations, keeps: keeps) else { return }
            let (rest, last) = try comparison.shrunk(operations, found)
            let lines = rest.map { "    \($0)," }.joined(separator: "\n")
            throw Failure(
                "Seed \(ModelGenerator.seed &+ UInt64(number)): \(found)\nShrunk to \(rest.count) operations: \(last)\n[\n\(lines)\n]"
            )
        }
    }
}

/// Runs blocking work on threads made for it, never on the cooperative pool.
private func onThreads(_ count: Int, _ body: @escaping @Sendable () -> Void) async {
    await withTaskGroup(of: Void.self) { group in
        for _ in 0..<count {
            group.addTask {
                await withCheckedContinuation { continuation in
                    Thread {
                        body()
                        continuation.resume()
                    }.start()
                }
            }
        }
    }
}

func onThread<Value: Sendable>(
    _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        Thread { continuation.resume(with: Result { try body() }) }.start()
    }
}
