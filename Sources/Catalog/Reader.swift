public import SystemPackage
public import Volume

/// Questions to the catalog. Valid only inside the body it was passed to, on that thread.
public class Reader {
    let connection: Connection
    /// Node ids by row number of `node`: bounded by the nodes the volume ever had.
    var knownNodes: [Int64: NodeID] = [:]

    init(_ connection: Connection) { self.connection = connection }

    /// For tests, by statement: rows met since the last call in searches that no index narrowed.
    package var scannedRows: [(text: String, rows: Int)] { connection.scannedRows }

    func stamp(_ row: Statement, _ column: Int32) throws(Errno) -> Stamp {
        Stamp(time: row.uint64(column), node: try node(row.int64(column + 1)))
    }

    func node(_ number: Int64) throws(Errno) -> NodeID {
        if let known = knownNodes[number] { return known }
        let id = try connection.first("SELECT id FROM node WHERE number = ?", number) { row in
            NodeID(bytes: row.bytes(0))
        }
        guard let id, let id else { throw .ioError }
        knownNodes[number] = id
        return id
    }

    func decodeInode(_ row: Statement, from first: Int32 = 0) throws(Errno) -> InodeRow {
        guard let kind = InodeRow.Kind(rawValue: UInt8(truncatingIfNeeded: row.int64(first + 2)))
        else { throw .ioError }
        let device = row.uint64(first + 6)
        return InodeRow(
            ino: InodeNumber(rawValue: row.uint64(first)),
            id: LineageID(rawValue: row.uint64(first + 1)),
            kind: kind,
            mode: UInt16(truncatingIfNeeded: row.int64(first + 3)),
            owner: Owner(uid: row.uint32(first + 4), gid: row.uint32(first + 5)),
            major: UInt32(device >> 32), minor: UInt32(truncatingIfNeeded: device),
            linkCount: row.uint32(first + 7),
            size: row.uint64(first + 8),
            accessed: Timestamp(totalNanoseconds: row.int64(first + 9)),
            modified: Timestamp(
                seconds: row.int64(first + 10), nanoseconds: row.uint32(first + 11)),
            changed: Timestamp(totalNanoseconds: row.int64(first + 12)),
            contentStamp: try stamp(row, first + 13),
            modeStamp: try stamp(row, first + 15),
            ownerStamp: try stamp(row, first + 17),
            parent: row.isNull(first + 19) ? nil : InodeNumber(rawValue: row.uint64(first + 19)))
    }

    // MARK: - Namespace

    public func inode(_ ino: InodeNumber) throws(Errno) -> InodeRow? {
        try connection.first("SELECT * FROM inode WHERE ino = ?", ino) { row throws(Errno) in
            try decodeInode(row)
        }
    }

    /// Also finds inodes that are linked nowhere.
    public func inode(id: LineageID) throws(Errno) -> InodeRow? {
        if let inode = try inode(InodeNumber(rawValue: id.rawValue)), inode.id == id {
            return inode
        }
        return try connection.first("SELECT * FROM inode WHERE id = ? AND id <> ino", id) {
            row throws(Errno) in try decodeInode(row)
        }
    }

    /// The directory itself, for operations inside it. Throws ENOENT, ENOTDIR.
    func directory(_ ino: InodeNumber) throws(Errno) -> InodeRow {
        guard let inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        guard inode.isDirectory else { throw .notDirectory }
        return inode
    }

    /// Throws ENOENT.
    public func lookup(_ parent: InodeNumber, _ name: FileName) throws(Errno) -> InodeRow {
        guard let inode = try child(parent, name) else { throw .noSuchFileOrDirectory }
        return inode
    }

    func child(_ parent: InodeNumber, _ name: FileName) throws(Errno) -> InodeRow? {
        try connection.first(
            """
            SELECT i.* FROM dentry d JOIN inode i ON i.ino = d.ino
            WHERE d.parent = ? AND d.name = ?
            """, parent, name
        ) { row throws(Errno) in try decodeInode(row) }
    }

