import Synchronization
public import SystemPackage
public import Volume

/// Whether a received pack may hold objects that no expected commit needs.
public enum UnrelatedObjects: Sendable {
    /// For packs made for us: nothing but what was asked for gets in.
    case refused
    /// For pack files copied as they are: they hold what their owner gave up as well.
    case kept
}

/// Commits that were received and are not accepted yet, in front of what is here.
///
/// What a validation reads from: trees, blobs and the graph including the new commits up to and
/// with the one under validation. Used on the thread of `History.receive` only.
public final class Intake: TreeSource, CommitGraph {
    private let history: History
    private let database: ObjectDatabase
    private var trees = TreeCache()
    private var fresh: [ObjectID: (commit: Commit, generation: Int)] = [:]

    init(history: History, quarantine: FilePath) throws {
        self.history = history
        database = try ObjectDatabase(
            objects: history.path.appending("objects"), also: [quarantine])
    }

    public func tree(_ id: ObjectID) throws -> [TreeEntry] {
        try packedTree(id).unpacked
    }

    public func blob(_ id: ObjectID) throws -> [UInt8] {
        try database.read(id, as: .blob)
    }

    /// Throws `notFound` for one that is not known, as do the others.
    public func commit(_ id: ObjectID) throws -> Commit {
        if let known = fresh[id] { return known.commit }
        return try Commit(decoding: database.read(id, as: .commit))
    }

    public func parents(of id: ObjectID) throws -> [ObjectID] {
        try fresh[id]?.commit.parents ?? history.graph.parents(of: id)
    }

    public func generation(of id: ObjectID) throws -> Int {
        try fresh[id]?.generation ?? history.graph.generation(of: id)
    }

    /// The top tree of a commit.
    public func tree(of id: ObjectID) throws -> ObjectID {
        try fresh[id]?.commit.tree ?? history.graph.tree(of: id)
    }

    func packedTree(_ key: ObjectID) throws -> PackedTree {
        if let tree = trees.tree(key) { return tree }
        do {
            let tree = try PackedTree(parsing: database.read(key, as: .tree))
            trees.keep(tree, key)
            return tree
        } catch let error as HistoryError where error.code == .notFound {
            throw HistoryError(.incomplete, "receive", error.message)
        }
    }

    func requireBlob(_ key: ObjectID) throws {
        guard let header = try database.header(key) else {
            throw HistoryError(.incomplete, "receive", "blob \(key) is missing")
        }
        guard header.kind == .blob else {
            throw HistoryError(.malformed, "receive", "\(key) is not a blob")
        }
        guard header.size <= ObjectKind.blob.bytesMax else {
            throw HistoryError(.tooLarge, "receive", "blob \(key) has \(header.size) bytes")
        }
    }

    func take(_ commit: Commit) throws {
        let greatest = try commit.parents.map { try generation(of: $0) }.max() ?? 0
        fresh[commit.id] = (commit, greatest + 1)
    }

    /// The commits that lead to `heads` and are not in the graph, parents first.
    func newCommits(leadingTo heads: [ObjectID]) throws -> [Commit] {
        var result: [Commit] = []
        var done: Set<ObjectID> = []
        var read: [ObjectID: Commit] = [:]
        var stack = heads
        while let key = stack.last {
            guard !done.contains(key), !history.graph.contains(key) else {
                stack.removeLast()
                continue
            }
            if let commit = read[key] {
                // Second time: its parents are done.
                stack.removeLast()
                done.insert(key)
                read[key] = nil
                result.append(commit)
                continue
            }
            guard done.count + read.count < HistoryLimits.receivedCommitsMax else {
                throw HistoryError(.tooLarge, "receive", "too many commits")
            }
            guard let object = try database.read(key) else {
                throw HistoryError(.incomplete, "receive", "commit \(key) is missing")
            }
            guard object.kind == .commit else {
                throw HistoryError(.malformed, "receive", "\(key) is not a commit")
            }
            let commit = try Commit(decoding: object.bytes)
            read[key] = commit
            stack += commit.parents
        }
        return result
    }
}

