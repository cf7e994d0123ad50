/// The merged state as the encoder wants to see it when it patches one side's tree.
struct MergedTree<Source: TreeSource>: LiveState {
    private let inodes: Fragment
    private let surroundings: TreeSurroundings<Source>
    private let extraction: MergeExtraction
    /// The side that is patched.
    private let side: Int
    private let names: [LineageID: [FileName: Link]]
    /// Links of the merged inodes that are neither in the merged state nor differ anywhere.
    private let rest: [LineageID: [PlacedLink]]

    /// - Parameter side: 0 or 1, as the extraction has them.
    init(
        _ inodes: Fragment, _ extraction: MergeExtraction,
        _ surroundings: inout TreeSurroundings<Source>, patching side: Int
    ) throws {
        self.inodes = inodes
        self.extraction = extraction
        self.side = side
        var rest: [LineageID: [PlacedLink]] = [:]
        var admitted: [LineageID: Int] = [:]
        for link in surroundings.handedOut.values { admitted[link.link.target, default: 0] += 1 }
        for inode in inodes.values {
            let admitted = admitted[inode.id, default: 0]
            let outside =
                extraction.contains(inode.id) || admitted == 0
                ? surroundings.otherLinkCount(of: inode.id)
                : try surroundings.linkCount(of: inode.id)
            // Of an inode that keeps several links, those that differ nowhere are only counted: the
            // encoder writes them nowhere. A single one must be known, for the record goes there.
            switch (outside - admitted, inode.links.isEmpty) {
            case (...0, _): break
            case (1, true): rest[inode.id] = try surroundings.otherLinks(of: inode.id)
            case (let count, _):
                rest[inode.id] = (0..<count).map { Self.unplaced($0, target: inode.id) }
            }
        }
        var names: [LineageID: [FileName: Link]] = [:]
        for placed in inodes.values.lazy.flatMap(\.links.values) + rest.values.lazy.joined() {
            names[placed.place.directory, default: [:]][placed.place.name] = placed.link
        }
        self.names = names
        self.rest = rest
        self.surroundings = surroundings
    }

    /// Stands for a link whose place is of no interest. No directory has the id 0.
    private static func unplaced(_ number: Int, target: LineageID) -> PlacedLink {
        guard let name = FileName(String(number)) else {
            preconditionFailure("a number is a file name")
        }
        let nowhere = LineageID(rawValue: 0)
        return PlacedLink(
            place: Place(directory: nowhere, name: name),
            link: Link(
                id: LinkID(rawValue: 0),
                stamp: Stamp(milliseconds: 0, counter: 0, node: NodeID(high: 0, low: 0)),
                target: target))
    }

    /// Directories above what a scan found are the same everywhere and in no fragment.
    private func unchangedDirectory(_ id: LineageID) -> (record: Record, link: PlacedLink)? {
        guard !extraction.contains(id), let found = surroundings.found[id],
            surroundings.handedOut[found.link.link.id] == nil
        else { return nil }
        return (found.record, found.link)
    }

    func record(_ id: LineageID) -> Record? { inodes[id]?.record ?? unchangedDirectory(id)?.record }

    func links(of id: LineageID) -> [(place: Place, link: Link)] {
        guard let inode = inodes[id] else {
            return unchangedDirectory(id).map { [($0.link.place, $0.link.link)] } ?? []
        }
        return (Array(inode.links.values) + (rest[id] ?? [])).map { ($0.place, $0.link) }
    }

    func link(at place: Place) -> Link? { names[place.directory]?[place.name] }

    /// Asked for directories only that the patched tree lacks. All in them differs from that tree.
    func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        (names[directory] ?? [:]).map { ($0.key, $0.value) }
    }

    func tree(of directory: LineageID) -> ObjectID? {
        // A scan finds directories of one side that the patched one may lack.
        extraction.contains(directory)
            ? extraction.directory(directory, in: side) : surroundings.found[directory]?.tree
    }
}
