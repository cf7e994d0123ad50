import Glibc
import History
import Testing
import Volume

@Suite("The past")
struct PastTests {
    /// 2026-11-26T12:00:00Z
    static let noon: Int64 = 1_795_694_400_000

    // MARK: What people write

    @Test(
        "A point is read as a person means it",
        arguments: [
            ("2026-11-26T12:00:00Z", noon + 999), ("2026-11-26 12:00Z", noon + 999),
            ("2026-11-26T13:00:00+01:00", noon + 999), ("2026-11-26T11:30:00-0030", noon + 999),
            ("2026-11-26T12:00:00,25Z", noon + 250), ("2026-11-26T12:00:00.123456789Z", noon + 123),
            ("@1795694400", noon + 999), ("@1795694400.5", noon + 500),
            ("10min", noon - 600_000), ("90s ago", noon - 90_000), ("2 h", noon - 7_200_000),
            ("3d", noon - 3 * 86_400_000), ("1w ago", noon - 7 * 86_400_000),
            ("1970-01-01T00:00:00.000Z", 0), ("2024-02-29T00:00:00.000Z", 1_709_164_800_000),
            ("2199-12-31T23:59:59.000Z", 7_258_118_399_000),
        ])
    func times(text: String, expected: Int64) throws {
        #expect(try PastPoint(text, now: Self.noon) == .time(expected))
    }

    @Test("A time without a zone is local")
    func local() throws {
        guard case .time(let time) = try PastPoint("2026-07-01T08:09:10", now: 0) else {
            Issue.record("no time")
            return
        }
        var seconds = time_t(time / 1000)
        var local = tm()
        localtime_r(&seconds, &local)
        #expect(local.tm_hour == 8 && local.tm_min == 9 && local.tm_sec == 10)
        #expect(local.tm_mon == 6 && local.tm_mday == 1)
    }

    @Test("Hexadecimal digits that are no time are a commit", arguments: ["8d3f", "12345678901d"])
    func commits(text: String) throws {
        #expect(try PastPoint(text, now: Self.noon) == .commit(text))
        #expect(try PastPoint(text.uppercased(), now: Self.noon) == .commit(text))
    }

    @Test(
        "Anything else is refused",
        arguments: [
            "", "8d3", "yesterday", "2026-13-01", "2026-02-29", "2026-11-26T24:00", "@", "-3d",
            "2026-11-26T12:00:00+25:00", "3d before", String(repeating: "a", count: 41), "../x",
        ])
    func nonsense(text: String) {
        #expect(throws: PastError.self) { try PastPoint(text, now: Self.noon) }
    }

    @Test("The text of a point reads as the same point", arguments: ["10min", "8d3f", "@7.04"])
    func text(text: String) throws {
        let point = try PastPoint(text, now: Self.noon)
        #expect(try PastPoint(point.text, now: 0) == point)
    }

    // MARK: Which commit

    /// Commits on each other, at these minutes by their authors' clocks. A stamp never falls behind
    /// that of the parent.
    private func chain(_ minutes: [Int64], in history: History) throws -> [ObjectID] {
        var ids: [ObjectID] = []
        var newest: Int64 = 0
        for (number, minute) in minutes.enumerated() {
            newest = max(newest, minute * 60_000)
            ids.append(
                try history.commit(
                    VolumeFiles(["n": "\(number)"]), on: ids.last.map { [$0] } ?? [],
                    seconds: minute * 60, stamp: newest))
        }
        return ids
    }

    private func at(_ minute: Int64, now: Int64 = 10_000, in history: History) throws -> ObjectID {
        try history.commit(at: .time(minute * 60_000 + 999), now: now * 60_000)
    }

