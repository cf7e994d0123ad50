public import Volume

/// A commit as a simulated node's table has it.
public struct SimulatedCommit: Hashable, Sendable {
    public let id: ObjectID
    public let parents: [ObjectID]
    public let tree: ObjectID
    public let generation: Int
    public let message: CommitMessage

    init(parents: [ObjectID], tree: ObjectID, generation: Int, message: CommitMessage) {
        self.parents = parents
        self.tree = tree
        self.generation = generation
        self.message = message
        let bytes = tree.bytes + parents.flatMap(\.bytes) + message.encoded
        guard let id = ObjectID(bytes: Array(PureSHA256.digest(bytes).prefix(20))) else {
            preconditionFailure("a digest has 32 bytes")
        }
        self.id = id
    }

    public var isMerge: Bool { parents.count > 1 }
}

/// The commits that one node knows: always with all their ancestors.
public struct CommitTable: CommitGraph, Sendable {
    struct Unknown: Error { let commit: ObjectID }

    public private(set) var commits: [ObjectID: SimulatedCommit] = [:]

    func commit(_ id: ObjectID) throws -> SimulatedCommit {
        guard let commit = commits[id] else { throw Unknown(commit: id) }
        return commit
    }

    mutating func insert(_ commit: SimulatedCommit) { commits[commit.id] = commit }

    public func parents(of commit: ObjectID) throws -> [ObjectID] {
        try self.commit(commit).parents
    }

    public func tree(of commit: ObjectID) throws -> ObjectID { try self.commit(commit).tree }

    public func generation(of commit: ObjectID) throws -> Int {
        try self.commit(commit).generation
    }

    func generation(above parents: [ObjectID]) throws -> Int {
        try (parents.map { try generation(of: $0) }.max() ?? -1) + 1
    }

    /// The commits of another table that this one lacks, every one after its parents.
    func missing(_ head: ObjectID, from other: CommitTable) throws -> [SimulatedCommit] {
        var found: [ObjectID: SimulatedCommit] = [:]
        var waiting = [head]
        while let id = waiting.popLast() {
            guard commits[id] == nil, found[id] == nil else { continue }
            let commit = try other.commit(id)
            found[id] = commit
            waiting += commit.parents
        }
        return found.values.sorted { ($0.generation, $0.id) < ($1.generation, $1.id) }
    }
}

/// One node of a simulated volume: real clock, commits, merges and convergence around a live state
/// of plain values.
public struct SimulatedNode {
    public let id: NodeID
    /// What its wall clock is off by, milliseconds.
    let skew: Int
    public private(set) var space: Namespace
    public private(set) var commits: CommitTable
    public private(set) var heads: HeadConvergence
    private var clock: HybridClock
    /// Of the applied commit.
    private var trees: [LineageID: ObjectID]
    /// Joined, and still without the full graph: adopts, commits, but does not merge.
    private(set) var isJoining = false
    /// Contents that this node replaced or removed, knowing them.
    public private(set) var removed: Set<Body> = []
    /// What the applied commit holds, by the stamp of the write.
    private var known: [Stamp: Body] = [:]
    /// Contents that it committed.
    public private(set) var written: Set<Body> = []

