import CFUSE

extension Duration {
    /// Seconds and nanoseconds; negative durations count as none.
    var wire: (seconds: UInt64, nanoseconds: UInt32) {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return (0, 0) }
        return (UInt64(seconds), UInt32(attoseconds / 1_000_000_000))
    }
}

extension cfuse_attr {
    init(_ attributes: Attributes) {
        self.init(
            ino: attributes.ino, size: attributes.size, blocks: attributes.blocks,
            atime: UInt64(bitPattern: attributes.atime.seconds),
            mtime: UInt64(bitPattern: attributes.mtime.seconds),
            ctime: UInt64(bitPattern: attributes.ctime.seconds),
            atimensec: attributes.atime.nanoseconds, mtimensec: attributes.mtime.nanoseconds,
            ctimensec: attributes.ctime.nanoseconds, mode: attributes.mode,
            nlink: attributes.nlink, uid: attributes.uid, gid: attributes.gid,
            rdev: attributes.rdev, blksize: attributes.blksize, flags: 0)
    }
}

extension cfuse_entry_out {
    init(_ entry: EntryOut) {
        let (entrySeconds, entryNanoseconds) = entry.entryValid.wire
        let (attributeSeconds, attributeNanoseconds) = entry.attributesValid.wire
        self.init(
            nodeid: entry.nodeid, generation: entry.generation, entry_valid: entrySeconds,
            attr_valid: attributeSeconds, entry_valid_nsec: entryNanoseconds,
            attr_valid_nsec: attributeNanoseconds, attr: cfuse_attr(entry.attributes))
    }
}

extension cfuse_open_out {
    init(handle: UInt64, flags: OpenFlags, backing: Int32) {
        let flags = backing > 0 ? flags.union(.passthrough) : flags
        self.init(fh: handle, open_flags: flags.rawValue, backing_id: backing)
    }
}

extension cfuse_kstatfs {
    init(_ statistics: VolumeStatistics) {
        self.init(
            blocks: statistics.blocks, bfree: statistics.blocksFree,
            bavail: statistics.blocksAvailable, files: statistics.files,
            ffree: statistics.filesFree, bsize: statistics.blockSize,
            namelen: statistics.nameLengthMax, frsize: statistics.fragmentSize, padding: 0,
            spare: (0, 0, 0, 0, 0, 0))
    }
}

/// The answer to one READDIR or READDIRPLUS, filled entry by entry up to the size asked for.
///
/// A cookie is the position *after* its entry; it comes back as the offset of the next request and
/// from `telldir`, and must stay valid while entries come and go. 0 is the start.
public struct DirectoryBuffer: Sendable {
    private(set) var bytes: [UInt8] = []
    private let capacity: Int

    /// `capacity` is the size of the request, bytes.
    public init(capacity: Int) {
        self.capacity = capacity
    }

    public var isEmpty: Bool { bytes.isEmpty }

    /// For READDIR. False when the entry does not fit: answer with what is there.
    ///
    /// - Parameter mode: of which only the type bits (`S_IFMT`) count.
    public mutating func append(name: [UInt8], ino: UInt64, mode: UInt32, cookie: UInt64) -> Bool {
        guard reserve(MemoryLayout<cfuse_dirent>.size, name) else { return false }
        appendEntry(name: name, ino: ino, mode: mode, cookie: cookie)
        return true
    }

    /// For READDIRPLUS. An entry that fits counts one lookup of its node, unless its node id is 0
    /// (always so for `.` and `..`), which tells the kernel no attributes.
    public mutating func append(name: [UInt8], entry: EntryOut, cookie: UInt64) -> Bool {
        guard reserve(MemoryLayout<cfuse_direntplus>.size, name) else { return false }
        withUnsafeBytes(of: cfuse_entry_out(entry)) { bytes.append(contentsOf: $0) }
        appendEntry(
            name: name, ino: entry.attributes.ino, mode: entry.attributes.mode, cookie: cookie)
        return true
    }

    private mutating func reserve(_ head: Int, _ name: [UInt8]) -> Bool {
        precondition(!name.isEmpty && name.count <= 1024, "no name of the protocol is this long")
        let needed = (head + name.count + 7) & ~7
        guard bytes.count + needed <= capacity else { return false }
        // The kernel asks for whole pages, and most directories need only a part of one.
        if bytes.isEmpty { bytes.reserveCapacity(min(capacity, 4096)) }
        return true
    }

    private mutating func appendEntry(name: [UInt8], ino: UInt64, mode: UInt32, cookie: UInt64) {
        let entry = cfuse_dirent(
            ino: ino, off: cookie, namelen: UInt32(name.count), type: (mode >> 12) & 15)
        withUnsafeBytes(of: entry) { bytes.append(contentsOf: $0) }
        bytes.append(contentsOf: name)
        while bytes.count % 8 != 0 { bytes.append(0) }
    }
}
