/// One run of `commitTree`; its steps in the order in which they are called.
struct CommitWriter<Live: LiveState, Source: TreeSource, Sink: TreeSink> {
    /// What the base has at a dirty place.
    private enum BaseEntry {
        case directory(LineageID)
        case file(Link, isRegular: Bool)
    }

    private let parent: VolumeTree?
    private let live: Live
    private let source: Source
    var sink: Sink

    private var baseEntries: [Place: BaseEntry] = [:]
    private var dirtyPlaces: Set<Place> = []
    /// What stands there is no part of the commit.
    private var hidden: Set<Place> = []
    /// Trees of directories in the base that are gone from the live state and so from `live.tree`.
    private var baseTrees: [LineageID: ObjectID] = [:]
    private var baseContents: [LineageID: DirectoryTree] = [:]
    private var baseInodes: InodeLookup<Source>

    private(set) var adoptions: [Adoption] = []
    /// From the file that was adopted to the newborn that goes on under its id.
    private var newborns: [LineageID: LineageID] = [:]
    private var adopted: [LineageID: LineageID] = [:]
    private var adoptedLinks: [Place: Link] = [:]

    private var linksOf: [LineageID: [(place: Place, link: Link)]] = [:]
    private var encoded: Set<LineageID> = []
    private var blobs: [Place: ObjectID] = [:]
    private var changes: [LineageID: [FileName: TreeChild?]] = [:]
    /// Nil: no longer in `inode/`.
    private var inodeChanges: [LineageID: ObjectID?] = [:]
    /// Directories whose own record or link may have changed.
    private var dirtyDirectories: Set<LineageID> = []

    private(set) var changedTrees: [LineageID: ObjectID?] = [:]
    private(set) var newestStamp: Stamp?

    init(parent: VolumeTree?, live: Live, source: Source, sink: Sink) throws {
        self.parent = parent
        self.live = live
        self.source = source
        self.sink = sink
        baseInodes = try InodeLookup(InodeTable(parent?.inodes), source)
    }

    // MARK: The base

    private func baseTree(_ id: LineageID) throws -> ObjectID? {
        guard let parent else { return nil }
        if id == .root { return parent.root }
        return try baseTrees[id] ?? live.tree(of: id)
    }

    private mutating func contents(of id: LineageID) throws -> DirectoryTree? {
        if let known = baseContents[id] { return known }
        guard let tree = try baseTree(id) else { return nil }
        let contents = try DirectoryTree(reading: tree, from: source)
        baseContents[id] = contents
        return contents
    }

    /// Finds what the base holds at the dirty places, also below directories that are gone since:
    /// those stood at dirty places themselves.
    mutating func readBase(at places: Set<Place>) throws {
        dirtyPlaces = places
        let byDirectory = Dictionary(grouping: places, by: \.directory)
        var pending = Array(byDirectory.keys)
        var done: Set<LineageID> = []
        while let id = pending.popLast() {
            guard !done.contains(id), let contents = try contents(of: id) else { continue }
            done.insert(id)
            let names = (byDirectory[id] ?? []).map(\.name)
            for (name, child) in try contents.children(names, from: source) {
                let place = Place(directory: id, name: name)
                switch child {
                case .directory(let tree):
                    let inner = try DirectoryTree(reading: tree, from: source)
                    let child = try inner.record(from: source).record.id
                    baseEntries[place] = .directory(child)
                    baseTrees[child] = tree
                    if byDirectory[child] != nil { pending.append(child) }
                case .blob(let blob):
                    baseEntries[place] = try baseFile(blob)
                }
            }
        }
    }

    private mutating func baseFile(_ blob: ObjectID) throws -> BaseEntry {
        let entry = try EntryBlob(decoding: source.blob(blob))
        guard let link = entry.link else { throw InvalidTree("an entry without a link") }
        let record = try entry.record ?? baseInodes.record(link.target)?.record
        guard case .file? = record?.content.value.body else {
            return .file(link, isRegular: false)
        }
        return .file(link, isRegular: true)
    }

    /// Leaves out what stands at these places, whose base has been read. A file that the base holds
    /// there and that is gone stays until then, as if it were not replaced yet; what lives on
    /// elsewhere must not stand in the tree twice, so its old place is empty.
    ///
    /// - Returns: the files that stay.
    mutating func hide(_ places: Set<Place>) throws -> Set<LineageID> {
        hidden = places
        var kept: Set<LineageID> = []
        for place in places {
            guard case .file(let link, _)? = baseEntries[place],
                try baseInodes.blob(link.target) == nil, try live.links(of: link.target).isEmpty
            else { continue }
            kept.insert(link.target)
            dirtyPlaces.remove(place)
        }
        return kept
    }