    /// Entries behind the cookie (0: from the start) in cookie order. An entry that exists
    /// throughout is listed exactly once, whatever is added or removed meanwhile. Cookies start
    /// at 16: lower offsets are the caller's.
    public func list(
        _ directory: InodeNumber, after cookie: UInt64, limit: Int
    ) throws(Errno) -> [DirectoryEntry<(ino: InodeNumber, kind: InodeRow.Kind)>] {
        try connection.all(
            """
            SELECT d.cookie, d.name, d.ino, i.kind FROM dentry d JOIN inode i ON i.ino = d.ino
            WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?
            """, directory, cookie, limit
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(1)),
                let kind = InodeRow.Kind(rawValue: UInt8(truncatingIfNeeded: row.int64(3)))
            else { throw .ioError }
            return DirectoryEntry(
                cookie: row.uint64(0), name: name,
                target: (InodeNumber(rawValue: row.uint64(2)), kind))
        }
    }

    /// As `list`, with everything that attributes need.
    public func listInodes(
        _ directory: InodeNumber, after cookie: UInt64, limit: Int
    ) throws(Errno) -> [DirectoryEntry<InodeRow>] {
        try connection.all(
            """
            SELECT d.cookie, d.name, i.* FROM dentry d JOIN inode i ON i.ino = d.ino
            WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?
            """, directory, cookie, limit
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            return DirectoryEntry(
                cookie: row.uint64(0), name: name, target: try decodeInode(row, from: 2))
        }
    }

    func isEmpty(_ directory: InodeNumber) throws(Errno) -> Bool {
        try connection.first("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", directory) { _ in
            true
        } == nil
    }

    /// Where `..` leads. Throws ENOENT for what is no linked directory.
    public func parent(of directory: InodeNumber) throws(Errno) -> InodeNumber {
        guard let parent = try inode(directory)?.parent else { throw .noSuchFileOrDirectory }
        return parent
    }

    /// The names of an inode, in no particular order.
    public func links(of ino: InodeNumber) throws(Errno) -> [NamedLink] {
        try connection.all("SELECT parent, name, link FROM dentry WHERE ino = ?", ino) {
            row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            return NamedLink(
                parent: InodeNumber(rawValue: row.uint64(0)), name: name,
                link: LinkID(rawValue: row.uint64(2)))
        }
    }

    /// The names from the top directory to the inode, by the link of the lowest id; empty for the
    /// top directory itself. Throws ENOENT for what is linked nowhere.
    public func path(of ino: InodeNumber) throws(Errno) -> [FileName] {
        var names: [FileName] = []
        var current = ino
        while current != .root {
            guard names.count <= Limits.directoryDepthMax + 1,
                let link = try links(of: current).min(by: { $0.link < $1.link })
            else { throw .noSuchFileOrDirectory }
            names.append(link.name)
            current = link.parent
        }
        return names.reversed()
    }

    /// The directories from this one (inclusive) to the top. Stops where a directory is linked
    /// nowhere, and deeper than any may be: while a commit is being applied there may be circles.
    func ancestors(of directory: InodeNumber) throws(Errno) -> [InodeNumber] {
        var found = [directory]
        var current = directory
        while current != .root, found.count <= Limits.directoryDepthMax + 1 {
            let parent = try connection.first("SELECT parent FROM inode WHERE ino = ?", current) {
                row in row.isNull(0) ? nil : InodeNumber(rawValue: row.uint64(0))
            }
            guard let parent, let parent else { break }
            found.append(parent)
            current = parent
        }
        return found
    }

    // MARK: - Bodies

    func data(of ino: InodeNumber) throws(Errno) -> [UInt8] {
        try connection.first("SELECT data FROM body WHERE ino = ?", ino) { row in row.bytes(0) }
            ?? []
    }

    /// Throws EINVAL for anything but a symlink.
    public func target(of ino: InodeNumber) throws(Errno) -> [UInt8] {
        guard let inode = try inode(ino), inode.kind == .symlink else { throw .invalidArgument }
        return try data(of: ino)
    }

    /// The published content of a regular file, empty for one that has none yet.
    public func content(of ino: InodeNumber) throws(Errno) -> Content {
        let extents = try connection.all(
            """
            SELECT c.root, c.length FROM extent e JOIN content c ON c.number = e.content
            WHERE e.ino = ? ORDER BY e.position
            """, ino
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(0)) else { throw Errno.ioError }
            return Extent(root: root, length: row.uint64(1))
        }
        return extents.isEmpty ? .inline(try data(of: ino)) : .extents(extents)
    }

    func body(of inode: InodeRow) throws(Errno) -> Body {
        switch inode.kind {
        case .file: .file(try content(of: inode.ino))
        case .directory: .directory
        case .symlink: .symlink(try data(of: inode.ino))
        case .fifo: .fifo
        case .socket: .socket
        case .characterDevice: .characterDevice(major: inode.major, minor: inode.minor)
        case .blockDevice: .blockDevice(major: inode.major, minor: inode.minor)
        }
    }

    public func staging(of ino: InodeNumber) throws(Errno) -> Staging? {
        try connection.first(
            "SELECT ino, name, stamp, node, overlay, newborn FROM staging WHERE ino = ?", ino
        ) { row throws(Errno) in try decodeStaging(row) }
    }

    /// Every file with a staging file, in inode order from behind the one given: what is open for
    /// writing or not published yet.
    public func unpublished(
        after ino: InodeNumber = InodeNumber(rawValue: 0), limit: Int
    ) throws(Errno) -> [Staging] {
        try connection.all(
            """
            SELECT ino, name, stamp, node, overlay, newborn FROM staging WHERE ino > ? ORDER BY ino LIMIT ?
            """, ino, limit
        ) { row throws(Errno) in try decodeStaging(row) }
    }

    public func unpublishedCount() throws(Errno) -> Int {
        try connection.first("SELECT count(*) FROM staging") { row in Int(row.int64(0)) } ?? 0
    }

    private func decodeStaging(_ row: Statement) throws(Errno) -> Staging {
        Staging(
            ino: InodeNumber(rawValue: row.uint64(0)),
            name: String(decoding: row.bytes(1), as: UTF8.self),
            base: try stamp(row, 2), overlay: row.isNull(4) ? nil : row.bytes(4),
            isNewborn: row.int64(5) != 0)
    }

    public func lostName(of ino: InodeNumber) throws(Errno) -> LostName? {
        try connection.first(
            """
            SELECT lost_parent, lost_name FROM staging WHERE ino = ? AND lost_name IS NOT NULL
            """, ino
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            return LostName(parent: InodeNumber(rawValue: row.uint64(0)), name: name)
        }
    }

    /// Inodes that are linked nowhere: at a start, what a crash left open or half applied. Later also
    /// what is open, and what an `apply` under way has not linked yet: reap from this list at a start
    /// alone. An edit that outlives a removal elsewhere is none of them.
    public func orphans(limit: Int) throws(Errno) -> [InodeNumber] {
        try connection.all(
            """
            SELECT ino FROM inode i WHERE (nlink = 0 OR (kind = 2 AND parent IS NULL))
            AND NOT EXISTS(SELECT 1 FROM staging s WHERE s.ino = i.ino AND s.lost_name IS NOT NULL)
            LIMIT ?
            """, limit
        ) { row in InodeNumber(rawValue: row.uint64(0)) }
    }

    // MARK: - Extended attributes

    /// Throws ENODATA.
    public func xattr(_ ino: InodeNumber, _ name: [UInt8]) throws(Errno) -> [UInt8] {
        let value = try connection.first(
            "SELECT value FROM xattr WHERE ino = ? AND name = ?", ino, name
        ) { row in row.bytes(0) }
        guard let value else { throw .noData }
        return value
    }

    /// In byte order.
    public func xattrNames(_ ino: InodeNumber) throws(Errno) -> [[UInt8]] {
        try connection.all("SELECT name FROM xattr WHERE ino = ? ORDER BY name", ino) { row in
            row.bytes(0)
        }
    }

    func xattrs(of ino: InodeNumber) throws(Errno) -> [[UInt8]: Stamped<[UInt8]>] {
        let rows = try connection.all(
            "SELECT name, value, stamp, node FROM xattr WHERE ino = ?", ino
        ) { row throws(Errno) in
            (row.bytes(0), Stamped(row.bytes(1), try stamp(row, 2)))
        }
        return Dictionary(uniqueKeysWithValues: rows)
    }

    // MARK: - Settings

    public func meta(_ key: String) throws(Errno) -> [UInt8]? {
        try connection.first("SELECT value FROM meta WHERE key = ?", Array(key.utf8)) { row in
            row.bytes(0)
        }
    }

    func metaInteger(_ key: MetaKey) throws(Errno) -> UInt64? {
        try meta(key.rawValue).map { $0.reduce(0) { $0 << 8 | UInt64($1) } }
    }

    /// The commit that the rows represent, apart from what is dirty.
    public func applied() throws(Errno) -> ObjectID? {
        try meta(MetaKey.applied.rawValue).flatMap { ObjectID(bytes: $0) }
    }

    /// The commits that were applied before, latest first: for a history that has lost the latest.
    public func past() throws(Errno) -> [ObjectID] {
        let bytes = try meta(MetaKey.past.rawValue) ?? []
        return stride(from: 0, to: bytes.count, by: 20).compactMap {
            ObjectID(bytes: Array(bytes[$0...].prefix(20)))
        }
    }

    /// A record as commits have it; nil for what is linked nowhere.
    public func volumeRecord(_ id: LineageID) throws(Errno) -> Record? {
        guard let inode = try inode(id: id), inode.isLinked else { return nil }
        return try record(of: inode)
    }

    func record(of inode: InodeRow) throws(Errno) -> Record {
        Record(
            id: inode.id, ino: inode.ino,
            content: Stamped(
                BodyGroup(body: try body(of: inode), modified: inode.modified), inode.contentStamp),
            mode: Stamped(inode.mode, inode.modeStamp),
            owner: Stamped(inode.owner, inode.ownerStamp),
            xattrs: try xattrs(of: inode.ino))
    }
}

/// The catalog's own keys; callers' keys must not begin with `catalog.`.
enum MetaKey: String {
    case applied = "catalog.applied"
    case past = "catalog.past"
    case settings = "catalog.settings"
    case horizon = "catalog.horizon"
    /// Milliseconds below which this node's clock has given no stamp that it may not repeat.
    case clockFloor = "catalog.clock"
    case cookieFloor = "catalog.cookie"
    /// Of the open batch, in the redo file.
    case batch = "catalog.batch"
}
