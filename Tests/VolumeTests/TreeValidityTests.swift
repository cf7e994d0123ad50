import Simulation
import Testing

@testable import Volume

@Suite("Validity of trees")
struct TreeValidityTests {
    /// A volume with two hard links, a directory and some files.
    private func history() throws -> CommittedHistory {
        var history = CommittedHistory(seed: 11)
        history.create(3, in: .root, prefix: "f")
        let stamp = history.clock.next(wall: 0)
        let file = try #require(history.live.link(at: place("f0")))
        history.live.space.link(file.target, at: place("g"), link: 50, stamp: stamp)
        history.live.space.create(.directory, at: place("d"), id: 60, link: 60, stamp: stamp)
        _ = try history.live.commit(to: history.objects)
        return history
    }

    private func place(_ name: String) -> Place {
        Place(directory: .root, name: FileName(name).unsafelyUnwrapped)
    }

    /// The same commit with another top directory, or another `inode`.
    private func forged(
        _ history: CommittedHistory, root: (([TreeEntry]) throws -> [TreeEntry])? = nil,
        inode: Bool = true
    ) throws -> ObjectID {
        let objects = history.objects
        let head = try #require(history.live.head)
        var top = try objects.tree(head)
        if let root, let at = top.firstIndex(where: { $0.name == Array("tree".utf8) }) {
            let entries = try root(objects.tree(top[at].id))
            top[at] = TreeEntry(
                name: top[at].name, kind: .tree, id: objects.write(treeAsIs: entries))
        }
        if !inode { top.removeAll { $0.name == Array("inode".utf8) } }
        return objects.write(tree: top)
    }

    private func reason(_ id: ObjectID, after base: ObjectID?, _ objects: MemoryObjects) -> String?
    {
        do {
            _ = try difference(from: base, to: id, source: objects)
            return nil
        } catch let error as InvalidTree {
            return error.reason
        } catch {
            return "\(error)"
        }
    }

