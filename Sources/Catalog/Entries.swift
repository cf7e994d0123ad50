internal import SystemPackage
internal import Volume

/// The rows under the namespace operations: each keeps dirty marks, link counts and counters right
/// for the rows it touches.
struct Entry {
    var target: InodeNumber
    var link: LinkID
    var stamp: Stamp
    var cookie: UInt64
}

extension Reader {
    func findEntry(_ parent: InodeNumber, _ name: FileName) throws(Errno) -> Entry? {
        try connection.first(
            "SELECT ino, link, stamp, node, cookie FROM dentry WHERE parent = ? AND name = ?",
            parent, name
        ) { row throws(Errno) in
            Entry(
                target: InodeNumber(rawValue: row.uint64(0)), link: LinkID(rawValue: row.uint64(1)),
                stamp: try stamp(row, 2), cookie: row.uint64(4))
        }
    }

    func entry(_ parent: InodeNumber, _ name: FileName) throws(Errno) -> Entry {
        guard let entry = try findEntry(parent, name) else { throw .noSuchFileOrDirectory }
        return entry
    }

    func target(of name: FileName, in parent: InodeNumber) throws(Errno) -> InodeNumber? {
        try connection.first("SELECT ino FROM dentry WHERE parent = ? AND name = ?", parent, name) {
            row in InodeNumber(rawValue: row.uint64(0))
        }
    }
}

extension Transaction {
    /// A directory that new entries may go into. Throws ENOENT also when it has been removed.
    func openDirectory(_ ino: InodeNumber) throws(Errno) -> InodeRow {
        let directory = try directory(ino)
        guard directory.isLinked else { throw .noSuchFileOrDirectory }
        return directory
    }

    func newInode(_ ino: InodeNumber, _ new: NewInode, stamp: Stamp, now: Timestamp) -> InodeRow {
        let device = new.body.device
        return InodeRow(
            ino: ino, id: LineageID(rawValue: ino.rawValue), kind: new.body.kind,
            mode: new.mode & 0o7777, owner: new.owner, major: device.major, minor: device.minor,
            linkCount: 0, size: new.body.size, accessed: now, modified: now, changed: now,
            contentStamp: stamp, modeStamp: stamp, ownerStamp: stamp, parent: nil)
    }

    func insert(_ inode: InodeRow, _ new: NewInode) throws(Errno) {
        try insert(inode)
        try writeBody(inode.ino, new.body)
        if let name = new.staging {
            try setStaging(Staging(ino: inode.ino, name: name, base: inode.contentStamp))
        }
    }

    func insert(_ inode: InodeRow) throws(Errno) {
        try connection.run(
            "INSERT INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,NULL)",
            inode.ino, inode.id, Int(inode.kind.rawValue), inode.mode, inode.owner.uid,
            inode.owner.gid, UInt64(inode.major) << 32 | UInt64(inode.minor), inode.linkCount,
            inode.size, inode.accessed.totalNanoseconds, inode.modified.seconds,
            inode.modified.nanoseconds, inode.changed.totalNanoseconds,
            inode.contentStamp.time, try number(of: inode.contentStamp.node),
            inode.modeStamp.time, try number(of: inode.modeStamp.node),
            inode.ownerStamp.time, try number(of: inode.ownerStamp.node),
            inode.parent)
    }

    /// Everything but `ino` and `tree`.
    func update(_ inode: InodeRow) throws(Errno) {
        try connection.run(
            """
            UPDATE inode SET id = ?, kind = ?, mode = ?, uid = ?, gid = ?, rdev = ?, nlink = ?,
                size = ?, atime = ?, mtime = ?, mtime_ns = ?, ctime = ?,
                content_stamp = ?, content_node = ?, mode_stamp = ?, mode_node = ?,
                owner_stamp = ?, owner_node = ?, parent = ? WHERE ino = ?
            """,
            inode.id, Int(inode.kind.rawValue), inode.mode, inode.owner.uid,
            inode.owner.gid, UInt64(inode.major) << 32 | UInt64(inode.minor), inode.linkCount,
            inode.size, inode.accessed.totalNanoseconds, inode.modified.seconds,
            inode.modified.nanoseconds, inode.changed.totalNanoseconds,
            inode.contentStamp.time, try number(of: inode.contentStamp.node),
            inode.modeStamp.time, try number(of: inode.modeStamp.node),
            inode.ownerStamp.time, try number(of: inode.ownerStamp.node),
            inode.parent, inode.ino)
    }

    // MARK: - Entries: rows and dirty marks alone

    func insertEntry(
        _ directory: InodeRow, _ name: FileName, _ target: InodeNumber, _ link: LinkID,
        _ stamp: Stamp, cookie: UInt64
    ) throws(Errno) {
        try writeEntry(directory.ino, name, target, link, stamp, cookie: cookie)
        try markDirty(Place(directory: directory.id, name: name))
    }

