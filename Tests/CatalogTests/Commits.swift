import Catalog
import Simulation
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
    _ catalog: Catalog, _ objects: MemoryObjects, adopting: Bool = true
) throws -> ObjectID {
    try catalog.flush()
    let (outcome, version) = try catalog.snapshot { snapshot in
        let dirty = try snapshot.dirtyState()
        let base = try snapshot.applied()
        var sink = objects
        let outcome = try commitTree(
            onto: base, dirty: dirty.dirty, live: snapshot,
            settings: snapshot.settings() ?? settings,
            nodes: snapshot.nodeDescriptions(), adopting: adopting, source: objects, sink: &sink)
        return (outcome, dirty.version)
    }
    try catalog.perform { try $0.committed(outcome, as: outcome.root, through: version) }
    return outcome.root
}

func pull(
    _ commit: ObjectID, into catalog: Catalog, _ objects: MemoryObjects,
    pinned: Set<InodeNumber> = []
) throws -> AppliedEffects {
    let base = try catalog.read { try $0.applied() }
    let difference = try difference(from: base, to: commit, source: objects)
    return try catalog.apply(difference, commit: commit, pinned: pinned)
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
