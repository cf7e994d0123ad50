import Simulation
import Testing

@testable import Volume

@Suite struct MergeTreesTests {
    @Test("A merge of trees is the tree of the merged states, whichever side is patched")
    func treesAgreeWithStates() throws {
        for seed in 500..<540 as Range<UInt64> {
            var history = MergeHistory(seed: seed)
            history.run(steps: 60)
            try #require(history.failures.isEmpty, "seed \(seed)")
            var objects = MemoryObjects()
            var trees: [ObjectID: ObjectID] = [:]
            for (id, commit) in history.commits {
                trees[id] = try tree(of: commit.state, &objects)
            }
            for (id, commit) in history.commits where commit.parents.count > 1 {
                let graph = TreeGraph(history: history, trees: trees)
                let folded = try foldHeads(
                    commit.parents.shuffled(), graph: graph, source: objects, sink: &objects)
                #expect(folded.tree == trees[id], "seed \(seed)")
                #expect(folded.parents == commit.parents)
            }
        }
    }
}

/// The graph of a history whose states were written as trees.
struct TreeGraph: CommitGraph {
    let history: MergeHistory
    let trees: [ObjectID: ObjectID]

    func parents(of commit: ObjectID) throws -> [ObjectID] { try history.parents(of: commit) }
    func generation(of commit: ObjectID) throws -> Int { try history.generation(of: commit) }
    func tree(of commit: ObjectID) throws -> ObjectID {
        guard let tree = trees[commit] else { throw InvalidTree("an unknown commit") }
        return tree
    }
}

/// The tree of a whole state, with the names of the nodes of a history.
func tree(
    of state: Fragment, _ objects: inout MemoryObjects, settings: VolumeSettings = .example,
    horizon: Stamp? = nil
) throws -> ObjectID {
    var nodes: [NodeID: NodeDescription] = [:]
    for low in 1...5 as ClosedRange<UInt64> {
        nodes[NodeID(high: 7, low: low)] = NodeDescription(name: "n\(low)", machine: "m")
    }
    return try commitTree(
        onto: nil, dirty: DirtySet(), live: MergedTree(inodes: state, trees: [:]),
        settings: settings, nodes: nodes, horizon: horizon, source: objects, sink: &objects
    ).root
}

extension VolumeSettings {
    static let example = VolumeSettings(
        volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0))
}
