import Simulation
import Testing

@testable import Volume

@Suite struct MergeHistoryTests {
    @Test("Random histories of five nodes converge, lose nothing and stay well-formed")
    func randomHistories() {
        var merges = 0
        for seed in 0..<250 as Range<UInt64> {
            var history = MergeHistory(seed: seed)
            history.run(steps: 60)
            merges += history.merges
            #expect(history.failures.isEmpty, "seed \(seed)")
        }
        #expect(merges > 1000)
    }
}
