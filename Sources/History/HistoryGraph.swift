import Synchronization
public import Volume

/// The commits that are whole here: their parents, generations and trees, from memory.
public struct HistoryGraph: CommitGraph, Sendable {
    let history: History

    public var count: Int { history.table.withLock { $0.count } }

    public func contains(_ id: ObjectID) -> Bool {
        history.table.withLock { $0.number(of: id) != nil }
    }

    /// Throws `notFound` for a commit that is not in the graph, as do the others.
    public func parents(of id: ObjectID) throws -> [ObjectID] {
        try look(id) { table, number in table.parents(number).map { table.key($0) } }
    }

    /// 1 for a commit without parents, else one more than the greatest of its parents.
    public func generation(of id: ObjectID) throws -> Int {
        try look(id) { table, number in Int(table.generation(number)) }
    }

    public func tree(of id: ObjectID) throws -> ObjectID {
        try look(id) { table, number in table.tree(number) }
    }

    /// Whether `ancestor` is `descendant` or reachable from it.
    public func isAncestor(_ ancestor: ObjectID, of descendant: ObjectID) throws -> Bool {
        try look(ancestor) { table, a in
            guard let b = table.number(of: descendant) else {
                throw Self.unknown(descendant)
            }
            return table.isAncestor(a, of: b)
        }
    }

    /// Commits reachable from `wanted` but from none of `have`, parents before children. Unknown
    /// ids in `have` are passed over: a peer may be ahead.
    public func commits(from wanted: [ObjectID], excluding have: [ObjectID]) throws -> [ObjectID] {
        try history.table.withLock { table in
            let wanted = try wanted.map { id in
                guard let number = table.number(of: id) else { throw Self.unknown(id) }
                return number
            }
            let have = have.compactMap { table.number(of: $0) }
            return table.reachable(from: wanted, excluding: have).map { table.key($0) }
        }
    }

    private static func unknown(_ id: ObjectID) -> HistoryError {
        HistoryError(.notFound, "graph", "\(id) is not a known commit")
    }

    private func look<T: Sendable>(
        _ id: ObjectID, _ body: (borrowing CommitTable, Int32) throws -> T
    ) throws -> T {
        try history.table.withLock { table in
            guard let number = table.number(of: id) else { throw Self.unknown(id) }
            return try body(table, number)
        }
    }
}

extension History {
    public var graph: HistoryGraph { HistoryGraph(history: self) }
}
