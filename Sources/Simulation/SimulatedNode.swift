public import Volume

/// The node ends here, in the middle of what it does.
struct SimulatedCrash: Error {}

/// One node of a simulated volume: real clock, commits, merges and convergence around a live state
/// of plain values.
///
/// What is durable when: commits that were fetched, and that they are heads, at once; operations and
/// own commits by the next `flush`, as the catalog's group commit does it.
public struct SimulatedNode {
    /// Where a node may crash besides between two events.
    enum FailurePoint: CaseIterable {
        /// The objects of a commit or merge are written, the rows do not represent it yet.
        case objectsWritten
        /// The rows represent it durably, nobody was told.
        case applied
    }

    /// What a merge takes for each head, as far as convergence paces itself by it.
    private static let mergeTime = Duration.milliseconds(5)

    private struct Durable {
        var rows: Rows
        var heads: [ObjectID]
    }

    public let id: NodeID
    /// What its wall clock is off by, milliseconds.
    var skew: Int
    private(set) var commits: CommitTable
    public private(set) var heads: HeadConvergence
    private var rows: Rows
    private var durable: Durable
    private var clock: HybridClock
    /// Since its last start or commit; for a mistake that some make on purpose.
    private var arrival: [ObjectID] = []
    /// Joined, and still without the full graph: adopts, commits, but does not merge.
    private(set) var isJoining = false
    /// It will crash when it gets there.
    var failing: FailurePoint?
    private let work: SharedWork
    private let mistakes: SimulatedMistakes

