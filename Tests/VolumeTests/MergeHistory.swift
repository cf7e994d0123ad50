import Simulation

@testable import Volume

/// A random history of nodes that write, gossip now and then, and merge whole states, with what
/// went wrong in it. No trees: the rules alone.
struct MergeHistory {
    struct Commit {
        let parents: [ObjectID]
        let generation: Int
        let state: Fragment
        /// Bodies that a local commit replaced or removed, knowing them.
        let removed: Set<Body>
    }

    struct Node {
        var space: Namespace
        var clock: HybridClock
        let skew: Int
        var head: ObjectID
        var isDirty = false
    }

    var operations: RandomOperations
    let defects: MergeDefects
    var commits: [ObjectID: Commit] = [:]
    var nodes: [Node] = []
    var now = 1_700_000_000_000
    var failures: [String] = []
    /// Merges whose result depends on the order in which the heads are folded.
    var orderDependent = 0
    var merges = 0

    /// - Parameter prepared: operations before the nodes part, so that much of the volume is the
    ///   same on all of them.
    init(seed: UInt64, nodes count: Int = 5, prepared: Int = 0, defects: MergeDefects = []) {
        operations = RandomOperations(seed: seed)
        self.defects = defects
        let birth = Stamp(milliseconds: 1, counter: 0, node: NodeID(high: 0, low: 0))
        var space = Namespace(born: birth)
        var clock = HybridClock(node: NodeID(high: 7, low: 1), floor: 2)
        for _ in 0..<prepared { operations.perform(on: &space, clock: &clock, wall: UInt64(now)) }
        let first = operations.nextID()
        commits[first] = Commit(
            parents: [], generation: 0, state: Fragment(space), removed: [])
        for index in 0..<count {
            let id = NodeID(high: 7, low: UInt64(index + 1))
            nodes.append(
                Node(
                    space: space, clock: HybridClock(node: id, floor: clock.milliseconds + 1),
                    skew: Int.random(in: -300_000..<300_000, using: &operations.generator),
                    head: first))
        }
    }

    /// A number of random steps, then every node meets every other.
    mutating func run(steps: Int) {
        for _ in 0..<steps where failures.isEmpty {
            let node = Int.random(in: 0..<nodes.count, using: &operations.generator)
            if operations.generator.once(in: 4) { gossip(node) } else { write(node) }
        }
        for node in nodes.indices { commit(node) }
        for node in nodes.indices where failures.isEmpty {
            _ = merge(nodes.map(\.head).shuffled(using: &operations.generator), into: node)
        }
        guard failures.isEmpty else { return }
        if Set(nodes.map(\.head)).count != 1 { failures.append("the nodes did not converge") }
    }

    private mutating func write(_ node: Int) {
        now += Int.random(in: 0..<2000, using: &operations.generator)
        var state = nodes[node]
        operations.perform(
            on: &state.space, clock: &state.clock, wall: UInt64(now + state.skew))
        state.isDirty = true
        nodes[node] = state
        if operations.generator.once(in: 2) { commit(node) }
    }

    private mutating func gossip(_ node: Int) {
        commit(node)
        let count = Int.random(in: 1...4, using: &operations.generator)
        let others = nodes.map(\.head).shuffled(using: &operations.generator).prefix(count)
        _ = merge([nodes[node].head] + others, into: node)
    }

    private mutating func commit(_ node: Int) {
        guard nodes[node].isDirty else { return }
        let parent = nodes[node].head
        guard let old = commits[parent] else { return }
        let state = Fragment(nodes[node].space)
        let id = operations.nextID()
        commits[id] = Commit(
            parents: [parent], generation: old.generation + 1, state: state,
            removed: old.state.bodies(missingFrom: state))
        nodes[node].head = id
        nodes[node].isDirty = false
    }

    private mutating func merge(_ heads: [ObjectID], into node: Int) -> ObjectID? {
        do {
            let parents = try reduceToMaximal(heads)
            let head: ObjectID
            if parents.count == 1 {
                head = parents[0]
            } else {
                head = Self.mergeID(parents)
                if commits[head] == nil { try merge(parents, as: head) }
            }
            nodes[node].head = head
            guard let state = commits[head]?.state else { return nil }
            nodes[node].space = Namespace(state)
            for stamp in state.stamps { nodes[node].clock.observe(stamp) }
            return head
        } catch {
            failures.append("\(error)")
            return nil
        }
    }

