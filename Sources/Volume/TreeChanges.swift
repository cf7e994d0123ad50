/// What a person is told of the difference between a commit and its parents.
public struct TreeChange: Hashable, Sendable {
    public enum What: Hashable, Sendable {
        case created
        case removed
        case renamed(from: [FileName])
        /// A further name of what was there; where, if that is known.
        case linked(to: [FileName]?)
        case edited
        case touched(Timestamp)
        case mode(from: UInt16, to: UInt16)
        case owner(from: Owner, to: Owner)
        /// By their names.
        case attributes([[UInt8]])
    }

    public let what: What
    /// From the directory that was looked at; of a file with several names that changed in none of
    /// them it is nil.
    public let path: [FileName]?
    public let id: LineageID
    public let isDirectory: Bool
    /// Content that was there before and is not after.
    public let replaced: [Extent]

    /// The same, where the place that was looked at is called so.
    public func below(_ top: [FileName]) -> TreeChange {
        var what = what
        switch what {
        case .renamed(let from): what = .renamed(from: top + from)
        case .linked(let to): what = .linked(to: to.map { top + $0 })
        default: break
        }
        return TreeChange(
            what: what, path: path.map { top + $0 }, id: id, isDirectory: isDirectory,
            replaced: replaced)
    }
}

/// The two parts of a commit's tree that hold names and records.
public struct TopTrees: Hashable, Sendable {
    public let root: ObjectID
    public let inodes: ObjectID?

    public init(reading id: ObjectID, from source: some TreeSource) throws {
        let entries = try source.tree(id)
        func find(_ name: String) -> ObjectID? {
            entries.first { $0.kind == .tree && $0.name.elementsEqual(name.utf8) }?.id
        }
        guard let root = find("tree") else { throw InvalidTree("a commit without tree") }
        self.root = root
        inodes = find("inode")
    }

    /// The blob of a record that has more than one link.
    public func sharedRecord(_ id: LineageID, from source: some TreeSource) throws -> ObjectID? {
        try InodeTable(inodes).blob(id, source)
    }
}

/// A directory, or anything else, on one side of a difference.
public struct TreePlace: Sendable {
    public let child: TreeChild
    /// Where the records of files with several names lie.
    public let inodes: ObjectID?

    public init(_ child: TreeChild, inodes: ObjectID?) {
        self.child = child
        self.inodes = inodes
    }
}

/// The changes in a place that are in none of its parents: with one, the difference.
///
/// Follows only what differs. Directories that moved are recognised by their id, as are files.
/// - Parameter limit: of entries looked at; if there are more, the rest is left out.
/// - Returns: in the order of paths; and whether nothing was left out.
public func treeChanges<Source: TreeSource>(
    in new: TreePlace?, since old: [TreePlace], limit: Int, source: Source
) throws -> (changes: [TreeChange], isWhole: Bool) {
    var walk = ChangeWalk(source: source, new: new, old: old, budget: limit)
    try walk.run()
    return (try walk.changes(), walk.budget > 0)
}

private struct SeenEntry {
    let path: [FileName]
    let record: Record
    let link: Link?
    let tree: ObjectID?
}

private struct ChangeWalk<Source: TreeSource> {
    let source: Source
    let new: TreePlace?
    let old: [TreePlace]
    var budget: Int
    /// What is there and was not so before, and what was there and is not so any more, by path.
    private var appeared: [[FileName]: SeenEntry] = [:]
    private var vanished: [[FileName]: SeenEntry] = [:]
    private var pairs: [(new: ObjectID, old: [ObjectID], path: [FileName])] = []

    init(source: Source, new: TreePlace?, old: [TreePlace], budget: Int) {
        self.source = source
        self.new = new
        self.old = old
        self.budget = budget
    }

    mutating func run() throws {
        try compare(new?.child, old.map(\.child), at: [])
        repeat {
            while budget > 0, let pair = pairs.popLast() { try compareDirectories(pair) }
            try pairMoved()
        } while try budget > 0 && (!pairs.isEmpty || openAlone())
    }

    private mutating func compareDirectories(
        _ pair: (new: ObjectID, old: [ObjectID], path: [FileName])
    ) throws {
        let new = try DirectoryTree(reading: pair.new, from: source)
        let old = try pair.old.map { try DirectoryTree(reading: $0, from: source) }
        try compareShards(new.shard, old.map(\.shard), pair.path)
    }

