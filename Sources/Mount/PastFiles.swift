import Catalog
import FUSE
import Logging
import Store
import Synchronization
import SystemPackage
import Volume

/// Who has a file of the past open, and what serves it. The content never changes, so that the kernel's
/// pages of it stay right. Apart from the node, of which there are many more.
final class PastFile {
    var bytes: Bytes
    var mode = IOMode.cached(opens: 0)
    /// The object that it backs by passthrough.
    var claimed: ContentRoot?

    init(_ bytes: Bytes) { self.bytes = bytes }
}

/// Opens, reads and closes files of the past.
final class PastFiles: Sendable {
    struct Opened {
        let flags: OpenFlags
        let backing: Int32
    }

    private let catalog: Catalog
    private let remote: any RemoteContent
    private let users: ObjectUsers
    private let contents: ContentOpener
    private let store: Store
    private let failures: FailureLog
    /// Where the kernel may read objects by itself.
    private let backings = Mutex<Session?>(nil)

    init(
        catalog: Catalog, remote: any RemoteContent, users: ObjectUsers, contents: ContentOpener,
        store: Store, failures: FailureLog
    ) {
        self.catalog = catalog
        self.remote = remote
        self.users = users
        self.contents = contents
        self.store = store
        self.failures = failures
    }

    func attach(_ session: Session?) { backings.withLock { $0 = session } }

    // MARK: Opening

    /// Calls `proceed` once it is known whether all of the content is still somewhere: with EIO if
    /// it was given up, at once or on a thread of the finder.
    func whenFound(
        _ content: Content, of node: PastNode, _ proceed: @escaping @Sendable (Errno?) -> Void
    ) throws(Errno) {
        let extents = content.extents
        let areLocal: [Bool]
        do {
            areLocal = try catalog.read { reader throws(Errno) in
                try contents.areLocal(extents, reader)
            }
        } catch { throw failures.errno(error, "open") }
        find(zip(extents, areLocal).filter { !$1 }.map(\.0)[...], node, proceed)
    }

    private func find(
        _ missing: ArraySlice<Extent>, _ node: PastNode,
        _ proceed: @escaping @Sendable (Errno?) -> Void
    ) {
        guard let extent = missing.first else { return proceed(nil) }
        remote.findHolder(of: extent) { [self] isHeld in
            guard isHeld else {
                failures.logger.warning(
                    "no known disk has \(extent.root) any more, \(extent.length) bytes of a file as of commit \(node.state.commit): it was given up"
                )
                return proceed(.ioError)
            }
            find(missing.dropFirst(), node, proceed)
        }
    }

    /// Counts one more open and chooses its mode. Under the node's lock.
    func open(
        _ content: Content, of node: PastNode, _ known: inout PastFile?
    ) throws(Errno) -> Opened {
        let file: PastFile
        if let known {
            file = known
        } else {
            file = PastFile(try load(content, node))
            if let backing = register(node, file) {
                file.mode = .passthrough(backing: backing, opens: 0)
            }
            known = file
        }
        switch file.mode {
        case .passthrough(let backing, let opens):
            file.mode = .passthrough(backing: backing, opens: opens + 1)
            return Opened(flags: [.passthrough, .noFlush], backing: backing)
        case .cached(let opens):
            file.mode = .cached(opens: opens + 1)
            return Opened(flags: [.keepCache, .noFlush], backing: 0)
        case .closed: preconditionFailure("what is closed has no state")
        }
    }

    private func load(_ content: Content, _ node: PastNode) throws(Errno) -> Bytes {
        switch content {
        case .inline(let bytes): return .inline(bytes)
        case .extents(let extents):
            let areLocal: [Bool]
            do {
                areLocal = try catalog.read { reader throws(Errno) in
                    try contents.areLocal(extents, reader)
                }
            } catch { throw failures.errno(error, "open") }
            return try contents.open(extents, areLocal, for: node.nodeid)
        }
    }