    private mutating func merge(_ parents: [ObjectID], as head: ObjectID) throws {
        merges += 1
        let state = try fold(inOrder: parents, value: state, merge: merged)
        failures += MergeInvariants.violations(in: state)
        let arrival = parents.shuffled(using: &operations.generator)
        if try fold(inOrder: arrival, value: self.state, merge: merged) != state {
            orderDependent += 1
        }
        if parents.count == 2, arrival != parents,
            try fold(inOrder: arrival, value: self.state, merge: merged) != state
        {
            failures.append("the merge depends on the side")
        }
        var given = Set(parents.flatMap { commits[$0]?.state.groups ?? [] })
        // A conflict copy's link has the stamp of the content that lost.
        given.formUnion(
            given.filter { $0.kind == "content" }.map { .init(kind: "link", stamp: $0.stamp) })
        if !given.isSuperset(of: state.groups) { failures.append("what no side has") }
        let generation = try parents.map { try self.generation(of: $0) }.max() ?? 0
        commits[head] = Commit(
            parents: parents, generation: generation + 1, state: state, removed: [])
        let present = Set(state.bodies)
        let before = Set(parents.flatMap { commits[$0]?.state.bodies ?? [] })
        let lost = before.subtracting(present)
        if !lost.isEmpty, !lost.isSubset(of: removed(below: head)) {
            failures.append("content lost")
        }
    }

    /// Files that one commit removed, that no commit touched without knowing of it, and that are
    /// there in the end.
    func returned() -> Int {
        guard let final = commits[nodes[0].head]?.state else { return 0 }
        var below: [ObjectID: Set<ObjectID>] = [:]
        var removals: [LineageID: [ObjectID]] = [:]
        var touches: [LineageID: [ObjectID]] = [:]
        for (id, commit) in commits.sorted(by: { $0.value.generation < $1.value.generation }) {
            below[id] = commit.parents.reduce(into: [id]) { $0.formUnion(below[$1] ?? []) }
            guard commit.parents.count == 1, let old = commits[commit.parents[0]]?.state else {
                continue
            }
            for (file, inode) in old where commit.state[file] != inode {
                if commit.state[file] == nil { removals[file, default: []].append(id) }
            }
            for (file, inode) in commit.state {
                let before = old[file]
                let isTouched =
                    before?.record.content.stamp != inode.record.content.stamp
                    || before?.links != inode.links
                if isTouched { touches[file, default: []].append(id) }
            }
        }
        return final.values.count { inode in
            guard !inode.isDirectory, touches[inode.id] != nil else { return false }
            return removals[inode.id, default: []].contains { removal in
                touches[inode.id, default: []].allSatisfy { below[removal]?.contains($0) == true }
            }
        }
    }

    private func state(_ commit: ObjectID) throws -> Fragment {
        guard let found = commits[commit] else { throw InvalidTree("an unknown commit") }
        return found.state
    }

    private func merged(_ a: Fragment, _ b: Fragment, _ bases: [Fragment]) throws -> Fragment {
        try mergeWhole(a, b, bases: bases, defects: defects)
    }

    private func removed(below head: ObjectID) -> Set<Body> {
        var all: Set<Body> = []
        var seen: Set<ObjectID> = []
        var waiting = [head]
        while let id = waiting.popLast() {
            guard seen.insert(id).inserted, let commit = commits[id] else { continue }
            all.formUnion(commit.removed)
            waiting += commit.parents
        }
        return all
    }

    static func mergeID(_ parents: [ObjectID]) -> ObjectID {
        let digest = PureSHA256.digest(parents.flatMap(\.bytes))
        guard let id = ObjectID(bytes: Array(digest.prefix(20))) else { preconditionFailure("20") }
        return id
    }
}

extension MergeHistory: CommitGraph {
    func parents(of commit: ObjectID) throws -> [ObjectID] { commits[commit]?.parents ?? [] }
    func tree(of commit: ObjectID) throws -> ObjectID { commit }
    func generation(of commit: ObjectID) throws -> Int {
        guard let found = commits[commit] else { throw InvalidTree("an unknown commit") }
        return found.generation
    }
}

