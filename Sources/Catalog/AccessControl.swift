public import SystemPackage
public import Volume

// Access control lists are attributes by name; here they are kept in step with the mode.
extension Transaction {
    /// What a new inode gets from its directory's default list; its mode becomes what goes with
    /// that, or loses the umask where there is none.
    ///
    /// - Returns: attributes to be written with the inode.
    func inherit(
        from directory: InodeNumber, _ new: inout NewInode
    ) throws(Errno) -> [(name: [UInt8], list: [UInt8])] {
        if case .symlink = new.body { return [] }
        guard let list = try list(AccessControlList.defaultName, of: directory) else {
            new.mode &= ~new.umask
            return []
        }
        let own = list.inherited(by: new.mode)
        new.mode = new.mode & 0o7000 | own.mode
        var attributes: [(name: [UInt8], list: [UInt8])] = []
        if !own.isMinimal { attributes.append((AccessControlList.accessName, own.bytes)) }
        if new.body == .directory {
            attributes.append((AccessControlList.defaultName, list.bytes))
        }
        return attributes
    }

    /// After `chmod`.
    func changeList(of ino: InodeNumber, to mode: UInt16, _ stamp: Stamp) throws(Errno) {
        guard let list = try list(AccessControlList.accessName, of: ino) else { return }
        try writeXattr(
            ino, AccessControlList.accessName, Stamped(list.changed(to: mode).bytes, stamp))
    }

    /// One that came from a peer and is none counts as not there.
    private func list(_ name: [UInt8], of ino: InodeNumber) throws(Errno) -> AccessControlList? {
        try connection.first("SELECT value FROM xattr WHERE ino = ? AND name = ?", ino, name) {
            row in AccessControlList(row.bytes(0))
        } ?? nil
    }

    /// Sets an access list: the mode follows it, and one that says no more than the mode goes.
    ///
    /// - Parameter killsSetGroupID: the caller may not keep that bit.
    /// - Throws: EINVAL for what is no list, ENOENT.
    public func setAccessList(
        _ ino: InodeNumber, _ value: [UInt8], killsSetGroupID: Bool, now: Timestamp
    ) throws(Errno) {
        guard let list = AccessControlList(value) else { throw .invalidArgument }
        guard let inode = try inode(ino) else { throw .noSuchFileOrDirectory }
        let special: UInt16 = killsSetGroupID ? 0o5000 : 0o7000
        let isThere = try xattrNames(ino).contains(AccessControlList.accessName)
        if !list.isMinimal {
            _ = try setXattr(ino, AccessControlList.accessName, value, now: now)
        } else if isThere {
            _ = try removeXattr(ino, AccessControlList.accessName, now: now)
        }
        _ = try setAttributes(
            ino, AttributeChange(mode: inode.mode & special | list.mode), now: now)
    }

    /// - Throws: EINVAL for what is no list, EACCES on anything but a directory, ENOENT.
    public func setDefaultList(
        _ ino: InodeNumber, _ value: [UInt8], now: Timestamp
    ) throws(Errno) {
        guard AccessControlList(value) != nil else { throw .invalidArgument }
        guard try inode(ino)?.isDirectory == true else { throw .permissionDenied }
        _ = try setXattr(ino, AccessControlList.defaultName, value, now: now)
    }
}