    @Test("A time leads to the newest commit at or before it")
    func newestBefore() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let ids = try chain([10, 20, 30], in: history)
        #expect(try at(20, in: history) == ids[1])
        #expect(try at(29, in: history) == ids[1])
        #expect(try at(30, in: history) == ids[2])
        #expect(try at(20_000, in: history) == ids[2])
        let error = #expect(throws: PastError.self) { try at(9, in: history) }
        #expect(error?.description.contains("no commit before") == true)
    }

    @Test("A clock that was behind makes no new commit an old one")
    func clockBehind() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let ids = try chain([10, 20, 0, 30, 0], in: history)
        #expect(try at(10, in: history) == ids[0])
        #expect(try at(20, in: history) == ids[2])
        #expect(try at(29, in: history) == ids[2])
        #expect(try at(30, in: history) == ids[4])
    }

    @Test("A clock that was decades ahead hides no later commit")
    func clockAhead() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let ids = try chain([10, 20, 1_000_000, 30, 40], in: history)
        #expect(try at(15, in: history) == ids[0])
        #expect(try at(20, in: history) == ids[2])
        #expect(try at(30, in: history) == ids[3])
        #expect(try at(35, in: history) == ids[3])
        #expect(try at(9_000, in: history) == ids[4])
    }

    @Test("Of nodes that were apart then, the state is their merge")
    func apart() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let base = try history.commit(VolumeFiles(["a": "1"]), seconds: 60, stamp: 60_000)
        let one = try history.commit(
            VolumeFiles(["a": "1", "b": "2"]), on: [base], seconds: 120, stamp: 120_000)
        let one2 = try history.commit(
            VolumeFiles(["a": "1", "b": "3"]), on: [one], seconds: 600, stamp: 600_000)
        let other = try history.commit(
            VolumeFiles(["a": "1", "c": "2"]), on: [base], seconds: 180, stamp: 180_000)
        let other2 = try history.commit(
            VolumeFiles(["a": "1", "c": "3"]), on: [other], seconds: 600, stamp: 600_001)
        try history.setHead(try history.merge([one2, other2].sorted()))
        let then = try at(5, in: history)
        #expect(try history.graph.parents(of: then) == [one, other].sorted())
        let past = try Past(then, of: history)
        for name in ["a", "b", "c"] { #expect(try past.item(at: [name.file]) != nil) }
        #expect(try at(2, in: history) == one)
        #expect(try history.head() != then)
    }

    @Test("A commit is found by the digits that its id alone begins with")
    func abbreviations() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let ids = try chain(Array(1...300), in: history).map { "\($0)" }
        let now = Self.noon
        for id in ids.prefix(3) {
            for digits in [id, String(id.prefix(12))] {
                #expect("\(try history.commit(at: .commit(digits), now: now))" == id)
            }
        }
        let groups = Dictionary(grouping: ids) { $0.prefix(2) }
        // Among 300 there are two: only 256 prefixes exist.
        let common = try #require(groups.values.first { $0.count > 1 })
        let ambiguous = #expect(throws: PastError.self) {
            try history.commit(at: .commit(String(common[0].prefix(2))), now: now)
        }
        #expect(ambiguous?.description.contains("ambiguous") == true)
        #expect(throws: PastError.self) {
            try history.commit(at: .commit("\(String(repeating: "0", count: 40))"), now: now)
        }
    }

    // MARK: What a commit holds

    @Test("A path leads to records and directories, one with several names included")
    func paths() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        var files = VolumeFiles(["a/b/c": "deep", "a/d": "file"])
        files.links = ["a/one": "both", "two": "both"]
        let past = try Past(try history.commit(files), of: history)
        guard case .other(let deep, 1)? = try past.item(at: ["a".file, "b".file, "c".file]),
            case .directory(let a)? = try past.item(at: ["a".file]),
            case .other(let one, 2)? = try past.child("one".file, in: a),
            case .other(let two, 2)? = try past.item(at: ["two".file])
        else {
            Issue.record("not found")
            return
        }
        #expect(deep.content.value.body == .file(.inline(Array("deep".utf8))))
        #expect(one == two)
        #expect(try past.item(at: ["a".file, "d".file, "x".file]) == nil)
        #expect(try past.item(at: ["nothing".file]) == nil)
        #expect(
            try past.list(past.top(), limit: 10).map(\.name).sorted() == ["a".file, "two".file])
    }

    @Test("A directory is listed in parts, each name once", arguments: [0, 1, 1024, 1025, 3000])
    func listing(count: Int) throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let names = (0..<count).map { "d/file \($0)" }
        let files = VolumeFiles(Dictionary(uniqueKeysWithValues: names.map { ($0, "") }))
        var withEmpty = files
        withEmpty.directories = ["d"]
        let past = try Past(try history.commit(withEmpty), of: history)
        guard case .directory(let directory)? = try past.item(at: ["d".file]) else {
            Issue.record("no directory")
            return
        }
        var seen: [FileName] = []
        var cookie: UInt64 = 0
        while true {
            let part = try past.list(directory, after: cookie, limit: 100)
            guard let last = part.last else { break }
            #expect(part.count <= 101)
            #expect(part.allSatisfy { $0.cookie > cookie && $0.cookie < 1 << 63 })
            cookie = last.cookie
            seen += part.map(\.name)
        }
        #expect(seen.count == count)
        #expect(Set(seen) == Set(names.map { String($0.dropFirst(2)).file }))
    }
}

extension String {
    /// - Precondition: it is the name of a file.
    var file: FileName {
        guard let name = FileName(self) else { preconditionFailure("\(self) is no name") }
        return name
    }
}
