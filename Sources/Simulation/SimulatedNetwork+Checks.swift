internal import Volume

/// What must be true when the nodes agree.
extension SimulatedNetwork {
    public struct Counts: Hashable, Sendable {
        /// Commits of what was written.
        public var changes = 0
        /// Merges that left a node.
        public var mergesTold = 0
        /// Merges that any node ever showed.
        public var mergesMade = 0
        /// Heads told because they were new, to all who heard them.
        public var announcements = 0
    }

    public func counts() throws -> Counts {
        var counts = Counts()
        guard let first = members.first else { return counts }
        for id in try nodes[first].commits.ancestry(of: nodes[first].applied) {
            if work.commits[id]?.isMerge == true {
                counts.mergesTold += 1
            } else {
                counts.changes += 1
            }
        }
        counts.mergesMade = work.commits.values.count(where: \.isMerge)
        counts.announcements = announcements
        return counts
    }

    /// Runs to the end and tells, in words, what is not as it must be.
    public mutating func violations() throws -> Set<String> {
        guard try run() else { return work.findings.union(["the nodes do not converge"]) }
        guard let first = members.first.map({ nodes[$0] }) else { return [] }
        var found: Set<String> = []
        for node in members
        where nodes[node].space.records != first.space.records
            || nodes[node].space.entries != first.space.entries
        {
            found.insert("one head, two states")
        }
        found.formUnion(first.space.violations)
        if try !first.isConsistent() { found.insert("the state is not what its tree says") }
        try found.formUnion(losses(first))
        if try !staysSilent() { found.insert("the nodes do not fall silent") }
        return found.union(work.findings)
    }

    private func losses(_ node: SimulatedNode) throws -> Set<String> {
        var found: Set<String> = []
        let ancestry = try node.commits.ancestry(of: node.applied)
        for member in members {
            // What came to a node that is still there, or was made on it, is for ever.
            let lost = nodes[member].commits.known.subtracting(ancestry).contains {
                work.commits[$0]?.isMerge == false
            }
            if lost { found.insert("a commit lost") }
        }
        var held: Set<Body> = []
        var removed: Set<Body> = []
        var replaced: Set<ContentVersion> = []
        var ended: Set<LineageID> = []
        for change in ancestry.compactMap({ work.changes[$0] }) {
            held.formUnion(change.held)
            removed.formUnion(change.removed)
            replaced.formUnion(change.replaced)
            ended.formUnion(change.ended)
        }
        let contents = node.space.contents
        let present = Set(contents.values.map(\.body))
        if !held.subtracting(removed).isSubset(of: present) { found.insert("content lost") }
        // A file that was edited and then removed comes back as whoever renamed it meanwhile had it.
        let isBuried = contents.values.contains { !ended.contains($0.id) && replaced.contains($0) }
        if isBuried { found.insert("an edit buried") }
        return found
    }
}
