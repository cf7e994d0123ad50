public import SystemPackage
public import Volume

/// What a rename did.
public struct RenameOutcome: Hashable, Sendable {
    /// What was renamed, after it; nil when source and target were links to one inode, and nothing
    /// happened.
    public var moved: InodeRow?
    /// What the new name led to before: unlinked, or, by an exchange, now under the old name.
    public var displaced: InodeRow?
}

public enum RenameMode: Hashable, Sendable {
    case replace
    /// RENAME_NOREPLACE
    case keepExisting
    /// RENAME_EXCHANGE
    case exchange
}

extension Transaction {
    /// A local bound, as ext4's; merges may exceed it.
    public static let linkCountMax: UInt32 = 65_000

    // MARK: - Creating

    /// Makes the top directory of a new volume.
    ///
    /// - Precondition: there is none.
    public func createRoot(mode: UInt16, owner: Owner, now: Timestamp) throws(Errno) -> InodeRow {
        guard try inode(.root) == nil else { throw .fileExists }
        let stamp = try stamp()
        var root = newInode(
            .root, NewInode(body: .directory, mode: mode, owner: owner), stamp: stamp, now: now)
        root.linkCount = 2
        root.parent = .root
        try insert(root)
        count(nil, root)
        try markDirty(root.id)
        return root
    }

    /// Makes an inode and its first name.
    ///
    /// Throws ENOENT (the directory is gone), ENOTDIR, EEXIST, ENAMETOOLONG (too deep).
    public func create(
        _ parent: InodeNumber, _ name: FileName, _ new: NewInode, now: Timestamp
    ) throws(Errno) -> InodeRow {
        let directory = try openDirectory(parent)
        guard try target(of: name, in: parent) == nil else { throw .fileExists }
        var new = new
        if directory.mode & 0o2000 != 0 {
            new.owner.gid = directory.owner.gid
            if new.body == .directory { new.mode |= 0o2000 }
        }
        let inherited = try inherit(from: parent, &new)
        if new.body == .directory, try ancestors(of: parent).count > Limits.directoryDepthMax {
            throw .fileNameTooLong
        }
        let stamp = try stamp()
        var inode = newInode(
            InodeNumber(rawValue: try nextIdentity()), new, stamp: stamp, now: now)
        inode.linkCount = inode.isDirectory ? 2 : 1
        if inode.isDirectory { inode.parent = parent }
        try insert(inode, new)
        for (name, list) in inherited { try writeXattr(inode.ino, name, Stamped(list, stamp)) }
        try insertEntry(directory, name, inode.ino, nextLinkID(), stamp, cookie: try cookie())
        try entriesChanged(directory, links: inode.isDirectory ? 1 : 0, stamp, now)
        try markDirty(inode.id)
        count(nil, inode)
        return inode
    }

    /// O_TMPFILE: an inode that is linked nowhere, in the group that `create` would give it.
    public func createUnlinked(
        in parent: InodeNumber, _ new: NewInode, now: Timestamp
    ) throws(Errno) -> InodeRow {
        let directory = try openDirectory(parent)
        guard new.body != .directory else { throw .isDirectory }
        var new = new
        if directory.mode & 0o2000 != 0 { new.owner.gid = directory.owner.gid }
        let inherited = try inherit(from: parent, &new)
        let stamp = try stamp()
        let inode = newInode(
            InodeNumber(rawValue: try nextIdentity()), new, stamp: stamp, now: now)
        try insert(inode, new)
        for (name, list) in inherited { try writeXattr(inode.ino, name, Stamped(list, stamp)) }
        return inode
    }

    /// Throws ENOENT, ENOTDIR, EEXIST, EPERM (a directory), EMLINK.
    public func link(
        _ ino: InodeNumber, _ parent: InodeNumber, _ name: FileName, now: Timestamp
    ) throws(Errno) -> InodeRow {
        guard let before = try inode(ino) else { throw .noSuchFileOrDirectory }
        guard !before.isDirectory else { throw .notPermitted }
        let directory = try openDirectory(parent)
        guard try target(of: name, in: parent) == nil else { throw .fileExists }
        guard before.linkCount < Self.linkCountMax else { throw .tooManyLinks }
        let stamp = try stamp()
        try insertEntry(directory, name, ino, nextLinkID(), stamp, cookie: try cookie())
        try entriesChanged(directory, stamp, now)
        let after = try relink(before, to: before.linkCount + 1, now)
        if !before.isLinked { try setLostName(of: ino, nil) }
        try markDirty(after.id)
        return after
    }

