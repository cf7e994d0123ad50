public import SystemPackage
public import Volume

/// What `setAttributes` is to change; nil keeps. Sizes are the mount's business.
public struct AttributeChange: Hashable, Sendable {
    /// Permission bits.
    public var mode: UInt16?
    public var uid: UInt32?
    public var gid: UInt32?
    public var accessed: Timestamp?
    public var modified: Timestamp?

    public init(
        mode: UInt16? = nil, uid: UInt32? = nil, gid: UInt32? = nil,
        accessed: Timestamp? = nil, modified: Timestamp? = nil
    ) {
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.accessed = accessed
        self.modified = modified
    }
}

public enum XattrMode: Hashable, Sendable {
    case set
    /// XATTR_CREATE
    case create
    /// XATTR_REPLACE
    case replace
}

extension Transaction {
    /// Names, values and a constant per attribute: well below `Limits.recordBytesMax`, so that a
    /// record always fits.
    public static let xattrBytesMax = 1 << 20
    /// The kernel's XATTR_LIST_MAX: names with their terminators.
    public static let xattrListBytesMax = 65_536

    /// Changing the owner of anything but a directory clears set-user-id, and set-group-id where
    /// the group may execute, as Linux does for every caller, unless the mode is given as well. An
    /// access time alone is a local matter: no stamp, no dirty mark.
    ///
    /// Throws ENOENT.
    public func setAttributes(
        _ ino: InodeNumber, _ change: AttributeChange, now: Timestamp
    ) throws(Errno) -> InodeRow {
        guard var inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        let stampsNeeded =
            change.mode != nil || change.uid != nil || change.gid != nil || change.modified != nil
        // As the row can hold it.
        inode.accessed =
            change.accessed.map { Timestamp(totalNanoseconds: $0.totalNanoseconds) }
            ?? inode.accessed
        inode.changed = now
        if stampsNeeded {
            let stamp = try stamp()
            if change.uid != nil || change.gid != nil {
                inode.owner = Owner(
                    uid: change.uid ?? inode.owner.uid, gid: change.gid ?? inode.owner.gid)
                inode.ownerStamp = stamp
            }
            var mode = inode.mode
            if inode.ownerStamp == stamp, !inode.isDirectory { mode = Self.withoutSetID(mode) }
            mode = (change.mode ?? mode) & 0o7777
            if change.mode != nil || mode != inode.mode { inode.modeStamp = stamp }
            if mode & 0o777 != inode.mode & 0o777 { try changeList(of: ino, to: mode, stamp) }
            inode.mode = mode
            if let modified = change.modified {
                inode.modified = modified
                inode.contentStamp = stamp
            }
            try changedRecord(inode)
        }
        try update(inode)
        return inode
    }

    /// Drops set-user-id, and set-group-id where the group may execute: what a write by anyone but
    /// root does. Returns nil when there was nothing to drop.
    public func clearSetID(_ ino: InodeNumber, now: Timestamp) throws(Errno) -> InodeRow? {
        guard let inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        let mode = Self.withoutSetID(inode.mode)
        guard mode != inode.mode else { return nil }
        return try setAttributes(ino, AttributeChange(mode: mode), now: now)
    }

    static func withoutSetID(_ mode: UInt16) -> UInt16 {
        mode & ~0o4000 & (mode & 0o010 != 0 ? ~0o2000 : ~0)
    }

    /// An access time by itself; nothing else changes, not even the change time.
    public func touchAccessed(_ ino: InodeNumber, _ accessed: Timestamp) throws(Errno) {
        try connection.run(
            "UPDATE inode SET atime = ? WHERE ino = ?", accessed.totalNanoseconds, ino)
    }

    /// The modification time of a file that was written: with a stamp, like any content change.
    public func touchModified(
        _ ino: InodeNumber, _ modified: Timestamp, now: Timestamp
    ) throws(Errno) -> InodeRow {
        try setAttributes(ino, AttributeChange(modified: modified), now: now)
    }

    /// Commits know nothing of what is linked nowhere.
    private func changedRecord(_ inode: InodeRow) throws(Errno) {
        if inode.isLinked { try markDirty(inode.id) }
    }

    // MARK: - Content

    /// Publishes: the file's content and modification time become these, under a new stamp. The
    /// staging row, if any, is left to `clearStaging`. What the file referred to before may now be
    /// unreferenced (`references(to:)`).
    ///
    /// Throws ENOENT, EINVAL (no regular file).
    public func setContent(
        _ ino: InodeNumber, _ content: Content, modified: Timestamp, now: Timestamp
    ) throws(Errno) -> InodeRow {
        guard let before = try inode(ino) else { throw .noSuchFileOrDirectory }
        guard before.kind == .file else { throw .invalidArgument }
        var after = before
        after.contentStamp = try stamp()
        after.modified = modified
        after.changed = now
        after.size = content.length
        try deleteBody(ino)
        try writeBody(ino, .file(content))
        try update(after)
        count(before, after)
        try changedRecord(after)
        return after
    }

    func deleteBody(_ ino: InodeNumber) throws(Errno) {
        try connection.run("DELETE FROM body WHERE ino = ?", ino)
        let contents = try connection.all("SELECT content FROM extent WHERE ino = ?", ino) { row in
            row.int64(0)
        }
        for content in contents { changes.insert(content) }
        try connection.run("DELETE FROM extent WHERE ino = ?", ino)
    }

