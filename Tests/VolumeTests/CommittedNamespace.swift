import Simulation

@testable import Volume

/// A namespace with the trees of its last commit: the reference model of a catalog.
struct CommittedNamespace: LiveState {
    var space: Namespace
    var trees: [LineageID: ObjectID] = [:]
    var head: ObjectID?
    var settings = VolumeSettings(
        volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 1000, gid: 1000))
    var nodes = [NodeID(high: 0, low: 1): NodeDescription(name: "n1", machine: "m1")]

    func record(_ id: LineageID) -> Record? { space.records[id] }
    func links(of id: LineageID) -> [(place: Place, link: Link)] {
        space.entries(of: id).map { ($0.place, $0.link) }
    }
    func link(at place: Place) -> Link? { space.link(at: place) }
    func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        space.children(of: directory)
    }
    func tree(of directory: LineageID) -> ObjectID? { trees[directory] }

    /// Commits what is dirty and does what a catalog does with the outcome.
    mutating func commit(to objects: MemoryObjects) throws -> CommitOutcome {
        let dirty = DirtySet(places: space.dirtyPlaces, records: space.dirtyRecords)
        var sink = objects
        let outcome = try commitTree(
            onto: head, dirty: dirty, live: self, settings: settings, nodes: nodes, source: objects,
            sink: &sink)
        for (id, tree) in outcome.trees { trees[id] = tree }
        for adoption in outcome.adoptions { apply(adoption) }
        space.markClean()
        head = outcome.root
        return outcome
    }

    /// The tree of the whole state, from nothing.
    func wholeTree(to objects: MemoryObjects) throws -> ObjectID {
        var sink = objects
        return try commitTree(
            onto: nil, dirty: DirtySet(), live: self, settings: settings, nodes: nodes,
            source: objects, sink: &sink
        ).root
    }

    private mutating func apply(_ adoption: Adoption) {
        var records = space.records
        var entries = space.entries
        guard let old = records.removeValue(forKey: adoption.newborn) else {
            preconditionFailure("a newborn file exists")
        }
        records[adoption.adopted] = Record(
            id: adoption.adopted, ino: old.ino, content: old.content, mode: old.mode,
            owner: old.owner, xattrs: old.xattrs)
        for (id, entry) in space.entries where entry.link.target == adoption.newborn {
            entries[id] = nil
            let link =
                adoption.links[entry.place]
                ?? Link(id: id, stamp: entry.link.stamp, target: adoption.adopted)
            entries[link.id] = Namespace.Entry(place: entry.place, link: link)
        }
        space = Namespace(records: records, entries: entries)
    }

    var state: TreeState {
        TreeState(
            records: space.records,
            places: Dictionary(
                uniqueKeysWithValues: space.entries.values.map { ($0.place, $0.link) }),
            trees: trees)
    }
}

/// What a difference applies to.
struct TreeState: Equatable {
    var records: [LineageID: Record] = [:]
    var places: [Place: Link] = [:]
    var trees: [LineageID: ObjectID] = [:]

    mutating func apply(_ difference: TreeDifference) {
        for (id, record) in difference.records { records[id] = record }
        for (place, link) in difference.places { places[place] = link }
        for (id, tree) in difference.trees { trees[id] = tree }
    }
}

extension TreeState {
    /// Editors' saves by their definition: pairs of newborn and adopted file, by place.
    func adoptions(until later: TreeState) -> [[LineageID]] {
        func isRegular(_ record: Record?) -> Bool {
            if case .file? = record?.content.value.body { true } else { false }
        }
        let linked = Set(later.places.values.map(\.target))
        var found: [[LineageID]] = []
        for (place, link) in places.sorted(by: { $0.key < $1.key }) {
            guard isRegular(records[link.target]), !linked.contains(link.target),
                let new = later.places[place]?.target, isRegular(later.records[new]),
                records[new] == nil, !found.joined().contains(new),
                !found.joined().contains(link.target)
            else { continue }
            found.append([new, link.target])
        }
        return found
    }
}
