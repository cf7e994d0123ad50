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
        // One that was found: two files of the same bytes, each removed by who still had the other.
        for seed in [20_261_188] + Seeds.range(0..<6) {
            var network = try SimulatedNetwork(seed: seed)
            #expect(try network.violations() == [], "seed \(seed)")
            let counts = try network.counts()
            #expect(counts.mergesTold <= counts.changes, "seed \(seed)")
            let end = try #require(network.convergedAt)
            #expect(end - network.lastWrite < 3000, "seed \(seed)")
        }
    }

    @Test("Whatever goes wrong, a few nodes converge, lose nothing and fall silent")
    func rough() throws {
        for seed in Seeds.range(100..<115, long: 1000) {
            let found = try violations(seed, .rough(seed: seed, nodes: 5, writes: 60))
            #expect(found == [], "seed \(seed)")
        }
    }

    @Test("Whatever goes wrong, fifty nodes converge, lose nothing and fall silent")
    func fifty() throws {
        for seed in Seeds.range(0..<2, long: 1000) {
            let found = try violations(seed, .rough(seed: seed, nodes: 50, writes: 60))
            #expect(found == [], "seed \(seed)")
        }
    }

    @Test("A thousand nodes that write little converge and fall silent")
    func thousand() throws {
        var configuration = SimulatedNetwork.Configuration()
        configuration.nodes = Seeds.isLong ? 1000 : 200
        configuration.writes = 20
        configuration.settleDelay = 50
        #expect(try violations(1, configuration) == [])
    }

    @Test("The same seed gives the same history")
    func deterministic() throws {
        var one = try SimulatedNetwork(seed: 7, .rough(seed: 7, nodes: 5, writes: 60))
        var other = try SimulatedNetwork(seed: 7, .rough(seed: 7, nodes: 5, writes: 60))
        #expect(try one.violations() == other.violations())
        #expect(one.nodes.map(\.heads) == other.nodes.map(\.heads))
        #expect(one.announcements == other.announcements)
    }

    @Test(
        "A change is told to every peer about once, and causes less than one merge that is told",
        arguments: Seeds.isLong ? [2, 5, 10, 50] : [2, 5, 10])
    func cost(nodes: Int) throws {
        var configuration = SimulatedNetwork.Configuration()
        configuration.nodes = nodes
        configuration.writes = 10 * nodes
        var network = try SimulatedNetwork(seed: 1, configuration)
        #expect(try network.violations() == [])
        let counts = try network.counts()
        #expect(counts.mergesTold <= counts.changes)
        #expect(counts.announcements < 2 * counts.changes * nodes)
        let agreed = try #require(network.agreedAt) - network.lastCommit
        let converged = try #require(network.convergedAt) - network.lastCommit
        // The table in docs/testing.md.
        let cells = [
            nodes, counts.changes, counts.mergesTold, counts.mergesMade,
            counts.announcements / counts.changes, agreed, converged,
        ]
        print("| " + cells.map(String.init).joined(separator: " | ") + " |")
    }
}
