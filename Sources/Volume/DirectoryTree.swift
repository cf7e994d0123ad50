/// What stands at a name in a directory of a commit: a subdirectory, or the blob of anything else.
public enum TreeChild: Hashable, Sendable {
    case directory(ObjectID)
    case blob(ObjectID)

    var entryKind: TreeEntry.Kind {
        switch self {
        case .directory: .tree
        case .blob: .blob
        }
    }

    public var id: ObjectID {
        switch self {
        case .directory(let id), .blob(let id): id
        }
    }

    init(_ entry: TreeEntry) {
        self = entry.kind == .tree ? .directory(entry.id) : .blob(entry.id)
    }
}

/// A directory of a commit: a Git tree with the directory's own record in `%dir`.
///
/// With more than `Limits.directoryEntriesUnsplitMax` names (`%dir` not counted) the names lie in
/// subtrees `%xx` by the first byte of SHA-256(name), those again by the second byte when they hold
/// more than that, and so on; with fewer never. Hence one tree for every set of names.
public struct DirectoryTree: Sendable {
    /// Git id of the `%dir` blob.
    public let own: ObjectID
    /// Everything but `%dir`.
    let shard: Shard

    /// Throws `InvalidTree`, or what the source throws.
    public init(reading id: ObjectID, from source: some TreeSource) throws {
        var entries = try Shard.sortedEntries(of: id, source)
        guard let at = entries.firstIndex(where: { $0.name == Self.ownName }) else {
            throw InvalidTree("a directory without %dir")
        }
        let own = entries.remove(at: at)
        guard own.kind == .blob else { throw InvalidTree("a %dir that is a tree") }
        self.own = own.id
        shard = try Shard(entries, depth: 0, prefix: [])
    }

    /// The directory's record and its link; the link is nil for the top directory.
    public func record(from source: some TreeSource) throws -> (record: Record, link: Link?) {
        try Self.record(own, from: source)
    }

    static func record(
        _ own: ObjectID, from source: some TreeSource
    ) throws -> (record: Record, link: Link?) {
        switch try EntryBlob(decoding: source.blob(own)) {
        case .top(let record): return (record, nil)
        case .single(let record, let link) where record.isDirectory: return (record, link)
        default: throw InvalidTree("a %dir that is no directory's record")
        }
    }

    /// Reads only the shard that the name belongs to.
    public func child(_ name: FileName, from source: some TreeSource) throws -> TreeChild? {
        try shard.child(name.escaped, hash: { PureSHA256.digest(name.bytes) }, source)
    }

    /// Of many names those that are there; reads each shard once.
    func children(
        _ names: some Sequence<FileName>, from source: some TreeSource
    ) throws -> [(name: FileName, child: TreeChild)] {
        var found: [(FileName, TreeChild)] = []
        try shard.find(names.map { ($0, PureSHA256.digest($0.bytes)) }, source) {
            found.append(($0, $1))
        }
        return found
    }

    /// All entries, shard by shard; throws when so few need no shards.
    public func children(
        from source: some TreeSource
    ) throws -> [(name: FileName, child: TreeChild)] {
        try shard.all(source).map { (try Self.name(of: $0), TreeChild($0)) }
    }

    /// How many of its entries are directories; nil when that takes a look at more than this tree.
    public var subdirectoryCount: Int? {
        guard case .flat(let entries) = shard.form else { return nil }
        return entries.count { $0.kind == .tree }
    }

    static let ownName = Array("%dir".utf8)

    static func name(of entry: TreeEntry) throws(InvalidTree) -> FileName {
        guard let name = FileName(escaped: entry.name) else {
            throw InvalidTree("an entry name that is not canonical")
        }
        return name
    }
}

/// A set of entries that is split by name hash when it is large: a directory's, or part of `inode/`.
///
/// `%` begins no escaped name but by doubling, so a shard's name cannot be an entry's.
struct Shard: Sendable {
    enum Form: Sendable {
        case flat([TreeEntry])
        /// Subtrees by the byte of the hash at this depth.
        case split([UInt8: ObjectID])
    }

    let form: Form
    /// How many bytes of the hash are spent.
    let depth: Int
    let prefix: [UInt8]

    static let empty = Shard(form: .flat([]), depth: 0, prefix: [])

    private init(form: Form, depth: Int, prefix: [UInt8]) {
        self.form = form
        self.depth = depth
        self.prefix = prefix
    }

    /// Entries in the order of Git, without `%dir`.
    init(_ entries: [TreeEntry], depth: Int, prefix: [UInt8]) throws(InvalidTree) {
        self.depth = depth
        self.prefix = prefix
        guard let first = entries.first, Self.index(of: first) != nil else {
            guard entries.count <= Limits.directoryEntriesUnsplitMax else {
                throw InvalidTree("a directory of \(entries.count) entries that is not split")
            }
            form = .flat(entries)
            return
        }
        var shards: [UInt8: ObjectID] = [:]
        for entry in entries {
            guard let index = Self.index(of: entry), entry.kind == .tree else {
                throw InvalidTree("an entry beside shards")
            }
            shards[index] = entry.id
        }
        form = .split(shards)
    }

