/// Step 1: what differs between both sides and every base, from their trees. Each base is walked
/// against each side.
struct MergeExtraction {
    /// The trees by number: the sides first, then the bases.
    private let trees: Int
    private let meetings: MergeMeetings
    /// Of both sides.
    let fragments: [Fragment]
    /// How many links an inode of the fragments has beyond those, the same in every tree.
    private let otherLinks: [LineageID: Int]
    private let chains: LinkChains

    init<Source: TreeSource>(
        _ a: VolumeTree, _ b: VolumeTree, bases: [VolumeTree], _ objects: MergeObjects<Source>
    ) throws {
        let all = [a, b] + bases
        trees = all.count
        meetings = MergeMeetings(trees: trees)
        for side in 0..<2 {
            for base in bases.isEmpty ? [nil] : Array(2..<trees).map(Optional.some) {
                try MergePairWalk.run(
                    base.map { ($0, all[$0]) }, (side, all[side]), objects, into: meetings)
            }
        }
        meetings.complete(along: (2..<trees).flatMap { base in (0..<2).map { (base, $0) } })
        let records = try Self.addUnread(to: meetings, in: a, trees: trees, objects.source)
        chains = try LinkChains(meetings, trees: trees)
        var fragments = [Fragment(), Fragment()]
        var otherLinks: [LineageID: Int] = [:]
        for (id, row) in records {
            for side in 0..<2 {
                guard let record = meetings.records.value(row: row, in: side) else { continue }
                let inode = Inode(
                    record.record, links: chains.links(of: row, id, in: side, meetings))
                if record.links > inode.links.count {
                    otherLinks[id] = record.links - inode.links.count
                }
                fragments[side][id] = inode
            }
        }
        self.fragments = fragments
        self.otherLinks = otherLinks
    }

    /// A link differs and what it names does not: then its record lies in `inode/`.
    private static func addUnread(
        to meetings: MergeMeetings, in tree: VolumeTree, trees: Int, _ source: some TreeSource
    ) throws -> [LineageID: Int] {
        var unread: Set<LineageID> = []
        for row in meetings.links.rows.values {
            for tree in 0..<trees {
                guard let link = meetings.links.value(row: row, in: tree) else { continue }
                let target = link.placed.link.target
                if meetings.records.rows[target] == nil { unread.insert(target) }
            }
        }
        var lookup = try InodeLookup(InodeTable(tree.inodes), source)
        for id in unread.sorted() {
            guard let shared = try lookup.record(id) else {
                throw InvalidTree("a link to a record that is not there: \(id.rawValue)")
            }
            meetings.records.meetEverywhere(MetRecord(shared.record, links: shared.links), id)
        }
        return meetings.records.rows
    }

    var hasBases: Bool { trees > 2 }

    /// The inode in each base.
    func inBases(_ id: LineageID) -> [Inode?] {
        guard let row = meetings.records.rows[id] else {
            return Array(repeating: nil, count: trees - 2)
        }
        return (2..<trees).map { tree in
            meetings.records.value(row: row, in: tree).map {
                Inode($0.record, links: chains.links(of: row, id, in: tree, meetings))
            }
        }
    }

    /// Whether an inode differs somewhere.
    func contains(_ id: LineageID) -> Bool { meetings.records.rows[id] != nil }

    /// Whether a link differs somewhere.
    func contains(_ link: LinkID) -> Bool { meetings.links.rows[link] != nil }

    func otherLinkCount(of id: LineageID) -> Int { otherLinks[id] ?? 0 }

    /// A directory above or among the differences.
    func directory(_ id: LineageID, in side: Int) -> ObjectID? {
        meetings.directories.value(id, in: side)
    }

    /// As any tree has it, the sides first.
    func directory(_ id: LineageID) -> ObjectID? {
        meetings.directories.rows[id].flatMap { row in
            (0..<trees).lazy.compactMap { meetings.directories.value(row: row, in: $0) }.first
        }
    }
}

/// By record which links may name it, without an allocation for each.
private struct LinkChains {
    /// By the record's row: where its chain begins.
    private var first: [Int32]
    private var nodes: [(link: Int32, next: Int32)] = []

    init(_ meetings: MergeMeetings, trees: Int) throws {
        first = Array(repeating: -1, count: meetings.records.rows.count)
        nodes.reserveCapacity(meetings.links.rows.count)
        for link in meetings.links.rows.values {
            var chained: LineageID?
            for tree in 0..<trees {
                guard let met = meetings.links.value(row: link, in: tree) else { continue }
                let target = met.placed.link.target
                guard let record = meetings.records.rows[target],
                    meetings.records.value(row: record, in: tree) != nil
                else { throw InvalidTree("a link to a record that is not there") }
                guard chained != target else { continue }
                chained = target
                nodes.append((Int32(link), first[record]))
                first[record] = Int32(nodes.count - 1)
            }
        }
    }

    func links(
        of record: Int, _ id: LineageID, in tree: Int, _ meetings: MergeMeetings
    ) -> [PlacedLink] {
        var links: [PlacedLink] = []
        var at = first[record]
        while at >= 0 {
            let node = nodes[Int(at)]
            if let link = meetings.links.value(row: Int(node.link), in: tree)?.placed,
                link.link.target == id
            {
                links.append(link)
            }
            at = node.next
        }
        return links
    }
}
