import Simulation
import Testing

@testable import Volume

@Suite struct MergeTreesTests {
    @Test(
        "A merge of trees is the tree of the merged states, whichever side is patched",
        arguments: [(0, 60), (100, 20), (300, 12)])
    func treesAgreeWithStates(prepared: Int, steps: Int) throws {
        for seed in 500..<530 as Range<UInt64> {
            var history = MergeHistory(seed: seed, prepared: prepared)
            history.run(steps: steps)
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
        onto: nil, dirty: DirtySet(), live: WholeState(state),
        settings: settings, nodes: nodes, horizon: horizon, source: objects, sink: &objects
    ).root
}

extension VolumeSettings {
    static let example = VolumeSettings(
        volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0))
}

/// A whole state as the encoder wants to see it.
struct WholeState: LiveState {
    let inodes: Fragment
    private var names: [LineageID: [FileName: Link]] = [:]

    init(_ inodes: Fragment) {
        self.inodes = inodes
        for placed in inodes.values.flatMap(\.links.values) {
            names[placed.place.directory, default: [:]][placed.place.name] = placed.link
        }
    }

    func record(_ id: LineageID) -> Record? { inodes[id]?.record }

    func links(of id: LineageID) -> [(place: Place, link: Link)] {
        inodes[id].map { $0.links.values.map { ($0.place, $0.link) } } ?? []
    }

    func link(at place: Place) -> Link? { names[place.directory]?[place.name] }

    func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        (names[directory] ?? [:]).map { ($0.key, $0.value) }
    }

    func tree(of directory: LineageID) -> ObjectID? { nil }
}
