/// One thing of a commit's tree: a record, a name, or, as most are, both.
public struct ListedEntry: Sendable {
    /// Nil where the name leads to a shared record, which was listed before.
    public var record: Record?
    /// How many names lead to the record, for a shared one.
    public var links: UInt32 = 1
    /// Nil for the top directory and for shared records.
    public var name: (place: Place, link: Link)?
    /// Of a directory: its Git tree.
    public var tree: ObjectID?
}

/// Lists all of a commit's tree, one directory in memory at a time: what `difference` from nothing
/// would gather whole. Directories and shared records come before the names that need them.
///
/// For trees that were validated commit by commit; what is read is decoded as strictly, yet whether
/// every id occurs once, who keeps them must tell.
public func listTree<Source: TreeSource>(
    _ tree: VolumeTree, from source: Source, _ body: (ListedEntry) throws -> Void
) throws {
    let top = try DirectoryTree(reading: tree.root, from: source)
    let (record, link) = try top.record(from: source)
    guard link == nil else { throw InvalidTree("a top directory with a link") }
    try body(ListedEntry(record: record, tree: tree.root))
    for (_, group) in try InodeTable(tree.inodes).groups(source).sorted(by: { $0.key < $1.key }) {
        for entry in try InodeTable.shard(group, source).all(source) {
            let id = try InodeTable.lineage(entry)
            let (record, links) = try InodeTable.decode(source.blob(entry.id), as: id)
            try body(ListedEntry(record: record, links: UInt32(clamping: links)))
        }
    }
    var pending = [(id: record.id, tree: tree.root, depth: 1)]
    while let directory = pending.popLast() {
        guard directory.depth <= Limits.directoryDepthMax + 1 else {
            throw InvalidTree("directories deeper than \(Limits.directoryDepthMax)")
        }
        let contents = try DirectoryTree(reading: directory.tree, from: source)
        for (name, child) in try contents.children(from: source) {
            let place = Place(directory: directory.id, name: name)
            let entry = try list(child, at: place, source)
            try body(entry)
            guard let tree = entry.tree, let id = entry.record?.id else { continue }
            pending.append((id, tree, directory.depth + 1))
        }
    }
}

private func list(
    _ child: TreeChild, at place: Place, _ source: some TreeSource
) throws -> ListedEntry {
    switch child {
    case .directory(let tree):
        let contents = try DirectoryTree(reading: tree, from: source)
        let (record, link) = try contents.record(from: source)
        guard let link else { throw InvalidTree("a directory without a link") }
        return ListedEntry(record: record, name: (place, link), tree: tree)
    case .blob(let id):
        switch try EntryBlob(decoding: source.blob(id)) {
        case .single(let record, let link) where !record.isDirectory:
            return ListedEntry(record: record, name: (place, link))
        case .reference(let link): return ListedEntry(record: nil, name: (place, link))
        default: throw InvalidTree("a directory's or shared record at a file's place")
        }
    }
}
