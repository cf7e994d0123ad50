import CGit
import Synchronization
public import SystemPackage
public import Volume

/// What a peer gets.
extension History {
    /// The objects that a peer with the commits `have` lacks to have those `wanted`: commits first,
    /// parents before children, then trees, then blobs. Unknown ids in `have` are passed over.
    ///
    /// Found by tree difference; a little more than necessary is possible. Throws `notFound` for an
    /// unknown commit in `wanted`, `tooLarge` beyond `HistoryLimits.packObjectsMax`: such a peer
    /// copies pack files.
    public func objectList(wanted: [ObjectID], have: [ObjectID]) throws -> [ObjectID] {
        let commits = try graph.commits(from: wanted, excluding: have)
        let found = ObjectList(commits: commits.count)
        var walk = ObjectWalk(read: readers.tree, visit: found.add)
        for commit in commits {
            let (tree, parents) = try trees(of: commit)
            try walk.walk(tree, against: parents)
        }
        return commits + found.trees + found.blobs
    }

    private func trees(of commit: ObjectID) throws -> (ObjectID, [ObjectID]) {
        try table.withLock { table in
            guard let number = table.number(of: commit) else {
                throw HistoryError(.notFound, "graph", "\(commit) is not a known commit")
            }
            return (table.tree(number), table.parents(number).map { table.tree($0) })
        }
    }

    /// A pack of `objectList(wanted:have:)`; nil if there is nothing to send. Throws `tooLarge`
    /// beyond `limit` bytes.
    public func pack(
        wanted: [ObjectID], have: [ObjectID], limit: Int = HistoryLimits.packInMemoryBytesMax
    ) throws -> [UInt8]? {
        var bytes: [UInt8] = []
        let any = try streamPack(wanted: wanted, have: have) { portion in
            guard bytes.count + portion.count <= limit else {
                throw HistoryError(.tooLarge, "pack", "more than \(limit) bytes")
            }
            bytes.append(contentsOf: portion)
        }
        return any ? bytes : nil
    }

    /// The same into a new file, not fsynced; its size in bytes, 0 and no file if there is nothing
    /// to send. Throws `tooLarge` beyond `HistoryLimits.packBytesMax`.
    public func pack(wanted: [ObjectID], have: [ObjectID], into path: FilePath) throws -> Int {
        let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .exclusiveCreate, .closeOnExec],
            permissions: .ownerReadWrite)
        var size = 0
        do {
            defer { try? file.close() }
            _ = try streamPack(wanted: wanted, have: have) { portion in
                size += portion.count
                guard size <= HistoryLimits.packBytesMax else {
                    throw HistoryError(.tooLarge, "pack", "\(size) bytes")
                }
                try file.writeAll(portion)
            }
        } catch {
            try? Files.remove(path)
            throw error
        }
        if size == 0 { try Files.remove(path) }
        return size
    }

    private func streamPack(
        wanted: [ObjectID], have: [ObjectID], _ body: (UnsafeRawBufferPointer) throws -> Void
    ) throws -> Bool {
        let keys = try objectList(wanted: wanted, have: have)
        guard !keys.isEmpty else { return false }
        let writer = try PackWriter(repository: path, settings: newPackSettings)
        for key in keys { try writer.insert(key) }
        try writer.stream(body)
        return true
    }

    /// The pack files for a joiner to copy as they are. A repack may remove one meanwhile: then
    /// `openPack` throws `notFound` and the joiner lists anew.
    public func joinPacks() throws -> [PackFile] { try packs.list() }

    /// Stays readable after the pack was removed. The caller closes it.
    public func openPack(_ name: String) throws -> FileDescriptor {
        guard PackFiles.isName(name) else {
            throw HistoryError(.notFound, "open pack", "not the name of a pack")
        }
        do {
            return try FileDescriptor.open(packs.path(name), .readOnly, options: .closeOnExec)
        } catch let error as Errno {
            throw Files.failure("open pack", packs.path(name), error.rawValue)
        }
    }
}

/// Collects a walk's findings by kind, up to the limit of one pack.
private final class ObjectList {
    private(set) var trees: [ObjectID] = []
    private(set) var blobs: [ObjectID] = []
    private let commits: Int

    init(commits: Int) { self.commits = commits }

    func add(_ key: ObjectID, _ kind: ObjectKind) throws {
        guard commits + trees.count + blobs.count < HistoryLimits.packObjectsMax else {
            throw HistoryError(.tooLarge, "pack", "too many objects; copy pack files instead")
        }
        if kind == .tree { trees.append(key) } else { blobs.append(key) }
    }
}
