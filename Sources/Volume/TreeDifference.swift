/// What differs between two commits' trees. A nil value: no longer there.
public struct TreeDifference: Hashable, Sendable {
    public var records: [LineageID: Record?] = [:]
    public var places: [Place: Link?] = [:]
    /// Directories whose Git tree changed.
    public var trees: [LineageID: ObjectID?] = [:]
    /// Nil: unchanged.
    public var settings: VolumeSettings?
    public var nodes: [NodeID: NodeDescription?] = [:]
    /// Nil: unchanged.
    public var horizon: Stamp?

    public init() {}
}

/// The difference between two commits, by their top trees; from nil: everything.
///
/// Reads only what differs: directories are paired by path and, where they moved, by id; equal tree
/// ids are not entered. What it reads of the new tree it validates, on the assumption that the old one
/// is valid; applied along the parents of every commit this validates whole trees, but for one thing:
/// that an id that is new here does not also stand somewhere in what did not change. Who keeps an index
/// by id (the catalog) must refuse that.
///
/// Throws `InvalidTree`, `UpgradeNeeded`, or what the source throws.
public func difference<Source: TreeSource>(
    from: ObjectID?, to: ObjectID, source: Source
) throws -> TreeDifference {
    if from == to { return TreeDifference() }
    let old = try from.map { try VolumeTree(reading: $0, from: source) }
    let new = try VolumeTree(reading: to, from: source)
    var walk = DifferenceWalk(source: source)
    try walk.compareRoots(old?.root, new.root)
    try walk.compareInodes(InodeTable(old?.inodes), InodeTable(new.inodes))
    try walk.validateShared(in: InodeTable(new.inodes))
    var result = walk.result()
    if new.settings != old?.settings { result.settings = new.settings }
    if new.horizon != old?.horizon { result.horizon = new.horizon }
    for node in Set(new.nodeBlobs.keys).union(old?.nodeBlobs.keys ?? [:].keys) {
        let blob = new.nodeBlobs[node]
        if blob == old?.nodeBlobs[node] { continue }
        let description = try blob.map { try NodeDescription(decoding: source.blob($0)) }
        result.nodes.updateValue(description, forKey: node)
    }
    return result
}

/// What was seen of one of the two trees: all that differs, and some that does not.
private struct SeenSide {
    /// By place or `%dir`.
    var records: [LineageID: Record] = [:]
    /// In `inode/`.
    var shared: [LineageID: (record: Record, links: Int)] = [:]
    /// How many places refer to a shared record.
    var references: [LineageID: Int] = [:]
    var places: [Place: Link] = [:]
    var linkIDs: Set<LinkID> = []
    var trees: [LineageID: ObjectID] = [:]

    mutating func add(_ record: Record) throws(InvalidTree) {
        guard records.updateValue(record, forKey: record.id) == nil else {
            throw InvalidTree("an id that stands twice: \(record.id.rawValue)")
        }
    }

    mutating func add(_ link: Link, at place: Place) throws(InvalidTree) {
        places[place] = link
        guard linkIDs.insert(link.id).inserted else {
            throw InvalidTree("a link id that stands twice: \(link.id.rawValue)")
        }
    }

    mutating func add(tree: ObjectID, of id: LineageID) throws(InvalidTree) {
        guard trees.updateValue(tree, forKey: id) == nil else {
            throw InvalidTree("a directory that stands twice: \(id.rawValue)")
        }
    }

    func record(_ id: LineageID) -> Record? { records[id] ?? shared[id]?.record }
}

/// A directory met on one side.
private struct SeenDirectory {
    let id: LineageID
    let tree: ObjectID
    let contents: DirectoryTree
    /// 0: the top directory.
    let depth: Int
}

/// Walks two trees at once.
///
/// Directories that vanish from, or appear in, a pair are held back until all pairs are walked: one
/// that did both has moved, and is walked as a pair. What stays alone is opened level by level on both
/// sides, because a moved directory may have left or entered a deleted or a new one; a directory whose
/// counterpart was opened already is opened at once, so that the two meet again one level below.
private struct DifferenceWalk<Source: TreeSource> {
    private enum Which { case from, to }

    let source: Source
    private var from = SeenSide()
    private var to = SeenSide()
    private var pairs: [(from: SeenDirectory, to: SeenDirectory)] = []
    private var alone: [Which: [LineageID: SeenDirectory]] = [.from: [:], .to: [:]]
    private var opened: [Which: Set<LineageID>] = [.from: [], .to: []]
    private var toOpen: [(Which, SeenDirectory)] = []

    init(source: Source) { self.source = source }

