import FUSE
import Glibc
import Synchronization
import SystemPackage
import Volume

/// `.delugefs` at the top of the mount: not listed there, open to root and the mounting user only.
///
/// Its nodeids have bit 62 set, and so have the inode numbers that stat shows: else `cp` takes a
/// file of the past for the same file as its present one.
final class VirtualDirectory: Sendable {
    static let name = FileName(Array(".delugefs".utf8))
    private static let bit: UInt64 = 1 << 62
    private static let directory = bit | 1
    private static let statusFile = bit | 2
    private static let statusName = Array("status".utf8)
    /// Status texts that are being read; bounded by open descriptors.
    private let open = Mutex<[UInt64: [UInt8]]>([:])
    private let nextHandle = Atomic<UInt64>(bit)
    private let status: @Sendable () -> [UInt8]
    private let user = geteuid()

    init(status: @escaping @Sendable () -> [UInt8]) { self.status = status }

    func has(_ nodeid: UInt64) -> Bool { nodeid & Self.bit != 0 }

    /// nil for a name that is none of ours.
    func lookup(_ name: [UInt8], in request: RequestHeader) throws(Errno) -> EntryOut? {
        if request.nodeid == VnodeTable.rootNode, name == Self.name?.bytes {
            guard request.uid == 0 || request.uid == user else { throw .permissionDenied }
            return entry(Self.directory)
        }
        guard has(request.nodeid) else { return nil }
        guard request.nodeid == Self.directory, name == Self.statusName else {
            throw .noSuchFileOrDirectory
        }
        return entry(Self.statusFile)
    }

    private func entry(_ nodeid: UInt64) -> EntryOut {
        EntryOut(nodeid: nodeid, attributes: attributes(nodeid) ?? Attributes(ino: nodeid, mode: 0))
    }

    func attributes(_ nodeid: UInt64) -> Attributes? {
        switch nodeid {
        case Self.directory:
            Attributes(ino: nodeid, mode: S_IFDIR | 0o500, nlink: 2, uid: user)
        case Self.statusFile:
            Attributes(ino: nodeid, mode: S_IFREG | 0o400, uid: user)
        default: nil
        }
    }

    /// A handle when the node is a file of ours; its text is fixed for this descriptor.
    func open(_ nodeid: UInt64) -> UInt64? {
        guard nodeid == Self.statusFile else { return nil }
        let text = status()
        let handle = nextHandle.wrappingAdd(1, ordering: .relaxed).newValue
        open.withLock { $0[handle] = text }
        return handle
    }

    func read(_ handle: UInt64) -> [UInt8]? {
        guard handle & Self.bit != 0 else { return nil }
        return open.withLock { $0[handle] }
    }

    func close(_ handle: UInt64) -> Bool {
        guard handle & Self.bit != 0 else { return false }
        open.withLock { $0[handle] = nil }
        return true
    }

    func list(_ nodeid: UInt64, offset: UInt64, size: Int, plus: Bool = false) -> DirectoryBuffer? {
        guard has(nodeid) else { return nil }
        var buffer = DirectoryBuffer(capacity: size)
        let entries: [([UInt8], UInt64, UInt32)] = [
            ([0x2E], Self.directory, S_IFDIR), ([0x2E, 0x2E], VnodeTable.rootNode, S_IFDIR),
            (Self.statusName, Self.statusFile, S_IFREG),
        ]
        for (index, (name, ino, mode)) in entries.enumerated() where index >= Int(clamping: offset)
        {
            let cookie = UInt64(index + 1)
            let fits =
                plus
                ? buffer.append(
                    name: name,
                    entry: EntryOut(nodeid: 0, attributes: Attributes(ino: ino, mode: mode)),
                    cookie: cookie)
                : buffer.append(name: name, ino: ino, mode: mode, cookie: cookie)
            if !fits { break }
        }
        return buffer
    }
}
