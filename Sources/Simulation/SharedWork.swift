package import Volume

/// What every node of a simulation would compute for itself, computed once: whether a commit is
/// valid, the merge of some heads, the state that a tree stands for. Now and then it is computed
/// again, from another node's tables and rows and with the sides exchanged, and must be the same.
final class SharedWork {
    /// States kept; others are computed again when they are needed.
    private static let statesMax = 64

    let objects = MemoryObjects()
    private(set) var commits: [ObjectID: SimulatedCommit] = [:]
    private(set) var changes: [ObjectID: ContentChange] = [:]
    /// What must never be, in words.
    private(set) var findings: Set<String> = []

    private var valid: Set<ObjectID> = []
    private var merges: [[ObjectID]: ObjectID] = [:]
    private var states: [ObjectID: Rows] = [:]
    private var recent: [ObjectID] = []
    private var generator: SeededGenerator
    private let recheckOneIn: Int
    private let mistakes: SimulatedMistakes

    init(seed: UInt64, recheckOneIn: Int, mistakes: SimulatedMistakes) {
        generator = SeededGenerator(seed: seed ^ 0x5ead)
        self.recheckOneIn = recheckOneIn
        self.mistakes = mistakes
    }

    func find(_ finding: String) { findings.insert(finding) }

    func insert(_ commit: SimulatedCommit, _ change: ContentChange? = nil) {
        commits[commit.id] = commit
        if let change { changes[commit.id] = change }
    }

    /// What a node does with a commit that came from elsewhere, whose parents it has.
    func validate(_ commit: SimulatedCommit, in table: CommitTable) throws {
        if valid.contains(commit.id), !generator.once(in: recheckOneIn) { return }
        let old = try commit.parents.first.map { try table.tree(of: $0) }
        _ = try difference(from: old, to: commit.tree, source: objects)
        valid.insert(commit.id)
    }

    /// - Parameter arrival: the parents in the order in which the node heard of them.
    func merge(
        _ parents: [ObjectID], arrival: [ObjectID], in table: CommitTable
    ) throws -> SimulatedCommit {
        let known = merges[parents].flatMap { commits[$0] }
        let isChecked = known != nil && generator.once(in: recheckOneIn)
        if let known, !isChecked, !mistakes.contains(.foldInArrivalOrder) { return known }
        var order = mistakes.contains(.foldInArrivalOrder) ? arrival : parents
        if isChecked, order.count == 2 { order.reverse() }
        var sink = objects
        let tree = try foldHeads(
            inOrder: order, defects: mistakes.inMerges, graph: table, source: objects, sink: &sink)
        let stamps = try parents.map { try table.commit($0).message.newestStamp }
        guard let newest = stamps.max() else { preconditionFailure("a merge has parents") }
        let message = CommitMessage(kind: .merge(rules: VolumeSettings.rules), newestStamp: newest)
        let commit = SimulatedCommit(
            parents: parents, tree: tree, generation: try table.generation(above: parents),
            message: message)
        if let known, known != commit { find("the same heads gave different trees") }
        commits[commit.id] = commit
        merges[parents] = commit.id
        return commit
    }

    /// Brings clean rows from their commit to another.
    func bring(_ rows: inout Rows, from old: ObjectID, to commit: SimulatedCommit) throws {
        precondition(rows.space.isClean, "commit before applying")
        let known = states[commit.tree]
        if let known, !generator.once(in: recheckOneIn) {
            (rows.space, rows.trees, rows.contents) = (known.space, known.trees, known.contents)
        } else {
            let change = try difference(from: old, to: commit.tree, source: objects)
            rows.space.apply(change)
            for (id, tree) in change.trees { rows.trees[id] = tree }
            rows.contents = rows.space.contents
            if let known {
                let isSame =
                    known.space.records == rows.space.records
                    && known.space.entries == rows.space.entries && known.trees == rows.trees
                if !isSame { find("one tree came to be two states") }
            } else {
                remember(rows, commit.tree)
                for violation in rows.space.violations { find(violation) }
            }
        }
        rows.applied = commit.id
    }

    private func remember(_ rows: Rows, _ tree: ObjectID) {
        states[tree] = rows
        recent.append(tree)
        if recent.count > Self.statesMax { states[recent.removeFirst()] = nil }
    }
}

/// Deliberate mistakes of all nodes: the simulator must notice each of them.
package struct SimulatedMistakes: OptionSet, Sendable {
    package let rawValue: Int
    package init(rawValue: Int) { self.rawValue = rawValue }

    /// Those of the merge itself.
    package init(_ defects: MergeDefects) { rawValue = defects.rawValue }
    package static let foldInArrivalOrder = SimulatedMistakes(rawValue: 1 << 16)
    /// Every merge is told at once, and the next one follows at once.
    package static let announceEveryMerge = SimulatedMistakes(rawValue: 1 << 17)
    /// A commit's parent is what is announced, not what the rows represent.
    package static let parentIsAnnounced = SimulatedMistakes(rawValue: 1 << 18)

    var inMerges: MergeDefects { MergeDefects(rawValue: rawValue & 0xFFFF) }
}

extension Namespace {
    /// What is true of every state that a volume may have, and is not of this one.
    var violations: Set<String> {
        var found: Set<String> = []
        if Set(records.values.map(\.ino)).count != records.count { found.insert("an ino twice") }
        if !isDirectory(.root) { found.insert("no top directory") }
        for (id, record) in records {
            let links = entries(of: id)
            if id != record.id { found.insert("a record under another id") }
            if id == .root ? !links.isEmpty : links.isEmpty { found.insert("wrong link count") }
            if record.isDirectory, links.count > 1 { found.insert("a directory with two links") }
        }
        for (id, entry) in entries {
            if entry.link.id != id || link(at: entry.place)?.id != id {
                found.insert("a name twice")
            }
            if records[entry.link.target] == nil || !isDirectory(entry.place.directory) {
                found.insert("an orphan")
            }
        }
        var rooted: Set<LineageID> = [.root]
        for id in records.keys {
            var path: Set<LineageID> = []
            var at = id
            while !rooted.contains(at), path.insert(at).inserted,
                let parent = entries(of: at).first?.place.directory
            {
                at = parent
            }
            if rooted.contains(at) { rooted.formUnion(path) } else { found.insert("a cycle") }
        }
        return found
    }
}
