import CGit
public import Volume

/// An object that is not on the disk yet.
struct StagedObject: Sendable {
    let kind: ObjectKind
    let bytes: [UInt8]
}

/// New objects, gathered in memory until `History.write` puts them into one pack.
///
/// Reads see what was written before. What the repository has is not written again. Valid only
/// inside the closure it is given to, on its thread.
public struct Batch: TreeSink, TreeSource {
    let history: History
    private(set) var objects: [ObjectID: StagedObject] = [:]
    private(set) var commits: [Commit] = []
    private var bytes = 0

    init(history: History) { self.history = history }

    public mutating func write(blob: [UInt8]) throws -> ObjectID {
        try stage(.blob, blob)
    }

    public mutating func write(tree: [TreeEntry]) throws -> ObjectID {
        try stage(.tree, PackedTree.encode(tree).bytes)
    }

    /// Its tree and parents must be in the batch or the repository; throws `incomplete` otherwise,
    /// for parents when the batch ends.
    public mutating func write(commit: Commit) throws -> ObjectID {
        let tree = commit.tree
        guard try objects[tree] != nil || history.contains(tree) else {
            throw HistoryError(.incomplete, "commit", "tree \(tree) was not written")
        }
        let key = try stage(.commit, commit.encoded)
        commits.append(commit)
        return key
    }

    public func tree(_ id: ObjectID) throws -> [TreeEntry] {
        guard let staged = objects[id] else { return try history.tree(id) }
        guard staged.kind == .tree else {
            throw HistoryError(.malformed, "read", "\(id) is a \(staged.kind), not a tree")
        }
        return try PackedTree(parsing: staged.bytes).unpacked
    }

    public func blob(_ id: ObjectID) throws -> [UInt8] {
        guard let staged = objects[id] else { return try history.blob(id) }
        guard staged.kind == .blob else {
            throw HistoryError(.malformed, "read", "\(id) is a \(staged.kind), not a blob")
        }
        return staged.bytes
    }

    public func commit(_ id: ObjectID) throws -> Commit? {
        try commits.last { $0.id == id } ?? history.commit(id)
    }

    private mutating func stage(_ kind: ObjectKind, _ data: [UInt8]) throws -> ObjectID {
        let key = try kind.id(of: data)
        guard objects[key] == nil, try !history.contains(key) else { return key }
        if bytes + data.count > HistoryLimits.batchBytesMax
            || objects.count >= HistoryLimits.batchObjectsMax
        {
            // A part is harmless without the rest: nothing refers to it yet.
            try spill()
        }
        objects[key] = StagedObject(kind: kind, bytes: data)
        bytes += data.count
        return key
    }

    /// Writes what is gathered, durably.
    mutating func spill() throws {
        try history.writePack(objects)
        objects.removeAll()
        bytes = 0
    }
}
