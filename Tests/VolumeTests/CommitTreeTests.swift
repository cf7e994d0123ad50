import Simulation
import Testing

@testable import Volume

/// A random history of one node, committed now and then.
struct CommittedHistory {
    let objects = MemoryObjects()
    var operations: RandomOperations
    var clock = HybridClock(node: NodeID(high: 7, low: 7), floor: 1_700_000_000_000)
    var live: CommittedNamespace

    init(seed: UInt64) {
        operations = RandomOperations(seed: seed)
        live = CommittedNamespace(
            space: Namespace(born: clock.next(wall: 1_700_000_000_001)))
    }

    mutating func perform(_ count: Int) {
        for _ in 0..<count {
            operations.perform(on: &live.space, clock: &clock, wall: 1_700_000_000_000)
            if operations.generator.once(in: 6) { saveByReplacing() }
        }
    }

    /// What editors do: a new file, renamed over an old one.
    mutating func saveByReplacing() {
        let files = live.space.entries.values
            .filter { !(live.space.records[$0.link.target]?.isDirectory ?? true) }
            .map(\.place).sorted()
        guard let old = files.randomElement(using: &operations.generator),
            let name = FileName("~tmp")
        else { return }
        let temporary = Place(directory: old.directory, name: name)
        let id = operations.generator.identity() >> 1
        live.space.create(
            .file(.inline(operations.generator.bytes(9))), at: temporary, id: id, link: id,
            stamp: clock.next(wall: 0))
        live.space.rename(temporary, to: old, stamp: clock.next(wall: 0))
    }

    mutating func create(_ count: Int, in directory: LineageID, prefix: String) {
        for i in 0..<count {
            guard let name = FileName("\(prefix)\(i)") else { continue }
            let id = operations.generator.identity() >> 1
            live.space.create(
                .file(.empty), at: Place(directory: directory, name: name), id: id, link: id,
                stamp: clock.next(wall: 0))
        }
    }

    mutating func remove(_ range: Range<Int>, in directory: LineageID, prefix: String) {
        for i in range {
            guard let name = FileName("\(prefix)\(i)") else { continue }
            live.space.remove(Place(directory: directory, name: name))
        }
    }
}

