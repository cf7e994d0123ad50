import Simulation
import Testing
import Volume

/// The simulator must see when all nodes make the same mistake.
@Suite struct SimulationMutantTests {
    /// The first seeds at which something is noticed, found by search.
    @Test(
        "Simulated nodes notice a mistake that all make, and nothing without it",
        arguments: [
            (SimulatedMistakes(.copiesDependOnSide), 2), (.foldInArrivalOrder, 1),
            (.announceEveryMerge, 5), (.parentIsAnnounced, 0),
        ] as [(SimulatedMistakes, UInt64)])
    func noticed(mistakes: SimulatedMistakes, seed: UInt64) throws {
        #expect(try violations(seed, []).isEmpty)
        #expect(try !violations(seed, mistakes).isEmpty)
    }

    private func violations(_ seed: UInt64, _ mistakes: SimulatedMistakes) throws -> Set<String> {
        var configuration = SimulatedNetwork.Configuration.rough(seed: seed, nodes: 5, writes: 60)
        configuration.mistakes = mistakes
        configuration.eventsMax = 15_000
        configuration.recheckOneIn = 2
        var network = try SimulatedNetwork(seed: seed, configuration)
        return try network.violations()
    }
}
