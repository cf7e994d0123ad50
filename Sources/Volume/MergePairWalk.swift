/// What differs between a base and a side, on both ends: records, links, and the directories passed
/// on the way, which are all directories above a difference.
///
/// What is not here is the same in both trees. The cost follows the differences: equal tree ids are
/// not entered, directories are paired by id wherever they moved to.
struct MergePairWalk<Source: TreeSource> {
    struct End {
        var records: [LineageID: CountedRecord] = [:]
        var links: [LinkID: PlacedLink] = [:]
        var directories: [LineageID: ObjectID] = [:]
    }

    /// A directory met on one end.
    private struct Met {
        let id: LineageID
        let tree: ObjectID
        let contents: DirectoryTree
    }

    private enum Side: CaseIterable {
        case old, new

        var other: Side { self == .old ? .new : .old }
    }

    private let source: Source
    private(set) var old = End()
    private(set) var new = End()

    private var pairs: [(old: Met, new: Met)] = []
    private var alone: [Side: [LineageID: Met]] = [:]
    private var opened: [Side: Set<LineageID>] = [:]
    private var toOpen: [(Side, Met)] = []

    /// - Parameter old: nil where there is no base: then everything differs.
    init(_ old: VolumeTree?, _ new: VolumeTree, source: Source) throws {
        self.source = source
        try walkDirectories(old?.root, new.root)
        if old?.inodes != new.inodes { try walkInodes(old?.inodes, new.inodes) }
    }

    // MARK: Directories

    /// Directories that vanish or appear are held back until all pairs are walked: one that did
    /// both has moved. What stays alone is opened level by level on both ends, for a moved
    /// directory may have left a deleted one or entered a new one; a directory whose counterpart
    /// was opened already is opened at once, so that the two meet again one level below.
    private mutating func walkDirectories(_ before: ObjectID?, _ after: ObjectID) throws {
        // The top directory is always passed: whatever is written hangs from it.
        let right = try meet(after, at: nil, .new)
        if let before {
            pairs.append((try meet(before, at: nil, .old), right))
        } else {
            toOpen.append((.new, right))
        }
        repeat {
            while let (old, new) = pairs.popLast() {
                if old.tree == new.tree { continue }
                try compare(old.contents.shard, new.contents.shard, in: old.id)
            }
            while let (side, directory) = toOpen.popLast() { try open(directory, side) }
            if pairs.isEmpty, !pairMoved() { openAlone() }
        } while !pairs.isEmpty || !toOpen.isEmpty
    }

    /// Reads and notes a directory. Only the top directory has no place and no link.
    private mutating func meet(_ tree: ObjectID, at place: Place?, _ side: Side) throws -> Met {
        let contents = try DirectoryTree(reading: tree, from: source)
        let (record, link) = try contents.record(from: source)
        guard (place == nil) == (link == nil) else {
            throw InvalidTree("the top directory alone has no link")
        }
        change(side) {
            $0.records[record.id] = CountedRecord(record: record, links: link == nil ? 0 : 1)
            $0.directories[record.id] = tree
            if let place, let link { $0.links[link.id] = PlacedLink(place: place, link: link) }
        }
        return Met(id: record.id, tree: tree, contents: contents)
    }

    private mutating func change(_ side: Side, _ body: (inout End) -> Void) {
        switch side {
        case .old: body(&old)
        case .new: body(&new)
        }
    }

    private mutating func see(_ entry: TreeEntry, in directory: LineageID, _ side: Side) throws {
        let place = Place(directory: directory, name: try DirectoryTree.name(of: entry))
        guard entry.kind == .blob else {
            hold(try meet(entry.id, at: place, side), side)
            return
        }
        switch try EntryBlob(decoding: source.blob(entry.id)) {
        case .single(let record, let link) where !record.isDirectory:
            change(side) {
                $0.records[record.id] = CountedRecord(record: record, links: 1)
                $0.links[link.id] = PlacedLink(place: place, link: link)
            }
        case .reference(let link):
            change(side) { $0.links[link.id] = PlacedLink(place: place, link: link) }
        default: throw InvalidTree("a directory's or shared record at a file's place")
        }
    }