    /// nil when the kernel cannot, or reads that object for another inode.
    private func register(_ node: PastNode, _ file: PastFile) -> Int32? {
        guard case .object(let extent, let object?) = file.bytes,
            let session = backings.withLock({ $0 }),
            session.features.map({ $0.passthrough != .none }) == true,
            users.claim(extent.root, for: node.nodeid)
        else { return nil }
        guard let backing = try? session.openBacking(object.descriptor.rawValue) else {
            users.release(extent.root, for: node.nodeid)
            return nil
        }
        file.claimed = extent.root
        file.bytes = .object(extent, nil)
        return backing
    }

    func close(_ node: PastNode) {
        node.file.withLock { close(node, &$0) }
    }

    /// Under the node's lock.
    func close(_ node: PastNode, _ known: inout PastFile?) {
        guard let file = known else { preconditionFailure("more was closed than was open") }
        switch file.mode {
        case .cached(let opens) where opens > 1: file.mode = .cached(opens: opens - 1)
        case .passthrough(let backing, let opens) where opens > 1:
            file.mode = .passthrough(backing: backing, opens: opens - 1)
        case .closed, .cached: known = nil
        case .passthrough(let backing, _):
            backings.withLock { $0 }?.closeBacking(backing)
            if let root = file.claimed { users.release(root, for: node.nodeid) }
            known = nil
        }
    }

    // MARK: Reading

    func read(
        _ node: PastNode, _ request: RequestHeader, offset: UInt64, size: Int,
        _ reply: consuming Reply
    ) {
        switch node.file.withLock({ $0?.bytes ?? .unloaded }) {
        case .inline(let bytes):
            reply.data(Array(bytes.dropFirst(Int(clamping: offset)).prefix(size)))
        case .extents(let extents):
            RangeReader.read(extents, offset, size, remote, request, reply.detach())
        case .object(let extent, let known):
            do throws(Errno) {
                let file = try object(extent, known, node)
                RangeReader.read(extent, file, offset, size, remote, request, reply)
            } catch { reply.error(error) }
        case .unloaded, .staging: reply.error(.badFileDescriptor)
        }
    }

    /// nil for what is no whole object on this disk.
    func object(of node: PastNode) -> (SharedDescriptor, Extent)? {
        guard case .object(let extent, let known) = node.file.withLock({ $0?.bytes ?? .unloaded }),
            let file = try? object(extent, known, node)
        else { return nil }
        return (file, extent)
    }

    private func object(
        _ extent: Extent, _ known: SharedDescriptor?, _ node: PastNode
    ) throws(Errno) -> SharedDescriptor {
        if let known { return known }
        guard let file = try contents.openObject(extent, for: node.nodeid) else { throw .ioError }
        return file
    }

    /// SEEK_HOLE and SEEK_DATA.
    func seek(
        _ node: PastNode, from offset: UInt64, toHole: Bool, _ reply: consuming Reply
    ) {
        do throws(Errno) {
            switch node.file.withLock({ $0?.bytes ?? .unloaded }) {
            case .object(let extent, let known):
                let file = try object(extent, known, node)
                do throws(StoreError) {
                    reply.lseek(try store.seek(file.descriptor, from: offset, toHole: toHole))
                } catch { throw error.errno }
            case .inline(let bytes):
                reply.lseek(try Self.seek(UInt64(bytes.count), offset, toHole))
            case .extents(let extents):
                let size = extents.reduce(0) { $0 + $1.extent.length }
                reply.lseek(try Self.seek(size, offset, toHole))
            case .unloaded, .staging: throw .badFileDescriptor
            }
        } catch { reply.error(error) }
    }

    /// Without a file all counts as data up to the end.
    static func seek(_ size: UInt64, _ offset: UInt64, _ toHole: Bool) throws(Errno) -> UInt64 {
        guard offset < size else { throw .noSuchAddressOrDevice }
        return toHole ? size : offset
    }
}
