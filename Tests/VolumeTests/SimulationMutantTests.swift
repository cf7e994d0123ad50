import Simulation
import Testing
import Volume

/// The simulator must see when all nodes make the same mistake.
@Suite struct SimulationMutantTests {
    @Test(
        "Simulated nodes notice a rule that is missing",
        arguments: [
            SimulatedMistakes(.onlyOneBase), SimulatedMistakes(.lastLinkNotKept),
            SimulatedMistakes(.copiesDependOnSide), SimulatedMistakes(.cyclesIgnored),
            .foldInArrivalOrder, .announceEveryMerge, .parentIsAnnounced,
        ])
    func noticed(mistakes: SimulatedMistakes) throws {
        let seed = try (0..<40 as Range<UInt64>).first { seed in
            var configuration = SimulatedNetwork.Configuration.rough(
                seed: seed, nodes: 5, writes: 60)
            configuration.mistakes = mistakes
            configuration.eventsMax = 15_000
            configuration.recheckOneIn = 2
            do {
                var network = try SimulatedNetwork(seed: seed, configuration)
                let found = try network.violations()
                if !found.isEmpty { print("MUT", mistakes, seed, found) }
                return !found.isEmpty
            } catch let error as InvalidTree {
                print("MUT", mistakes, seed, error)
                return true
            }
        }
        #expect(seed != nil)
    }
}
