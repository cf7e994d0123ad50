/// The tree of a commit, as far as its top:
///
/// ```
/// inode/ab/<16 hex>     records with more than one link, by the last byte of their id;
///                       absent when there are none; each `ab` is split as a directory is
/// tree/                 the top directory
/// volume/horizon        optional: content removed before this stamp was given up
/// volume/nodes/<32 hex>
/// volume/settings
/// ```
public struct VolumeTree: Sendable {
    public let settings: VolumeSettings
    /// The top directory's tree.
    public let root: ObjectID
    /// The greatest stamp whose content may have been given up.
    public let horizon: Stamp?
    let inodes: ObjectID?
    let volume: ObjectID
    let nodeBlobs: [NodeID: ObjectID]

    /// Throws `InvalidTree`, `UpgradeNeeded`, or what the source throws.
    public init(reading id: ObjectID, from source: some TreeSource) throws {
        var top = try Named(id, source)
        guard let volume = top.take("volume", .tree), let root = top.take("tree", .tree) else {
            throw InvalidTree("a commit without volume or tree")
        }
        self.root = root
        self.volume = volume
        // Settings first: of a later format nothing else can be judged.
        var inner = try Named(volume, source)
        guard let settings = inner.take("settings", .blob) else {
            throw InvalidTree("a volume without settings")
        }
        self.settings = try VolumeSettings(decoding: source.blob(settings))
        inodes = top.take("inode", .tree)
        try top.finish()
        horizon = try inner.take("horizon", .blob).map {
            try Self.decodeHorizon(source.blob($0))
        }
        nodeBlobs = try inner.take("nodes", .tree).map { try Self.nodes(of: $0, source) } ?? [:]
        try inner.finish()
    }

    public func nodes(from source: some TreeSource) throws -> [NodeID: NodeDescription] {
        try nodeBlobs.mapValues { try NodeDescription(decoding: source.blob($0)) }
    }

    /// A record that has more than one link, and how many.
    public func sharedRecord(
        _ id: LineageID, from source: some TreeSource
    ) throws -> (record: Record, links: Int)? {
        guard let blob = try InodeTable(inodes).blob(id, source) else { return nil }
        return try InodeTable.decode(source.blob(blob), as: id)
    }

    static func encodeHorizon(_ stamp: Stamp) throws(InvalidTree) -> [UInt8] {
        guard stamp.milliseconds < Limits.stampMillisecondsEnd else {
            throw InvalidTree("a horizon beyond the year 2200")
        }
        var out = LineWriter()
        out.key("horizon")
        out.stamp(stamp)
        out.end()
        return out.bytes
    }

    private static func decodeHorizon(_ bytes: [UInt8]) throws(InvalidTree) -> Stamp {
        var reader = LineReader(bytes)
        var line = try reader.required("horizon")
        let stamp = try line.stamp()
        guard try encodeHorizon(stamp) == bytes else {
            throw InvalidTree("a horizon that is not in canonical form")
        }
        return stamp
    }

    private static func nodes(
        of id: ObjectID, _ source: some TreeSource
    ) throws -> [NodeID: ObjectID] {
        let entries = try Shard.sortedEntries(of: id, source)
        guard !entries.isEmpty else { throw InvalidTree("an empty list of nodes") }
        var nodes: [NodeID: ObjectID] = [:]
        for entry in entries {
            guard entry.kind == .blob, let bytes = Hex.decode(entry.name),
                let node = NodeID(bytes: bytes)
            else { throw InvalidTree("a node id that is none") }
            nodes[node] = entry.id
        }
        return nodes
    }
}

/// The entries of a tree whose names are fixed.
private struct Named {
    private var entries: [TreeEntry]

    init(_ id: ObjectID, _ source: some TreeSource) throws {
        entries = try Shard.sortedEntries(of: id, source)
    }