    // MARK: - Removing

    /// Removes a name of anything but a directory. The inode stays, with the links it has left; with
    /// none it stays until `reap`.
    ///
    /// Throws ENOENT, ENOTDIR, EISDIR.
    public func unlink(
        _ parent: InodeNumber, _ name: FileName, now: Timestamp
    ) throws(Errno) -> InodeRow {
        let directory = try directory(parent)
        let before = try lookup(parent, name)
        guard !before.isDirectory else { throw .isDirectory }
        let stamp = try stamp()
        try removeEntry(directory, name)
        try entriesChanged(directory, stamp, now)
        try markDirty(before.id)
        return try relink(before, to: before.linkCount - 1, now)
    }

    /// Throws ENOENT, ENOTDIR, ENOTEMPTY.
    public func rmdir(
        _ parent: InodeNumber, _ name: FileName, now: Timestamp
    ) throws(Errno) -> InodeRow {
        let directory = try directory(parent)
        let before = try lookup(parent, name)
        guard before.isDirectory else { throw .notDirectory }
        guard try isEmpty(before.ino) else { throw .directoryNotEmpty }
        let stamp = try stamp()
        try removeEntry(directory, name)
        try entriesChanged(directory, links: -1, stamp, now)
        try markDirty(before.id)
        return try relink(before, to: 0, now)
    }

    /// Deletes an inode that is linked nowhere and that nobody has open; false: it has links (again),
    /// is to have a name again when it is published, or is gone already. Its extents are no longer
    /// referenced by it.
    ///
    /// A directory that is linked nowhere and has entries is left from an `apply` that a crash
    /// interrupted; its entries lose their link and become orphans themselves.
    @discardableResult
    public func reap(_ ino: InodeNumber) throws(Errno) -> Bool {
        guard let inode = try inode(ino) else { return false }
        guard !inode.isLinked, try lostName(of: ino) == nil else { return false }
        if inode.isDirectory { try detachAll(in: ino) }
        try delete(inode)
        return true
    }

    func detachAll(in directory: InodeNumber) throws(Errno) {
        for entry in try list(directory, after: 0, limit: .max) {
            try detach(directory, entry.name, entry.target.ino)
        }
    }

    func delete(_ inode: InodeRow) throws(Errno) {
        try connection.run("DELETE FROM inode WHERE ino = ?", inode.ino)
        if inode.kind == .file || inode.kind == .symlink { try deleteBody(inode.ino) }
        try connection.run("DELETE FROM xattr WHERE ino = ?", inode.ino)
        try connection.run("DELETE FROM staging WHERE ino = ?", inode.ino)
    }

    // MARK: - Renaming

    /// Throws ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, EEXIST, EINVAL (a directory into itself),
    /// ENAMETOOLONG (too deep).
    public func rename(
        _ oldParent: InodeNumber, _ oldName: FileName,
        to newParent: InodeNumber, _ newName: FileName,
        _ mode: RenameMode = .replace, now: Timestamp
    ) throws(Errno) -> RenameOutcome {
        let from = try directory(oldParent)
        let to = newParent == oldParent ? from : try openDirectory(newParent)
        let source = try entry(oldParent, oldName)
        guard let moved = try inode(source.target) else { throw .ioError }
        let existing = try findEntry(newParent, newName)
        switch mode {
        case .keepExisting: guard existing == nil else { throw .fileExists }
        case .exchange: guard existing != nil else { throw .noSuchFileOrDirectory }
        case .replace: break
        }
        if let existing, existing.target == moved.ino {
            return RenameOutcome(moved: nil, displaced: nil)
        }
        if moved.isDirectory, oldParent != newParent || mode == .exchange {
            try checkDescent(of: moved, into: newParent, from: oldParent)
        }
        let move = Move(from: from, to: to, oldName: oldName, newName: newName, source: source)
        guard let existing else { return try self.move(move, moved, now) }
        guard let displaced = try inode(existing.target) else { throw .ioError }
        if mode == .exchange { return try exchange(move, moved, existing, displaced, now) }
        return try replace(move, moved, existing, displaced, now)
    }

