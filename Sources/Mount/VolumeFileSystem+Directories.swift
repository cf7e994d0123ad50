import Catalog
public import FUSE
import Glibc
import SystemPackage
import Volume

// Listing: straight from the catalog by cookie, so that an offset survives concurrent changes and
// no snapshot is kept.
extension VolumeFileSystem {
    /// Entries asked of the catalog at once.
    static let listingEntriesMax = 256
    /// With attributes, one of the shortest names.
    private static let listedEntryBytesMin = 160
    /// Cookies of `.` and `..`; the catalog's own are shifted behind them.
    private static let reservedCookies: UInt64 = 2

    public func opendir(_ request: RequestHeader, flags: Int32, reply: consuming Reply) {
        reply.open(0, flags: [.cacheDirectory, .keepCache])
    }

    public func readdir(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int, reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request).ino
            var buffer = DirectoryBuffer(capacity: size)
            guard try appendDots(&buffer, directory, offset) else {
                reply.directory(buffer)
                return
            }
            var after = offset > Self.reservedCookies ? offset - Self.reservedCookies : 0
            listing: while true {
                let entries = try query("list") { reader throws(Errno) in
                    try reader.list(directory, after: after, limit: Self.listingEntriesMax)
                }
                for entry in entries {
                    let fits = buffer.append(
                        name: entry.name.bytes, ino: entry.target.ino.rawValue,
                        mode: entry.target.kind.typeBits,
                        cookie: entry.cookie + Self.reservedCookies)
                    guard fits else { break listing }
                    after = entry.cookie
                }
                if entries.count < Self.listingEntriesMax { break }
            }
            reply.directory(buffer)
        } catch { reply.error(error) }
    }

    public func readdirplus(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int, reply: consuming Reply
    ) {
        var buffer = DirectoryBuffer(capacity: size)
        /// Each entry in the answer counts as a lookup.
        var counted: [UInt64] = []
        do throws(Errno) {
            try fill(&buffer, try vnode(request).ino, offset, size, &counted)
        } catch {
            for nodeid in counted { forget(nodeid: nodeid, count: 1) }
            reply.error(error)
            return
        }
        if !reply.directory(buffer) {
            for nodeid in counted { forget(nodeid: nodeid, count: 1) }
        }
    }

    private func fill(
        _ buffer: inout DirectoryBuffer, _ directory: InodeNumber, _ offset: UInt64, _ size: Int,
        _ counted: inout [UInt64]
    ) throws(Errno) {
        guard try appendDotsPlus(&buffer, directory, offset) else { return }
        var after = offset > Self.reservedCookies ? offset - Self.reservedCookies : 0
        let limit = min(Self.listingEntriesMax, size / Self.listedEntryBytesMin + 1)
        while true {
            let time = vnodes.recorded
            let entries = try query("list") { [after] reader throws(Errno) in
                try reader.listInodes(directory, after: after, limit: limit)
            }
            for entry in entries {
                let vnode = vnodes.lookUp(entry.target.ino)
                counted.append(vnode.nodeid)
                let fits = buffer.append(
                    name: entry.name.bytes, entry: self.entry(entry.target, readAt: time, vnode),
                    cookie: entry.cookie + Self.reservedCookies)
                guard fits else {
                    counted.removeLast()
                    forget(nodeid: vnode.nodeid, count: 1)
                    return
                }
                after = entry.cookie
            }
            if entries.count < limit { return }
        }
    }

    private func appendDots(
        _ buffer: inout DirectoryBuffer, _ directory: InodeNumber, _ offset: UInt64
    ) throws(Errno) -> Bool {
        if offset == 0 {
            guard buffer.append(name: [0x2E], ino: directory.rawValue, mode: S_IFDIR, cookie: 1)
            else { return false }
        }
        if offset <= 1 {
            let parent = try query("list") { reader throws(Errno) in
                try reader.inode(directory)?.parent ?? directory
            }
            return buffer.append(
                name: [0x2E, 0x2E], ino: parent.rawValue, mode: S_IFDIR, cookie: 2)
        }
        return true
    }

    private func appendDotsPlus(
        _ buffer: inout DirectoryBuffer, _ directory: InodeNumber, _ offset: UInt64
    ) throws(Errno) -> Bool {
        func dot(_ name: [UInt8], _ ino: InodeNumber, _ cookie: UInt64) -> Bool {
            let attributes = Attributes(ino: ino.rawValue, mode: S_IFDIR)
            return buffer.append(
                name: name, entry: EntryOut(nodeid: 0, attributes: attributes), cookie: cookie)
        }
        if offset == 0, !dot([0x2E], directory, 1) { return false }
        if offset <= 1 {
            let parent = try query("list") { reader throws(Errno) in
                try reader.inode(directory)?.parent ?? directory
            }
            return dot([0x2E, 0x2E], parent, 2)
        }
        return true
    }
}

extension Inode.Kind {
    /// The file type bits of `st_mode`.
    var typeBits: UInt32 {
        switch self {
        case .file: S_IFREG
        case .directory: S_IFDIR
        case .symlink: S_IFLNK
        case .fifo: S_IFIFO
        case .socket: S_IFSOCK
        case .characterDevice: S_IFCHR
        case .blockDevice: S_IFBLK
        }
    }
}
