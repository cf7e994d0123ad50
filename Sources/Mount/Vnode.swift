import Catalog
import Foundation
import Glibc
import Store
import Synchronization
import SystemPackage
import Volume

/// What serves the bytes of an open inode.
enum Bytes {
    case inline([UInt8])
    /// One complete object on this disk.
    case object(Extent, SharedDescriptor)
    /// Extents in order, at least one of which is not on this disk (or there are several).
    case extents([ExtentBytes])
    /// The file being written, or written and not yet replaced by its published form.
    case staging(StagingFile)
}

struct ExtentBytes {
    enum Source {
        case local(SharedDescriptor)
        case remote(any ContentStream)
    }
    let extent: Extent
    let offset: UInt64
    let source: Source
}

/// A file in `staging/`, open for reading and writing.
struct StagingFile {
    let name: StagingName
    let file: SharedDescriptor
}

/// Size and times of a staging file that nobody has open.
struct ClosedFile {
    let size: UInt64
    let blocks: UInt64
    let modified: Timestamp
    let changed: Timestamp

    init(_ status: stat) {
        size = UInt64(status.st_size)
        blocks = UInt64(status.st_blocks)
        modified = Timestamp(status.st_mtim)
        changed = Timestamp(status.st_ctim)
    }
}

typealias Inode = CatalogInode

/// The kernel allows one mode and one backing file per inode at a time; a violation is EIO to the
/// application. Decided under the vnode's lock, which is held until the reply is written.
enum IOMode: Equatable {
    case closed
    case cached(opens: Int)
    case passthrough(backing: Int32, opens: Int)
}

/// One inode as the kernel knows it on this mount.
///
/// | bytes \ mode | closed | cached | passthrough |
/// |---|---|---|---|
/// | inline | may choose cached | served from memory | never |
/// | object | may choose either | served by the daemon | served by the kernel |
/// | extents | may choose cached | served by the daemon, waits for what is missing | never |
/// | staging | may choose either | served by the daemon | served by the kernel |
final class Vnode: @unchecked Sendable {
    // Sendable: `state` is touched only between `lock` and `unlock`.
    let nodeid: UInt64
    let ino: InodeNumber
    var state = VnodeState()
    private let mutex = NSLock()

    func lock() { mutex.lock() }
    func unlock() { mutex.unlock() }

    func read<T>(_ body: (VnodeState) -> T) -> T {
        lock()
        defer { unlock() }
        return body(state)
    }

    func withLock<T>(_ body: (inout VnodeState) throws(Errno) -> T) throws(Errno) -> T {
        lock()
        defer { unlock() }
        return try body(&state)
    }

    init(nodeid: UInt64, ino: InodeNumber) {
        self.nodeid = nodeid
        self.ino = ino
    }
}

struct VnodeState {
    var bytes: Bytes?
    var mode = IOMode.closed
    var opens = 0
    var writers = 0
    /// Grows with every open for writing: a publish that began under a smaller one gives up.
    var writeGeneration: UInt64 = 0
    /// Closed and not published yet: what stat shows, while no descriptor is open for it.
    var closed: ClosedFile?
    /// The staging file's inode has become this object, the catalog does not say so yet.
    var sealed: Extent?
    /// The staging file's bytes are published; it stays only for those who have it open.
    var isPublished = false
    /// A version from elsewhere took the name: this vnode's bytes are an older one.
    var isSuperseded = false
    /// The kernel's page cache of this nodeid may differ from the bytes.
    var pageCacheIsStale = false
    /// While bytes are being prepared off the lock: what to run again afterwards.
    var waiting: [@Sendable (Errno?) -> Void]?
    /// Holds the object's root while this vnode backs it by passthrough.
    var passthroughRoot: ContentRoot?
}

/// All vnodes: by nodeid for the kernel, by inode number for names.
///
/// A nodeid is given once and never again. A vnode lives while the kernel has looked it up or a
/// descriptor or a publish holds it.
final class VnodeTable: Sendable {
    private struct Entry {
        let vnode: Vnode
        var lookups: UInt64
        var pins: Int
    }

    private struct State {
        var byNode: [UInt64: Entry] = [:]
        var byInode: [InodeNumber: UInt64] = [:]
        var next: UInt64 = 2
    }

    private let state: Mutex<State>

    /// Kernel's nodeid of the mount's top.
    static let rootNode: UInt64 = 1

    init() {
        var initial = State()
        let root = Vnode(nodeid: Self.rootNode, ino: .root)
        initial.byNode[Self.rootNode] = Entry(vnode: root, lookups: 1, pins: 1)
        initial.byInode[.root] = Self.rootNode
        state = Mutex(initial)
    }

    func vnode(_ nodeid: UInt64) -> Vnode? {
        state.withLock { $0.byNode[nodeid]?.vnode }
    }

    func existing(_ ino: InodeNumber) -> Vnode? {
        state.withLock { state in state.byInode[ino].flatMap { state.byNode[$0]?.vnode } }
    }

    /// The vnode a name leads to, with one more lookup owed by the kernel.
    func lookUp(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.lookups += 1 } }

    /// The vnode, kept alive until `unpin`.
    func pin(_ ino: InodeNumber) -> Vnode { reference(ino) { $0.pins += 1 } }

    func pin(_ vnode: Vnode) {
        state.withLock { $0.byNode[vnode.nodeid]?.pins += 1 }
    }

    /// - Returns: true when nothing holds the vnode any more: the inode may be reaped.
    func unpin(_ vnode: Vnode) -> Bool { release(vnode.nodeid) { $0.pins -= 1 } }

    /// - Returns: the inode when nothing holds the vnode any more.
    func forget(_ nodeid: UInt64, count: UInt64) -> InodeNumber? {
        guard nodeid != Self.rootNode, let vnode = vnode(nodeid) else { return nil }
        return release(nodeid) { $0.lookups -= min($0.lookups, count) } ? vnode.ino : nil
    }

    /// From now on the inode's name leads to a new vnode.
    func supersede(_ vnode: Vnode) {
        state.withLock { state in
            if state.byInode[vnode.ino] == vnode.nodeid { state.byInode[vnode.ino] = nil }
        }
    }

    /// Inodes that the kernel or a descriptor holds.
    var held: Set<InodeNumber> { state.withLock { Set($0.byInode.keys) } }

    private func reference(_ ino: InodeNumber, _ count: (inout Entry) -> Void) -> Vnode {
        state.withLock { state in
            let nodeid = state.byInode[ino] ?? state.next
            if nodeid == state.next {
                state.next += 1
                state.byInode[ino] = nodeid
            }
            var entry =
                state.byNode[nodeid]
                ?? Entry(vnode: Vnode(nodeid: nodeid, ino: ino), lookups: 0, pins: 0)
            count(&entry)
            state.byNode[nodeid] = entry
            return entry.vnode
        }
    }

    private func release(_ nodeid: UInt64, _ count: (inout Entry) -> Void) -> Bool {
        state.withLock { state in
            guard var entry = state.byNode[nodeid] else { return false }
            count(&entry)
            if entry.lookups == 0, entry.pins == 0 {
                state.byNode[nodeid] = nil
                if state.byInode[entry.vnode.ino] == nodeid {
                    state.byInode[entry.vnode.ino] = nil
                    return true
                }
                return state.byInode[entry.vnode.ino] == nil
            }
            state.byNode[nodeid] = entry
            return false
        }
    }
}