@Suite("Commit trees")
struct CommitTreeTests {
    @Test("A commit of what is dirty is the tree of the whole state", arguments: testSeeds(20))
    func incremental(seed: UInt64) throws {
        var history = CommittedHistory(seed: seed)
        var saved = history.live.state
        for _ in 0..<25 {
            history.perform(history.operations.generator.number(0..<14))
            let before = history.live.head
            let trees = history.live.trees
            let expectedAdoptions = before == nil ? [] : saved.adoptions(until: history.live.state)
            let outcome = try history.live.commit(to: history.objects)
            let whole = try history.live.wholeTree(to: history.objects)
            #expect(outcome.root == whole)
            var expected = trees
            for (id, tree) in outcome.trees { expected[id] = tree }
            // The trees of all live directories, and of no other.
            let live = Set(history.live.space.records.values.filter(\.isDirectory).map(\.id))
            #expect(Set(expected.keys) == live)
            #expect(outcome.adoptions.map { [$0.newborn, $0.adopted] } == expectedAdoptions)
            saved = history.live.state
            if before == outcome.root { #expect(outcome.trees.isEmpty) }
        }
    }

    @Test(
        "The difference of two commits leads from one state to the other", arguments: testSeeds(20))
    func differences(seed: UInt64) throws {
        var history = CommittedHistory(seed: seed)
        var commits: [(ObjectID, TreeState)] = []
        for _ in 0..<12 {
            history.perform(history.operations.generator.number(0..<25))
            let root = try history.live.commit(to: history.objects).root
            commits.append((root, history.live.state))
            var scratch = TreeState()
            scratch.apply(try difference(from: nil, to: root, source: history.objects))
            #expect(scratch == history.live.state)
        }
        for _ in 0..<30 {
            guard let from = commits.randomElement(using: &history.operations.generator),
                let to = commits.randomElement(using: &history.operations.generator)
            else { continue }
            let found = try difference(from: from.0, to: to.0, source: history.objects)
            var state = from.1
            state.apply(found)
            #expect(state == to.1)
            for (id, record) in found.records { #expect(from.1.records[id] != record) }
            for (place, link) in found.places { #expect(from.1.places[place] != link) }
        }
    }

    @Test("A directory is split above 1,024 entries, and joined again at 1,024")
    func shards() throws {
        var history = CommittedHistory(seed: 5)
        let objects = history.objects
        func check() throws -> Int {
            let before = history.live.state
            let head = history.live.head
            let outcome = try history.live.commit(to: objects)
            #expect(try outcome.root == history.live.wholeTree(to: objects))
            var state = before
            state.apply(try difference(from: head, to: outcome.root, source: objects))
            // What the first difference starts from is nothing, which holds the top's record too.
            if head != nil { #expect(state == history.live.state) }
            let top = try VolumeTree(reading: outcome.root, from: objects)
            return try objects.tree(top.root).count
        }
        history.create(1024, in: .root, prefix: "f")
        #expect(try check() == 1025)
        history.create(1, in: .root, prefix: "g")
        #expect(try check() < 258)
        history.remove(0..<1, in: .root, prefix: "f")
        #expect(try check() == 1025)
        history.create(400, in: .root, prefix: "h")
        #expect(try check() < 258)
        history.remove(0..<300, in: .root, prefix: "h")
        #expect(try check() < 258)
        let place = Place(directory: .root, name: FileName("f7").unsafelyUnwrapped)
        let link = try #require(history.live.link(at: place))
        history.live.space.change(link.target) { $0.mode.value = 0o600 }
        let reads = objects.reads
        let writes = objects.writes
        _ = try history.live.commit(to: objects)
        // Top, tree, volume, settings, node, directory, shard, blob: not 1,100 files.
        #expect(objects.reads - reads < 20)
        #expect(objects.writes - writes < 8)
        history.remove(1..<1000, in: .root, prefix: "f")
        #expect(try check() > 100)
    }

    @Test("The cost of a difference follows the change, also when a large directory moves")
    func cost() throws {
        var history = CommittedHistory(seed: 6)
        let objects = history.objects
        func directory(_ name: String, in parent: LineageID, id: UInt64) -> Place {
            let place = Place(directory: parent, name: FileName(name).unsafelyUnwrapped)
            history.live.space.create(
                .directory, at: place, id: id, link: id, stamp: history.clock.next(wall: 0))
            return place
        }
        let a = directory("a", in: .root, id: 100)
        let b = directory("b", in: LineageID(rawValue: 100), id: 101)
        for i in 0..<20 {
            _ = directory("d\(i)", in: LineageID(rawValue: 101), id: 200 + UInt64(i))
            history.create(20, in: LineageID(rawValue: 200 + UInt64(i)), prefix: "f")
        }
        let first = try history.live.commit(to: objects).root
        // Into a new directory two levels down, and the old parent removed.
        _ = directory("x", in: .root, id: 300)
        _ = directory("y", in: LineageID(rawValue: 300), id: 301)
        let target = Place(directory: LineageID(rawValue: 301), name: b.name)
        let stamp = history.clock.next(wall: 0)
        let done = [
            history.live.space.rename(b, to: target, stamp: stamp), history.live.space.remove(a),
        ]
        #expect(done == [true, true])
        let before = objects.writes
        let second = try history.live.commit(to: objects).root
        #expect(objects.writes - before < 12)
        let reads = objects.reads
        let found = try difference(from: first, to: second, source: objects)
        #expect(found.places.count == 5)
        #expect(found.records.count == 3)
        // Both versions of the moved directory's 20 subdirectories at most, none of the 400 files.
        #expect(objects.reads - reads < 150)
    }

    @Test("A file saved by renaming a new one over it keeps its id and its link's id and stamp")
    func adoption() throws {
        var history = CommittedHistory(seed: 7)
        history.create(1, in: .root, prefix: "f")
        _ = try history.live.commit(to: history.objects)
        let place = Place(directory: .root, name: FileName("f0").unsafelyUnwrapped)
        let before = try #require(history.live.link(at: place))
        history.saveByReplacing()
        let newborn = try #require(history.live.link(at: place))
        let record = try #require(history.live.record(newborn.target))
        let outcome = try history.live.commit(to: history.objects)
        #expect(
            outcome.adoptions == [
                Adoption(newborn: newborn.target, adopted: before.target, links: [place: before])
            ])
        #expect(history.live.link(at: place) == before)
        let after = try #require(history.live.record(before.target))
        #expect(after.ino == record.ino)
        #expect(after.content == record.content)
        // With a second name left, the old file lives on and nothing is adopted.
        let other = Place(directory: .root, name: FileName("other").unsafelyUnwrapped)
        let stamp = history.clock.next(wall: 0)
        history.live.space.link(before.target, at: other, link: 99, stamp: stamp)
        _ = try history.live.commit(to: history.objects)
        history.live.space.remove(place)
        history.create(1, in: .root, prefix: "f")
        let last = try history.live.commit(to: history.objects)
        #expect(last.adoptions.isEmpty)
    }

    @Test("Settings, nodes and the horizon travel in the tree")
    func volume() throws {
        var history = CommittedHistory(seed: 8)
        let first = try history.live.commit(to: history.objects).root
        let again = try history.live.commit(to: history.objects).root
        #expect(again == first)
        history.live.settings.copies = 3
        let second = NodeID(high: 9, low: 9)
        history.live.nodes = [second: NodeDescription(name: "n2", machine: "m2")]
        let next = try history.live.commit(to: history.objects).root
        let found = try difference(from: first, to: next, source: history.objects)
        #expect(found.settings == history.live.settings)
        #expect(
            found.nodes == [
                second: NodeDescription(name: "n2", machine: "m2"), NodeID(high: 0, low: 1): nil,
            ])
        let horizon = history.clock.next(wall: 0)
        var sink = history.objects
        let given = try commitTree(
            onto: next, dirty: DirtySet(), live: history.live, settings: history.live.settings,
            nodes: history.live.nodes, horizon: horizon, source: history.objects, sink: &sink)
        #expect(try VolumeTree(reading: given.root, from: history.objects).horizon == horizon)
        #expect(try difference(from: next, to: given.root, source: sink).horizon == horizon)
    }
}