/// What comes from a peer.
extension History {
    /// Takes commits from packs that a peer sent, all or nothing.
    ///
    /// Everything stays in quarantine until it is proven: the packs are scanned and indexed, then
    /// each new commit, parents first, is walked against its parents (every tree and blob present,
    /// of the right kind, canonical, within limits) and given to `validate`. Then packs and indexes
    /// move in, fsynced. No reference is changed. The packs themselves are left where they are.
    ///
    /// - Parameters:
    ///   - packs: files that nobody else changes.
    ///   - heads: the commits that must be whole afterwards; at least one.
    ///   - validate: the volume's own rules; what it throws is thrown on.
    /// - Returns: the new commits, parents first; none if all heads were known.
    @discardableResult
    public func receive(
        packs files: [FilePath], heads: [ObjectID], unrelated: UnrelatedObjects = .refused,
        validate: (Commit, Intake) throws -> Void = { _, _ in }
    ) throws -> [Commit] {
        guard !heads.isEmpty else {
            throw HistoryError(.malformed, "receive", "without heads nothing could be proven")
        }
        let quarantine = try makeQuarantine()
        defer { try? Files.removeTree(quarantine) }
        let received = PackFiles(directory: quarantine.appending("pack"))
        for file in files {
            _ = try PackScan.scan(file)
            _ = try Indexer.index(file, into: received.directory)
        }
        let commits = try prove(
            heads: heads, quarantine: quarantine, unrelated: unrelated, validate: validate)
        guard !commits.isEmpty else { return [] }
        for pack in try received.list() { try packs.takeOver(pack.name, from: received) }
        try readers.refresh()
        try enter(commits)
        return commits
    }

    /// The same for one pack in memory.
    @discardableResult
    public func receive(
        pack bytes: [UInt8], heads: [ObjectID], unrelated: UnrelatedObjects = .refused,
        validate: (Commit, Intake) throws -> Void = { _, _ in }
    ) throws -> [Commit] {
        let directory = try makeQuarantine()
        defer { try? Files.removeTree(directory) }
        let path = directory.appending("received")
        let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .exclusiveCreate, .closeOnExec],
            permissions: .ownerReadWrite)
        do {
            defer { try? file.close() }
            try file.writeAll(bytes)
        }
        return try receive(
            packs: [path], heads: heads, unrelated: unrelated, validate: validate)
    }

    private func prove(
        heads: [ObjectID], quarantine: FilePath, unrelated: UnrelatedObjects,
        validate: (Commit, Intake) throws -> Void
    ) throws -> [Commit] {
        let intake = try Intake(history: self, quarantine: quarantine)
        let commits = try intake.newCommits(leadingTo: heads)
        let proven = Proven()
        var walk = ObjectWalk(
            read: { try intake.packedTree($0) },
            visit: { key, kind in
                if kind == .blob { try intake.requireBlob(key) }
                if unrelated == .refused { proven.keys.insert(key) }
            })
        for commit in commits {
            let parents = try commit.parents.map { try intake.tree(of: $0) }
            try walk.walk(commit.tree, against: parents)
            try intake.take(commit)
            try validate(commit, intake)
            proven.keys.insert(commit.id)
        }
        if unrelated == .refused {
            let received = try ObjectDatabase(objects: quarantine)
            try received.forEach { key in
                guard try proven.keys.contains(key) || contains(key) else {
                    throw HistoryError(.unrelated, "receive", "nothing needs \(key)")
                }
            }
        }
        return commits
    }

    /// Ids that some new commit needs.
    private final class Proven { var keys: Set<ObjectID> = [] }

    func enter(_ commits: [Commit]) throws {
        try table.withLock { table in
            for commit in commits {
                try table.insert(
                    key: commit.id, tree: commit.tree,
                    parents: commit.parents)
            }
        }
    }
}
