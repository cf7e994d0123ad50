import Synchronization
public import Volume

/// Heads that peers had, so that none is lost before it is merged, even if its peer never comes back.
extension History {
    static let unmerged = "refs/unmerged/"

    public static func peerReference(_ node: NodeID) -> String { "refs/peers/\(node)" }

    /// Notes the last head that was fetched from a node; the one before it stays named as long as neither
    /// the new one nor this node's own state has it.
    public func noteHead(_ head: ObjectID, of node: NodeID) throws {
        let name = Self.peerReference(node)
        try notingHeads.withLock { _ in
            if let before = try reference(name), before != head, graph.contains(before) {
                let heads = [head] + [try self.head()].compactMap(\.self)
                let isMerged = try heads.contains { try graph.isAncestor(before, of: $0) }
                if !isMerged { try setReference(Self.unmerged + "\(before)", to: before) }
            }
            try setReference(name, to: head)
        }
    }

    /// Heads of peers, some perhaps merged long ago.
    public func peerHeads() throws -> Set<ObjectID> {
        let last = Set(try references(below: "refs/peers/").values)
        return last.union(try references(below: Self.unmerged).values)
    }

    /// This node's own state has become `head`: what that has needs no name any more.
    public func forgetMerged(into head: ObjectID) throws {
        for (name, id) in try references(below: Self.unmerged)
        where try graph.contains(id) && graph.isAncestor(id, of: head) {
            try deleteReference(name)
        }
    }
}
