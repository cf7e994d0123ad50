import Simulation
import Testing
import Volume

@Suite struct SimulationTests {
    private func run(
        _ seed: UInt64, _ configuration: SimulatedNetwork.Configuration
    ) throws -> SimulatedNetwork {
        var network = try SimulatedNetwork(seed: seed, configuration)
        try #require(try network.run(), "seed \(seed) did not converge")
        var objects = network.objects
        let first = network.nodes[0]
        for node in network.nodes {
            #expect(node.space.records == first.space.records, "seed \(seed)")
            #expect(node.space.entries == first.space.entries, "seed \(seed)")
        }
        #expect(try first.isConsistent(&objects), "seed \(seed)")
        let written = network.nodes.reduce(into: Set<Body>()) { $0.formUnion($1.written) }
        let removed = network.nodes.reduce(into: Set<Body>()) { $0.formUnion($1.removed) }
        let lost = written.subtracting(removed).subtracting(first.space.contents.values)
        #expect(lost.isEmpty, "seed \(seed)")
        return network
    }

    @Test("Nodes converge on a quiet network, and merges do not cause merges")
    func noStorm() throws {
        for seed in Seeds.range(0..<6) {
            let network = try run(seed, .init())
            let merges = network.nodes[0].commits.commits.values.filter(\.isMerge)
            let changes = network.nodes[0].commits.commits.count - merges.count
            #expect(merges.count <= changes, "seed \(seed)")
            #expect(network.now - network.lastWrite < 3000, "seed \(seed)")
        }
    }

    @Test("Nodes converge through loss, reordering, partitions, skewed clocks and joins")
    func roughNetwork() throws {
        for seed in Seeds.range(100..<105) {
            var configuration = SimulatedNetwork.Configuration()
            configuration.writes = 60
            configuration.lossOneIn = 4
            configuration.latency = 1...900
            configuration.partitions = true
            configuration.joins = 2
            _ = try run(seed, configuration)
        }
    }

    @Test("The same seed gives the same history")
    func deterministic() throws {
        let one = try run(7, .init())
        let other = try run(7, .init())
        #expect(one.nodes[0].heads == other.nodes[0].heads)
        #expect(one.announcements == other.announcements)
    }
}
