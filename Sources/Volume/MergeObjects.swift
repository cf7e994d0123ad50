/// What a merge reads, decoded: many walks pass the same objects, for every base is compared with
/// both sides, and a fold has the same bases in many of its steps.
final class MergeObjects<Source: TreeSource> {
    /// Entries of trees that are kept; with more, all are let go and read again.
    static var entriesKeptMax: Int { 400_000 }
    /// Decoded blobs that are kept.
    static var blobsKeptMax: Int { 200_000 }

    /// A directory, wherever it stands.
    final class Directory {
        let tree: ObjectID
        let shard: Shard
        let record: MetRecord
        let link: Link?

        init(_ tree: ObjectID, _ contents: DirectoryTree, _ source: Source) throws {
            self.tree = tree
            shard = contents.shard
            let (record, link) = try contents.record(from: source)
            self.record = MetRecord(record, links: link == nil ? 0 : 1)
            self.link = link
        }

        var id: LineageID { record.record.id }
    }

    /// The blob of a file's entry.
    final class Leaf {
        /// Nil when the record lies in `inode/`.
        let record: MetRecord?
        let link: Link
        /// Where it was met last.
        private var met: MetLink?

        init(_ blob: EntryBlob) throws {
            switch blob {
            case .single(let record, let link) where !record.isDirectory:
                self.record = MetRecord(record, links: 1)
                self.link = link
            case .reference(let link):
                record = nil
                self.link = link
            default: throw InvalidTree("a directory's or shared record at a file's place")
            }
        }

        func placed(in directory: LineageID, as entry: TreeEntry) throws -> MetLink {
            if let met, met.placed.place.directory == directory, met.entryName == entry.name {
                return met
            }
            let place = Place(directory: directory, name: try DirectoryTree.name(of: entry))
            let made = MetLink(PlacedLink(place: place, link: link), entryName: entry.name)
            met = made
            return made
        }
    }

    let source: Source
    private var directories: [ObjectID: Directory] = [:]
    private var shards: [ObjectID: Shard] = [:]
    private var entriesKept = 0
    private var leaves: [ObjectID: Leaf] = [:]

    init(_ source: Source) { self.source = source }

    func directory(_ tree: ObjectID) throws -> Directory {
        if let known = directories[tree] { return known }
        let directory = try Directory(tree, DirectoryTree(reading: tree, from: source), source)
        makeRoom(for: directory.shard)
        directories[tree] = directory
        return directory
    }

    func subshard(_ index: UInt8, _ tree: ObjectID, of shard: Shard) throws -> Shard {
        if let known = shards[tree], known.prefix == shard.prefix + [index] { return known }
        let made = try shard.subshard(index, tree, source)
        makeRoom(for: made)
        shards[tree] = made
        return made
    }

    /// All entries in Git's order; unlike `Shard.all`, also of a part that alone would need no shards.
    func entries(below shard: Shard) throws -> [TreeEntry] {
        switch shard.form {
        case .flat(let entries): return entries
        case .split(let shards):
            return try shards.flatMap { try entries(below: subshard($0.key, $0.value, of: shard)) }
                .sorted(by: TreeEntry.precedesInGit)
        }
    }

    func leaf(_ blob: ObjectID) throws -> Leaf {
        if let known = leaves[blob] { return known }
        let leaf = try Leaf(EntryBlob(decoding: source.blob(blob)))
        if leaves.count >= Self.blobsKeptMax { leaves = [:] }
        leaves[blob] = leaf
        return leaf
    }

    private func makeRoom(for shard: Shard) {
        entriesKept += shard.entryCount + 1
        guard entriesKept > Self.entriesKeptMax else { return }
        directories = [:]
        shards = [:]
        entriesKept = shard.entryCount + 1
    }
}

/// A record and how many links the tree has to it. Shared by all trees that have it so.
final class MetRecord {
    let record: Record
    let links: Int

    init(_ record: Record, links: Int) {
        self.record = record
        self.links = links
    }
}

/// A link and its place. Shared by all trees that have it so.
final class MetLink {
    let placed: PlacedLink
    /// The name of the place as the tree has it.
    let entryName: [UInt8]

    init(_ placed: PlacedLink, entryName: [UInt8]) {
        self.placed = placed
        self.entryName = entryName
    }
}

extension Shard {
    fileprivate var entryCount: Int {
        switch form {
        case .flat(let entries): entries.count
        case .split(let shards): shards.count
        }
    }
}
