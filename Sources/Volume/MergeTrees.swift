/// Merges two commits' top trees over the trees of all their maximal common ancestors.
///
/// Deterministic and symmetric; the rules are those of `Merge`. The new objects go to the sink; the
/// source need not show them.
/// - Parameter bases: empty when the commits have nothing in common, which errs towards keeping.
/// - Throws: `InvalidTree` when a tree is not what a valid commit has, `UpgradeNeeded`, and what
///   source and sink throw.
public func mergeTrees<Sink: TreeSink>(
    _ a: ObjectID, _ b: ObjectID, bases: [ObjectID], source: some TreeSource, sink: inout Sink
) throws -> ObjectID {
    try TreeMerge.run(a, b, bases: bases, defects: [], MergeObjects(source), sink: &sink)
}

/// The parents and the tree of the one commit that merges some heads.
public struct FoldedHeads: Hashable, Sendable {
    /// Sorted, none an ancestor of another. A single one: nothing to merge, that is the commit.
    public let parents: [ObjectID]
    /// The top tree.
    public let tree: ObjectID
}

/// Merges any number of heads: reduced to the maximal ones, sorted by commit id and folded.
///
/// - Throws: What `mergeTrees` throws, and what the graph throws where it has gaps.
public func foldHeads<Sink: TreeSink>(
    _ heads: some Sequence<ObjectID>, graph: some CommitGraph, source: some TreeSource,
    sink: inout Sink
) throws -> FoldedHeads {
    let parents = try graph.reduceToMaximal(heads)
    let tree = try foldHeads(
        inOrder: parents, defects: [], graph: graph, source: source, sink: &sink)
    return FoldedHeads(parents: parents, tree: tree)
}

/// The tree of maximal heads folded in the order given. For the simulator, which also looks what
/// another order or a mistake would lead to.
package func foldHeads<Sink: TreeSink>(
    inOrder heads: [ObjectID], defects: MergeDefects, graph: some CommitGraph,
    source: some TreeSource, sink: inout Sink
) throws -> ObjectID {
    let written = FoldObjects(source: source, sink: sink)
    defer { sink = written.sink }
    let objects = MergeObjects(written)
    return try graph.fold(inOrder: heads, value: graph.tree) { a, b, bases in
        var sink = written
        return try TreeMerge.run(a, b, bases: bases, defects: defects, objects, sink: &sink)
    }
}

/// Makes the trees of the earlier steps of a fold readable for the later ones. They reach the sink
/// too, because only it can tell their ids; what the last tree does not use is harmless there.
private final class FoldObjects<Source: TreeSource, Sink: TreeSink>: TreeSource, TreeSink {
    private let source: Source
    private(set) var sink: Sink
    private var trees: [ObjectID: [TreeEntry]] = [:]
    private var blobs: [ObjectID: [UInt8]] = [:]

    init(source: Source, sink: Sink) {
        self.source = source
        self.sink = sink
    }

    func tree(_ id: ObjectID) throws -> [TreeEntry] { try trees[id] ?? source.tree(id) }

    func blob(_ id: ObjectID) throws -> [UInt8] { try blobs[id] ?? source.blob(id) }

    func write(blob: [UInt8]) throws -> ObjectID {
        let id = try sink.write(blob: blob)
        blobs[id] = blob
        return id
    }

    func write(tree: [TreeEntry]) throws -> ObjectID {
        let id = try sink.write(tree: tree)
        trees[id] = tree.sorted(by: TreeEntry.precedesInGit)
        return id
    }
}

/// One merge of two trees: extraction, rules, encoding.
enum TreeMerge {
    static func run<Source: TreeSource, Sink: TreeSink>(
        _ a: ObjectID, _ b: ObjectID, bases: [ObjectID], defects: MergeDefects,
        _ objects: MergeObjects<Source>, sink: inout Sink
    ) throws -> ObjectID {
        // Where one side changed nothing, the other is the result.
        if a == b || bases == [b] { return a }
        if bases == [a] { return b }
        let source = objects.source
        let left = try VolumeTree(reading: a, from: source)
        let right = try VolumeTree(reading: b, from: source)
        let ancestors = try bases.map { try VolumeTree(reading: $0, from: source) }
        let volume = try VolumeMerge(left, right, bases: ancestors, source: source)
        let extraction = try MergeExtraction(left, right, bases: ancestors, objects)
        var surroundings = try TreeSurroundings(left, extraction, source: source)
        let merged = try Merge.run(
            Merge.Input(
                a: extraction.fragments[0], b: extraction.fragments[1],
                inBases: extraction.inBases, horizon: volume.horizon,
                conflictName: volume.conflictName, defects: defects),
            surroundings: &surroundings)
        // The tree is the same whichever side is patched; the larger one has less to be changed.
        var changes = (0..<2).map { DirtySet(from: extraction.fragments[$0], to: merged) }
        let side = changes[0].places.count <= changes[1].places.count ? 0 : 1
        changes[side].places.formUnion(surroundings.handedOut.values.map(\.place))
        return try commitTree(
            onto: side == 0 ? a : b, dirty: changes[side],
            live: MergedTree(merged, extraction, &surroundings, patching: side),
            settings: volume.settings, nodes: volume.nodes, horizon: volume.horizon,
            adopting: false, source: source, sink: &sink
        ).root
    }
}

extension DirtySet {
    /// What differs between two states.
    init(from old: Fragment, to new: Fragment) {
        self.init()
        for id in Set(old.keys).union(new.keys) {
            let before = old[id]
            let after = new[id]
            if before == after { continue }
            if before?.record != after?.record { records.insert(id) }
            for link in Set(before?.links.keys ?? [:].keys).union(after?.links.keys ?? [:].keys) {
                let one = before?.links[link]
                let other = after?.links[link]
                if one == other { continue }
                if let one { places.insert(one.place) }
                if let other { places.insert(other.place) }
            }
        }
    }
}

extension VolumeMerge {
    /// The name of a conflict copy tells which node wrote it.
    var conflictName: (FileName, ConflictOrigin, (FileName) throws -> Bool) throws -> FileName {
        let nodes = nodes
        return { name, origin, taken in
            let node = origin.stamp.node
            return try Volume.conflictName(
                original: name, node: nodes[node]?.name ?? String(node.description.prefix(8)),
                stamp: origin.stamp, id: origin.id, taken: taken)
        }
    }
}
