/// The live state that a commit describes: a durable snapshot of the catalog, by lineage id.
///
/// Only what is reachable counts: a file without links, open or not, is no part of it.
public protocol LiveState {
    func record(_ id: LineageID) throws -> Record?
    /// Every link to it, in any order; none for the top directory.
    func links(of id: LineageID) throws -> [(place: Place, link: Link)]
    func link(at place: Place) throws -> Link?
    func children(of directory: LineageID) throws -> [(name: FileName, link: Link)]
    /// The directory's Git tree in the commit that is committed onto; nil if it is not there.
    func tree(of directory: LineageID) throws -> ObjectID?
}

/// What changed since the commit that is committed onto. More than needed is harmless.
public struct DirtySet: Hashable, Sendable {
    /// Where a link came, went or changed its stamp, whatever stood there before.
    public var places: Set<Place>
    /// Whose own groups changed, the new ones and the removed ones.
    public var records: Set<LineageID>

    public init(places: Set<Place> = [], records: Set<LineageID> = []) {
        self.places = places
        self.records = records
    }

    public var isEmpty: Bool { places.isEmpty && records.isEmpty }
}

/// An editor saved by writing a new file and renaming it over the old one: the new file goes on as
/// the old one, for merges and for the history of the path.
///
/// The catalog applies the same change to its rows: the record `newborn` becomes `adopted` (inode
/// number, groups and stamps unchanged), its links point there, and those in `links` take their ids.
public struct Adoption: Hashable, Sendable {
    public let newborn: LineageID
    public let adopted: LineageID
    /// Places that the old file held and the new one holds: the old link id and link stamp.
    public let links: [Place: Link]
}

public struct CommitOutcome: Hashable, Sendable {
    /// The top tree. Equal to the base: nothing to commit.
    public let root: ObjectID
    /// Directories whose Git tree changed; nil: gone.
    public let trees: [LineageID: ObjectID?]
    /// By place, each file at most once.
    public let adoptions: [Adoption]
    /// Where files were hidden, and what the base holds there instead: still to be committed.
    public let pending: DirtySet
    /// The greatest stamp of what was encoded; the message carries that of the whole ancestry.
    public let newestStamp: Stamp?
}

/// Writes the tree of the live state, given the tree of a commit and what changed since.
///
/// Only dirty directories and their ancestors are written; the result is the same as if all were. The
/// source need not show what the sink was given.
/// - Parameters:
///   - base: top tree of the commit that `live.tree(of:)` speaks about; nil for the first commit, which
///     needs no dirty set.
///   - hidden: every place of files that are left out of the commit.
///   - horizon: content given up; the greater of this and the base's is kept.
///   - adopting: whether editors' saves are recognised. Not in merges, which change values only.
/// - Throws: `InvalidTree` when the live state is beyond a limit or contradicts itself,
///   `UpgradeNeeded` when the base is of a later format, and what live state, source and sink throw.
public func commitTree<Sink: TreeSink>(
    onto base: ObjectID?, dirty: DirtySet, hiding hidden: Set<Place> = [],
    live: some LiveState, settings: VolumeSettings,
    nodes: [NodeID: NodeDescription], horizon: Stamp? = nil, adopting: Bool = true,
    source: some TreeSource, sink: inout Sink
) throws -> CommitOutcome {
    let parent = try base.map { try VolumeTree(reading: $0, from: source) }
    var commit = try CommitWriter(parent: parent, live: live, source: source, sink: sink)
    defer { sink = commit.sink }
    try commit.readBase(at: dirty.places.union(hidden))
    let kept = try commit.hide(hidden)
    if adopting { try commit.adopt() }
    try commit.encode(dirty.records)
    let root = try commit.writeDirectories()
    let inodes = try commit.writeInodes()
    var top = [TreeEntry(name: Array("tree".utf8), kind: .tree, id: root)]
    if let inodes { top.append(TreeEntry(name: Array("inode".utf8), kind: .tree, id: inodes)) }
    let greatest = [horizon, parent?.horizon].compactMap(\.self).max()
    let volume = try commit.writeVolume(settings, nodes, greatest)
    top.append(TreeEntry(name: Array("volume".utf8), kind: .tree, id: volume))
    let unchanged = root == parent?.root && inodes == parent?.inodes && volume == parent?.volume
    return CommitOutcome(
        root: try unchanged ? base ?? commit.sink.write(tree: top) : commit.sink.write(tree: top),
        trees: commit.changedTrees, adoptions: commit.adoptions,
        pending: DirtySet(places: hidden, records: kept),
        newestStamp: commit.newestStamp)
}
