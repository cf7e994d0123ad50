import History
import Mount
import Volume

// The past as the mount shows it.
extension Node {
    /// States that `.delugefs/at` lists. Any other can be named.
    static let listedStatesMax = 64
    /// Commits passed over on the way to them.
    static let listedCommitsMax = 1 << 18

    func past() -> PastSource {
        let history = timeline.history
        return PastSource(
            find: { name in
                do {
                    let now = Int64(Monotonic.wallMilliseconds)
                    let point = try PastPoint(String(decoding: name, as: UTF8.self), now: now)
                    return try Self.state(history.commit(at: point, now: now), history)
                } catch is PastError { return nil }
            },
            list: { try Self.listed(history) }, objects: history)
    }

    private static func state(_ commit: ObjectID, _ history: History) throws -> PastSource.State {
        PastSource.State(commit: commit, tree: try history.graph.tree(of: commit))
    }

    /// The last commits of this node's line and, the longer ago the fewer, earlier ones, by the second of
    /// their making.
    private static func listed(
        _ history: History
    ) throws -> [(name: [UInt8], state: PastSource.State)] {
        let graph = history.graph
        var listed: [(name: [UInt8], state: PastSource.State)] = []
        var known: Set<[UInt8]> = []
        var next = try history.head()
        var (distance, due) = (0, 0)
        while let id = next, listed.count < listedStatesMax, distance < listedCommitsMax {
            if distance == due, let commit = try history.commit(id) {
                let name = Array(iso8601(milliseconds: commit.seconds * 1000).utf8)
                if known.insert(name).inserted { listed.append((name, try state(id, history))) }
                due += max(1, distance / 4)
            }
            next = try graph.parents(of: id).first
            distance += 1
        }
        return listed
    }
}