    func writeBody(_ ino: InodeNumber, _ body: Body) throws(Errno) {
        switch body {
        case .file(.inline(let data)), .symlink(let data):
            if !data.isEmpty { try connection.run("INSERT INTO body VALUES(?, ?)", ino, data) }
        case .file(.extents(let extents)):
            for (position, extent) in extents.enumerated() {
                let content = try number(of: extent)
                try connection.run("INSERT INTO extent VALUES(?, ?, ?)", ino, position, content)
                changes.insert(content)
            }
        default:
            break
        }
    }

    /// Adds or replaces the file's staging row. A newborn stays one until it is published.
    public func setStaging(_ staging: Staging) throws(Errno) {
        try connection.run(
            """
            INSERT INTO staging(ino, name, stamp, node, overlay, newborn)
            VALUES(?, ?, ?, ?, ?, ?)
            ON CONFLICT DO UPDATE SET name = excluded.name, stamp = excluded.stamp,
                node = excluded.node, overlay = excluded.overlay,
                newborn = max(newborn, excluded.newborn)
            """, staging.ino, Array(staging.name.utf8), staging.base.time,
            try number(of: staging.base.node), staging.overlay, staging.isNewborn ? 1 : 0)
    }

    /// Others may see the file: it was published, though its staging file stays.
    public func endNewborn(_ ino: InodeNumber) throws(Errno) {
        try connection.run("UPDATE staging SET newborn = 0 WHERE ino = ?", ino)
    }

    public func clearStaging(_ ino: InodeNumber) throws(Errno) {
        try connection.run("DELETE FROM staging WHERE ino = ?", ino)
    }

    /// Of a file that is being written: the name that it has lost elsewhere; nil when it is linked
    /// again.
    func setLostName(of ino: InodeNumber, _ lost: LostName?) throws(Errno) {
        try connection.run(
            "UPDATE staging SET lost_parent = ?, lost_name = ? WHERE ino = ?", lost?.parent,
            lost?.name, ino)
    }

    // MARK: - Extended attributes

    /// Throws ENOENT, ERANGE (name), E2BIG (value), ENOSPC (all together), EEXIST, ENODATA.
    public func setXattr(
        _ ino: InodeNumber, _ name: [UInt8], _ value: [UInt8], _ mode: XattrMode = .set,
        now: Timestamp
    ) throws(Errno) -> InodeRow {
        guard var inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        guard (1...Limits.xattrNameBytesMax).contains(name.count), !name.contains(0) else {
            throw .outOfRange
        }
        guard value.count <= Limits.xattrValueBytesMax else { throw .argListTooLong }
        let existing = try connection.first(
            "SELECT length(value) FROM xattr WHERE ino = ? AND name = ?", ino, name
        ) { row in Int(row.int64(0)) }
        if mode == .create, existing != nil { throw .fileExists }
        if mode == .replace, existing == nil { throw .noData }
        try checkRoom(ino, name, value, replacing: existing)
        let stamp = try stamp()
        try writeXattr(ino, name, Stamped(value, stamp))
        inode.changed = now
        try changed(ino, now)
        try changedRecord(inode)
        return inode
    }

    private func checkRoom(
        _ ino: InodeNumber, _ name: [UInt8], _ value: [UInt8], replacing existing: Int?
    ) throws(Errno) {
        let used = try connection.first(
            """
            SELECT count(*), coalesce(sum(length(name)), 0), coalesce(sum(length(value)), 0)
            FROM xattr WHERE ino = ?
            """, ino
        ) { row in (count: Int(row.int64(0)), names: Int(row.int64(1)), values: Int(row.int64(2))) }
        guard let used else { throw .ioError }
        let added = existing == nil ? 1 : 0
        let list = used.names + used.count + added * (name.count + 1)
        let all =
            used.names + used.values + value.count - (existing ?? 0)
            + 64 * (used.count + added) + added * name.count
        guard list <= Self.xattrListBytesMax, all <= Self.xattrBytesMax else { throw .noSpace }
    }

    func writeXattr(
        _ ino: InodeNumber, _ name: [UInt8], _ value: Stamped<[UInt8]>
    ) throws(Errno) {
        try connection.run(
            "INSERT OR REPLACE INTO xattr VALUES(?, ?, ?, ?, ?)", ino, name, value.value,
            value.stamp.time, try number(of: value.stamp.node))
        if name == CopiesPolicy.name { changes = .all }
    }

    func deleteXattr(_ ino: InodeNumber, _ name: [UInt8]) throws(Errno) {
        try connection.run("DELETE FROM xattr WHERE ino = ? AND name = ?", ino, name)
        if name == CopiesPolicy.name { changes = .all }
    }

    /// Throws ENOENT, ENODATA.
    public func removeXattr(
        _ ino: InodeNumber, _ name: [UInt8], now: Timestamp
    ) throws(Errno) -> InodeRow {
        guard var inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        _ = try xattr(ino, name)
        try deleteXattr(ino, name)
        inode.changed = now
        try changed(ino, now)
        try changedRecord(inode)
        return inode
    }

    private func changed(_ ino: InodeNumber, _ now: Timestamp) throws(Errno) {
        try connection.run("UPDATE inode SET ctime = ? WHERE ino = ?", now.totalNanoseconds, ino)
    }
}