    private static let settings = VolumeSettings(
        volume: "simulated", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0))
    /// The clock's floor is reserved so far ahead, milliseconds.
    private static let clockReserve: UInt64 = 10_000

    public var space: Namespace { rows.space }
    public var applied: ObjectID { rows.applied }

    /// The node that creates the volume.
    init(
        creating id: NodeID, skew: Int, _ work: SharedWork, mistakes: SimulatedMistakes
    ) throws {
        let birth = Stamp(milliseconds: 1, counter: 0, node: id)
        var space = Namespace(born: birth)
        var sink = work.objects
        let outcome = try commitTree(
            onto: nil, dirty: DirtySet(), live: CommittedNamespace(space: space, trees: [:]),
            settings: Self.settings, nodes: [:], source: work.objects, sink: &sink)
        space.markClean()
        let first = SimulatedCommit(
            parents: [], tree: outcome.root, generation: 0,
            message: CommitMessage(kind: .change(id), newestStamp: birth))
        work.insert(first)
        self.init(
            id, skew, work, mistakes,
            Rows(
                space: space, trees: outcome.trees.compactMapValues(\.self), contents: [:],
                applied: first.id, clockFloor: birth.milliseconds), at: 0)
    }

    /// A node that joins: it has a peer's head at once, and the graph below it later.
    init(
        joining id: NodeID, skew: Int, from peer: SimulatedNode, at now: Int, _ work: SharedWork,
        mistakes: SimulatedMistakes
    ) throws {
        let head = try peer.commits.commit(peer.heads.announced[0])
        let all = try difference(from: nil, to: head.tree, source: work.objects)
        var rows = Rows(
            space: Namespace(records: [:], entries: [:]),
            trees: all.trees.compactMapValues(\.self), contents: [:], applied: head.id,
            clockFloor: 1)
        rows.space.apply(all)
        rows.contents = rows.space.contents
        self.init(id, skew, work, mistakes, rows, at: now)
        observe(head)
        flush()
        isJoining = true
    }

    private init(
        _ id: NodeID, _ skew: Int, _ work: SharedWork, _ mistakes: SimulatedMistakes, _ rows: Rows,
        at now: Int
    ) {
        self.id = id
        self.skew = skew
        self.work = work
        self.mistakes = mistakes
        self.rows = rows
        commits = CommitTable(work)
        commits.insert(rows.applied)
        durable = Durable(rows: rows, heads: [rows.applied])
        heads = HeadConvergence(applied: rows.applied, at: .milliseconds(now))
        clock = HybridClock(node: id, floor: rows.clockFloor)
    }

    // MARK: Durability

    /// What the group commit does.
    mutating func flush() { durable.rows = rows }

    private func pass(_ point: FailurePoint) throws {
        if failing == point { throw SimulatedCrash() }
    }

    /// The process has ended and starts again: from what was durable, and, unless power was lost,
    /// from what was answered.
    mutating func restart(at now: Int, losingPower: Bool) throws {
        failing = nil
        if losingPower { rows = durable.rows } else { flush() }
        clock = HybridClock(node: id, floor: rows.clockFloor)
        let applied = try commits.commit(rows.applied)
        let time = Duration.milliseconds(now)
        // A merge that the rows represent has perhaps never left this node.
        heads =
            applied.isMerge && !isJoining
            ? HeadConvergence(applied: applied.id, merging: applied.parents, at: time)
            : HeadConvergence(applied: applied.id, at: time)
        arrival = heads.announced
        if !isJoining { try heads.received(durable.heads, at: time, graph: commits) }
    }

    // MARK: Writing

    mutating func operate(_ operations: inout RandomOperations, at now: Int) {
        operations.perform(on: &rows.space, clock: &clock, wall: UInt64(max(0, now + skew)))
        reserveClock()
    }

    private mutating func reserveClock() {
        if clock.milliseconds >= rows.clockFloor {
            rows.clockFloor = clock.milliseconds + Self.clockReserve
        }
    }

    private mutating func observe(_ commit: SimulatedCommit) {
        clock.observe(commit.message.newestStamp)
        reserveClock()
    }

    /// Commits what is dirty.
    mutating func commit(at now: Int) throws {
        let dirty = DirtySet(places: space.dirtyPlaces, records: space.dirtyRecords)
        if dirty.isEmpty { return }
        flush()
        let isMistaken = mistakes.contains(.parentIsAnnounced) && !isJoining
        let parent = try commits.commit(isMistaken ? heads.announced[0] : rows.applied)
        var sink = work.objects
        let outcome = try commitTree(
            onto: isMistaken ? nil : parent.tree, dirty: dirty,
            live: CommittedNamespace(space: space, trees: rows.trees), settings: Self.settings,
            nodes: [:], source: work.objects, sink: &sink)
        var next = rows
        next.space.apply(outcome.adoptions)
        next.space.markClean()
        guard outcome.root != parent.tree else {
            rows = next
            return flush()
        }
        for (id, tree) in outcome.trees { next.trees[id] = tree }
        next.contents = next.space.contents
        let newest = max(
            parent.message.newestStamp, outcome.newestStamp ?? parent.message.newestStamp)
        let commit = SimulatedCommit(
            parents: [parent.id], tree: outcome.root, generation: parent.generation + 1,
            message: CommitMessage(kind: .change(id), newestStamp: newest))
        next.applied = commit.id
        try pass(.objectsWritten)
        work.insert(commit, ContentChange(from: rows.contents, to: next.contents))
        commits.insert(commit.id)
        rows = next
        flush()
        try pass(.applied)
        try heads.committed(commit.id, at: .milliseconds(now), graph: commits)
        arrival = [commit.id]
        durable.heads = heads.announced
    }

    // MARK: Peers

    /// Fetches a head that a peer told, validates what is new, and takes it in.
    mutating func receive(_ head: ObjectID, from peer: CommitTable, at now: Int) throws {
        guard !isJoining, !heads.announced.contains(head) else { return }
        for commit in try commits.missing(head, from: peer) {
            try work.validate(commit, in: commits)
            commits.insert(commit.id)
        }
        if !arrival.contains(head) { arrival.append(head) }
        try heads.received([head], at: .milliseconds(now), graph: commits)
        durable.heads = heads.announced
    }

    /// What lies below the adopted head has arrived: from now on this node merges.
    ///
    /// - Returns: false when the peer has not got all of it.
    mutating func complete(from peer: CommitTable) throws -> Bool {
        let parents = commits.known.flatMap { work.commits[$0]?.parents ?? [] }
        let needed = parents.filter { !commits.known.contains($0) }
        guard needed.allSatisfy(peer.known.contains) else { return false }
        for commit in needed { commits.formUnion(try peer.ancestry(of: commit)) }
        isJoining = false
        return true
    }

    /// Performs what convergence asks for.
    ///
    /// - Returns: The heads to announce, and when to call again.
    mutating func step(
        at now: Int, rank: Int
    ) throws -> (announcements: [ObjectID], wake: Int?) {
        var announcements: [ObjectID] = []
        let isPaced = !mistakes.contains(.announceEveryMerge)
        while true {
            switch heads.next(at: .milliseconds(now), rank: rank) {
            case .announce(let commit):
                announcements.append(commit)
                durable.heads = heads.announced
            case .adopt(let commit):
                // The parent of a local commit is what the live state is: first that, then others.
                try self.commit(at: now)
                guard heads.announced == [commit] else { continue }
                try bring(to: try commits.commit(commit))
                heads.adopted(commit)
            case .merge(let parents):
                try self.commit(at: now)
                guard heads.announced == parents else { continue }
                let arrival = arrival.filter(parents.contains)
                let merge = try work.merge(
                    parents,
                    arrival: arrival + parents.filter { !arrival.contains($0) }, in: commits)
                commits.insert(merge.id)
                try bring(to: merge)
                heads.merged(
                    parents, into: merge.id, at: .milliseconds(now),
                    taking: isPaced ? Self.mergeTime * parents.count : .zero)
                if isPaced { continue }
                try heads.received([merge.id], at: .milliseconds(now), graph: commits)
                announcements.append(merge.id)
            case .wait(let until):
                let wake = until.map { Int($0 / .milliseconds(1)) + 1 }
                return (announcements, wake)
            }
        }
    }

    private mutating func bring(to commit: SimulatedCommit) throws {
        try pass(.objectsWritten)
        let old = try commits.tree(of: rows.applied)
        try work.bring(&rows, from: old, to: commit)
        observe(commit)
        flush()
        try pass(.applied)
    }

    // MARK: Checking

    /// Whether the live state, encoded as a whole, is the tree that patch upon patch has led to.
    func isConsistent() throws -> Bool {
        var sink = work.objects
        let whole = try commitTree(
            onto: nil, dirty: DirtySet(), live: CommittedNamespace(space: space, trees: [:]),
            settings: Self.settings, nodes: [:], source: work.objects, sink: &sink)
        return try whole.root == commits.tree(of: rows.applied)
    }
}
