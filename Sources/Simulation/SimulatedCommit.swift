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

/// The commits that one node knows: always with all their ancestors, but for one that is joining.
public struct CommitTable: CommitGraph {
    struct Unknown: Error { let commit: ObjectID }

    public private(set) var known: Set<ObjectID> = []
    private let work: SharedWork

    init(_ work: SharedWork) { self.work = work }

    func commit(_ id: ObjectID) throws -> SimulatedCommit {
        guard known.contains(id), let commit = work.commits[id] else { throw Unknown(commit: id) }
        return commit
    }

    mutating func insert(_ commit: ObjectID) { known.insert(commit) }

    mutating func formUnion(_ others: Set<ObjectID>) { known.formUnion(others) }

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
            guard !known.contains(id), found[id] == nil else { continue }
            let commit = try other.commit(id)
            found[id] = commit
            waiting += commit.parents
        }
        return found.values.sorted { ($0.generation, $0.id) < ($1.generation, $1.id) }
    }

    /// A commit and all below it.
    func ancestry(of head: ObjectID) throws -> Set<ObjectID> {
        var found: Set<ObjectID> = [head]
        var waiting = [head]
        while let id = waiting.popLast() {
            for parent in try parents(of: id) where found.insert(parent).inserted {
                waiting.append(parent)
            }
        }
        return found
    }
}

/// Content of one file, as one write made it.
struct ContentVersion: Hashable {
    let id: LineageID
    let stamp: Stamp
    let body: Body
}

/// What the live state of a node is and which commit it represents, apart from what is dirty.
struct Rows {
    var space: Namespace
    /// Of the applied commit.
    var trees: [LineageID: ObjectID]
    /// What the files of the applied commit hold.
    var contents: [LineageID: ContentVersion]
    var applied: ObjectID
    /// No stamp up to here is given after a restart.
    var clockFloor: UInt64
}

/// What a local commit did to contents, knowing them.
struct ContentChange {
    let held: Set<Body>
    /// Replaced or removed.
    let removed: Set<Body>
    /// Replaced in a file that lives on.
    let replaced: Set<ContentVersion>
    /// Files that are gone.
    let ended: Set<LineageID>

    init(from old: [LineageID: ContentVersion], to new: [LineageID: ContentVersion]) {
        held = Set(new.values.map(\.body))
        let kept = Self.counts(new)
        // Of two files that a merge of equal ones gave one stamp, one may go.
        let had = Self.counts(old)
        removed = Set(
            old.values.filter { kept[$0.stamp, default: 0] < had[$0.stamp, default: 0] }.map(\.body)
        )
        replaced = Set(old.values.filter { kept[$0.stamp] == nil && new[$0.id] != nil })
        ended = Set(old.keys.filter { new[$0] == nil })
    }

    private static func counts(_ versions: [LineageID: ContentVersion]) -> [Stamp: Int] {
        versions.values.reduce(into: [:]) { $0[$1.stamp, default: 0] += 1 }
    }
}