    init(reading id: ObjectID, depth: Int, prefix: [UInt8], _ source: some TreeSource) throws {
        guard depth < 32 else { throw InvalidTree("shards beyond the length of the hash") }
        let entries = try Self.sortedEntries(of: id, source)
        guard !entries.isEmpty else { throw InvalidTree("an empty shard") }
        try self.init(entries, depth: depth, prefix: prefix)
        guard depth > 0, case .flat = form else { return }
        for entry in entries {
            let hash = PureSHA256.digest(try Self.hashed(entry))
            guard hash.starts(with: prefix) else { throw InvalidTree("an entry in a wrong shard") }
        }
    }

    /// The entry names hash as the file names that they stand for.
    static func hashed(_ entry: TreeEntry) throws(InvalidTree) -> [UInt8] {
        try DirectoryTree.name(of: entry).bytes
    }

    static func sortedEntries(of id: ObjectID, _ source: some TreeSource) throws -> [TreeEntry] {
        let entries = try source.tree(id)
        for (a, b) in zip(entries, entries.dropFirst()) where !TreeEntry.precedesInGit(a, b) {
            throw InvalidTree("tree entries out of order")
        }
        // Git's order lets `a` (blob), `a.b` and `a` (tree) stand in one tree.
        for tree in entries where tree.kind == .tree {
            if find(tree.name, .blob, in: entries) != nil {
                throw InvalidTree("a name that stands twice")
            }
        }
        return entries
    }

    private static func find(_ name: [UInt8], in entries: [TreeEntry]) -> TreeEntry? {
        find(name, .blob, in: entries) ?? find(name, .tree, in: entries)
    }

    private static func find(
        _ name: [UInt8], _ kind: TreeEntry.Kind, in entries: [TreeEntry]
    ) -> TreeEntry? {
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].precedesInGit(name, kind) { low = middle + 1 } else { high = middle }
        }
        guard low < entries.count, entries[low].kind == kind, entries[low].name == name
        else { return nil }
        return entries[low]
    }

    /// `%xx`
    static func name(_ index: UInt8) -> [UInt8] { [0x25] + Array(Hex.encode([index]).utf8) }

    private static func index(of entry: TreeEntry) -> UInt8? {
        guard entry.name.count == 3, entry.name[0] == 0x25 else { return nil }
        return Hex.decode(entry.name[1...])?.first
    }

    func subshard(_ index: UInt8, _ id: ObjectID, _ source: some TreeSource) throws -> Shard {
        try Shard(reading: id, depth: depth + 1, prefix: prefix + [index], source)
    }

    func child(
        _ name: [UInt8], hash: () -> [UInt8], _ source: some TreeSource
    ) throws -> TreeChild? {
        switch form {
        case .flat(let entries): return Self.find(name, in: entries).map(TreeChild.init)
        case .split(let shards):
            let hash = hash()
            guard let id = shards[hash[depth]] else { return nil }
            return try subshard(hash[depth], id, source).child(name, hash: { hash }, source)
        }
    }

    /// - Parameter names: With their hashes.
    func find(
        _ names: [(name: FileName, hash: [UInt8])], _ source: some TreeSource,
        _ found: (FileName, TreeChild) -> Void
    ) throws {
        switch form {
        case .flat(let entries):
            for (name, _) in names {
                if let entry = Self.find(name.escaped, in: entries) {
                    found(name, TreeChild(entry))
                }
            }
        case .split(let shards):
            for (index, group) in Dictionary(grouping: names, by: { $0.hash[depth] }) {
                guard let id = shards[index] else { continue }
                try subshard(index, id, source).find(group, source, found)
            }
        }
    }

    /// Throws when so few entries need no shards.
    func all(_ source: some TreeSource) throws -> [TreeEntry] {
        switch form {
        case .flat(let entries): return entries
        case .split(let shards):
            let all = try shards.sorted { $0.key < $1.key }.flatMap { index, id in
                try subshard(index, id, source).all(source)
            }
            guard all.count > Limits.directoryEntriesUnsplitMax else {
                throw InvalidTree("a directory of \(all.count) entries that is split")
            }
            return all
        }
    }

    /// The same in Git's order: the parts of a split one follow each other by hash.
    func allInOrder(_ source: some TreeSource) throws -> [TreeEntry] {
        if case .flat(let entries) = form { return entries }
        return try all(source).sorted(by: TreeEntry.precedesInGit)
    }

    /// Whether there are more entries than a flat tree holds; reads no more than it takes to tell.
    func isLarge(_ source: some TreeSource) throws -> Bool {
        var budget = Limits.directoryEntriesUnsplitMax
        return try exceeds(&budget, source)
    }

    private func exceeds(_ budget: inout Int, _ source: some TreeSource) throws -> Bool {
        switch form {
        case .flat(let entries):
            budget -= entries.count
            return budget < 0
        case .split(let shards):
            for index in shards.keys.sorted() {
                guard let id = shards[index] else { continue }
                if try subshard(index, id, source).exceeds(&budget, source) { return true }
            }
            return false
        }
    }
}