    func writeEntry(
        _ directory: InodeNumber, _ name: FileName, _ target: InodeNumber, _ link: LinkID,
        _ stamp: Stamp, cookie: UInt64
    ) throws(Errno) {
        try connection.run(
            "INSERT INTO dentry VALUES(?, ?, ?, ?, ?, ?, ?)", directory, name, target, link,
            stamp.time, try number(of: stamp.node), cookie)
        try copiesMayChange(of: target)
    }

    func replaceEntry(
        _ directory: InodeRow, _ name: FileName, _ target: InodeNumber, _ link: LinkID,
        _ stamp: Stamp
    ) throws(Errno) {
        try rewriteEntry(directory.ino, name, target, link, stamp)
        try markDirty(Place(directory: directory.id, name: name))
    }

    func rewriteEntry(
        _ directory: InodeNumber, _ name: FileName, _ target: InodeNumber, _ link: LinkID,
        _ stamp: Stamp
    ) throws(Errno) {
        try connection.run(
            """
            UPDATE dentry SET ino = ?, link = ?, stamp = ?, node = ? WHERE parent = ? AND name = ?
            """, target, link, stamp.time, try number(of: stamp.node), directory, name)
        try copiesMayChange(of: target)
    }

    func removeEntry(_ directory: InodeRow, _ name: FileName) throws(Errno) {
        try deleteEntry(directory.ino, name)
        try markDirty(Place(directory: directory.id, name: name))
    }

    func deleteEntry(_ directory: InodeNumber, _ name: FileName) throws(Errno) {
        try connection.run("DELETE FROM dentry WHERE parent = ? AND name = ?", directory, name)
    }

    // MARK: - What follows from a change of entries

    /// A directory's modification and change times, and how many subdirectories it gained.
    func entriesChanged(
        _ directory: InodeRow, links: Int = 0, _ stamp: Stamp, _ now: Timestamp
    ) throws(Errno) {
        try connection.run(
            """
            UPDATE inode SET mtime = ?, mtime_ns = ?, ctime = ?, content_stamp = ?,
                content_node = ?, nlink = nlink + ? WHERE ino = ?
            """, now.seconds, now.nanoseconds, now.totalNanoseconds, stamp.time,
            try number(of: stamp.node), links, directory.ino)
        try markDirty(directory.id)
    }

    /// A new link count. A directory with none is linked nowhere.
    func relink(_ before: InodeRow, to links: UInt32, _ now: Timestamp) throws(Errno) -> InodeRow {
        var after = before
        after.linkCount = links
        after.changed = now
        if links == 0 { after.parent = nil }
        try connection.run(
            "UPDATE inode SET nlink = ?, ctime = ?, parent = ? WHERE ino = ?",
            links, now.totalNanoseconds, after.parent, before.ino)
        count(before, after)
        return after
    }

    /// What a rename does to the inode renamed: its change time, a directory's `..`.
    func reparent(
        _ before: InodeRow, _ parent: InodeNumber, _ now: Timestamp
    ) throws(Errno) -> InodeRow {
        var after = before
        after.changed = now
        if before.isDirectory { after.parent = parent }
        try connection.run(
            "UPDATE inode SET ctime = ?, parent = ? WHERE ino = ?",
            now.totalNanoseconds, after.parent, before.ino)
        return after
    }

    // MARK: - Links without dirty marks: what was committed elsewhere

    /// Removes an entry and the link it is.
    func detach(
        _ directory: InodeNumber, _ name: FileName, _ target: InodeNumber
    ) throws(Errno) {
        try deleteEntry(directory, name)
        guard var child = try inode(target) else { throw .ioError }
        let before = child
        guard child.linkCount >= (child.isDirectory ? 2 : 1) else { throw .ioError }
        child.linkCount -= child.isDirectory ? 2 : 1
        if child.isDirectory { child.parent = nil }
        try setLinks(child, before, in: directory, subdirectories: child.isDirectory ? -1 : 0)
    }

    /// Adds an entry and the link it is.
    func attach(
        _ directory: InodeNumber, _ name: FileName, _ target: InodeNumber, _ link: Link,
        cookie: UInt64
    ) throws(Errno) {
        try writeEntry(directory, name, target, link.id, link.stamp, cookie: cookie)
        guard var child = try inode(target) else { throw .ioError }
        let before = child
        if !child.isLinked { try setLostName(of: target, nil) }
        child.linkCount += child.isDirectory ? 2 : 1
        if child.isDirectory { child.parent = directory }
        try setLinks(child, before, in: directory, subdirectories: child.isDirectory ? 1 : 0)
    }

    private func setLinks(
        _ child: InodeRow, _ before: InodeRow, in directory: InodeNumber, subdirectories: Int
    ) throws(Errno) {
        try connection.run(
            "UPDATE inode SET nlink = ?, parent = ? WHERE ino = ?", child.linkCount, child.parent,
            child.ino)
        if subdirectories != 0 {
            try connection.run(
                "UPDATE inode SET nlink = nlink + ? WHERE ino = ?", subdirectories, directory)
        }
        count(before, child)
    }
}
