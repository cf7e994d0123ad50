import Simulation
import Testing

extension EndToEnd {
    @Suite("Chaos", .serialized, .timeLimit(.minutes(Bounds.isLong ? 60 : 5)))
    struct Chaos {
        /// Each fault is met once even if that takes longer.
        private static let duration = Duration.seconds(Bounds.isLong ? 900 : 12)
        private static let copies = 2
        private static let seed =
            Bounds.isLong && environment("DELUGEFS_TEST_SEED") == nil
            ? UInt64.random(in: 0...UInt64(UInt32.max)) : ModelGenerator.seed

        @Test("Whatever befalls one machine at a time, nothing acknowledged is lost or read wrong")
        func oneMachineAtATime() async throws {
            let seed = Self.seed
            print("Chaos of DELUGEFS_TEST_SEED=\(seed)")
            try await Workshop.open { workshop in
                let world = try await ChaosWorld(workshop, seed: seed)
                try await world.found()
                let writers = [(0, "a"), (1, "c")].compactMap { number, name in
                    world.nodes.first { $0.name == name }.map {
                        ChaosWriter(world, $0, seed: seed &+ UInt64(number) &+ 1)
                    }
                }
                for writer in writers {
                    try await writer.node.sh("mkdir \(writer.model.directory)").succeeded()
                    for node in world.mounted { try await node.sees(writer.model.directory) }
                }
                try await Self.run(world, writers, seed)
                try await Self.checkEnd(world, writers.map(\.model))
            }
        }

        private static func run(
            _ world: ChaosWorld, _ writers: [ChaosWriter], _ seed: UInt64
        ) async throws {
            try await withThrowingTaskGroup(of: Void.self) { group in
                for writer in writers { group.addTask { try await writer.run() } }
                for (number, node) in world.mounted.enumerated() {
                    let models = writers.filter { $0.node.name != node.name }.map(\.model)
                    let reader = ChaosReader(
                        world: world, node: node, models: models,
                        seed: seed &+ 100 &+ UInt64(number))
                    group.addTask { try await reader.run() }
                }
                group.addTask { try await world.run(writers, for: duration) }
                try await group.waitForAll()
            }
            try world.report()
        }

        private static func checkEnd(_ world: ChaosWorld, _ models: [ChaosModel]) async throws {
            for model in models { print("\(model.directory): \(model.counts)") }
            for node in world.nodes { try await node.settle() }
            try await NodeProcess.converge(world.nodes)
            for node in world.mounted { try await node.waitReplicated() }
            world.say("all is settled")
            for node in world.mounted { try await check(node, models) }
            for model in models { try await checkCopies(world.mounted[0], model) }
            for machine in Bounds.isLong ? world.machines : [world.machines[0]] {
                for node in machine.nodes { try await node.kill9() }
                for node in world.mounted where node.isRunning { try await check(node, models) }
                for node in machine.nodes { try await node.start() }
                try await world.waitForAll()
            }
            for node in world.nodes { try await node.checkHistory() }
        }

        /// On this mount is what was made, and nothing else.
        private static func check(_ node: NodeProcess, _ models: [ChaosModel]) async throws {
            for model in models {
                let directory = node[model.directory]
                let names = names(in: directory)
                let unknown = Set(names).subtracting(model.names)
                guard unknown.isEmpty else {
                    throw Failure("On \(node.name) there are unknown files: \(unknown.sorted())")
                }
                try await onThread {
                    for name in model.names {
                        let read = try Calls.read("\(directory)/\(name)")
                        if case .wrong(let story) = model.match(name, read, .now) {
                            throw Failure("At the end on \(node.name): \(story)")
                        }
                    }
                }
            }
        }

        private static func names(in directory: String) -> [String] {
            Leftovers.names(in: directory).filter { $0 != "." && $0 != ".." }
        }

        private static func checkCopies(_ node: NodeProcess, _ model: ChaosModel) async throws {
            let paths = names(in: node[model.directory]).map { "\(model.directory)/\($0)" }
            for file in try await node.whereAre(paths) where !file.roots.isEmpty {
                guard file.onlineMachines.count >= copies, file.copies >= copies else {
                    throw Failure("Too few machines have \(file)")
                }
            }
        }
    }
}
