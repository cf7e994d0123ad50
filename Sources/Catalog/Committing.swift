public import SystemPackage
public import Volume

/// What the commits do not have yet.
public struct DirtyState: Hashable, Sendable {
    public var dirty: DirtySet
    /// Of the last change in it: hand it to `committed`.
    public var version: UInt64

    public var isEmpty: Bool { dirty.isEmpty }
}

extension Reader {
    public func dirtyState() throws(Errno) -> DirtyState {
        var state = DirtyState(dirty: DirtySet(), version: 0)
        let places = try connection.all("SELECT directory, name, version FROM dirty_place") {
            row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            let directory = LineageID(rawValue: row.uint64(0))
            return (Place(directory: directory, name: name), row.uint64(2))
        }
        for (place, version) in places {
            state.dirty.places.insert(place)
            state.version = max(state.version, version)
        }
        let records = try connection.all("SELECT id, version FROM dirty_record") { row in
            (LineageID(rawValue: row.uint64(0)), row.uint64(1))
        }
        for (id, version) in records {
            state.dirty.records.insert(id)
            state.version = max(state.version, version)
        }
        return state
    }

    /// Files that were created open and that no commit knows yet, with all their places.
    public func newborn() throws(Errno) -> [LineageID: Set<Place>] {
        var newborn: [LineageID: Set<Place>] = [:]
        let rows = try connection.all(
            """
            SELECT p.id, d.name, i.id FROM staging s CROSS JOIN inode i ON i.ino = s.ino
            CROSS JOIN dentry d ON d.ino = s.ino JOIN inode p ON p.ino = d.parent
            WHERE s.newborn = 1
            """
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            let place = Place(directory: LineageID(rawValue: row.uint64(0)), name: name)
            return (place, LineageID(rawValue: row.uint64(2)))
        }
        for (place, id) in rows { newborn[id, default: []].insert(place) }
        return newborn
    }

    /// Whether anything waits for a commit.
    public func isDirty() throws(Errno) -> Bool {
        try connection.first(
            """
            SELECT EXISTS(SELECT 1 FROM dirty_place) OR EXISTS(SELECT 1 FROM dirty_record)
            """
        ) { row in row.int64(0) != 0 } ?? false
    }

    /// Files that nobody writes to and whose latest state waits for a commit.
    public func uncommittedFiles() throws(Errno) -> Int {
        // In two parts because ids that are the inode's number are in no index of their own.
        try connection.first(
            """
            SELECT count(*) FROM (
                SELECT i.* FROM dirty_record r CROSS JOIN inode i ON i.ino = r.id AND i.id = r.id
                UNION ALL
                SELECT i.* FROM dirty_record r CROSS JOIN inode i ON i.id = r.id AND i.id <> i.ino
            ) i WHERE i.kind = ? AND i.nlink > 0
            AND NOT EXISTS(SELECT 1 FROM staging s WHERE s.ino = i.ino)
            """, Int(InodeRow.Kind.file.rawValue)
        ) { row in Int(row.int64(0)) } ?? 0
    }

    func isDirty(_ place: Place) throws(Errno) -> Bool {
        try connection.first(
            "SELECT 1 FROM dirty_place WHERE directory = ? AND name = ?", place.directory,
            place.name
        ) { _ in true } ?? false
    }

    func isDirty(_ id: LineageID) throws(Errno) -> Bool {
        try connection.first("SELECT 1 FROM dirty_record WHERE id = ?", id) { _ in true } ?? false
    }

    // MARK: - What is committed beside inodes and entries

    public func settings() throws -> VolumeSettings? {
        try meta(MetaKey.settings.rawValue).map { try VolumeSettings(decoding: $0) }
    }

    /// The stamp below which content was given up.
    public func horizon() throws(Errno) -> Stamp? {
        guard let bytes = try meta(MetaKey.horizon.rawValue), bytes.count == 24,
            let node = NodeID(bytes: bytes[8...])
        else { return nil }
        return Stamp(time: bytes[..<8].reduce(0) { $0 << 8 | UInt64($1) }, node: node)
    }
}

