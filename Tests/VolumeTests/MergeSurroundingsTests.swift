import Simulation
import Testing

@testable import Volume

/// Where a merge reaches beyond what changed. The scenario compares with the merge of whole states.
@Suite struct MergeSurroundingsTests {
    private let clash = "x (conflict n2 1970-01-01 00.16.40)"

    @Test("Directories renamed to one name take their unchanged entries along")
    func unionOfOldDirectories() throws {
        let scenario = MergeScenario {
            for top in ["x", "y"] {
                $0.directory(top)
                $0.directory(top + "/sub")
                $0.directory(top + "/sub/deep")
                $0.file(top + "/sub/deep/" + top, top)
                $0.file(top + "/sub/both", top)
                $0.file(top + "/only" + top, top)
            }
            $0.directory("z")
            $0.link("y/onlyy", "z/link")
            $0.link("y/onlyy", "z/more")
        }
        let merged = try scenario.merge({ $0.rename("x", "n") }, { $0.rename("y", "n") })
        #expect(
            merged == [
                "n/": "", "n/sub/": "", "n/sub/deep/": "", "n/sub/deep/x": "x",
                "n/sub/deep/y": "y", "n/sub/both": "y", "n/onlyx": "x", "n/onlyy": "y", "z/": "",
                "z/link": "y", "z/more": "y", "n/sub/both (conflict n1 1970-01-01 00.00.01)": "x",
            ])
    }

    @Test("A conflict copy avoids a name that an unchanged file holds")
    func copyAvoidsUnchanged() throws {
        let scenario = MergeScenario {
            $0.directory("d")
            $0.file("d/x", "old")
            $0.file("d/" + clash, "kept")
        }
        let merged = try scenario.merge({ $0.edit("d/x", "a") }, { $0.edit("d/x", "b") })
        #expect(merged["d/x"] == "b")
        #expect(merged["d/" + clash] == "kept")
        #expect(merged.values.sorted() == ["", "a", "b", "kept"])
    }

    @Test("Two sides that remove two of three names leave the third, wherever it is")
    func lastOfThree() throws {
        let scenario = MergeScenario {
            for name in ["a", "b", "c"] { $0.directory(name) }
            $0.directory("c/deep")
            $0.file("a/f", "f")
            $0.link("a/f", "b/f")
            $0.link("a/f", "c/deep/f")
        }
        let merged = try scenario.merge({ $0.remove("a/f") }, { $0.remove("b/f") })
        #expect(merged == ["a/": "", "b/": "", "c/": "", "c/deep/": "", "c/deep/f": "f"])
    }

    @Test("Two of four names gone on two sides leave a shared record with two")
    func twoOfFour() throws {
        let scenario = MergeScenario {
            for name in ["a", "b", "c", "d"] { $0.directory(name) }
            $0.file("a/f", "f")
            for name in ["b", "c", "d"] { $0.link("a/f", name + "/f") }
        }
        let merged = try scenario.merge({ $0.remove("a/f") }, { $0.remove("b/f") })
        #expect(merged == ["a/": "", "b/": "", "c/": "", "c/f": "f", "d/": "", "d/f": "f"])
    }

    @Test("A conflict on a file whose links did not change is placed beside its first link")
    func conflictOnShared() throws {
        let scenario = MergeScenario {
            for name in ["a", "b", "c"] { $0.directory(name) }
            $0.file("a/x", "f")
            $0.link("a/x", "b/x")
            $0.file("a/" + clash, "kept")
        }
        let merged = try scenario.merge({ $0.edit("b/x", "a") }, { $0.edit("a/x", "b") })
        #expect(merged["a/x"] == "b" && merged["b/x"] == "b")
        #expect(merged["a/" + clash] == "kept")
        #expect(merged.count == 7)
    }

    @Test("One name of a shared file moves on one side while another is removed on the other")
    func moveAndRemove() throws {
        let scenario = MergeScenario {
            for name in ["a", "b", "c"] { $0.directory(name) }
            $0.file("a/f", "f")
            $0.link("a/f", "b/f")
        }
        let merged = try scenario.merge({ $0.rename("a/f", "c/f") }, { $0.remove("b/f") })
        #expect(merged == ["a/": "", "b/": "", "c/": "", "c/f": "f"])
    }

    @Test("A last link is sought while a directory returns to the side that removed it")
    func scanBesideReturn() throws {
        let scenario = MergeScenario {
            for name in ["a", "b", "c", "d"] { $0.directory(name) }
            $0.file("a/f", "f")
            $0.link("a/f", "b/f")
            $0.link("a/f", "c/f")
            for number in 0..<9 { $0.file("d/\(number)", "\(number)") }
        }
        // Each side once the one that keeps the directory, for only one of them is scanned.
        for keeper in ["a", "b"] {
            func change(_ side: inout MergeScenario.Side, _ name: String) {
                side.remove(name + "/f")
                if name == keeper { side.file("d/n", "n") } else { side.removeTree("d") }
            }
            let merged = try scenario.merge({ change(&$0, "a") }, { change(&$0, "b") })
            #expect(
                merged == [
                    "a/": "", "b/": "", "c/": "", "c/f": "f", "d/": "", "d/n": "n",
                ])
        }
    }

    @Test("Moves that together go too deep: the later one goes to the top")
    func depth() throws {
        let scenario = MergeScenario { side in
            for name in ["x", "y", "z"] { side.chain(name, depth: 700) }
        }
        func bottom(_ name: String) -> String {
            Array(repeating: name, count: 700).joined(separator: "/")
        }
        let a = scenario.a { $0.rename("y", bottom("x") + "/y") }
        let b = scenario.b {
            $0.file(bottom("z") + "/f", "f")
            $0.rename("z", bottom("y") + "/z")
        }
        let merged = try MergeScenario.merge(a, b, bases: [Fragment(scenario.base)])
        #expect(merged.values.filter { $0.firstLink?.place.directory == .root }.count == 2)
    }

    @Test("A directory sent to the top meets what holds the name there")
    func topIsTaken() throws {
        // Two moves that each close a cycle, and the old parents are gone.
        let scenario = MergeScenario {
            $0.directory("p")
            $0.directory("q")
            $0.directory("p/x")
            $0.directory("q/y")
            $0.file("x", "kept")
            $0.file("y", "kept")
        }
        let a = scenario.a {
            $0.rename("p/x", "q/y/x")
            $0.removeTree("p")
        }
        let b = scenario.b {
            $0.rename("q/y", "p/x/y")
            $0.removeTree("q")
        }
        let merged = try MergeScenario.merge(a, b, bases: [Fragment(scenario.base)]).listing
        #expect(merged.values.filter { $0 == "kept" }.count == 2)
        #expect(merged.keys.contains { $0.hasSuffix("x/") })
        #expect(merged.keys.contains { $0.hasSuffix("y/") })
    }

    @Test("A directory large enough to be split is merged shard by shard")
    func shards() throws {
        let scenario = MergeScenario {
            $0.directory("d")
            for number in 0..<1100 { $0.file("d/\(number)", "\(number)") }
        }
        let merged = try scenario.merge {
            for number in 0..<60 { $0.remove("d/\(number)") }
            $0.edit("d/500", "new")
        } _: {
            for number in 60..<120 { $0.remove("d/\(number)") }
            $0.mode("d/500", 0o600)
        }
        #expect(merged.count == 981)
        #expect(merged["d/500"] == "new600")
    }

    @Test("The cost follows the changes, not the volume")
    func cost() throws {
        let scenario = MergeScenario {
            for top in 0..<30 {
                $0.directory("\(top)")
                for number in 0..<60 { $0.file("\(top)/\(number)", "\(top) \(number)") }
            }
        }
        let a = scenario.a {
            $0.edit("3/4", "new")
            $0.rename("5", "6/moved")
        }
        let b = scenario.b { $0.file("5/n", "n") }
        var objects = MemoryObjects()
        let base = try tree(of: Fragment(scenario.base), &objects)
        let one = try tree(of: a, &objects)
        let other = try tree(of: b, &objects)
        let before = (objects.reads, objects.writes)
        let merged = try mergeTrees(one, other, bases: [base], source: objects, sink: &objects)
        #expect(objects.reads - before.0 < 200)
        #expect(objects.writes - before.1 < 20)
        #expect(
            merged == (try tree(of: mergeWhole(a, b, bases: [Fragment(scenario.base)]), &objects)))
    }
}