    // MARK: Adoption

    /// Finds editors' saves: a place held regular file x, holds a regular file born since, and x has
    /// no link left.
    mutating func adopt() throws {
        var inBase: Set<LineageID> = []
        for case .file(let link, _) in baseEntries.values { inBase.insert(link.target) }
        for place in baseEntries.keys.sorted() {
            guard case .file(let old, isRegular: true)? = baseEntries[place],
                !hidden.contains(place), let new = try live.link(at: place),
                new.target != old.target,
                newborns[old.target] == nil, adopted[new.target] == nil,
                !inBase.contains(new.target), try isLiveRegular(new.target),
                try live.links(of: old.target).isEmpty, try wasBornSince(new.target)
            else { continue }
            adopt(old.target, by: new.target, links: try live.links(of: new.target))
        }
    }

    private func isLiveRegular(_ id: LineageID) throws -> Bool {
        guard case .file? = try live.record(id)?.content.value.body else { return false }
        return true
    }

    /// A file of the base has kept a link there, which is not dirty, or had one at a dirty place.
    private mutating func wasBornSince(_ id: LineageID) throws -> Bool {
        try live.links(of: id).allSatisfy { dirtyPlaces.contains($0.place) }
            && baseInodes.blob(id) == nil
    }

    private mutating func adopt(
        _ old: LineageID, by newborn: LineageID, links: [(place: Place, link: Link)]
    ) {
        var taken: [Place: Link] = [:]
        for (place, _) in links {
            guard case .file(let link, _)? = baseEntries[place], link.target == old else {
                continue
            }
            taken[place] = link
        }
        newborns[old] = newborn
        adopted[newborn] = old
        adoptedLinks.merge(taken) { $1 }
        adoptions.append(Adoption(newborn: newborn, adopted: old, links: taken))
    }

    private func record(_ id: LineageID) throws -> Record? {
        if adopted[id] != nil { return nil }
        guard let newborn = newborns[id] else { return try live.record(id) }
        return try live.record(newborn).map {
            Record(
                id: id, ino: $0.ino, content: $0.content, mode: $0.mode, owner: $0.owner,
                xattrs: $0.xattrs)
        }
    }

    private mutating func links(of id: LineageID) throws -> [(place: Place, link: Link)] {
        if adopted[id] != nil { return [] }
        if let known = linksOf[id] { return known }
        let links = try live.links(of: newborns[id] ?? id).filter { !hidden.contains($0.place) }
            .map { ($0.place, final($0.link, $0.place)) }
        linksOf[id] = links
        return links
    }

    private func link(at place: Place) throws -> Link? {
        hidden.contains(place) ? nil : try live.link(at: place).map { final($0, place) }
    }

    private func final(_ link: Link, _ place: Place) -> Link {
        guard let old = adopted[link.target] else { return link }
        return adoptedLinks[place] ?? Link(id: link.id, stamp: link.stamp, target: old)
    }

    // MARK: Entries

    /// Encodes every file that may have changed, at the places that may have.
    mutating func encode(_ records: Set<LineageID>) throws {
        var affected = records
        for place in dirtyPlaces {
            switch baseEntries[place] {
            case .directory(let id): affected.insert(id)
            case .file(let link, _): affected.insert(link.target)
            case nil: break
            }
            if let link = try link(at: place) {
                affected.insert(link.target)
            } else {
                change(place, nil)
            }
        }
        affected.formUnion(newborns.keys)
        // Written in id order, so that equal input gives an equal sequence of objects.
        for id in affected.sorted() { try encode(id) }
    }

    private mutating func change(_ place: Place, _ child: TreeChild?) {
        changes[place.directory, default: [:]].updateValue(child, forKey: place.name)
    }