// MARK: - Writing

/// One entry to put at a name, or nil to remove it.
struct ShardChange {
    let name: [UInt8]
    /// What is hashed: the file name.
    let hashed: [UInt8]
    let child: TreeChild?

    init(_ name: FileName, _ child: TreeChild?) {
        self.name = name.escaped
        hashed = name.bytes
        self.child = child
    }
}

extension Shard {
    /// The entries of the Git tree (without `%dir`) after some changes; shards that no change
    /// touches are neither read nor written.
    func changed<Sink: TreeSink>(
        by changes: [ShardChange], _ source: some TreeSource, _ sink: inout Sink
    ) throws -> [TreeEntry] {
        switch form {
        case .flat(let entries):
            return try Self.arrange(Self.merge(entries, changes), depth: depth, &sink)
        case .split(let shards):
            if let all = try allIfSmall(after: changes, source) {
                return try Self.arrange(all, depth: depth, &sink)
            }
            let groups = Dictionary(grouping: changes) { PureSHA256.digest($0.hashed)[depth] }
            var result = shards
            for (index, group) in groups.sorted(by: { $0.key < $1.key }) {
                let old =
                    try shards[index].map { try subshard(index, $0, source) }
                    ?? Shard(form: .flat([]), depth: depth + 1, prefix: prefix + [index])
                let entries = try old.changed(by: group, source, &sink)
                result[index] = entries.isEmpty ? nil : try sink.write(tree: entries)
            }
            return Shard(form: .split(result), depth: depth, prefix: prefix).entries
        }
    }

    /// The entries after the changes if they no longer need shards. Only removals can do that, and
    /// unless they are nearly all entries, a few shards tell that enough remain.
    private func allIfSmall(
        after changes: [ShardChange], _ source: some TreeSource
    ) throws -> [TreeEntry]? {
        let removals = changes.count { $0.child == nil }
        if removals == 0 { return nil }
        var budget = Limits.directoryEntriesUnsplitMax + removals
        if try exceeds(&budget, source) { return nil }
        let all = Self.merge(try all(source).sorted(by: TreeEntry.precedesInGit), changes)
        return all.count > Limits.directoryEntriesUnsplitMax ? nil : all
    }

    var entries: [TreeEntry] {
        switch form {
        case .flat(let entries): entries
        case .split(let shards):
            shards.sorted { $0.key < $1.key }.map {
                TreeEntry(name: Self.name($0.key), kind: .tree, id: $0.value)
            }
        }
    }

    /// Entries in the order of Git, before and after.
    private static func merge(_ entries: [TreeEntry], _ changes: [ShardChange]) -> [TreeEntry] {
        var changed: [[UInt8]: TreeEntry?] = [:]
        for change in changes {
            let entry = change.child.map {
                TreeEntry(name: change.name, kind: $0.entryKind, id: $0.id)
            }
            changed.updateValue(entry, forKey: change.name)
        }
        var added = changed.values.compactMap(\.self).sorted(by: TreeEntry.precedesInGit)[...]
        var merged: [TreeEntry] = []
        merged.reserveCapacity(entries.count + added.count)
        for entry in entries where changed[entry.name] == nil {
            while let first = added.first, TreeEntry.precedesInGit(first, entry) {
                merged.append(added.removeFirst())
            }
            merged.append(entry)
        }
        return merged + added
    }

    /// Splits what is too large, from the ground up.
    private static func arrange<Sink: TreeSink>(
        _ entries: [TreeEntry], depth: Int, _ sink: inout Sink
    ) throws -> [TreeEntry] {
        if entries.count <= Limits.directoryEntriesUnsplitMax { return entries }
        guard depth < 32 else { throw InvalidTree("shards beyond the length of the hash") }
        var groups: [UInt8: [TreeEntry]] = [:]
        for entry in entries {
            groups[PureSHA256.digest(try hashed(entry))[depth], default: []].append(entry)
        }
        return try groups.sorted { $0.key < $1.key }.map { index, group in
            let tree = try arrange(group, depth: depth + 1, &sink)
            return TreeEntry(name: name(index), kind: .tree, id: try sink.write(tree: tree))
        }
    }

    static func written<Sink: TreeSink>(
        _ changes: [ShardChange], _ sink: inout Sink
    ) throws -> [TreeEntry] {
        try arrange(merge([], changes), depth: 0, &sink)
    }
}