extension Transaction {
    public func setSettings(_ settings: VolumeSettings) throws {
        try setMeta(.settings, settings.encoded())
    }

    /// Names a node for the volume, or (nil) lists it no longer; the next commit says so.
    public func describe(_ node: NodeID, as description: NodeDescription?) throws(Errno) {
        try setNode(node, description)
        try markDirty(.root)
    }

    public func setHorizon(_ stamp: Stamp) throws(Errno) {
        let time = (0..<8).map { UInt8(truncatingIfNeeded: stamp.time >> (56 - 8 * $0)) }
        try setMeta(.horizon, time + stamp.node.bytes)
    }

    /// The commit that the rows represent, for a node that starts from somebody's commit.
    public func setApplied(_ commit: ObjectID?) throws(Errno) {
        if let before = try applied(), before != commit {
            let past = try meta(MetaKey.past.rawValue) ?? []
            try setMeta(.past, before.bytes + past.prefix(20 * (Self.pastMax - 1)))
        }
        try setMeta(.applied, commit?.bytes)
    }

    /// Commits remembered: of changes while others were out of reach more than so many are rare.
    private static let pastMax = 64

    /// A commit of the state that `dirtyState` was taken from is durable: it is what the rows represent
    /// now. Marks of later changes stay, and those of what the commit left out.
    ///
    /// - Parameter shown: newborn files that the commit has.
    ///
    /// Committing and applying take turns: nothing may have been applied since `dirtyState`.
    public func committed(
        _ outcome: CommitOutcome, as commit: ObjectID, through version: UInt64,
        showing shown: some Collection<LineageID> = []
    ) throws(Errno) {
        try setApplied(commit)
        try setTrees(outcome.trees)
        try connection.run("DELETE FROM dirty_place WHERE version <= ?", version)
        try connection.run("DELETE FROM dirty_record WHERE version <= ?", version)
        for place in outcome.pending.places { try markDirty(place) }
        for id in outcome.pending.records { try markDirty(id) }
        for id in shown {
            try connection.run(
                """
                UPDATE staging SET newborn = 0 WHERE ino IN (
                    SELECT ino FROM inode WHERE ino = ? AND id = ino
                    UNION ALL SELECT ino FROM inode WHERE id = ? AND id <> ino)
                """, id, id)
        }
        for adoption in outcome.adoptions { try adopt(adoption) }
    }

    func setTrees(_ trees: [LineageID: ObjectID?]) throws(Errno) {
        for (id, tree) in trees.sorted(by: { $0.key < $1.key }) {
            guard let directory = try inode(id: id) else { continue }
            try connection.run("UPDATE inode SET tree = ? WHERE ino = ?", tree, directory.ino)
        }
    }

    /// The newborn goes on under the old file's id, whatever has happened to it since.
    private func adopt(_ adoption: Adoption) throws(Errno) {
        // The old file, if somebody still has it open, is nothing that commits know.
        if let old = try inode(id: adoption.adopted) { try giveFreshID(old) }
        if try isDirty(adoption.newborn) { try markDirty(adoption.adopted) }
        guard let newborn = try inode(id: adoption.newborn) else { return }
        try connection.run(
            "UPDATE inode SET id = ? WHERE ino = ?", adoption.adopted, newborn.ino)
        for (place, link) in adoption.links {
            guard let directory = try inode(id: place.directory) else { continue }
            try connection.run(
                """
                UPDATE dentry SET link = ?, stamp = ?, node = ?
                WHERE parent = ? AND name = ? AND ino = ?
                """, link.id, link.stamp.time, try number(of: link.stamp.node), directory.ino,
                place.name, newborn.ino)
        }
    }

    func giveFreshID(_ inode: InodeRow) throws(Errno) {
        let id = LineageID(rawValue: try nextIdentity())
        try connection.run("UPDATE inode SET id = ? WHERE ino = ?", id, inode.ino)
        if inode.isLinked { try markDirty(id) }
    }
}