    private mutating func encode(_ id: LineageID) throws {
        guard encoded.insert(id).inserted else { return }
        let record = try record(id)
        let links = try links(of: id)
        guard let record, id == .root || !links.isEmpty else {
            guard record != nil || links.isEmpty else {
                throw InvalidTree("a link to a record that is not there: \(id.rawValue)")
            }
            if try baseInodes.blob(id) != nil { inodeChanges.updateValue(nil, forKey: id) }
            if try baseTree(id) != nil { changedTrees.updateValue(nil, forKey: id) }
            return
        }
        if record.isDirectory {
            dirtyDirectories.insert(id)
            return
        }
        let old = try baseInodes.blob(id)
        if links.count == 1, let (place, link) = links.first {
            try write(.single(record, link), at: place)
            if old != nil { inodeChanges.updateValue(nil, forKey: id) }
            return
        }
        note(record.newestStamp)
        let blob = try sink.write(blob: EntryBlob.shared(record, links: links.count).encoded())
        if blob != old { inodeChanges.updateValue(blob, forKey: id) }
        for (place, link) in links where old == nil || dirtyPlaces.contains(place) {
            try write(.reference(link), at: place)
        }
    }

    private mutating func write(_ entry: EntryBlob, at place: Place) throws {
        if let record = entry.record { note(record.newestStamp) }
        if let link = entry.link { note(link.stamp) }
        let blob = try sink.write(blob: entry.encoded())
        blobs[place] = blob
        change(place, .blob(blob))
    }

    private mutating func note(_ stamp: Stamp) { newestStamp = max(newestStamp ?? stamp, stamp) }

    // MARK: Directories

