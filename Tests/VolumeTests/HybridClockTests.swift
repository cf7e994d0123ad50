import Testing

@testable import Volume

@Suite struct HybridClockTests {
    private let node = NodeID(high: 0, low: 1)

    @Test("Stamps rise, whatever the machine's clock does")
    func rising() {
        var clock = HybridClock(node: node, floor: 1000)
        let decades: UInt64 = 60 * 365 * 86_400_000
        let walls: [UInt64] = [
            0, 999, 1000, 1001, 1_700_000_000_000, 3, 1_700_000_000_000 + decades,
            1_700_000_000_000,
            .max, 0, .max, 5,
        ]
        var last = Stamp(milliseconds: 1000, counter: 0, node: node)
        for wall in walls + walls {
            let stamp = clock.next(wall: wall)
            #expect(stamp > last)
            #expect(stamp.milliseconds < Limits.stampMillisecondsEnd)
            last = stamp
        }
    }

    @Test("A clock never falls behind what it has seen")
    func observed() {
        var clock = HybridClock(node: node, floor: 1000)
        let seen = Stamp(milliseconds: 4_000_000_000_000, counter: .max, node: node)
        clock.observe(seen)
        #expect(clock.next(wall: 2000) > seen)
        clock.observe(Stamp(milliseconds: 5, counter: 0, node: node))
        #expect(clock.next(wall: 2000) > seen)
    }

    @Test("The last valid stamp elsewhere does not keep a clock from giving valid ones")
    func lastStamp() {
        var clock = HybridClock(node: node, floor: 1000)
        let last = Stamp(
            milliseconds: Limits.stampMillisecondsEnd - 1, counter: .max,
            node: NodeID(high: 0, low: 2))
        var given: Set<Stamp> = []
        for _ in 0..<200_000 {
            clock.observe(last)
            given.insert(clock.next(wall: .max))
        }
        #expect(given.count == 200_000)
        #expect(given.allSatisfy { $0.milliseconds < Limits.stampMillisecondsEnd })
    }
}
