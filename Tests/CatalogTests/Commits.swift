import Catalog
import Simulation
import Synchronization
import SystemPackage
import Testing
import Volume

let settings = VolumeSettings(
    volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0))

func extent(_ number: UInt8, length: UInt64 = 70_000) throws -> Extent {
    Extent(
        root: try #require(ContentRoot(bytes: Array(repeating: number, count: 32))), length: length)
}

/// A commit's id: here its tree's.
func commit(
    _ catalog: Catalog, _ objects: MemoryObjects, adopting: Bool = true,
    hidingNewborn: Bool = false
) throws -> ObjectID {
    try catalog.flush()
    let (outcome, version, shown) = try catalog.snapshot { snapshot in
        let dirty = try snapshot.dirtyState()
        let base = try snapshot.applied()
        let newborn = try snapshot.newborn()
        var sink = objects
        let outcome = try commitTree(
            onto: base, dirty: dirty.dirty,
            hiding: hidingNewborn ? Set(newborn.values.joined()) : [], live: snapshot,
            settings: snapshot.settings() ?? settings,
            nodes: snapshot.nodeDescriptions(), adopting: adopting, source: objects, sink: &sink)
        return (outcome, dirty.version, hidingNewborn ? [] : Array(newborn.keys))
    }
    try catalog.perform {
        try $0.committed(outcome, as: outcome.root, through: version, showing: shown)
    }
    return outcome.root
}

func pull(
    _ commit: ObjectID, into catalog: Catalog, _ objects: MemoryObjects,
    pinned: Set<InodeNumber> = []
) throws -> AppliedEffects {
    let base = try catalog.read { try $0.applied() }
    let difference = try difference(from: base, to: commit, source: objects)
    return try catalog.apply(difference, commit: commit, isPinned: pinned.contains)
}

func commitOfNothing() throws -> CommitOutcome {
    try withCatalog { catalog in
        let objects = MemoryObjects()
        let root = try commit(catalog, objects)
        return try catalog.snapshot { snapshot in
            var sink = objects
            return try commitTree(
                onto: root, dirty: DirtySet(), live: snapshot, settings: settings, nodes: [:],
                source: objects, sink: &sink)
        }
    }
}

/// Everything that commits know, by walking from the top; checks link counts, parents and counters.
func dump(_ catalog: Catalog) throws -> [LineageID: (record: Record, links: [Place: Link])] {
    try catalog.flush()
    return try catalog.snapshot { snapshot in
        var found: [LineageID: (record: Record, links: [Place: Link])] = [:]
        let root = try #require(try snapshot.record(.root))
        found[.root] = (root, [:])
        var pending = [LineageID.root]
        var counts = Counts(inodes: 1)
        while let id = pending.popLast() {
            let directory = try #require(try snapshot.inode(id: id))
            var subdirectories: UInt32 = 0
            for (name, link) in try snapshot.children(of: id) {
                let place = Place(directory: id, name: name)
                #expect(try snapshot.link(at: place) == link)
                let inode = try #require(try snapshot.inode(id: link.target))
                if found[link.target] == nil {
                    counts.inodes += 1
                    if inode.kind == .file {
                        counts.files += 1
                        counts.bytes += inode.size
                    }
                    found[link.target] = (try #require(try snapshot.record(link.target)), [:])
                    if inode.isDirectory { pending.append(link.target) }
                }
                if inode.isDirectory {
                    subdirectories += 1
                    #expect(inode.parent == directory.ino)
                }
                found[link.target]?.links[place] = link
            }
            #expect(directory.linkCount == 2 + subdirectories)
        }
        for (id, entry) in found where !entry.record.isDirectory {
            let links = try #require(try snapshot.inode(id: id)).linkCount
            #expect(Int(links) == entry.links.count)
        }
        #expect(try catalog.perform { $0.counts } == counts)
        return found
    }
}

func expectSame(_ a: Catalog, _ b: Catalog) throws {
    let (left, right) = (try dump(a), try dump(b))
    #expect(Set(left.keys) == Set(right.keys))
    for (id, entry) in left {
        #expect(entry.record == right[id]?.record)
        #expect(entry.links == right[id]?.links)
    }
}

/// Nodes 1 and 2; the first has a top directory. With a seed, their identities and clocks are the same
/// each time.
func withTwo(
    seed: UInt64? = nil, _ body: (Catalog, Catalog, MemoryObjects) throws -> Void
) throws {
    func chosen(_ node: UInt64) -> Catalog.Options {
        var options = options(node: node)
        guard let seed else { return options }
        // Half of them as if every change were large.
        if seed % 2 == 0 { options.appliedAtOnceMax = 0 }
        let generator = Mutex(SeededGenerator(seed: seed &+ node))
        let clock = Atomic<UInt64>(1_700_000_000_000)
        options.random = { generator.withLock { $0.next() } }
        options.wallMilliseconds = { clock.add(1, ordering: .relaxed).newValue }
        return options
    }
    try withDirectory { one in
        try withDirectory { two in
            let a = try openCatalog(one, chosen(1))
            defer { a.close() }
            let b = try openCatalog(two, chosen(2))
            defer { b.close() }
            try makeRoot(a)
            try body(a, b, MemoryObjects())
        }
    }
}

func reapAll(_ catalog: Catalog) throws {
    while let orphan = try catalog.read({ try $0.orphans(limit: 1) }).first {
        #expect(try catalog.perform { try $0.reap(orphan) })
    }
}

/// One operation out of many; some are impossible, and change nothing.
func randomChange(_ catalog: Catalog, _ generator: inout SeededGenerator) throws {
    var directories = [InodeNumber.root]
    var index = 0
    while index < directories.count {
        let entries = try catalog.read {
            try $0.list(directories[index], after: 0, limit: .max)
        }
        directories += entries.filter { $0.target.kind == .directory }.map(\.target.ino)
        index += 1
    }
    let parent = directories.randomElement(using: &generator) ?? .root
    let other = directories.randomElement(using: &generator) ?? .root
    let text = "n\(Int.random(in: 0..<5, using: &generator))"
    let newText = "n\(Int.random(in: 0..<5, using: &generator))"
    let (one, two) = (try name(text), try name(newText))
    let byte = UInt8.random(in: 0..<9, using: &generator)
    let kind = Int.random(in: 0..<10, using: &generator)
    let content = try byte < 4 ? Content.extents([extent(byte)]) : .inline([byte])
    do {
        switch kind {
        case 0, 1: try catalog.make(text, in: parent)
        case 2: try catalog.make(text, in: parent, .directory)
        case 3: try catalog.move(text, in: parent, to: newText, into: other, .exchange)
        case 4, 5: try catalog.move(text, in: parent, to: newText, into: other)
        default:
            try catalog.perform { transaction in
                let inode = try transaction.lookup(parent, one)
                switch kind {
                case 6 where !inode.isDirectory:
                    _ = try transaction.unlink(parent, one, now: time(2))
                case 6: _ = try transaction.rmdir(parent, one, now: time(2))
                case 7:
                    _ = try transaction.setContent(
                        inode.ino, content, modified: time(3), now: time(3))
                case 8: _ = try transaction.link(inode.ino, other, two, now: time(4))
                default:
                    _ = try transaction.setXattr(
                        inode.ino, Array("user.\(byte)".utf8), [byte], now: time(5))
                }
            }
        }
    } catch is Errno {
        // Many are impossible; `ModelTests` says which.
    }
}
