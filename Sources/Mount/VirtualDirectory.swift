import FUSE
import Glibc
import Synchronization
import SystemPackage
import Volume

/// `.delugefs` at the top of the mount: not listed there, open to root and the mounting user only,
/// read-only. A file system of its own, to which `VolumeFileSystem.part(of:)` leads.
///
/// ```
/// status              the node's status, as JSON
/// at/TIME|COMMIT/…    the volume as it was; see `VirtualDirectory+Past`
/// ```
///
/// Its nodeids have bit 62 set, and so have the inode numbers that stat shows: else `cp` takes a
/// file of the past for the same file as its present one.
final class VirtualDirectory: FileSystem {
    static let name = FileName(Array(".delugefs".utf8))
    static let bit: UInt64 = 1 << 62
    private static let directory = bit | 1
    private static let statusFile = bit | 2
    /// `at`.
    static let states = bit | 3
    /// Nodeids of the past, given once and never again.
    static let firstOfPast = bit | 16
    private static let statusName = Array("status".utf8)
    private static let statesName = Array("at".utf8)
    /// What a descriptor of the kernel stands for.
    enum Handle: Sendable {
        /// Fixed for this descriptor.
        case status([UInt8])
        case file(PastNode)
        case directory(PastNode, PastListing)
        /// `at`: fixed for this descriptor.
        case states([(name: [UInt8], ino: UInt64, mode: UInt32)])
    }

    typealias Copy =
        @Sendable (
            SharedDescriptor, Extent, RequestHeader, CopyRequest, consuming Reply
        ) -> Void

    let tree: PastTree
    let names = PastNames<PastState>()
    let nodes = PastNodes(from: firstOfPast)
    let files: PastFiles
    let derived: DerivedXattrs
    /// Runs whatever reads the history: its packs may be cold. The present goes first.
    let queue = WorkQueue(name: "past", threads: 2, .background)
    let handles = HandleTable<Handle>()
    /// Copies an object into a file of the volume.
    let copying = Mutex<Copy?>(nil)
    private let status: @Sendable () -> [UInt8]
    private let statistics: @Sendable () -> VolumeStatistics
    private let user = geteuid()

    init(
        status: @escaping @Sendable () -> [UInt8],
        statistics: @escaping @Sendable () -> VolumeStatistics, past: PastTree, files: PastFiles,
        derived: DerivedXattrs
    ) {
        self.status = status
        self.statistics = statistics
        tree = past
        self.files = files
        self.derived = derived
    }

    static func has(_ nodeid: UInt64) -> Bool { nodeid & bit != 0 }

    // MARK: The way in

    /// The kernel checks the modes; this is for what it has learned from others' lookups.
    func admit(_ request: RequestHeader) throws(Errno) {
        guard request.uid == 0 || request.uid == user else { throw .permissionDenied }
    }

    /// What `.delugefs` in the top directory leads to.
    func top(_ request: RequestHeader) throws(Errno) -> EntryOut {
        try admit(request)
        return entry(Self.directory, attributes(Self.directory))
    }

    private func entry(_ nodeid: UInt64, _ attributes: Attributes?) -> EntryOut {
        EntryOut(nodeid: nodeid, attributes: attributes ?? Attributes(ino: nodeid, mode: 0))
    }

    private func attributes(_ nodeid: UInt64) -> Attributes? {
        switch nodeid {
        case Self.directory:
            Attributes(ino: nodeid, mode: S_IFDIR | 0o500, nlink: 3, uid: user)
        case Self.states: Attributes(ino: nodeid, mode: S_IFDIR | 0o500, nlink: 2, uid: user)
        case Self.statusFile: Attributes(ino: nodeid, mode: S_IFREG | 0o400, uid: user)
        default: nil
        }
    }

    // MARK: Requests

    func lookup(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        do throws(Errno) {
            try admit(request)
            switch (request.nodeid, name) {
            case (Self.directory, Self.statusName):
                reply.entry(entry(Self.statusFile, attributes(Self.statusFile)))
            case (Self.directory, Self.statesName):
                reply.entry(entry(Self.states, attributes(Self.states)))
            case (Self.directory, _), (Self.statusFile, _): throw .noSuchFileOrDirectory
            case (Self.states, _): lookUpState(name, reply)
            default: lookUpPast(try node(request), name, reply)
            }
        } catch { reply.error(error) }
    }

    func forget(nodeid: UInt64, count: UInt64) { nodes.forget(nodeid, count: count) }