extension RandomOperations {
    mutating func nextID() -> ObjectID {
        let bytes = (0..<20).map { _ in UInt8.random(in: 0...255, using: &generator) }
        guard let id = ObjectID(bytes: bytes) else { preconditionFailure("20 bytes") }
        return id
    }
}

/// Merges states of which the fragments hold everything.
func mergeWhole(
    _ a: Fragment, _ b: Fragment, bases: [Fragment], horizon: Stamp? = nil,
    defects: MergeDefects = []
) throws -> Fragment {
    var nothing = NoSurroundings()
    let input = Merge<NoSurroundings>.Input(
        a: a, b: b, inBases: { id in bases.map { $0[id] } }, horizon: horizon,
        conflictName: { name, origin, taken in
            try conflictName(
                original: name, node: "n\(origin.stamp.node.low)", stamp: origin.stamp,
                id: origin.id, taken: taken)
        }, defects: defects)
    return try Merge.run(input, surroundings: &nothing)
}

extension Fragment {
    init(_ space: Namespace) {
        self = space.records.mapValues { record in
            Inode(
                record,
                links: space.entries(of: record.id).map {
                    PlacedLink(place: $0.place, link: $0.link)
                })
        }
    }

    var bodies: [Body] {
        values.compactMap { $0.isDirectory ? nil : $0.record.content.value.body }
    }

    /// Bodies of the writes that another state does not have, even if it has their bytes elsewhere.
    func bodies(missingFrom later: Fragment) -> Set<Body> {
        let kept = Set(later.values.map(\.record.content.stamp))
        return Set(
            values.map(\.record.content).filter { !kept.contains($0.stamp) }.map(\.value.body))
    }

    /// Every group by its kind and stamp; a merge takes them from the sides.
    struct Group: Hashable {
        let kind: String
        let stamp: Stamp
    }

    var groups: Set<Group> {
        var groups: Set<Group> = []
        for inode in values {
            let record = inode.record
            groups.insert(Group(kind: "content", stamp: record.content.stamp))
            groups.insert(Group(kind: "mode", stamp: record.mode.stamp))
            groups.insert(Group(kind: "owner", stamp: record.owner.stamp))
            for xattr in record.xattrs.values {
                groups.insert(Group(kind: "xattr", stamp: xattr.stamp))
            }
            for link in inode.links.values { groups.insert(Group(kind: "link", stamp: link.stamp)) }
        }
        return groups
    }

    var stamps: [Stamp] {
        values.flatMap { inode in [inode.record.newestStamp] + inode.links.values.map(\.stamp) }
    }
}

extension Namespace {
    init(_ fragment: Fragment) {
        var entries: [LinkID: Entry] = [:]
        for inode in fragment.values {
            for placed in inode.links.values {
                entries[placed.link.id] = Entry(place: placed.place, link: placed.link)
            }
        }
        self.init(records: fragment.mapValues(\.record), entries: entries)
    }
}

/// What is true of every state that a volume may have.
enum MergeInvariants {
    static func violations(in state: Fragment) -> [String] {
        var found: [String] = []
        var places: Set<Place> = []
        var links: Set<LinkID> = []
        if Set(state.values.map(\.record.ino)).count != state.count { found.append("an ino twice") }
        if state[.root]?.isDirectory != true { found.append("no top directory") }
        for (id, inode) in state {
            if id != inode.id { found.append("an inode under another id") }
            let count = inode.links.count
            if id == .root ? count != 0 : count == 0 { found.append("\(id) has \(count) links") }
            if inode.isDirectory, count > 1 { found.append("a directory with \(count) links") }
            for (link, placed) in inode.links {
                if placed.link.id != link || placed.link.target != id {
                    found.append("a link that is not its own")
                }
                if !places.insert(placed.place).inserted { found.append("a name twice") }
                if !links.insert(link).inserted { found.append("a link id twice") }
                if state[placed.place.directory]?.isDirectory != true { found.append("an orphan") }
            }
            if !reachesTop(id, in: state) { found.append("a cycle") }
        }
        return Array(Set(found)).sorted()
    }

    private static func reachesTop(_ id: LineageID, in state: Fragment) -> Bool {
        var at = id
        for _ in 0...state.count {
            if at == .root { return true }
            guard let parent = state[at]?.firstLink?.place.directory else { return false }
            at = parent
        }
        return false
    }
}
