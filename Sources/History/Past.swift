public import Volume

/// The volume as a commit has it. Reads what is asked for and no more.
public struct Past: Sendable {
    public typealias Item = TreeItem
    public typealias Directory = TreeItem.Directory

    public let commit: ObjectID
    public let volume: VolumeTree
    let source: any TreeSource & Sendable

    /// Throws `HistoryError` for a commit that is not in the graph.
    public init(_ commit: ObjectID, of history: History) throws {
        self.commit = commit
        source = history
        volume = try VolumeTree(reading: history.graph.tree(of: commit), from: history)
    }

    public func top() throws -> Directory { try volume.directory(volume.root, from: source) }

    /// What stands at a path; nil if nothing does. Empty: the top directory.
    public func item(at path: some Sequence<FileName>) throws -> Item? {
        try entry(at: path).map { try item($0) }
    }

    /// As `item(at:)`, without reading it.
    public func entry(at path: some Sequence<FileName>) throws -> TreeChild? {
        var current = TreeChild.directory(volume.root)
        for name in path {
            guard case .directory(let id) = current,
                let next = try DirectoryTree(reading: id, from: source).child(name, from: source)
            else { return nil }
            current = next
        }
        return current
    }

    public func child(_ name: FileName, in directory: Directory) throws -> Item? {
        try directory.tree.child(name, from: source).map { try item($0) }
    }

    /// Entries behind the cookie (0: from the start; those of entries begin at 16): at least `limit`
    /// if there are so many. `item` reads one of them.
    public func list(
        _ directory: Directory, after cookie: UInt64 = 0, limit: Int
    ) throws -> [(cookie: UInt64, name: FileName, child: TreeChild)] {
        try directory.tree.children(after: cookie, limit: limit, from: source)
    }

    public func item(_ child: TreeChild) throws -> Item { try volume.item(child, from: source) }
}