    static let settings = VolumeSettings(
        volume: "simulated", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0))

    /// The node that creates the volume.
    init(creating id: NodeID, skew: Int, objects: inout MemoryObjects) throws {
        let birth = Stamp(milliseconds: 1, counter: 0, node: id)
        var space = Namespace(born: birth)
        let outcome = try commitTree(
            onto: nil, dirty: DirtySet(), live: CommittedNamespace(space: space, trees: [:]),
            settings: Self.settings, nodes: [:], source: objects, sink: &objects)
        space.markClean()
        let first = SimulatedCommit(
            parents: [], tree: outcome.root, generation: 0,
            message: CommitMessage(kind: .change(id), newestStamp: birth))
        self.id = id
        self.skew = skew
        self.space = space
        trees = outcome.trees.compactMapValues(\.self)
        commits = CommitTable()
        commits.insert(first)
        heads = HeadConvergence(applied: first.id, at: .zero)
        clock = HybridClock(node: id, floor: birth.milliseconds)
    }

    /// A node that joins: it has a peer's head at once, and the graph below it later.
    init(
        joining id: NodeID, skew: Int, from peer: SimulatedNode, at now: Int, objects: MemoryObjects
    ) throws {
        self.id = id
        self.skew = skew
        let head = try peer.commits.commit(peer.heads.announced[0])
        commits = CommitTable()
        commits.insert(head)
        clock = HybridClock(node: id, floor: 1)
        clock.observe(head.message.newestStamp)
        heads = HeadConvergence(applied: head.id, at: .milliseconds(now))
        space = Namespace(records: [:], entries: [:])
        let all = try difference(from: nil, to: head.tree, source: objects)
        space.apply(all)
        trees = all.trees.compactMapValues(\.self)
        known = space.contents
        isJoining = true
    }

    // MARK: Writing

    mutating func operate(_ operations: inout RandomOperations, at now: Int) {
        operations.perform(on: &space, clock: &clock, wall: UInt64(now + skew))
    }

    /// Commits what is dirty.
    mutating func commit(at now: Int, _ objects: inout MemoryObjects) throws {
        let dirty = DirtySet(places: space.dirtyPlaces, records: space.dirtyRecords)
        if dirty.isEmpty { return }
        let parent = try commits.commit(heads.applied)
        let outcome = try commitTree(
            onto: parent.tree, dirty: dirty,
            live: CommittedNamespace(space: space, trees: trees), settings: Self.settings,
            nodes: [:], source: objects, sink: &objects)
        space.apply(outcome.adoptions)
        space.markClean()
        if outcome.root == parent.tree { return }
        for (id, tree) in outcome.trees { trees[id] = tree }
        let newest = max(
            parent.message.newestStamp, outcome.newestStamp ?? parent.message.newestStamp)
        let commit = SimulatedCommit(
            parents: [parent.id], tree: outcome.root, generation: parent.generation + 1,
            message: CommitMessage(kind: .change(id), newestStamp: newest))
        commits.insert(commit)
        try heads.committed(commit.id, at: .milliseconds(now), graph: commits)
        let contents = space.contents
        for (stamp, body) in known where contents[stamp] == nil { removed.insert(body) }
        written.formUnion(contents.values)
        known = contents
    }

    // MARK: Peers

    /// Fetches a head that a peer told, validates what is new, and takes it in.
    mutating func receive(
        _ head: ObjectID, from peer: CommitTable, at now: Int, _ objects: MemoryObjects
    ) throws {
        guard !isJoining else { return }
        for commit in try commits.missing(head, from: peer) {
            let old = try commit.parents.first.map { try commits.tree(of: $0) }
            _ = try difference(from: old, to: commit.tree, source: objects)
            commits.insert(commit)
        }
        try heads.received([head], at: .milliseconds(now), graph: commits)
    }

    /// The rest of the graph has arrived: from now on this node merges.
    mutating func complete(from peer: CommitTable) throws {
        for commit in peer.commits.values where commits.commits[commit.id] == nil {
            commits.insert(commit)
        }
        isJoining = false
    }

    /// Performs what convergence asks for.
    ///
    /// - Returns: The heads to announce, and when to call again.
    mutating func step(
        at now: Int, rank: Int, _ objects: inout MemoryObjects
    ) throws -> (announcements: [ObjectID], wake: Int?) {
        var announcements: [ObjectID] = []
        while true {
            switch heads.next(at: .milliseconds(now), rank: rank) {
            case .announce(let commit): announcements.append(commit)
            case .adopt(let commit):
                // The parent of a local commit is what the live state is: first that, then others.
                try self.commit(at: now, &objects)
                guard heads.announced == [commit] else { continue }
                try apply(try commits.commit(commit), objects)
                heads.adopted(commit)
            case .merge(let parents):
                try self.commit(at: now, &objects)
                guard heads.announced == parents else { continue }
                let merge = try merged(parents, &objects)
                try apply(merge, objects)
                heads.merged(parents, into: merge.id)
            case .wait(let until):
                let wake = until.map { Int($0 / .milliseconds(1)) + 1 }
                return (announcements, wake)
            }
        }
    }

    private mutating func merged(
        _ parents: [ObjectID], _ objects: inout MemoryObjects
    ) throws -> SimulatedCommit {
        let folded = try foldHeads(parents, graph: commits, source: objects, sink: &objects)
        precondition(folded.parents == parents, "announced heads are sorted and maximal")
        let stamps = try parents.map { try commits.commit($0).message.newestStamp }
        guard let newest = stamps.max() else { preconditionFailure("a merge has parents") }
        let message = CommitMessage(kind: .merge(rules: VolumeSettings.rules), newestStamp: newest)
        let commit = SimulatedCommit(
            parents: parents, tree: folded.tree, generation: try commits.generation(above: parents),
            message: message)
        commits.insert(commit)
        return commit
    }

    private mutating func apply(_ commit: SimulatedCommit, _ objects: MemoryObjects) throws {
        let old = try commits.tree(of: heads.applied)
        let change = try difference(from: old, to: commit.tree, source: objects)
        space.apply(change)
        for (id, tree) in change.trees { trees[id] = tree }
        known = space.contents
        clock.observe(commit.message.newestStamp)
    }

    // MARK: Checking

    /// Whether the live state, encoded as a whole, is the tree that patch upon patch has led to.
    public func isConsistent(_ objects: inout MemoryObjects) throws -> Bool {
        let whole = try commitTree(
            onto: nil, dirty: DirtySet(), live: CommittedNamespace(space: space, trees: [:]),
            settings: Self.settings, nodes: [:], source: objects, sink: &objects)
        return try whole.root == commits.tree(of: heads.applied)
    }
}
