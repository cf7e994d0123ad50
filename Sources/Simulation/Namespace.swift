public import Volume

/// The live state of one simulated node: what a catalog holds, as plain values.
///
/// Operations that POSIX refuses return false and change nothing.
public struct Namespace: Sendable {
    public struct Entry: Hashable, Sendable {
        public var place: Place
        public var link: Link

        public init(place: Place, link: Link) {
            self.place = place
            self.link = link
        }
    }

    public internal(set) var records: [LineageID: Record]
    public private(set) var entries: [LinkID: Entry]
    /// What differs from the last commit.
    public private(set) var dirtyPlaces: Set<Place> = []
    public private(set) var dirtyRecords: Set<LineageID> = []
    private var names: [LineageID: [FileName: LinkID]] = [:]
    private var linksByTarget: [LineageID: Set<LinkID>] = [:]

    /// A new volume: the top directory alone.
    public init(born stamp: Stamp) {
        let top = Record(
            id: .root, ino: .root,
            content: Stamped(
                BodyGroup(body: .directory, modified: Timestamp(seconds: 0, nanoseconds: 0)),
                stamp),
            mode: Stamped(0o755, stamp), owner: Stamped(Owner(uid: 0, gid: 0), stamp))
        self.init(records: [.root: top], entries: [:])
        dirtyRecords = [.root]
    }

    public init(records: [LineageID: Record], entries: [LinkID: Entry]) {
        self.records = records
        self.entries = entries
        for (id, entry) in entries {
            names[entry.place.directory, default: [:]][entry.place.name] = id
            linksByTarget[entry.link.target, default: []].insert(id)
        }
    }

    public var isClean: Bool { dirtyPlaces.isEmpty && dirtyRecords.isEmpty }

    public mutating func markClean() {
        dirtyPlaces = []
        dirtyRecords = []
    }

    // MARK: Reading

    public func link(at place: Place) -> Link? {
        names[place.directory]?[place.name].flatMap { entries[$0]?.link }
    }

    public func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        (names[directory] ?? [:]).sorted { $0.key < $1.key }.compactMap { name, id in
            entries[id].map { (name, $0.link) }
        }
    }

    public func entries(of id: LineageID) -> [Entry] {
        (linksByTarget[id] ?? []).sorted().compactMap { entries[$0] }
    }

    public func isDirectory(_ id: LineageID) -> Bool { records[id]?.isDirectory ?? false }

    private func isBelow(_ directory: LineageID, _ ancestor: LineageID) -> Bool {
        var at: LineageID? = directory
        while let id = at {
            if id == ancestor { return true }
            at = entries(of: id).first?.place.directory
        }
        return false
    }

    // MARK: Operations

    @discardableResult
    public mutating func create(
        _ body: Body, at place: Place, id: UInt64, link: UInt64, stamp: Stamp
    ) -> Bool {
        guard isDirectory(place.directory), self.link(at: place) == nil else { return false }
        let lineage = LineageID(rawValue: id)
        records[lineage] = Record(
            id: lineage, ino: InodeNumber(rawValue: id),
            content: Stamped(BodyGroup(body: body, modified: Self.time(stamp)), stamp),
            mode: Stamped(0o644, stamp), owner: Stamped(Owner(uid: 1, gid: 1), stamp))
        dirtyRecords.insert(lineage)
        enter(
            Entry(
                place: place,
                link: Link(id: LinkID(rawValue: link), stamp: stamp, target: lineage)))
        return true
    }

    /// New content; `ino` where an editor saved it as another file.
    @discardableResult
    public mutating func write(
        _ content: Content, to id: LineageID, ino: InodeNumber? = nil, stamp: Stamp
    ) -> Bool {
        guard var record = records[id], case .file = record.content.value.body else { return false }
        record.content = Stamped(
            BodyGroup(body: .file(content), modified: Self.time(stamp)), stamp)
        if let ino { record.ino = ino }
        replace(record)
        return true
    }

    /// Changes attributes of an inode that exists.
    @discardableResult
    public mutating func change(_ id: LineageID, _ body: (inout Record) -> Void) -> Bool {
        guard var record = records[id] else { return false }
        body(&record)
        replace(record)
        return true
    }

    @discardableResult
    public mutating func link(_ id: LineageID, at place: Place, link: UInt64, stamp: Stamp) -> Bool
    {
        guard records[id] != nil, !isDirectory(id), isDirectory(place.directory),
            self.link(at: place) == nil
        else { return false }
        enter(
            Entry(
                place: place, link: Link(id: LinkID(rawValue: link), stamp: stamp, target: id)))
        return true
    }

    /// Removes a name; of a directory only when it is empty.
    @discardableResult
    public mutating func remove(_ place: Place) -> Bool {
        guard let link = link(at: place), children(of: link.target).isEmpty else { return false }
        leave(link.id)
        if linksByTarget[link.target, default: []].isEmpty {
            records[link.target] = nil
            dirtyRecords.insert(link.target)
        }
        return true
    }

    public mutating func removeTree(_ place: Place) {
        guard let link = link(at: place) else { return }
        for child in children(of: link.target) {
            removeTree(Place(directory: link.target, name: child.name))
        }
        remove(place)
    }

    /// Moves a name, replacing what the target name held if POSIX allows it.
    @discardableResult
    public mutating func rename(_ from: Place, to: Place, stamp: Stamp) -> Bool {
        guard let link = link(at: from), isDirectory(to.directory), from != to,
            !isDirectory(link.target) || !isBelow(to.directory, link.target)
        else { return false }
        if let held = self.link(at: to) {
            guard held.target != link.target,
                isDirectory(held.target) == isDirectory(link.target), remove(to)
            else { return false }
        }
        leave(link.id)
        enter(Entry(place: to, link: Link(id: link.id, stamp: stamp, target: link.target)))
        return true
    }

    private mutating func replace(_ record: Record) {
        records[record.id] = record
        dirtyRecords.insert(record.id)
    }

    mutating func enter(_ entry: Entry) {
        entries[entry.link.id] = entry
        names[entry.place.directory, default: [:]][entry.place.name] = entry.link.id
        linksByTarget[entry.link.target, default: []].insert(entry.link.id)
        dirtyPlaces.insert(entry.place)
    }

    mutating func leave(_ id: LinkID) {
        guard let entry = entries.removeValue(forKey: id) else { return }
        names[entry.place.directory]?[entry.place.name] = nil
        linksByTarget[entry.link.target]?.remove(id)
        dirtyPlaces.insert(entry.place)
    }

    private static func time(_ stamp: Stamp) -> Timestamp {
        Timestamp(
            seconds: Int64(stamp.milliseconds / 1000),
            nanoseconds: UInt32(stamp.milliseconds % 1000) * 1_000_000)
    }
}
