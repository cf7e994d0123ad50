/// What differs between a base and a side, on both ends: records, links, and the directories passed
/// on the way, which are all directories above a difference.
///
/// What is not met is the same in both trees. The cost follows the differences: equal tree ids are
/// not entered, directories are paired by id wherever they moved to.
struct MergePairWalk<Source: TreeSource> {
    /// Takes what the walk meets.
    private let meetings: MergeMeetings
    private let objects: MergeObjects<Source>
    /// Which trees the two ends are, for `meetings`; the old one is nil where there is no base.
    private let ends: (old: Int?, new: Int)

    private typealias Directory = MergeObjects<Source>.Directory

    private enum Side: CaseIterable {
        case old, new

        var other: Side { self == .old ? .new : .old }
    }

    private var pairs: [(old: Directory, new: Directory)] = []
    private var alone: [Side: [LineageID: Directory]] = [:]
    private var opened: [Side: Set<LineageID>] = [:]
    private var toOpen: [(Side, Directory)] = []

    /// - Parameters:
    ///   - trees: The number of each tree in `meetings` beside it. No old one: everything differs.
    static func run(
        _ old: (number: Int, tree: VolumeTree)?, _ new: (number: Int, tree: VolumeTree),
        _ objects: MergeObjects<Source>, into meetings: MergeMeetings
    ) throws {
        var walk = MergePairWalk(
            meetings: meetings, objects: objects, ends: (old?.number, new.number))
        try walk.walkDirectories(old?.tree.root, new.tree.root)
        if old?.tree.inodes != new.tree.inodes {
            try walk.walkInodes(old?.tree.inodes, new.tree.inodes)
        }
    }

    private init(
        meetings: MergeMeetings, objects: MergeObjects<Source>, ends: (old: Int?, new: Int)
    ) {
        self.meetings = meetings
        self.objects = objects
        self.ends = ends
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
                try compare(old.shard, new.shard, in: old.id)
            }
            while let (side, directory) = toOpen.popLast() { try open(directory, side) }
            if pairs.isEmpty, !pairMoved() { openAlone() }
        } while !pairs.isEmpty || !toOpen.isEmpty
    }

    /// Reads and notes a directory. Only the top directory has no place and no link.
    private func meet(_ tree: ObjectID, at place: Place?, _ side: Side) throws -> Directory {
        let directory = try objects.directory(tree)
        guard (place == nil) == (directory.link == nil) else {
            throw InvalidTree("the top directory alone has no link")
        }
        note(side) { tree, other in
            meetings.records.meet(directory.record, directory.id, in: tree, against: other)
            meetings.directories.meet(directory.tree, directory.id, in: tree, against: other)
            if let place, let link = directory.link {
                let met = MetLink(PlacedLink(place: place, link: link), entryName: [])
                meetings.links.meet(met, link.id, in: tree, against: other)
            }
        }
        return directory
    }

    /// - Parameter body: gets the number of the tree, and that of the one at the other end.
    private func note(_ side: Side, _ body: (Int, Int?) -> Void) {
        switch (side, ends.old) {
        case (.new, let old): body(ends.new, old)
        case (.old, let old?): body(old, ends.new)
        case (.old, nil): preconditionFailure("nothing is met in no tree")
        }
    }

    private mutating func see(_ entry: TreeEntry, in directory: LineageID, _ side: Side) throws {
        guard entry.kind == .blob else {
            let place = Place(directory: directory, name: try DirectoryTree.name(of: entry))
            hold(try meet(entry.id, at: place, side), side)
            return
        }
        let leaf = try objects.leaf(entry.id)
        let link = try leaf.placed(in: directory, as: entry)
        note(side) { tree, other in
            meetings.links.meet(link, leaf.link.id, in: tree, against: other)
            guard let record = leaf.record else { return }
            meetings.records.meet(record, record.record.id, in: tree, against: other)
        }
    }

    private mutating func hold(_ directory: Directory, _ side: Side) {
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

    private mutating func open(_ directory: Directory, _ side: Side) throws {
        opened[side, default: []].insert(directory.id)
        for entry in try directory.shard.all(objects.source) {
            try see(entry, in: directory.id, side)
        }
    }

    // MARK: Entries

    private mutating func compare(_ before: Shard, _ after: Shard, in directory: LineageID) throws {
        try eachDifference(before, after) { walk, earlier, later in
            if let earlier, let later, earlier.kind == .tree {
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

    /// Visits what differs, both ends of a name together where they are of one kind; of a split
    /// directory reads only the shards that differ.
    private mutating func eachDifference(_ old: Shard?, _ new: Shard?, _ visit: Visit) throws {
        if let old, let new, case .split(let before) = old.form, case .split(let after) = new.form {
            for index in UInt8.min...UInt8.max where before[index] != after[index] {
                try eachDifference(
                    before[index].map { try objects.subshard(index, $0, of: old) },
                    after[index].map { try objects.subshard(index, $0, of: new) }, visit)
            }
            return
        }
        let before = try old.map(objects.entries(below:)) ?? []
        let after = try new.map(objects.entries(below:)) ?? []
        try TreeEntry.eachDifference(before, after) { try visit(&self, $0, $1) }
    }

    // MARK: Shared records

    private mutating func walkInodes(_ old: ObjectID?, _ new: ObjectID?) throws {
        let source = objects.source
        let before = try InodeTable(old).groups(source)
        let after = try InodeTable(new).groups(source)
        for group in UInt8.min...UInt8.max where before[group] != after[group] {
            try eachDifference(
                before[group].map { try InodeTable.shard($0, source) },
                after[group].map { try InodeTable.shard($0, source) }
            ) { walk, earlier, later in
                if let earlier { try walk.seeShared(earlier, .old) }
                if let later { try walk.seeShared(later, .new) }
            }
        }
    }

    private func seeShared(_ entry: TreeEntry, _ side: Side) throws {
        let id = try InodeTable.lineage(entry)
        let shared = try InodeTable.decode(objects.source.blob(entry.id), as: id)
        let record = MetRecord(shared.record, links: shared.links)
        note(side) { meetings.records.meet(record, id, in: $0, against: $1) }
    }
}