    /// Writes changed directories from the lowest upwards; returns the top directory's tree.
    mutating func writeDirectories() throws -> ObjectID {
        guard let top = try record(.root), top.isDirectory else {
            throw InvalidTree("no top directory")
        }
        var touched = dirtyDirectories
        for id in changes.keys where try isLiveDirectory(id) { touched.insert(id) }
        if parent == nil { touched.insert(.root) }
        var whole: [LineageID: [ShardChange]] = [:]
        var depths: [LineageID: Int] = [:]
        var pending = touched
        while !pending.isEmpty {
            while let id = pending.popFirst() {
                guard whole[id] == nil, try baseTree(id) == nil else { continue }
                whole[id] = try list(id) { child in
                    touched.insert(child)
                    pending.insert(child)
                }
            }
            depths = try self.depths(of: touched)
            // Ancestors are touched with them; a new one must be listed like any other.
            pending = Set(depths.keys).subtracting(touched)
            touched.formUnion(pending)
        }
        for (id, _) in depths.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
            try writeDirectory(id, whole: whole[id])
        }
        guard let root = try changedTrees[.root] ?? baseTree(.root) else {
            preconditionFailure("the top directory is either in the base or touched")
        }
        return root
    }

    private mutating func isLiveDirectory(_ id: LineageID) throws -> Bool {
        guard let record = try record(id), record.isDirectory else { return false }
        return try id == .root || !links(of: id).isEmpty
    }

    /// The entries of a directory that the base does not have, but for its subdirectories.
    private mutating func list(
        _ id: LineageID, newDirectory: (LineageID) -> Void
    ) throws -> [ShardChange] {
        var entries: [ShardChange] = []
        for (name, link) in try live.children(of: id) {
            let place = Place(directory: id, name: name)
            if hidden.contains(place) { continue }
            let target = final(link, place).target
            guard let record = try record(target) else {
                throw InvalidTree("a link to a record that is not there: \(target.rawValue)")
            }
            if record.isDirectory {
                if let tree = try baseTree(target) {
                    entries.append(ShardChange(name, .directory(tree)))
                } else {
                    newDirectory(target)
                }
                continue
            }
            try encode(target)
            if blobs[place] == nil {
                guard try links(of: target).count > 1 else {
                    throw InvalidTree("a link that its record does not know: \(target.rawValue)")
                }
                try write(.reference(final(link, place)), at: place)
            }
            entries.append(ShardChange(name, blobs[place].map(TreeChild.blob)))
        }
        dirtyDirectories.insert(id)
        return entries
    }

    /// Distance from the top, for the directories given and all above them.
    private mutating func depths(of ids: Set<LineageID>) throws -> [LineageID: Int] {
        var depths: [LineageID: Int] = [.root: 0]
        if ids.isEmpty { return [:] }
        for start in ids {
            var path: [LineageID] = []
            var id = start
            while depths[id] == nil {
                guard path.count < Limits.directoryDepthMax else {
                    throw InvalidTree("directories deeper than \(Limits.directoryDepthMax)")
                }
                guard let link = try links(of: id).first else {
                    throw InvalidTree("a directory that hangs from nothing: \(id.rawValue)")
                }
                path.append(id)
                id = link.place.directory
            }
            var depth = depths[id] ?? 0
            guard depth + path.count <= Limits.directoryDepthMax else {
                throw InvalidTree("directories deeper than \(Limits.directoryDepthMax)")
            }
            for id in path.reversed() {
                depth += 1
                depths[id] = depth
            }
        }
        return depths
    }

    private mutating func writeDirectory(_ id: LineageID, whole: [ShardChange]?) throws {
        let base = try contents(of: id)
        let baseTree = try baseTree(id)
        let changed = (changes[id] ?? [:]).map { ShardChange($0.key, $0.value) }
        let own = try ownBlob(id, base)
        var tree = baseTree
        if let base, whole == nil {
            let entries =
                try changed.isEmpty ? nil : base.shard.changed(by: changed, source, &sink)
            if own != base.own || (entries != nil && entries != base.shard.entries) {
                tree = try writeTree(own, entries ?? base.shard.entries)
            }
        } else {
            // Later changes win: subdirectories were written after the list was made.
            tree = try writeTree(own, Shard.written((whole ?? []) + changed, &sink))
        }
        if tree != baseTree { changedTrees.updateValue(tree, forKey: id) }
        guard id != .root, let place = try links(of: id).first?.place, let tree else { return }
        if tree != baseTree || dirtyPlaces.contains(place) { change(place, .directory(tree)) }
    }

    private mutating func ownBlob(_ id: LineageID, _ base: DirectoryTree?) throws -> ObjectID {
        if let base, !dirtyDirectories.contains(id) { return base.own }
        guard let record = try record(id), record.isDirectory else {
            throw InvalidTree("a directory without a record: \(id.rawValue)")
        }
        note(record.newestStamp)
        if id == .root { return try sink.write(blob: EntryBlob.top(record).encoded()) }
        let links = try links(of: id)
        guard links.count == 1, let link = links.first?.link else {
            throw InvalidTree("a directory with \(links.count) links: \(id.rawValue)")
        }
        note(link.stamp)
        return try sink.write(blob: EntryBlob.single(record, link).encoded())
    }

    private mutating func writeTree(_ own: ObjectID, _ entries: [TreeEntry]) throws -> ObjectID {
        let own = TreeEntry(name: DirectoryTree.ownName, kind: .blob, id: own)
        return try sink.write(tree: [own] + entries)
    }

    // MARK: inode, volume

    /// The `inode` tree; nil when no record has more than one link.
    mutating func writeInodes() throws -> ObjectID? {
        if inodeChanges.isEmpty { return parent?.inodes }
        var groups = try InodeTable(parent?.inodes).groups(source)
        let byGroup = Dictionary(grouping: inodeChanges) { InodeTable.group($0.key) }
        for (group, members) in byGroup.sorted(by: { $0.key < $1.key }) {
            let shard = try groups[group].map { try InodeTable.shard($0, source) } ?? .empty
            let entries = try shard.changed(
                by: members.map {
                    ShardChange(InodeTable.name($0.key), $0.value.map(TreeChild.blob))
                },
                source, &sink)
            groups[group] = entries.isEmpty ? nil : try sink.write(tree: entries)
        }
        if groups.isEmpty { return nil }
        return try sink.write(
            tree: groups.map {
                TreeEntry(name: InodeTable.groupName($0.key), kind: .tree, id: $0.value)
            })
    }

    mutating func writeVolume(
        _ settings: VolumeSettings, _ nodes: [NodeID: NodeDescription], _ horizon: Stamp?
    ) throws -> ObjectID {
        if let parent, parent.settings == settings, parent.horizon == horizon,
            try parent.nodes(from: source) == nodes
        {
            return parent.volume
        }
        func entry(_ name: String, _ kind: TreeEntry.Kind, _ id: ObjectID) -> TreeEntry {
            TreeEntry(name: Array(name.utf8), kind: kind, id: id)
        }
        var entries = [entry("settings", .blob, try sink.write(blob: settings.encoded()))]
        if let horizon {
            let bytes = try VolumeTree.encodeHorizon(horizon)
            entries.append(entry("horizon", .blob, try sink.write(blob: bytes)))
        }
        if !nodes.isEmpty {
            let list = try nodes.map { id, node in
                entry(id.description, .blob, try sink.write(blob: node.encoded()))
            }
            entries.append(entry("nodes", .tree, try sink.write(tree: list)))
        }
        return try sink.write(tree: entries)
    }
}