    mutating func compareRoots(_ old: ObjectID?, _ new: ObjectID) throws {
        if old == new { return }
        let right = try top(new, .to)
        if let old {
            pairs.append((from: try top(old, .from), to: right))
        } else {
            willOpen(right, .to)
        }
        repeat {
            while let (from, to) = pairs.popLast() { try compare(from, to) }
            while let (side, directory) = toOpen.popLast() { try open(directory, side) }
            if pairs.isEmpty, !pairMoved() { openAlone() }
        } while !pairs.isEmpty || !toOpen.isEmpty
    }

    // MARK: Directories

    private mutating func top(_ tree: ObjectID, _ which: Which) throws -> SeenDirectory {
        let contents = try DirectoryTree(reading: tree, from: source)
        let (record, link) = try contents.record(from: source)
        guard link == nil else { throw InvalidTree("a top directory with a link") }
        try change(which) {
            try $0.add(record)
            try $0.add(tree: tree, of: record.id)
        }
        return SeenDirectory(id: record.id, tree: tree, contents: contents, depth: 0)
    }

    private mutating func change<R>(
        _ which: Which, _ body: (inout SeenSide) throws -> R
    ) rethrows -> R {
        switch which {
        case .from: try body(&from)
        case .to: try body(&to)
        }
    }

    private mutating func compare(_ old: SeenDirectory, _ new: SeenDirectory) throws {
        if old.tree == new.tree { return }
        try compare(old.contents.shard, new.contents.shard) { walk, entry, before, after in
            let name = try DirectoryTree.name(of: entry)
            try walk.compare(name, before, after, in: old, new)
        }
    }

    private mutating func compare(
        _ name: FileName, _ before: TreeChild?, _ after: TreeChild?, in old: SeenDirectory,
        _ new: SeenDirectory
    ) throws {
        let place = Place(directory: new.id, name: name)
        guard case .directory(let left)? = before, case .directory(let right)? = after else {
            if let before { try see(before, at: place, depth: old.depth + 1, .from) }
            if let after { try see(after, at: place, depth: new.depth + 1, .to) }
            return
        }
        let one = try DirectoryTree(reading: left, from: source)
        let other = try DirectoryTree(reading: right, from: source)
        let same = one.own == other.own
        let a = try enter(one, left, at: place, old.depth + 1, .from, ownUnchanged: same)
        let b = try enter(other, right, at: place, new.depth + 1, .to, ownUnchanged: same)
        if a.id == b.id {
            pairs.append((from: a, to: b))
        } else {
            meet(a, .from)
            meet(b, .to)
        }
    }

    private mutating func see(
        _ child: TreeChild, at place: Place, depth: Int, _ which: Which
    ) throws {
        switch child {
        case .directory(let tree):
            let contents = try DirectoryTree(reading: tree, from: source)
            meet(
                try enter(contents, tree, at: place, depth, which, ownUnchanged: false), which)
        case .blob(let id):
            switch try EntryBlob(decoding: source.blob(id)) {
            case .single(let record, let link) where !record.isDirectory:
                try change(which) {
                    try $0.add(record)
                    try $0.add(link, at: place)
                }
            case .reference(let link):
                try change(which) {
                    try $0.add(link, at: place)
                    $0.references[link.target, default: 0] += 1
                }
            default: throw InvalidTree("a directory's or shared record at a file's place")
            }
        }
    }

    /// Notes a directory's tree and, unless it is known to be the same on both sides, its record and
    /// link.
    private mutating func enter(
        _ contents: DirectoryTree, _ tree: ObjectID, at place: Place, _ depth: Int,
        _ which: Which, ownUnchanged: Bool
    ) throws -> SeenDirectory {
        guard depth <= Limits.directoryDepthMax else {
            throw InvalidTree("directories deeper than \(Limits.directoryDepthMax)")
        }
        let (record, link) = try contents.record(from: source)
        guard let link else { throw InvalidTree("a directory without a link") }
        try change(which) {
            try $0.add(tree: tree, of: record.id)
            if ownUnchanged { return }
            try $0.add(record)
            try $0.add(link, at: place)
        }
        return SeenDirectory(id: record.id, tree: tree, contents: contents, depth: depth)
    }

    private mutating func meet(_ directory: SeenDirectory, _ which: Which) {
        let other: Which = which == .from ? .to : .from
        if opened[other, default: []].contains(directory.id) {
            willOpen(directory, which)
        } else {
            alone[which, default: [:]][directory.id] = directory
        }
    }

    /// Makes pairs of the directories that are alone on both sides; false if there are none.
    private mutating func pairMoved() -> Bool {
        let candidates = alone[.from, default: [:]]
        for (id, old) in candidates {
            guard let new = alone[.to]?.removeValue(forKey: id) else { continue }
            alone[.from]?[id] = nil
            pairs.append((from: old, to: new))
        }
        return !pairs.isEmpty
    }

    private mutating func openAlone() {
        for which in [Which.from, .to] {
            for directory in alone[which, default: [:]].values {
                willOpen(directory, which)
            }
            alone[which] = [:]
        }
    }

