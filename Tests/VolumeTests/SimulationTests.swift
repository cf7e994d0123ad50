import Simulation
import Testing
import Volume

@Suite struct SimulationTests {
    private func violations(
        _ seed: UInt64, _ configuration: SimulatedNetwork.Configuration
    ) throws -> Set<String> {
        var network = try SimulatedNetwork(seed: seed, configuration)
        return try network.violations()
    }

    @Test("Nodes converge on a quiet network, and merges do not cause merges")
    func noStorm() throws {
        for seed in Seeds.range(0..<6) {
            var network = try SimulatedNetwork(seed: seed)
            #expect(try network.violations() == [], "seed \(seed)")
            let counts = try network.counts()
            #expect(counts.merges <= counts.changes, "seed \(seed)")
            let end = try #require(network.convergedAt)
            #expect(end - network.lastWrite < 3000, "seed \(seed)")
        }
    }

    @Test("Whatever goes wrong, a few nodes converge, lose nothing and fall silent")
    func rough() throws {
        for seed in Seeds.range(100..<1100) {
            let found = try violations(seed, .rough(seed: seed, nodes: 5, writes: 60))
            #expect(found == [], "seed \(seed)")
        }
    }

    @Test("Whatever goes wrong, fifty nodes converge, lose nothing and fall silent")
    func fifty() throws {
        for seed in Seeds.range(0..<10) {
            let found = try violations(seed, .rough(seed: seed, nodes: 50, writes: 100))
            #expect(found == [], "seed \(seed)")
        }
    }

    @Test("The same seed gives the same history")
    func deterministic() throws {
        var one = try SimulatedNetwork(seed: 7, .rough(seed: 7, nodes: 5, writes: 60))
        var other = try SimulatedNetwork(seed: 7, .rough(seed: 7, nodes: 5, writes: 60))
        #expect(try one.violations() == other.violations())
        #expect(one.nodes.map(\.heads) == other.nodes.map(\.heads))
        #expect(one.announcements == other.announcements)
    }
}
