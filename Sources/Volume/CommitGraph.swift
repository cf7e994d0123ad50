/// The commits that this node knows, from its own table: never from commit times, which lie.
///
/// Called synchronously on the caller's thread. Throws for a commit that is not known; who has
/// only part of the graph must not merge.
public protocol CommitGraph {
    func parents(of commit: ObjectID) throws -> [ObjectID]
    /// The commit's top tree.
    func tree(of commit: ObjectID) throws -> ObjectID
    /// Greater than that of every parent; any such numbering gives the same answers.
    func generation(of commit: ObjectID) throws -> Int
}

extension CommitGraph {
    /// All maximal common ancestors of two sets of heads, sorted: the commits that are, or lie
    /// below, some head of each set, and below no other such commit.
    ///
    /// Walks from the newest commit down and stops where only ancestors of results are left.
    public func maximalCommonAncestors(
        _ first: some Sequence<ObjectID>, _ second: some Sequence<ObjectID>
    ) throws -> [ObjectID] {
        var walk = AncestryWalk<Self>(graph: self)
        for head in first { try walk.mark(head, .first) }
        for head in second { try walk.mark(head, .second) }
        var found: [ObjectID] = []
        while let (commit, marks) = walk.next() {
            var inherited = marks
            if marks.isSuperset(of: .common), !marks.contains(.belowResult) {
                found.append(commit)
                inherited.insert(.belowResult)
            }
            try walk.markParents(of: commit, inherited)
        }
        return found.sorted()
    }

    /// The heads that are no ancestor of another head, sorted.
    public func reduceToMaximal(_ heads: some Sequence<ObjectID>) throws -> [ObjectID] {
        let heads = Set(heads)
        guard heads.count > 1 else { return Array(heads) }
        let lowest = try heads.map { try generation(of: $0) }.min() ?? 0
        var walk = AncestryWalk<Self>(graph: self)
        for head in heads { try walk.mark(head, .first) }
        var maximal: [ObjectID] = []
        while let (commit, marks) = walk.next() {
            if !marks.contains(.second), heads.contains(commit) { maximal.append(commit) }
            if try generation(of: commit) > lowest {
                try walk.markParents(of: commit, [.first, .second])
            }
        }
        return maximal.sorted()
    }

    /// Whether a commit is another or lies below it.
    public func isAncestor(_ commit: ObjectID, of descendant: ObjectID) throws -> Bool {
        if commit == descendant { return true }
        return try reduceToMaximal([commit, descendant]) == [descendant]
    }

    /// One value for several heads: sorted by id and folded, each step over the bases of the next
    /// head with all earlier ones. In order of arrival, nodes would make different trees.
    ///
    /// - Returns: The parents of the merge commit, sorted, none an ancestor of another, and the
    ///   merged value.
    func fold<Value>(
        _ heads: some Sequence<ObjectID>, value: (ObjectID) throws -> Value,
        merge: (Value, Value, [Value]) throws -> Value
    ) throws -> (parents: [ObjectID], value: Value) {
        let parents = try reduceToMaximal(heads)
        return (parents, try fold(inOrder: parents, value: value, merge: merge))
    }

    /// The heads must be sorted and maximal.
    func fold<Value>(
        inOrder heads: [ObjectID], value: (ObjectID) throws -> Value,
        merge: (Value, Value, [Value]) throws -> Value
    ) throws -> Value {
        precondition(!heads.isEmpty, "there is nothing to fold")
        var folded = try value(heads[0])
        for (earlier, head) in heads.enumerated().dropFirst() {
            let bases = try maximalCommonAncestors(heads[..<earlier], [head])
            folded = try merge(folded, try value(head), try bases.map(value))
        }
        return folded
    }
}

/// The commits below some heads, each after all its descendants, with the marks inherited from
/// them. Generations rise along every edge, so a commit's marks are complete when it is its turn.
private struct AncestryWalk<Graph: CommitGraph> {
    struct Marks: OptionSet {
        let rawValue: UInt8
        static var first: Marks { Marks(rawValue: 1) }
        static var second: Marks { Marks(rawValue: 2) }
        static var common: Marks { [.first, .second] }
        static var belowResult: Marks { Marks(rawValue: 4) }
    }

    private struct Entry: Comparable {
        let generation: Int
        let commit: ObjectID

        static func < (a: Self, b: Self) -> Bool {
            (a.generation, a.commit) < (b.generation, b.commit)
        }
    }

    let graph: Graph
    private var marks: [ObjectID: Marks] = [:]
    /// A binary heap, greatest first.
    private var waiting: [Entry] = []
    /// Of those waiting, the ones that are not below a result.
    private var open = 0

    init(graph: Graph) { self.graph = graph }

    mutating func mark(_ commit: ObjectID, _ new: Marks) throws {
        guard let old = marks[commit] else {
            marks[commit] = new
            push(Entry(generation: try graph.generation(of: commit), commit: commit))
            if !new.contains(.belowResult) { open += 1 }
            return
        }
        marks[commit] = old.union(new)
        if new.contains(.belowResult), !old.contains(.belowResult) { open -= 1 }
    }

    mutating func markParents(of commit: ObjectID, _ inherited: Marks) throws {
        for parent in try graph.parents(of: commit) { try mark(parent, inherited) }
    }

    /// Nil when all that is left lies below results.
    mutating func next() -> (ObjectID, Marks)? {
        guard open > 0, let entry = pop(), let found = marks[entry.commit] else { return nil }
        if !found.contains(.belowResult) { open -= 1 }
        return (entry.commit, found)
    }

    private mutating func push(_ entry: Entry) {
        waiting.append(entry)
        var at = waiting.count - 1
        while at > 0, waiting[(at - 1) / 2] < waiting[at] {
            waiting.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    private mutating func pop() -> Entry? {
        guard let top = waiting.first, let last = waiting.popLast() else { return nil }
        guard !waiting.isEmpty else { return top }
        waiting[0] = last
        var at = 0
        while true {
            var greatest = at
            for child in [2 * at + 1, 2 * at + 2]
            where child < waiting.count && waiting[greatest] < waiting[child] { greatest = child }
            if greatest == at { return top }
            waiting.swapAt(at, greatest)
            at = greatest
        }
    }
}
