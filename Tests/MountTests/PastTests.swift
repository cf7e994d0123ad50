import Testing

@testable import Mount

struct PastTests {
    private final class Meaning: Sendable {}

    @Test func nodesThatTheKernelForgetsAreGone() {
        let table = LookupTable<String, UInt64>(from: 100)
        #expect(table.lookUp("a") { $0 } == 100)
        #expect(table.lookUp("b") { $0 } == 101)
        #expect(table.lookUp("a") { $0 } == 100)
        table.forget(100, count: 1)
        #expect(table.node(100) == 100)
        table.forget(100, count: 1)
        #expect(table.node(100) == nil)
        // Nothing is left of it, and its number never means another node.
        table.forget(100, count: 5)
        #expect(table.lookUp("a") { $0 } == 102)
        table.forget(101, count: .max)
        #expect(table.node(101) == nil)
        table.forgetAll()
        #expect(table.node(102) == nil)
        #expect(table.lookUp("a") { $0 } == 103)
    }

    @Test func aNameThatIsInUseKeepsItsMeaning() throws {
        typealias Names = PastNames<Meaning>
        let names = Names()
        func look(_ now: UInt64, _ name: String = "2h") throws -> Meaning? {
            try names.state(Array(name.utf8), now: now) { Meaning() }
        }
        let pause = Names.unusedMilliseconds - 1
        let first = try #require(try look(0))
        #expect(try look(pause) === first)
        #expect(try look(2 * pause) === first)
        #expect(try look(2 * pause, "3h") !== first)
        // A file that was read for long.
        names.used(first, now: 4 * pause)
        #expect(try look(5 * pause) === first)
        let second = try #require(try look(6 * pause + 1))
        #expect(second !== first)
        // And not for ever, however often it is used.
        var now = 6 * pause + 1
        while now + pause < 6 * pause + 1 + Names.keptMilliseconds {
            now += pause
            #expect(try look(now) === second)
        }
        #expect(try look(now + pause) !== second)
    }

    @Test func namesAreKeptWithinABound() throws {
        typealias Names = PastNames<Meaning>
        let names = Names()
        func look(_ number: Int) throws -> Meaning? {
            try names.state(Array("\(number)".utf8), now: UInt64(number)) { Meaning() }
        }
        let meanings = try (0...Names.keptMax).map { try look($0) }
        // The one that was used longest ago had to go.
        #expect(try look(Names.keptMax) === meanings[Names.keptMax])
        #expect(try look(1) === meanings[1])
        #expect(try look(0) !== meanings[0])
    }

    @Test func aNameWithoutMeaningIsNotKept() throws {
        let names = PastNames<Meaning>()
        #expect(try names.state([1], now: 0) { nil } == nil)
        #expect(try names.state([1], now: 0) { Meaning() } != nil)
    }
}