    private mutating func compareShards(
        _ new: Shard?, _ old: [Shard?], _ path: [FileName]
    ) throws {
        if case .split(let after)? = new?.form, let new {
            let befores = old.compactMap { shard -> [UInt8: ObjectID]? in
                if case .split(let before)? = shard?.form { before } else { nil }
            }
            if befores.count == old.count {
                let all = befores.reduce(Set(after.keys)) { $0.union($1.keys) }
                for index in all.sorted()
                where !befores.contains(where: { $0[index] == after[index] }) {
                    try compareShards(
                        after[index].map { try new.subshard(index, $0, source) },
                        zip(old, befores).map { shard, before in
                            try before[index].flatMap { try shard?.subshard(index, $0, source) }
                        }, path)
                }
                return
            }
        }
        let after = try new?.all(source) ?? []
        let before = try old.map { shard in
            Dictionary(
                try (shard?.all(source) ?? []).map { ($0.name, $0) },
                uniquingKeysWith: { first, _ in first })
        }
        for entry in after {
            let earlier = before.map { $0[entry.name] }
            if earlier.contains(entry) { continue }
            let name = try DirectoryTree.name(of: entry)
            try compare(
                TreeChild(entry), earlier.map { $0.map(TreeChild.init) }, at: path + [name])
        }
        let names = Set(after.map(\.name))
        guard let first = before.first else { return }
        // Gone from all of them.
        for (key, entry) in first where !names.contains(key) {
            guard before.allSatisfy({ $0[key] != nil }) else { continue }
            let name = try DirectoryTree.name(of: entry)
            try compare(nil, [TreeChild(entry)], at: path + [name])
        }
    }

    private mutating func compare(
        _ new: TreeChild?, _ old: [TreeChild?], at path: [FileName]
    ) throws {
        guard budget > 0 else { return }
        budget -= 1
        let after = try new.map { try read($0, at: path, self.new?.inodes) }
        let befores = try zip(old, self.old).compactMap { child, side in
            try child.map { try read($0, at: path, side.inodes) }
        }
        if let after, let tree = after.tree {
            let same = befores.filter { $0.record.id == after.record.id }
            if let before = same.first, same.count == old.count {
                let trees = same.compactMap(\.tree)
                if !trees.contains(tree) { pairs.append((new: tree, old: trees, path: path)) }
                if !same.contains(where: { isSame($0, after) }) {
                    appeared[path] = after
                    vanished[path] = before
                }
                return
            }
        }
        if let after { appeared[path] = after }
        if let before = befores.first { vanished[path] = before }
    }

    private func isSame(_ a: SeenEntry, _ b: SeenEntry) -> Bool {
        a.record == b.record && a.link == b.link
    }

    private func read(
        _ child: TreeChild, at path: [FileName], _ inodes: ObjectID?
    ) throws -> SeenEntry {
        switch child {
        case .directory(let id):
            let (record, link) = try DirectoryTree(reading: id, from: source).record(from: source)
            return SeenEntry(path: path, record: record, link: link, tree: id)
        case .blob(let id):
            switch try EntryBlob(decoding: source.blob(id)) {
            case .single(let record, let link):
                return SeenEntry(path: path, record: record, link: link, tree: nil)
            case .reference(let link):
                guard let blob = try InodeTable(inodes).blob(link.target, source) else {
                    throw InvalidTree("a link to a record that is not there")
                }
                let shared = try InodeTable.decode(source.blob(blob), as: link.target)
                return SeenEntry(path: path, record: shared.record, link: link, tree: nil)
            case .top, .shared:
                throw InvalidTree("a directory's or shared record at a file's place")
            }
        }
    }

    /// Directories that went from one place to another are compared as one.
    private mutating func pairMoved() throws {
        let gone = vanished.values.filter { $0.tree != nil }
        let byID = Dictionary(gone.map { ($0.record.id, $0) }, uniquingKeysWith: { a, _ in a })
        for (path, entry) in appeared where !opened.contains(path) {
            guard let tree = entry.tree, let before = byID[entry.record.id],
                before.path != path, let earlier = before.tree
            else { continue }
            opened.insert(path)
            closed.insert(before.path)
            if tree != earlier { pairs.append((new: tree, old: [earlier], path: path)) }
        }
    }

    /// Paths of directories that need not be opened: appeared, vanished.
    private var opened: Set<[FileName]> = []
    private var closed: Set<[FileName]> = []

    /// Looks into directories that came or went as a whole. False: there are none.
    private mutating func openAlone() throws -> Bool {
        var found = false
        for (path, entry) in appeared {
            guard let tree = entry.tree, vanished[path]?.record.id != entry.record.id,
                opened.insert(path).inserted
            else { continue }
            pairs.append((new: tree, old: [], path: path))
            found = true
        }
        for (path, entry) in vanished {
            guard let tree = entry.tree, appeared[path]?.record.id != entry.record.id,
                closed.insert(path).inserted
            else { continue }
            try openVanished(tree, path)
            found = true
        }
        return found
    }

    private mutating func openVanished(_ tree: ObjectID, _ path: [FileName]) throws {
        let children = try DirectoryTree(reading: tree, from: source).children(from: source)
        for (name, child) in children where budget > 0 {
            budget -= 1
            vanished[path + [name]] = try read(child, at: path + [name], old.first?.inodes)
        }
    }

