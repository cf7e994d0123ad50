/// Step 1: the fragments of both sides and of every base, from their trees.
///
/// Each base is walked against each side. What one of these walks met has a value on its two ends;
/// what it did not meet is the same on both. From that follows the value in every tree of all that
/// any walk met, and the rest is the same in all of them.
struct MergeExtraction {
    /// The sides first, then the bases.
    private(set) var fragments: [Fragment]
    /// By tree as above: directories above or among the differences.
    private(set) var directories: [[LineageID: ObjectID]]
    /// Every link in some fragment.
    private(set) var links: Set<LinkID>
    /// How many links an inode of the fragments has beyond those, the same in every tree.
    private(set) var otherLinks: [LineageID: Int] = [:]

    init<Source: TreeSource>(
        _ a: VolumeTree, _ b: VolumeTree, bases: [VolumeTree], source: Source
    ) throws {
        let trees = [a, b] + bases
        var records = Readings<LineageID, CountedRecord>(trees: trees.count)
        var links = Readings<LinkID, PlacedLink>(trees: trees.count)
        var directories = Readings<LineageID, ObjectID>(trees: trees.count)
        for side in 0..<2 {
            for base in bases.isEmpty ? [nil] : Array(2..<trees.count).map(Optional.some) {
                let walk = try MergePairWalk(
                    base.map { trees[$0] }, trees[side], source: source)
                records.add(walk.old.records, walk.new.records, base, side)
                links.add(walk.old.links, walk.new.links, base, side)
                directories.add(walk.old.directories, walk.new.directories, base, side)
            }
        }
        let placed = links.values()
        self.links = Set(links.keys)
        self.directories = directories.values()
        var counted = records.values()
        let unread = Set(placed.flatMap { $0.values.map(\.link.target) }).subtracting(records.keys)
        var lookup = try InodeLookup(InodeTable(a.inodes), source)
        for id in unread.sorted() {
            // A link differs and what it names does not: then its record lies in `inode/`.
            guard let shared = try lookup.record(id) else {
                throw InvalidTree("a link to a record that is not there: \(id.rawValue)")
            }
            let record = CountedRecord(record: shared.record, links: shared.links)
            for tree in trees.indices { counted[tree][id] = record }
        }
        fragments = counted.map { $0.mapValues { Inode($0.record, links: []) } }
        for tree in trees.indices {
            for (id, link) in placed[tree] {
                guard fragments[tree][link.link.target] != nil else {
                    throw InvalidTree("a link to a record that is not there")
                }
                fragments[tree][link.link.target]?.links[id] = link
            }
        }
        for tree in trees.indices {
            for (id, record) in counted[tree] {
                otherLinks[id] = max(0, record.links - (fragments[tree][id]?.links.count ?? 0))
            }
        }
    }
}

/// What walks met of one kind of thing, by tree.
private struct Readings<Key: Hashable, Value> {
    /// By tree: nil not known, `.some(nil)` known to be absent.
    private var read: [Key: [Value??]] = [:]
    private let trees: Int
    private var edges: [(Int, Int)] = []

    init(trees: Int) { self.trees = trees }

    var keys: Dictionary<Key, [Value??]>.Keys { read.keys }

    mutating func add(_ old: [Key: Value], _ new: [Key: Value], _ base: Int?, _ side: Int) {
        if let base { edges.append((base, side)) }
        for key in Set(old.keys).union(new.keys) {
            var row = read[key] ?? Array(repeating: nil, count: trees)
            row[side] = .some(new[key])
            if let base { row[base] = .some(old[key]) }
            read[key] = row
        }
    }

    /// What is there, by tree.
    func values() -> [[Key: Value]] {
        var values = Array(repeating: [Key: Value](), count: trees)
        for (key, row) in read {
            var row = row
            // Every base has an edge to both sides, so that two rounds reach every tree.
            for _ in 0..<2 {
                for (base, side) in edges {
                    if row[base] == nil { row[base] = row[side] }
                    if row[side] == nil { row[side] = row[base] }
                }
            }
            for tree in 0..<trees {
                if case .some(.some(let value)) = row[tree] { values[tree][key] = value }
            }
        }
        return values
    }
}