    @Test("A forged commit is refused, whether read alone or after its parent")
    func forgeries() throws {
        let history = try history()
        let objects = history.objects
        func named(_ entries: [TreeEntry], _ name: String) -> TreeEntry {
            entries.first { $0.name == Array(name.utf8) }.unsafelyUnwrapped
        }
        func renamed(_ entry: TreeEntry, _ name: String) -> TreeEntry {
            TreeEntry(name: Array(name.utf8), kind: entry.kind, id: entry.id)
        }
        func sorted(_ entries: [TreeEntry]) -> [TreeEntry] {
            entries.sorted(by: TreeEntry.precedesInGit)
        }
        let forgeries: [(String, ([TreeEntry]) throws -> [TreeEntry])] = [
            ("out of order", { $0.reversed() }),
            ("out of order", { $0 + [named($0, "f1")] }),
            ("without %dir", { $0.filter { $0.name != DirectoryTree.ownName } }),
            ("not canonical", { sorted($0 + [renamed(named($0, "f1"), "%6A")]) }),
            ("not canonical", { sorted($0 + [renamed(named($0, "f1"), "%zz")]) }),
            ("beside shards", { sorted($0 + [renamed(named($0, "d"), "%00")]) }),
            ("stands twice", { sorted($0 + [renamed(named($0, "d"), "f1")]) }),
            ("", { sorted($0 + [renamed(named($0, "g"), "h")]) }),
            ("number of links", { $0.filter { $0.name != Array("g".utf8) } }),
            (
                "at a file's place",
                { sorted($0 + [renamed(named($0, "%dir"), "x")]) }
            ),
            (
                "canonical form",
                { entries in
                    let bytes = try objects.blob(named(entries, "f1").id)
                    let blob = objects.write(blob: bytes + [0x0A])
                    return sorted(
                        entries.filter { $0.name != Array("f1".utf8) }
                            + [TreeEntry(name: Array("f1".utf8), kind: .blob, id: blob)])
                }
            ),
        ]
        for (expected, forge) in forgeries {
            let id = try forged(history, root: forge)
            for base in [nil, history.live.head] {
                let found = reason(id, after: base, objects)
                #expect(found != nil)
                #expect(
                    found?.contains(expected) ?? false || expected.isEmpty,
                    "\(expected): \(found ?? "accepted")")
            }
        }
        // A copy of what the parent has too is seen only where both are read.
        for name in ["f1", "d"] {
            let id = try forged(history) { sorted($0 + [renamed(named($0, name), "new")]) }
            #expect(reason(id, after: nil, objects)?.contains("stands twice") == true)
        }
        let orphaned = try forged(history, inode: false)
        #expect(reason(orphaned, after: nil, objects) != nil)
        #expect(reason(orphaned, after: history.live.head, objects) != nil)
    }

    @Test("A large directory that is not split, and a small one that is, are refused")
    func shards() throws {
        var history = try history()
        let objects = history.objects
        let small = history.live.head
        history.create(1100, in: .root, prefix: "n")
        let large = try history.live.commit(to: objects).root
        let root = try VolumeTree(reading: large, from: objects).root
        let all = try DirectoryTree(reading: root, from: objects)
        let own = TreeEntry(name: DirectoryTree.ownName, kind: .blob, id: all.own)
        let flat = try [own] + all.shard.all(objects).sorted(by: TreeEntry.precedesInGit)
        let unsplit = try forged(history) { _ in flat }
        let shards = try objects.tree(root)
        let thinned = try forged(history) { _ in Array(shards.dropFirst(60)) }
        let moved = try forged(history) { _ in
            let names = shards.map(\.name)
            return shards.enumerated().map { at, entry in
                at == 5 ? TreeEntry(name: names[5], kind: .tree, id: shards[6].id) : entry
            }
        }
        for base in [nil, small, large] {
            #expect(reason(large, after: base, objects) == nil)
            #expect(reason(unsplit, after: base, objects)?.contains("not split") == true)
            #expect(reason(thinned, after: base, objects)?.contains("split") == true)
            #expect(reason(moved, after: base, objects)?.contains("wrong shard") == true)
        }
    }

    @Test("Directories deeper than the limit are neither written nor accepted")
    func depth() throws {
        var history = try history()
        func deepen(from: Int, to: Int) {
            for level in from..<to {
                let parent = level == 0 ? LineageID.root : LineageID(rawValue: 1000 + UInt64(level))
                let id = 1001 + UInt64(level)
                history.live.space.create(
                    .directory, at: Place(directory: parent, name: FileName("z").unsafelyUnwrapped),
                    id: id, link: id, stamp: history.clock.next(wall: 0))
            }
        }
        deepen(from: 0, to: Limits.directoryDepthMax)
        let head = history.live.head
        let root = try history.live.commit(to: history.objects).root
        #expect(reason(root, after: head, history.objects) == nil)
        deepen(from: Limits.directoryDepthMax, to: Limits.directoryDepthMax + 1)
        var live = history.live
        #expect(throws: InvalidTree.self) { try live.commit(to: history.objects) }
    }

    @Test("A volume of a later format asks for an upgrade, whatever its tree")
    func upgrade() throws {
        let objects = MemoryObjects()
        func entry(_ name: String, _ kind: TreeEntry.Kind, _ id: ObjectID) -> TreeEntry {
            TreeEntry(name: Array(name.utf8), kind: kind, id: id)
        }
        let settings = objects.write(blob: Array("format 2\nnew thing\nrules 1\n".utf8))
        let volume = objects.write(tree: [entry("settings", .blob, settings)])
        let top = objects.write(
            tree: [
                entry("volume", .tree, volume), entry("tree", .tree, volume),
                entry("other", .tree, volume),
            ])
        #expect(throws: UpgradeNeeded(format: 2, rules: 1)) {
            try difference(from: nil, to: top, source: objects)
        }
    }
}