    /// A directory may not come below itself, nor anything in it deeper than commits allow.
    private func checkDescent(
        of moved: InodeRow, into newParent: InodeNumber, from oldParent: InodeNumber
    ) throws(Errno) {
        let above = try ancestors(of: newParent)
        guard !above.contains(moved.ino) else { throw .invalidArgument }
        // Only what goes down can come too deep; counting the levels below is not free.
        guard above.count > (try ancestors(of: oldParent).count) else { return }
        guard above.count + (try height(of: moved.ino)) <= Limits.directoryDepthMax else {
            throw .fileNameTooLong
        }
    }

    /// Levels of directories below this one.
    private func height(of directory: InodeNumber) throws(Errno) -> Int {
        try connection.first(
            """
            WITH RECURSIVE below(ino, depth) AS (
                VALUES(?, 0) UNION ALL
                SELECT i.ino, b.depth + 1 FROM below b JOIN inode i ON i.parent = b.ino
                WHERE i.kind = 2 AND i.ino <> 1 AND b.depth <= ?)
            SELECT max(depth) FROM below
            """, directory, Limits.directoryDepthMax
        ) { row in Int(row.int64(0)) } ?? 0
    }

    private struct Move {
        let from: InodeRow
        let to: InodeRow
        let oldName: FileName
        let newName: FileName
        let source: Entry
        var isWithinOneDirectory: Bool { from.ino == to.ino }
    }

    private func move(_ move: Move, _ inode: InodeRow, _ now: Timestamp) throws(Errno)
        -> RenameOutcome
    {
        let stamp = try stamp()
        // Within one directory the entry keeps its offset, so that a listing under way shows the
        // file once, under one of its names.
        let offset = move.isWithinOneDirectory ? move.source.cookie : try cookie()
        try removeEntry(move.from, move.oldName)
        try insertEntry(
            move.to, move.newName, inode.ino, move.source.link, stamp, cookie: offset)
        let links = inode.isDirectory && !move.isWithinOneDirectory ? 1 : 0
        try entriesChanged(move.from, links: -links, stamp, now)
        if !move.isWithinOneDirectory { try entriesChanged(move.to, links: links, stamp, now) }
        return RenameOutcome(moved: try reparent(inode, move.to.ino, now), displaced: nil)
    }

    private func replace(
        _ move: Move, _ inode: InodeRow, _ existing: Entry, _ displaced: InodeRow, _ now: Timestamp
    ) throws(Errno) -> RenameOutcome {
        if inode.isDirectory {
            guard displaced.isDirectory else { throw .notDirectory }
            guard try isEmpty(displaced.ino) else { throw .directoryNotEmpty }
        } else {
            guard !displaced.isDirectory else { throw .isDirectory }
        }
        let stamp = try stamp()
        try removeEntry(move.from, move.oldName)
        // The name keeps its offset: it existed throughout, so a listing under way must show it.
        try replaceEntry(move.to, move.newName, inode.ino, move.source.link, stamp)
        let isDirectory = inode.isDirectory
        if move.isWithinOneDirectory {
            try entriesChanged(move.to, links: isDirectory ? -1 : 0, stamp, now)
        } else {
            try entriesChanged(move.from, links: isDirectory ? -1 : 0, stamp, now)
            try entriesChanged(move.to, stamp, now)
        }
        try markDirty(displaced.id)
        let gone = try relink(displaced, to: isDirectory ? 0 : displaced.linkCount - 1, now)
        return RenameOutcome(moved: try reparent(inode, move.to.ino, now), displaced: gone)
    }

    private func exchange(
        _ move: Move, _ inode: InodeRow, _ existing: Entry, _ displaced: InodeRow, _ now: Timestamp
    ) throws(Errno) -> RenameOutcome {
        if displaced.isDirectory {
            try checkDescent(of: displaced, into: move.from.ino, from: move.to.ino)
        }
        let stamp = try stamp()
        try replaceEntry(move.to, move.newName, inode.ino, move.source.link, stamp)
        try replaceEntry(move.from, move.oldName, displaced.ino, existing.link, stamp)
        if move.isWithinOneDirectory {
            try entriesChanged(move.to, stamp, now)
        } else {
            let gained = (inode.isDirectory ? 1 : 0) - (displaced.isDirectory ? 1 : 0)
            try entriesChanged(move.to, links: gained, stamp, now)
            try entriesChanged(move.from, links: -gained, stamp, now)
        }
        return RenameOutcome(
            moved: try reparent(inode, move.to.ino, now),
            displaced: try reparent(displaced, move.from.ino, now))
    }
}
