/// What is the same in both sides and in every base, read from the trees when a merge asks for it.
struct TreeSurroundings<Source: TreeSource>: MergeSurroundings {
    private let source: Source
    private let extraction: MergeExtraction
    /// Any of the trees would do: what is asked for is the same in all.
    private let tree: VolumeTree
    private var lookup: InodeLookup<Source>
    /// Directories that were handed out or found by a scan.
    private(set) var found: [LineageID: (record: Record, link: PlacedLink, tree: ObjectID)] = [:]
    /// Links that were handed out.
    private(set) var handedOut: [LinkID: PlacedLink] = [:]
    /// All links by which `inode/` is referred to, and all other ids, once they were needed.
    private var scan: Scan?

    private struct Scan {
        var references: [LineageID: [PlacedLink]] = [:]
        var ids: Set<LineageID> = []
    }

    init(_ tree: VolumeTree, _ extraction: MergeExtraction, source: Source) throws {
        self.tree = tree
        self.extraction = extraction
        self.source = source
        lookup = try InodeLookup(InodeTable(tree.inodes), source)
    }

    mutating func entry(at place: Place) throws -> (record: Record, link: PlacedLink)? {
        guard let directory = try contents(of: place.directory),
            let child = try directory.child(place.name, from: source)
        else { return nil }
        return try handOut(child, at: place)
    }

    mutating func entries(of directory: LineageID) throws -> [(record: Record, link: PlacedLink)] {
        guard let contents = try contents(of: directory) else { return [] }
        return try contents.children(from: source).compactMap { name, child in
            try handOut(child, at: Place(directory: directory, name: name))
        }
    }

    func otherLinkCount(of id: LineageID) -> Int { extraction.otherLinkCount(of: id) }

    /// Where the other links stand is written nowhere; finding them reads the whole tree.
    mutating func otherLinks(of id: LineageID) throws -> [PlacedLink] {
        guard otherLinkCount(of: id) > 0 else { return [] }
        return try scanned().references[id, default: []].filter {
            !extraction.contains($0.link.id)
        }
    }

    /// The copy of a losing write was made after that write lost, and whoever had seen it lose went
    /// on with a later one. A base with an earlier one has not seen it, and then neither side that
    /// lacks the copy nor, with it, all of them can have it unchanged. Only else is the tree read.
    mutating func lives(
        _ id: LineageID, copyOf original: LineageID, losing stamp: Stamp
    ) throws -> Bool {
        for base in extraction.inBases(original) {
            if let content = base?.record.content, content.stamp < stamp { return false }
        }
        if !extraction.hasBases { return false }
        if try lookup.record(id) != nil { return true }
        return try scanned().ids.contains(id)
    }

    // MARK: Reading

    private func contents(of directory: LineageID) throws -> DirectoryTree? {
        guard let tree = extraction.directory(directory) ?? found[directory]?.tree else {
            return nil
        }
        return try DirectoryTree(reading: tree, from: source)
    }

    private mutating func handOut(
        _ child: TreeChild, at place: Place
    ) throws -> (record: Record, link: PlacedLink)? {
        let (record, link) = try read(child, at: place)
        guard let record, !extraction.contains(link.link.id) else { return nil }
        handedOut[link.link.id] = link
        return (record, link)
    }

    private mutating func read(
        _ child: TreeChild, at place: Place
    ) throws -> (record: Record?, link: PlacedLink) {
        switch child {
        case .directory(let tree):
            let (record, link) = try DirectoryTree(reading: tree, from: source)
                .record(from: source)
            guard let link else { throw InvalidTree("a directory without a link") }
            let placed = PlacedLink(place: place, link: link)
            found[record.id] = (record, placed, tree)
            return (record, placed)
        case .blob(let id):
            switch try EntryBlob(decoding: source.blob(id)) {
            case .single(let record, let link):
                return (record, PlacedLink(place: place, link: link))
            case .reference(let link):
                let record = try lookup.record(link.target)?.record
                return (record, PlacedLink(place: place, link: link))
            default: throw InvalidTree("a shared record at a file's place")
            }
        }
    }

    private mutating func scanned() throws -> Scan {
        if let scan { return scan }
        var result = Scan()
        var waiting = [(id: LineageID.root, tree: tree.root)]
        while let (directory, tree) = waiting.popLast() {
            let contents = try DirectoryTree(reading: tree, from: source)
            for (name, child) in try contents.children(from: source) {
                let place = Place(directory: directory, name: name)
                if case .blob(let id) = child,
                    case .reference(let link) = try EntryBlob(decoding: source.blob(id))
                {
                    result.references[link.target, default: []].append(
                        PlacedLink(place: place, link: link))
                    continue
                }
                let (record, link) = try read(child, at: place)
                result.ids.insert(link.link.target)
                if case .directory(let tree) = child, let record {
                    waiting.append((record.id, tree))
                }
            }
        }
        scan = result
        return result
    }

    // MARK: For the encoder

    /// How many links the tree has to an inode of which some link was handed out.
    mutating func linkCount(of id: LineageID) throws -> Int { try lookup.record(id)?.links ?? 1 }
}