    mutating func take(_ name: String, _ kind: TreeEntry.Kind) -> ObjectID? {
        guard
            let at = entries.firstIndex(where: {
                $0.kind == kind && $0.name.elementsEqual(name.utf8)
            })
        else { return nil }
        return entries.remove(at: at).id
    }

    func finish() throws(InvalidTree) {
        if !entries.isEmpty { throw InvalidTree("an entry that does not belong") }
    }
}

/// `inode/`: the records of everything that has more than one link.
struct InodeTable {
    let id: ObjectID?

    init(_ id: ObjectID?) { self.id = id }

    /// Ids of one node are consecutive numbers, so the last byte spreads them and the first would not.
    static func group(_ id: LineageID) -> UInt8 { UInt8(truncatingIfNeeded: id.rawValue) }

    static func groupName(_ group: UInt8) -> [UInt8] { Array(Hex.encode([group]).utf8) }

    static func name(_ id: LineageID) -> FileName {
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: id.rawValue >> (56 - 8 * $0)) }
        guard let name = FileName(Hex.encode(bytes)) else {
            preconditionFailure("sixteen digits are a file name")
        }
        return name
    }

    static func lineage(_ entry: TreeEntry) throws(InvalidTree) -> LineageID {
        guard entry.kind == .blob, entry.name.count == 16, let bytes = Hex.decode(entry.name)
        else { throw InvalidTree("an entry in inode that is no record") }
        return LineageID(rawValue: bytes.reduce(0) { $0 << 8 | UInt64($1) })
    }

    static func decode(_ bytes: [UInt8], as id: LineageID) throws -> (record: Record, links: Int) {
        guard case .shared(let record, let links) = try EntryBlob(decoding: bytes),
            record.id == id
        else { throw InvalidTree("a record in inode under another id") }
        return (record, links)
    }

    func groups(_ source: some TreeSource) throws -> [UInt8: ObjectID] {
        guard let id else { return [:] }
        let entries = try Shard.sortedEntries(of: id, source)
        guard !entries.isEmpty else { throw InvalidTree("an empty inode tree") }
        var groups: [UInt8: ObjectID] = [:]
        for entry in entries {
            guard entry.kind == .tree, entry.name.count == 2,
                let index = Hex.decode(entry.name)?.first
            else { throw InvalidTree("a group in inode that is none") }
            groups[index] = entry.id
        }
        return groups
    }

    static func shard(_ group: ObjectID, _ source: some TreeSource) throws -> Shard {
        try Shard(reading: group, depth: 0, prefix: [], source)
    }

    func blob(_ lineage: LineageID, _ source: some TreeSource) throws -> ObjectID? {
        guard let group = try groups(source)[Self.group(lineage)] else { return nil }
        return try Self.blob(lineage, in: try Self.shard(group, source), source)
    }

    static func blob(
        _ lineage: LineageID, in shard: Shard, _ source: some TreeSource
    ) throws -> ObjectID? {
        let name = Self.name(lineage)
        return try shard.child(name.bytes, hash: { PureSHA256.digest(name.bytes) }, source)?.id
    }
}

/// Looks up many records of one `inode/` tree, keeping the heads of its groups: at most 256.
struct InodeLookup<Source: TreeSource> {
    private let source: Source
    private let groups: [UInt8: ObjectID]
    private var shards: [UInt8: Shard] = [:]

    init(_ table: InodeTable, _ source: Source) throws {
        self.source = source
        groups = try table.groups(source)
    }

    mutating func blob(_ id: LineageID) throws -> ObjectID? {
        let group = InodeTable.group(id)
        guard let tree = groups[group] else { return nil }
        let shard = try shards[group] ?? InodeTable.shard(tree, source)
        shards[group] = shard
        return try InodeTable.blob(id, in: shard, source)
    }

    mutating func record(_ id: LineageID) throws -> (record: Record, links: Int)? {
        guard let blob = try blob(id) else { return nil }
        return try InodeTable.decode(source.blob(blob), as: id)
    }
}
