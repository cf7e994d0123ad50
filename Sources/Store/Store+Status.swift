import CStore
public import SystemPackage
public import Volume

/// Which file it is, whatever its names: device and inode number of the disk.
public struct FileIdentity: Hashable, Sendable {
    public let device: UInt64
    public let inode: UInt64
}

/// What the disk says of a file.
public struct FileFacts: Hashable, Sendable {
    public let identity: FileIdentity
    public var size: UInt64
    /// Units of 512 bytes.
    public let blocks: UInt64
    public let modified: Timestamp
    public let changed: Timestamp
    /// Names: a staging file with two is an object as well.
    public let links: UInt64

    init(_ status: cstore_stat) {
        identity = FileIdentity(device: status.device, inode: status.inode)
        size = status.size
        blocks = status.blocks512
        modified = Timestamp(
            seconds: status.modified_seconds, nanoseconds: status.modified_nanoseconds)
        changed = Timestamp(
            seconds: status.changed_seconds, nanoseconds: status.changed_nanoseconds)
        links = UInt64(status.links)
    }
}

extension Store {
    /// Of an open file. The corresponding C function is `fstat`.
    public func facts(of file: FileDescriptor) throws(StoreError) -> FileFacts {
        var status = cstore_stat()
        try system("fstat") { cstore_fstat(file.rawValue, &status) }
        return FileFacts(status)
    }

    /// Of a staging file that need not be open.
    ///
    /// - Throws: `StoreError`: ENOENT …
    public func stagingFacts(_ name: StagingName) throws(StoreError) -> FileFacts {
        var status = cstore_stat()
        try system("stat staging/\(name)") {
            cstore_fstatat(staging.raw, name.description, &status)
        }
        return FileFacts(status)
    }

    /// The objects whose files are among these, for staging files that a crash left with an
    /// object's name as well. Looks at every object.
    public func objects(_ wanted: Set<FileIdentity>) throws(StoreError) -> [FileIdentity: Extent] {
        var found: [FileIdentity: Extent] = [:]
        guard !wanted.isEmpty else { return found }
        try forEachObject { (root, _) throws(StoreError) in
            guard let status = try fanOut(root).status("\(root)") else { return true }
            let identity = FileIdentity(device: status.device, inode: status.inode)
            if wanted.contains(identity) {
                found[identity] = Extent(root: root, length: status.size)
            }
            return found.count < wanted.count
        }
        return found
    }
}
