import History
import Testing
import Volume

@Suite("The log of a path")
struct PathLogTests {
    /// Commits on each other; each a minute after the one before.
    private struct Story {
        let scratch: Scratch
        let history: History
        var ids: [ObjectID] = []

        init() throws {
            scratch = try Scratch()
            history = try scratch.repository()
        }

        mutating func tell(_ files: VolumeFiles, on parents: [ObjectID]? = nil) throws -> ObjectID {
            let minute = Int64(ids.count + 1)
            let id = try history.commit(
                files, on: parents ?? ids.last.map { [$0] } ?? [], seconds: minute * 60,
                stamp: minute * 60_000)
            ids.append(id)
            return id
        }

        /// One line for each change: number of the commit, what, path.
        func log(_ path: String, from head: ObjectID? = nil) throws -> [String] {
            let names = path.split(separator: "/").map { String($0).file }
            let start = try #require(head ?? ids.last)
            var log = try PathLog([LogPosition(commit: start, path: names)], of: history)
            var lines: [String] = []
            while !log.isAtEnd {
                guard let entry = try log.next() else { continue }
                let number = ids.firstIndex(of: entry.commit).map { "\($0)" } ?? "merge"
                #expect(entry.isWhole)
                for change in entry.changes { lines.append("\(number) \(Self.text(change))") }
                // It goes on from what is left.
                log = try PathLog(log.positions, of: history)
            }
            return lines
        }

        private static func text(_ path: [FileName]?) -> String {
            path.map { $0.map(\.description).joined(separator: "/") } ?? "?"
        }

        private static func text(_ change: TreeChange) -> String {
            let path = text(change.path)
            return switch change.what {
            case .created: "created \(path)"
            case .removed: "removed \(path)"
            case .renamed(let from): "renamed \(path) from \(text(from))"
            case .linked(let to): "linked \(path) to \(text(to))"
            case .edited: "edited \(path)"
            case .touched: "touched \(path)"
            case .mode(let from, let to):
                "mode \(path) \(String(from, radix: 8)) \(String(to, radix: 8))"
            case .owner: "owner \(path)"
            case .attributes: "attributes \(path)"
            }
        }
    }

    @Test("A file is followed through edits, renames of its directory and its removal")
    func oneFile() throws {
        var story = try Story()
        var files = VolumeFiles(["a/x": "1", "other": "1"])
        _ = try story.tell(files)
        files.files["other"] = "2"
        _ = try story.tell(files)
        files.files["a/x"] = "2"
        _ = try story.tell(files)
        files.modes["a/x"] = 0o600
        _ = try story.tell(files)
        var moved = VolumeFiles(["b/x": "2", "other": "2"])
        moved.origins = ["b": "a", "b/x": "a/x"]
        moved.modes = ["b/x": 0o600]
        _ = try story.tell(moved)
        var renamed = VolumeFiles(["b/y": "2", "other": "2"])
        renamed.origins = ["b": "a", "b/y": "a/x"]
        renamed.modes = ["b/y": 0o600]
        _ = try story.tell(renamed)
        _ = try story.tell(VolumeFiles(["other": "2"]))
        let expected = [
            "6 removed b", "6 removed b/y", "5 renamed b/y from b/x", "4 renamed b from a",
            "3 mode a/x 644 600", "2 edited a/x", "0 created a/x",
        ]
        let seen = try story.log("b/y")
        #expect(seen == expected)
        #expect(try story.log("other") == ["1 edited other", "0 created other"])
        #expect(try story.log("b/x").first == "5 renamed b/y from b/x")
        #expect(try story.log("never").isEmpty)
    }

    @Test("A directory's log tells what is below it, a volume's everything")
    func below() throws {
        var story = try Story()
        var files = VolumeFiles(["d/e/one": "1", "d/two": "1", "out": "1"])
        _ = try story.tell(files)
        files.files["d/e/one"] = "2"
        files.files["out"] = "2"
        _ = try story.tell(files)
        files.files["d/two"] = nil
        files.files["d/e/three"] = "1"
        _ = try story.tell(files)
        #expect(
            try story.log("d") == [
                "2 created d/e/three", "2 removed d/two", "1 edited d/e/one", "0 created d",
                "0 created d/e", "0 created d/e/one", "0 created d/two",
            ])
        #expect(
            try story.log("").prefix(4) == [
                "2 created d/e/three", "2 removed d/two", "1 edited d/e/one", "1 edited out",
            ])
    }

    @Test("A file with several names is told of by each of them")
    func links() throws {
        var story = try Story()
        var files = VolumeFiles(["x": "1"])
        files.links = ["a": "both", "b": "both"]
        _ = try story.tell(files)
        files.modes = ["a": 0o600, "b": 0o600]
        _ = try story.tell(files)
        files.links["c"] = "both"
        files.modes["c"] = 0o600
        _ = try story.tell(files)
        #expect(try story.log("a") == ["1 mode a 644 600", "0 created a"])
        #expect(try story.log("c").first?.hasPrefix("2 linked c") == true)
        #expect(try story.log("").contains("1 mode ? 644 600"))
    }

    @Test("What a merge has from one side is told there, and once")
    func merges() throws {
        var story = try Story()
        let base = try story.tell(VolumeFiles(["a": "1", "b": "1"]))
        let one = try story.tell(VolumeFiles(["a": "2", "b": "1"]), on: [base])
        let other = try story.tell(VolumeFiles(["a": "1", "b": "2", "c": "1"]), on: [base])
        let merge = try story.history.merge([one, other].sorted())
        #expect(try story.log("a", from: merge) == ["1 edited a", "0 created a"])
        #expect(try story.log("c", from: merge) == ["2 created c"])
        let all = try story.log("", from: merge)
        #expect(all.filter { !$0.hasPrefix("0") } == ["2 edited b", "2 created c", "1 edited a"])
    }

    @Test("Of a large directory only what differs is looked at")
    func large() throws {
        var story = try Story()
        var files = VolumeFiles(
            Dictionary(uniqueKeysWithValues: (0..<1500).map { ("d/\($0)", "1") }))
        _ = try story.tell(files)
        files.files["d/700"] = "2"
        files.files["d/900"] = nil
        files.files["d/new"] = "1"
        _ = try story.tell(files)
        #expect(
            try story.log("d").prefix(3) == [
                "1 edited d/700", "1 removed d/900", "1 created d/new",
            ]
        )
    }
}