    func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply) {
        do throws(Errno) {
            if let attributes = attributes(request.nodeid) {
                reply.attributes(attributes, valid: .zero)
                return
            }
            showPast(try node(request), reply)
        } catch { reply.error(error) }
    }

    func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply
    ) {
        do throws(Errno) {
            try admit(request)
            guard flags & O_ACCMODE == O_RDONLY, flags & O_TRUNC == 0 else {
                throw .readOnlyFileSystem
            }
            if request.nodeid == Self.statusFile {
                reply.open(handles.insert(.status(status())), flags: .directIO)
                return
            }
            openPast(try node(request), reply)
        } catch { reply.error(error) }
    }

    func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int, reply: consuming Reply
    ) {
        switch handles.handle(handle) {
        case .status(let text):
            reply.data(Array(text.dropFirst(Int(clamping: offset)).prefix(size)))
        case .file(let node): files.read(node, request, offset: offset, size: size, reply)
        case .directory, .states, nil: reply.error(.badFileDescriptor)
        }
    }

    func release(
        _ request: RequestHeader, handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags,
        lockOwner: UInt64, reply: consuming Reply
    ) {
        close(handle)
        reply.empty()
    }

    func opendir(_ request: RequestHeader, flags: Int32, reply: consuming Reply) {
        do throws(Errno) {
            try admit(request)
            switch request.nodeid {
            case Self.directory: reply.open(0)
            case Self.states: openStates(reply)
            default: openPastDirectory(try node(request), reply)
            }
        } catch { reply.error(error) }
    }

    func readdir(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) { list(request, handle, offset, size, plus: false, reply) }

    func readdirplus(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) { list(request, handle, offset, size, plus: true, reply) }

    private func list(
        _ request: RequestHeader, _ handle: UInt64, _ offset: UInt64, _ size: Int, plus: Bool,
        _ reply: consuming Reply
    ) {
        var page = DirectoryPage(offset: offset, size: size, isPlus: plus)
        switch (request.nodeid, handles.handle(handle)) {
        case (Self.directory, _):
            page.fill([
                ([0x2E], Self.directory, S_IFDIR), ([0x2E, 0x2E], VnodeTable.rootNode, S_IFDIR),
                (Self.statusName, Self.statusFile, S_IFREG),
                (Self.statesName, Self.states, S_IFDIR),
            ])
            reply.directory(page.buffer)
        case (_, .states(let states)):
            page.fill(
                [([0x2E], Self.states, S_IFDIR), ([0x2E, 0x2E], Self.directory, S_IFDIR)] + states)
            reply.directory(page.buffer)
        case (_, .directory(let node, let listing)): listPast(handle, node, listing, page, reply)
        default: reply.error(.badFileDescriptor)
        }
    }

    func releasedir(_ request: RequestHeader, handle: UInt64, reply: consuming Reply) {
        close(handle)
        reply.empty()
    }

    func statfs(_ request: RequestHeader, reply: consuming Reply) { reply.statfs(statistics()) }

    // MARK: Handles

    func node(_ request: RequestHeader) throws(Errno) -> PastNode {
        guard let node = nodes.node(request.nodeid) else { throw .staleNFSFileHandle }
        return node
    }

    func close(_ number: UInt64) {
        guard let handle = handles.remove(number) else { return }
        if case .file(let node) = handle {
            names.used(node.state, now: Monotonic.milliseconds)
            files.close(node)
        }
    }

    // MARK: The end

    /// As for the volume: of a mount that was taken away nothing is released.
    func ended() {
        for number in handles.open { close(number) }
        nodes.forgetAll()
    }

    func drain() { queue.drain() }

    // MARK: What is refused

    // The defaults for changes are EROFS, but for requests that the kernel can do without: their
    // ENOSYS would count for the whole mount, the volume's files too.

    func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply
    ) { reply.error(.readOnlyFileSystem) }

    func tmpfile(
        _ request: RequestHeader, flags: Int32, mode: UInt32, umask: UInt32, reply: consuming Reply
    ) { reply.error(.readOnlyFileSystem) }

    func setxattr(
        _ request: RequestHeader, name: [UInt8], value: UnsafeRawBufferPointer,
        flags: SetXattrFlags, reply: consuming Reply
    ) { reply.error(.readOnlyFileSystem) }

    func removexattr(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        reply.error(.readOnlyFileSystem)
    }

    func fallocate(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, length: UInt64, mode: Int32,
        reply: consuming Reply
    ) { reply.error(.readOnlyFileSystem) }

}