    /// Counts as opened from here on: else the two sides pass each other within one round.
    private mutating func willOpen(_ directory: SeenDirectory, _ which: Which) {
        opened[which, default: []].insert(directory.id)
        toOpen.append((which, directory))
    }

    private mutating func open(_ directory: SeenDirectory, _ which: Which) throws {
        for (name, child) in try directory.contents.children(from: source) {
            let place = Place(directory: directory.id, name: name)
            try see(child, at: place, depth: directory.depth + 1, which)
        }
    }

    // MARK: Entries

    private typealias Visit = (inout Self, TreeEntry, TreeChild?, TreeChild?) throws -> Void

    /// Visits the names whose entries differ. Returns by how many the entries grew.
    @discardableResult
    private mutating func compare(
        _ old: Shard?, _ new: Shard?, visit: Visit
    ) throws -> Int {
        guard case .split(let before)? = old?.form, case .split(let after)? = new?.form,
            let old, let new
        else {
            return try compareLists(
                try old?.allInOrder(source) ?? [], try new?.allInOrder(source) ?? [], visit: visit)
        }
        var growth = 0
        for index in Set(before.keys).union(after.keys).sorted() where before[index] != after[index]
        {
            let one = try before[index].map { try old.subshard(index, $0, source) }
            let other = try after[index].map { try new.subshard(index, $0, source) }
            growth += try compare(one, other, visit: visit)
        }
        // The old one was large enough to be split; only if it shrank may the new one not be.
        if growth < 0, try !new.isLarge(source) {
            throw InvalidTree("a directory that is split and need not be")
        }
        return growth
    }

    private mutating func compareLists(
        _ old: [TreeEntry], _ new: [TreeEntry], visit: Visit
    ) throws -> Int {
        try TreeEntry.eachDifference(old, new) { earlier, later in
            guard let entry = later ?? earlier else { return }
            try visit(&self, entry, earlier.map(TreeChild.init), later.map(TreeChild.init))
        }
        return new.count - old.count
    }

    // MARK: Shared records

    mutating func compareInodes(_ old: InodeTable, _ new: InodeTable) throws {
        if old.id == new.id { return }
        let before = try old.groups(source)
        let after = try new.groups(source)
        for group in Set(before.keys).union(after.keys).sorted() where before[group] != after[group]
        {
            let one = try before[group].map { try InodeTable.shard($0, source) }
            let other = try after[group].map { try InodeTable.shard($0, source) }
            try compare(one, other) { walk, entry, before, after in
                let id = try InodeTable.lineage(entry)
                guard InodeTable.group(id) == group else {
                    throw InvalidTree("a record in another group of inode")
                }
                for (child, which) in [(before, Which.from), (after, .to)] {
                    guard let child else { continue }
                    let shared = try InodeTable.decode(walk.source.blob(child.id), as: id)
                    walk.change(which) { $0.shared[id] = shared }
                }
            }
        }
    }

    /// A record lies in `inode/` exactly when it has more than one link, and says how many. Given
    /// that the old tree is right, the links that came and went tell whether the new one is.
    mutating func validateShared(in table: InodeTable) throws {
        var lookup = try InodeLookup(table, source)
        for id in to.records.keys where try to.shared[id] != nil || lookup.blob(id) != nil {
            throw InvalidTree("a record with one link that is also in inode: \(id.rawValue)")
        }
        for (id, record) in to.records where !record.isDirectory && to.trees[id] != nil {
            throw InvalidTree("an id that is a directory and a file: \(id.rawValue)")
        }
        let ids = Set(from.references.keys).union(to.references.keys)
            .union(from.shared.keys).union(to.shared.keys)
        for id in ids {
            let growth = to.references[id, default: 0] - from.references[id, default: 0]
            let before = from.shared[id]
            let after = to.shared[id]
            guard growth == (after?.links ?? 0) - (before?.links ?? 0) else {
                throw InvalidTree("a wrong number of links: \(id.rawValue)")
            }
            if before == nil, after == nil, try lookup.blob(id) == nil {
                throw InvalidTree("a link to a record that is not there: \(id.rawValue)")
            }
        }
    }

    // MARK: Result

    func result() -> TreeDifference {
        var result = TreeDifference()
        let ids = [from.records.keys, to.records.keys].reduce(into: Set<LineageID>()) {
            $0.formUnion($1)
        }.union(from.shared.keys).union(to.shared.keys)
        for id in ids {
            let record = to.record(id)
            if record != from.record(id) { result.records.updateValue(record, forKey: id) }
        }
        for place in Set(from.places.keys).union(to.places.keys) {
            let link = to.places[place]
            if link != from.places[place] { result.places.updateValue(link, forKey: place) }
        }
        for id in Set(from.trees.keys).union(to.trees.keys) {
            let tree = to.trees[id]
            if tree != from.trees[id] { result.trees.updateValue(tree, forKey: id) }
        }
        return result
    }
}
