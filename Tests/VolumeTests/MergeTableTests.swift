import Testing

@testable import Volume

/// The table of what users see, row by row.
@Suite struct MergeTableTests {
    private let one = MergeScenario {
        $0.directory("d")
        $0.file("d/f", "old")
        $0.file("g", "g")
    }

    @Test("Two edits: the later keeps the name, the other stays beside it")
    func editEdit() throws {
        let merged = try one.merge({ $0.edit("d/f", "mine") }, { $0.edit("d/f", "theirs") })
        #expect(
            merged == [
                "d/": "", "g": "g", "d/f": "theirs",
                "d/f (conflict n2 1970-01-01 00.16.40)": "mine",
            ])
    }

    @Test("Two edits to the same bytes make no copy")
    func sameEdit() throws {
        let merged = try one.merge({ $0.edit("d/f", "new") }, { $0.edit("d/f", "new") })
        #expect(merged == ["d/": "", "g": "g", "d/f": "new"])
    }

    @Test("An edit and a change of attributes are both there")
    func editAttributes() throws {
        let merged = try one.merge({ $0.edit("d/f", "new") }, { $0.mode("d/f", 0o600) })
        #expect(merged == ["d/": "", "g": "g", "d/f": "new600"])
    }

    @Test("Extended attributes are merged one by one")
    func xattrs() throws {
        let scenario = MergeScenario {
            $0.file("f", "f")
            $0.xattr("f", "user.a", "1")
            $0.xattr("f", "user.b", "1")
            $0.xattr("f", "user.c", "1")
        }
        let a = scenario.a {
            $0.xattr("f", "user.a", nil)
            $0.xattr("f", "user.b", "2")
            $0.xattr("f", "user.c", nil)
        }
        let b = scenario.b {
            $0.xattr("f", "user.c", "3")
            $0.xattr("f", "user.d", "4")
        }
        let merged = try MergeScenario.merge(a, b, bases: [Fragment(scenario.base)])
        let file = merged.values.first { !$0.isDirectory }
        let values = file?.record.xattrs.map {
            (
                String(decoding: $0.key, as: UTF8.self),
                String(decoding: $0.value.value, as: UTF8.self)
            )
        }
        #expect(
            Dictionary(uniqueKeysWithValues: values ?? [])
                == ["user.b": "2", "user.c": "3", "user.d": "4"])
    }

    @Test("What was edited, renamed or linked survives a deletion")
    func survivors() throws {
        let scenario = MergeScenario {
            $0.directory("d")
            for name in ["edited", "renamed", "linked", "touched", "left"] { $0.file(name, name) }
        }
        let merged = try scenario.merge {
            $0.edit("edited", "new")
            $0.rename("renamed", "d/renamed")
            $0.link("linked", "d/linked")
            $0.mode("touched", 0o600)
        } _: {
            for name in ["edited", "renamed", "linked", "touched", "left"] { $0.remove(name) }
        }
        #expect(
            merged == [
                "d/": "", "edited": "new", "d/renamed": "renamed", "linked": "linked",
                "d/linked": "linked",
            ])
    }

    @Test("What was given up comes back by an edit only")
    func horizon() throws {
        let scenario = MergeScenario {
            $0.file("edited", "edited")
            $0.file("renamed", "renamed")
        }
        let a = scenario.a {
            $0.edit("edited", "new")
            $0.rename("renamed", "again")
        }
        let b = scenario.b {
            $0.remove("edited")
            $0.remove("renamed")
        }
        let horizon = Stamp(milliseconds: 500_000, counter: 0, node: NodeID(high: 0, low: 0))
        let merged = try MergeScenario.merge(
            a, b, bases: [Fragment(scenario.base)], horizon: horizon)
        #expect(merged.listing == ["edited": "new"])
    }

    @Test("An edited file is found under its new name")
    func renameEdit() throws {
        let merged = try one.merge({ $0.rename("d/f", "h") }, { $0.edit("d/f", "new") })
        #expect(merged == ["d/": "", "g": "g", "h": "new"])
    }

    @Test("Of two renames the later names it, and there is one file")
    func renameRename() throws {
        let merged = try one.merge({ $0.rename("d/f", "p") }, { $0.rename("d/f", "q") })
        #expect(merged == ["d/": "", "g": "g", "q": "old"])
    }

    @Test("An addition follows its directory")
    func addition() throws {
        let merged = try one.merge({ $0.rename("d", "e") }, { $0.file("d/n", "n") })
        #expect(merged == ["e/": "", "e/f": "old", "e/n": "n", "g": "g"])
    }

    @Test("A deleted directory returns with what was added or edited, and nothing else")
    func directoryReturns() throws {
        let scenario = MergeScenario {
            $0.directory("d")
            $0.directory("d/e")
            $0.directory("d/empty")
            $0.file("d/e/f", "f")
            $0.file("d/e/g", "g")
            $0.file("d/h", "h")
        }
        let merged = try scenario.merge({ $0.removeTree("d") }) {
            $0.edit("d/e/f", "new")
            $0.file("d/n", "n")
            $0.mode("d/e", 0o700)
        }
        #expect(merged == ["d/": "", "d/e/": "700", "d/e/f": "new", "d/n": "n"])
    }

    @Test("The same name created twice: one file if the bytes are the same")
    func twins() throws {
        let merged = try one.merge {
            $0.file("n", "n")
            $0.mode("n", 0o600)
        } _: {
            $0.file("n", "n")
        }
        #expect(merged == ["d/": "", "d/f": "old", "g": "g", "n": "n"])
    }

    @Test("The same name created twice: two files if they differ")
    func strangers() throws {
        let merged = try one.merge({ $0.file("n.txt", "a") }, { $0.file("n.txt", "b") })
        #expect(
            merged == [
                "d/": "", "d/f": "old", "g": "g", "n.txt": "b",
                "n (conflict n2 1970-01-01 00.16.40).txt": "a",
            ])
    }

    @Test("The same name created twice: a directory goes before a file")
    func directoryOverFile() throws {
        let merged = try one.merge {
            $0.directory("n")
            $0.file("n/m", "m")
        } _: {
            $0.file("n", "n")
        }
        #expect(
            merged == [
                "d/": "", "d/f": "old", "g": "g", "n/": "", "n/m": "m",
                "n (conflict n3 1970-01-01 00.33.20)": "n",
            ])
    }

    @Test("The same name created twice: directories become one, all the way down")
    func union() throws {
        let merged = try one.merge {
            $0.directory("n")
            $0.directory("n/sub")
            $0.file("n/sub/a", "a")
            $0.file("n/both", "same")
        } _: {
            $0.directory("n")
            $0.directory("n/sub")
            $0.file("n/sub/b", "b")
            $0.file("n/both", "same")
        }
        #expect(
            merged == [
                "d/": "", "d/f": "old", "g": "g", "n/": "", "n/sub/": "", "n/sub/a": "a",
                "n/sub/b": "b", "n/both": "same",
            ])
    }

    @Test("Two moves into each other: the later one is undone")
    func cycle() throws {
        let scenario = MergeScenario {
            $0.directory("a")
            $0.directory("b")
            $0.file("b/f", "f")
        }
        let merged = try scenario.merge({ $0.rename("a", "b/a") }, { $0.rename("b", "a/b") })
        #expect(merged == ["b/": "", "b/f": "f", "b/a/": ""])
    }

    @Test("Links that came and went on two sides come and go together")
    func links() throws {
        let scenario = MergeScenario {
            $0.file("f", "f")
            $0.link("f", "g")
        }
        let merged = try scenario.merge({ $0.link("f", "h") }, { $0.remove("g") })
        #expect(merged == ["f": "f", "h": "f"])
    }

    @Test("Each side removing another name of a hard link leaves the last one put there")
    func lastLink() throws {
        let scenario = MergeScenario {
            $0.file("f", "f")
            $0.link("f", "g")
        }
        let merged = try scenario.merge({ $0.remove("f") }, { $0.remove("g") })
        #expect(merged == ["g": "f"])
    }
}