    private mutating func hold(_ directory: Met, _ side: Side) {
        if opened[side.other, default: []].contains(directory.id) {
            toOpen.append((side, directory))
        } else {
            alone[side, default: [:]][directory.id] = directory
        }
    }

    /// Makes pairs of the directories that are alone on both ends; false if there are none.
    private mutating func pairMoved() -> Bool {
        for (id, before) in alone[.old, default: [:]] {
            guard let after = alone[.new]?.removeValue(forKey: id) else { continue }
            alone[.old]?[id] = nil
            pairs.append((before, after))
        }
        return !pairs.isEmpty
    }

    private mutating func openAlone() {
        for side in Side.allCases {
            for directory in alone[side, default: [:]].values { toOpen.append((side, directory)) }
            alone[side] = [:]
        }
    }

    private mutating func open(_ directory: Met, _ side: Side) throws {
        opened[side, default: []].insert(directory.id)
        for entry in try directory.contents.shard.all(source) {
            try see(entry, in: directory.id, side)
        }
    }

    // MARK: Entries

    private mutating func compare(_ before: Shard, _ after: Shard, in directory: LineageID) throws {
        try eachDifference(before, after) { walk, earlier, later in
            if let earlier, let later, earlier.kind == .tree, later.kind == .tree {
                let place = Place(directory: directory, name: try DirectoryTree.name(of: later))
                let one = try walk.meet(earlier.id, at: place, .old)
                let other = try walk.meet(later.id, at: place, .new)
                if one.id == other.id {
                    walk.pairs.append((one, other))
                } else {
                    walk.hold(one, .old)
                    walk.hold(other, .new)
                }
                return
            }
            if let earlier { try walk.see(earlier, in: directory, .old) }
            if let later { try walk.see(later, in: directory, .new) }
        }
    }

    private typealias Visit = (inout Self, TreeEntry?, TreeEntry?) throws -> Void

    /// Visits the names whose entries differ; of a split directory reads only the shards that do.
    private mutating func eachDifference(_ old: Shard?, _ new: Shard?, _ visit: Visit) throws {
        if let old, let new, case .split(let before) = old.form, case .split(let after) = new.form {
            for index in Set(before.keys).union(after.keys) where before[index] != after[index] {
                try eachDifference(
                    before[index].map { try old.subshard(index, $0, source) },
                    after[index].map { try new.subshard(index, $0, source) }, visit)
            }
            return
        }
        let differing = TreeEntry.differing(
            try old?.entriesBelow(source) ?? [], try new?.entriesBelow(source) ?? [])
        var before: [[UInt8]: TreeEntry] = [:]
        for entry in differing.old { before[entry.name] = entry }
        for entry in differing.new {
            let earlier = before.removeValue(forKey: entry.name)
            if earlier != entry { try visit(&self, earlier, entry) }
        }
        for entry in before.values { try visit(&self, entry, nil) }
    }

    // MARK: Shared records

    private mutating func walkInodes(_ old: ObjectID?, _ new: ObjectID?) throws {
        let before = try InodeTable(old).groups(source)
        let after = try InodeTable(new).groups(source)
        for group in Set(before.keys).union(after.keys) where before[group] != after[group] {
            try eachDifference(
                before[group].map { try InodeTable.shard($0, source) },
                after[group].map { try InodeTable.shard($0, source) }
            ) { walk, earlier, later in
                if let earlier { try walk.seeShared(earlier, .old) }
                if let later { try walk.seeShared(later, .new) }
            }
        }
    }

    private mutating func seeShared(_ entry: TreeEntry, _ side: Side) throws {
        let id = try InodeTable.lineage(entry)
        let shared = try InodeTable.decode(source.blob(entry.id), as: id)
        change(side) { $0.records[id] = CountedRecord(record: shared.record, links: shared.links) }
    }
}

/// A record and how many links the tree has to it.
struct CountedRecord: Hashable, Sendable {
    let record: Record
    let links: Int
}

extension Shard {
    /// All entries; unlike `all`, also of a part that alone would need no shards.
    fileprivate func entriesBelow(_ source: some TreeSource) throws -> [TreeEntry] {
        switch form {
        case .flat(let entries): return entries
        case .split(let shards):
            return try shards.sorted { $0.key < $1.key }.flatMap { index, id in
                try subshard(index, id, source).entriesBelow(source)
            }
        }
    }
}