    // MARK: Telling

    mutating func changes() throws -> [TreeChange] {
        var changes: [TreeChange] = []
        let byLink = Dictionary(
            vanished.values.compactMap { entry in entry.link.map { ($0.id, entry) } },
            uniquingKeysWith: { a, _ in a })
        let byID = Dictionary(
            vanished.values.map { ($0.record.id, $0) }, uniquingKeysWith: { a, _ in a })
        var moved: Set<[FileName]> = []
        for (path, entry) in appeared {
            func add(_ what: TreeChange.What) {
                changes.append(Self.change(what, entry))
            }
            if let before = vanished[path], before.record.id == entry.record.id {
                moved.insert(path)
                changes += Self.edits(before, entry)
            } else if let before = entry.link.flatMap({ byLink[$0.id] }),
                before.record.id == entry.record.id
            {
                moved.insert(before.path)
                add(.renamed(from: before.path))
                changes += Self.edits(before, entry)
            } else if entry.tree == nil, let before = byID[entry.record.id] {
                add(.linked(to: before.path))
            } else if entry.tree == nil, try wasShared(entry.record.id) {
                add(.linked(to: nil))
            } else {
                add(.created)
            }
        }
        for (path, entry) in vanished where !moved.contains(path) {
            changes.append(Self.change(.removed, entry, replaced: entry.record.extents))
        }
        changes += try sharedChanges()
        return changes.sorted { a, b in
            (a.path ?? []).lexicographicallyPrecedes(b.path ?? [])
        }
    }

    private func wasShared(_ id: LineageID) throws -> Bool {
        try old.contains { try InodeTable($0.inodes).blob(id, source) != nil }
    }

    private static func change(
        _ what: TreeChange.What, _ entry: SeenEntry, replaced: [Extent] = []
    ) -> TreeChange {
        TreeChange(
            what: what, path: entry.path, id: entry.record.id, isDirectory: entry.tree != nil,
            replaced: replaced)
    }

    private static func edits(_ before: SeenEntry, _ after: SeenEntry) -> [TreeChange] {
        edits(before.record, after.record).map {
            change($0, after, replaced: $0 == .edited ? before.record.extents : [])
        }
    }

    /// The time of a directory follows from what is told of its entries.
    private static func edits(_ before: Record, _ after: Record) -> [TreeChange.What] {
        var edits: [TreeChange.What] = []
        if before.content.value.body != after.content.value.body {
            edits.append(.edited)
        } else if !after.isDirectory,
            before.content.value.modified != after.content.value.modified
        {
            edits.append(.touched(after.content.value.modified))
        }
        if before.mode.value != after.mode.value {
            edits.append(.mode(from: before.mode.value, to: after.mode.value))
        }
        if before.owner.value != after.owner.value {
            edits.append(.owner(from: before.owner.value, to: after.owner.value))
        }
        let names = Set(before.xattrs.keys).union(after.xattrs.keys).filter {
            before.xattrs[$0]?.value != after.xattrs[$0]?.value
        }
        if !names.isEmpty {
            edits.append(.attributes(names.sorted { $0.lexicographicallyPrecedes($1) }))
        }
        return edits
    }

    /// Records of files with several names that changed without any of these names.
    private mutating func sharedChanges() throws -> [TreeChange] {
        guard let new, !old.isEmpty, case .directory = new.child,
            !old.contains(where: { $0.inodes == new.inodes })
        else { return [] }
        let told = Set(appeared.values.map(\.record.id))
        var changes: [TreeChange] = []
        let after = try InodeTable(new.inodes).groups(source)
        let before = try old.map { try InodeTable($0.inodes).groups(source) }
        for (group, tree) in after.sorted(by: { $0.key < $1.key })
        where budget > 0 && !before.contains(where: { $0[group] == tree }) {
            guard let earlier = before.first?[group] else { continue }
            let shard = try InodeTable.shard(earlier, source)
            for entry in try InodeTable.shard(tree, source).all(source) {
                let id = try InodeTable.lineage(entry)
                guard !told.contains(id),
                    let blob = try InodeTable.blob(id, in: shard, source), blob != entry.id,
                    try !old.contains(where: {
                        try InodeTable($0.inodes).blob(id, source) == entry.id
                    })
                else { continue }
                budget -= 1
                let old = try InodeTable.decode(source.blob(blob), as: id).record
                let edits = Self.edits(
                    old, try InodeTable.decode(source.blob(entry.id), as: id).record)
                changes += edits.map {
                    TreeChange(
                        what: $0, path: nil, id: id, isDirectory: false,
                        replaced: $0 == .edited ? old.extents : [])
                }
            }
        }
        return changes
    }
}

extension Record {
    fileprivate var extents: [Extent] {
        if case .file(.extents(let extents)) = content.value.body { extents } else { [] }
    }
}
