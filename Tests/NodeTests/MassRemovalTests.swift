import Testing
import Volume

@testable import Node

@Suite("A mass removal is noticed")
struct MassRemovalTests {
    private static func commit(_ number: UInt8) throws -> ObjectID {
        try #require(ObjectID(bytes: Array(repeating: number, count: 20)))
    }

    private static func path(_ text: String) throws -> [FileName] {
        try text.split(separator: "/").map { try #require(FileName(String($0))) }
    }

    @Test("What is removed bit by bit counts together, from the state before the first")
    func bitByBit() throws {
        var removal = MassRemoval()
        let start = try Self.commit(1)
        for number in 0..<10 {
            let alarm = removal.removed(
                100, [try Self.path("photos/\(number)/a"), try Self.path("photos/\(number)/b")],
                from: number == 0 ? start : try Self.commit(2), of: 1500 - number * 100,
                at: UInt64(number) * 1000)
            #expect(alarm == nil)
        }
        let alarm = try #require(
            removal.removed(1, [try Self.path("photos/x")], from: Self.commit(3), of: 500, at: 9999)
        )
        #expect(
            alarm
                == MassRemoval.Alarm(
                    files: 1001, total: 1500, path: try Self.path("photos"), commit: start))
        #expect(removal.shown(at: 10_000) == alarm)
        // The same goes on: no news, but the count.
        #expect(
            try removal.removed(9, [Self.path("photos/y")], from: start, of: 499, at: 10_500) == nil
        )
        #expect(removal.shown(at: 10_600)?.files == 1010)
        #expect(removal.shown(at: 10_600 + MassRemoval.shownMilliseconds) == nil)
    }

    @Test("Less than a thousand, less than half, or with a pause in between is none")
    func none() throws {
        var removal = MassRemoval()
        let (commit, path) = (try Self.commit(1), try Self.path("a"))
        #expect(removal.removed(1000, [path], from: commit, of: 1000, at: 0) == nil)
        let later = MassRemoval.pauseMilliseconds
        #expect(removal.removed(5000, [path], from: commit, of: 10_000, at: later) == nil)
        #expect(removal.removed(999, [path], from: commit, of: 1000, at: later * 2) == nil)
        #expect(removal.removed(999, [path], from: commit, of: 1000, at: later * 3) == nil)
        #expect(removal.removed(1001, [path], from: commit, of: 1001, at: later * 4) != nil)
    }

    @Test("A word for a shell is read back as it was")
    func words() {
        #expect(ShellWord.quoted(Array("/a/b-c.d".utf8)) == "/a/b-c.d")
        #expect(ShellWord.quoted(Array("/a b$".utf8)) == "'/a b$'")
        #expect(ShellWord.quoted(Array("it's".utf8)) == #"$'it\x27s'"#)
        #expect(ShellWord.quoted([0x2F, 0xFF, 0x0A]) == #"$'/\xff\x0a'"#)
        #expect(ShellWord.quoted([]) == "''")
    }
}
