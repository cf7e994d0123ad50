internal import Volume

/// What must be true when the nodes agree.
extension SimulatedNetwork {
    /// All commits but merges.
    public struct Counts: Hashable, Sendable {
        public let changes: Int
        /// Merges that ever left a node.
        public let merges: Int
        public let announcements: Int
    }

    public func counts() throws -> Counts {
        guard let first = members.first else {
            return Counts(changes: 0, merges: 0, announcements: 0)
        }
        let all = try nodes[first].commits.ancestry(of: nodes[first].applied)
            .compactMap { work.commits[$0] }
        let merges = all.count(where: \.isMerge)
        return Counts(
            changes: all.count - merges, merges: merges, announcements: announcements)
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
