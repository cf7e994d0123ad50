import Catalog
public import FUSE
import Glibc
import Store
import Synchronization
import SystemPackage
import Volume

// Opening and closing: which bytes an inode serves, and whether the kernel reads them by itself.
extension VolumeFileSystem {
    struct Opened {
        let handle: UInt64
        let flags: OpenFlags
        let backing: Int32
    }

    /// Copies up to this size are made on the reader thread; larger ones on the preparation queue.
    static let immediateCopyBytesMax: UInt64 = 1 << 20

    public func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply
    ) {
        do throws(Errno) {
            if let handle = virtual.open(request.nodeid) {
                reply.open(handle, flags: .directIO)
                return
            }
            let vnode = try vnode(request)
            vnode.lock()
            defer { vnode.unlock() }
            if let opened = try openLocked(vnode, flags) {
                let delivered = reply.open(
                    opened.handle, flags: opened.flags, backing: opened.backing)
                if !delivered { abandon(opened, vnode) }
            } else {
                let pending = reply.detach()
                vnode.state.waiting?.append { error in
                    self.reopen(vnode, flags, pending, error)
                }
            }
        } catch { reply.error(error) }
    }

    /// An open that had to wait for its bytes, tried again.
    private func reopen(_ vnode: Vnode, _ flags: Int32, _ reply: PendingReply, _ error: Errno?) {
        if let error {
            reply.error(error)
            return
        }
        do throws(Errno) {
            vnode.lock()
            defer { vnode.unlock() }
            if let opened = try openLocked(vnode, flags) {
                let delivered = reply.open(
                    opened.handle, flags: opened.flags, backing: opened.backing)
                if !delivered { abandon(opened, vnode) }
            } else {
                vnode.state.waiting?.append { self.reopen(vnode, flags, reply, $0) }
            }
        } catch { reply.error(error) }
    }

    public func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            let name = try mutableName(name, in: directory)
            let owner = stored(request)
            let (inode, staging) = try createStaged { tx throws(Errno) in
                try tx.create(directory.ino, name, newFile(mode, owner), now: .now)
            }
            answerCreated(inode, staging, flags, reply)
        } catch { reply.error(error) }
    }

    public func tmpfile(
        _ request: RequestHeader, flags: Int32, mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        do throws(Errno) {
            let owner = stored(request)
            let directory = try vnode(request)
            let (inode, staging) = try createStaged { tx throws(Errno) in
                try tx.createUnlinked(in: directory.ino, newFile(mode, owner), now: .now)
            }
            answerCreated(inode, staging, flags, reply)
        } catch { reply.error(error) }
    }

    private func newFile(_ mode: UInt32, _ owner: Owner) -> NewInode {
        NewInode(body: .file(.empty), mode: UInt16(mode & 0o7777), owner: owner)
    }

    /// Row and staging file come into being together: the file is made inside the transaction.
    private func createStaged(
        _ body: (Transaction) throws(Errno) -> Inode
    ) throws(Errno) -> (Inode, StagingFile) {
        var made: StagingFile?
        do {
            let inode = try catalog.perform { tx in
                let inode = try body(tx)
                let staging = try newStaging(inode.ino)
                made = staging
                try tx.setStaging(
                    Staging(
                        ino: inode.ino, name: "\(staging.name)", base: inode.contentStamp))
                return inode
            }
            changed()
            guard let made else { throw Errno.ioError }
            return (inode, made)
        } catch {
            if let made { try? store.removeStaging(made.name) }
            throw errno(error, "create")
        }
    }

    private func answerCreated(
        _ inode: Inode, _ staging: StagingFile, _ flags: Int32, _ reply: consuming Reply
    ) {
        let vnode = vnodes.lookUp(inode.ino)
        vnode.lock()
        vnode.state.bytes = .staging(staging)
        vnode.state.writers += 1
        vnode.state.writeGeneration += 1
        let opened = admit(vnode, writes: true)
        vnode.unlock()
        let entry = entry(inode, vnode)
        let delivered = reply.create(
            entry, handle: opened.handle, flags: opened.flags, backing: opened.backing)
        if !delivered {
            release(opened.handle)
            forget(nodeid: vnode.nodeid, count: 1)
        }
    }

    func newStaging(_ ino: InodeNumber) throws(Errno) -> StagingFile {
        let name = publisher.stagingName(for: ino)
        do {
            return StagingFile(name: name, file: SharedDescriptor(try store.createStaging(name)))
        } catch { throw errno(error, "staging") }
    }

    // MARK: Under the vnode's lock

    /// - Returns: nil when the bytes are being prepared; the caller then waits in `state.waiting`.
    private func openLocked(_ vnode: Vnode, _ flags: Int32) throws(Errno) -> Opened? {
        guard vnode.state.waiting == nil else { return nil }
        let truncates = flags & O_TRUNC != 0
        let writes = flags & O_ACCMODE != O_RDONLY || truncates
        if writes {
            guard try acquireStaging(vnode, keeping: truncates ? 0 : .max) else { return nil }
        } else if vnode.state.bytes == nil {
            vnode.state.bytes = try load(vnode)
        }
        return admit(vnode, writes: writes)
    }

    /// Counts one more open and chooses its mode; the bytes are there.
    private func admit(_ vnode: Vnode, writes: Bool) -> Opened {
        vnodes.pin(vnode)
        vnode.state.opens += 1
        let handle = handles.insert(Handle(vnode: vnode, writes: writes))
        switch vnode.state.mode {
        case .passthrough(let backing, let opens):
            vnode.state.mode = .passthrough(backing: backing, opens: opens + 1)
            if writes { vnode.state.pageCacheIsStale = true }
            return Opened(handle: handle, flags: .passthrough, backing: backing)
        case .closed:
            if let backing = registerBacking(vnode) {
                vnode.state.mode = .passthrough(backing: backing, opens: 1)
                if writes { vnode.state.pageCacheIsStale = true }
                return Opened(handle: handle, flags: .passthrough, backing: backing)
            }
            vnode.state.mode = .cached(opens: 1)
        case .cached(let opens):
            vnode.state.mode = .cached(opens: opens + 1)
        }
        let stale = vnode.state.pageCacheIsStale
        vnode.state.pageCacheIsStale = false
        return Opened(handle: handle, flags: stale ? [] : .keepCache, backing: 0)
    }

    private func registerBacking(_ vnode: Vnode) -> Int32? {
        guard let session, mayPassThrough(writing: vnode.state.writers > 0) else { return nil }
        switch vnode.state.bytes {
        case .staging(let staging):
            return try? session.openBacking(staging.file.descriptor.rawValue)
        case .object(let extent, let file):
            // A writer moves the object away from under the readers that the kernel serves, so one
            // object may back only one inode.
            let claimed = passthroughOwners.withLock { owners in
                if let owner = owners[extent.root], owner != vnode.ino { return false }
                owners[extent.root] = vnode.ino
                return true
            }
            guard claimed else { return nil }
            guard let backing = try? session.openBacking(file.descriptor.rawValue) else {
                passthroughOwners.withLock { $0[extent.root] = nil }
                return nil
            }
            vnode.state.passthroughRoot = extent.root
            return backing
        default: return nil
        }
    }

    /// What serves an inode that nobody has open. Under the vnode's lock.
    func load(_ vnode: Vnode) throws(Errno) -> Bytes {
        do {
            if let sealed = vnode.state.sealed { return .object(sealed, try object(sealed)) }
            let (content, staging) = try catalog.read { tx in
                guard let inode = try tx.inode(vnode.ino) else { throw Errno.staleNFSFileHandle }
                guard inode.kind == .file else { throw Errno.invalidArgument }
                return (try tx.content(of: vnode.ino), try tx.staging(of: vnode.ino))
            }
            if let staging, let name = StagingName(staging.name) {
                let file = try store.openStaging(name, .readWrite)
                return .staging(StagingFile(name: name, file: SharedDescriptor(file)))
            }
            switch content {
            case .inline(let bytes): return .inline(bytes)
            case .extents(let extents): return try located(extents)
            }
        } catch { throw errno(error, "open") }
    }

    func object(_ extent: Extent) throws -> SharedDescriptor {
        guard let file = try store.openObject(extent.root) else { throw Errno.ioError }
        return SharedDescriptor(file)
    }

    private func located(_ extents: [Extent]) throws -> Bytes {
        let local = try catalog.read { tx in try extents.map { try isLocal($0, tx) } }
        if extents.count == 1, local[0] { return .object(extents[0], try object(extents[0])) }
        var offset: UInt64 = 0
        return .extents(
            try zip(extents, local).map { extent, isLocal in
                defer { offset += extent.length }
                return ExtentBytes(
                    extent: extent, offset: offset,
                    source: isLocal ? .local(try object(extent)) : .remote(remote.stream(extent)))
            })
    }

    func isLocal(_ extent: Extent, _ tx: Reader) throws(Errno) -> Bool {
        switch try tx.content(extent.root)?.state {
        case .cached, .stored, .dropping: true
        default: false
        }
    }

    // MARK: Closing

    public func release(
        _ request: RequestHeader, handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags,
        lockOwner: UInt64, reply: consuming Reply
    ) {
        release(handle)
        reply.empty()
    }

    func release(_ number: UInt64) {
        if virtual.close(number) { return }
        guard let handle = handles.remove(number) else { return }
        let vnode = handle.vnode
        vnode.lock()
        close(vnode, writes: handle.writes)
        vnode.unlock()
        if vnodes.unpin(vnode) { reap(vnode.ino) }
    }

    /// An open whose answer the kernel did not take.
    private func abandon(_ opened: Opened, _ vnode: Vnode) {
        guard let handle = handles.remove(opened.handle) else { return }
        close(vnode, writes: handle.writes)
        _ = vnodes.unpin(vnode)
    }

    private func close(_ vnode: Vnode, writes: Bool) {
        vnode.state.opens -= 1
        switch vnode.state.mode {
        case .closed: break
        case .cached(let opens):
            vnode.state.mode = opens > 1 ? .cached(opens: opens - 1) : .closed
        case .passthrough(let backing, let opens) where opens > 1:
            vnode.state.mode = .passthrough(backing: backing, opens: opens - 1)
        case .passthrough(let backing, _):
            session?.closeBacking(backing)
            vnode.state.mode = .closed
            if let root = vnode.state.passthroughRoot {
                passthroughOwners.withLock { $0[root] = nil }
                vnode.state.passthroughRoot = nil
            }
        }
        if writes { releaseWriter(vnode) }
        if vnode.state.opens == 0, vnode.state.writers == 0 { dropBytes(vnode) }
    }

    /// The last writer is gone: the row learns size and times, and the publisher has work.
    func releaseWriter(_ vnode: Vnode) {
        vnode.state.writers -= 1
        guard vnode.state.writers == 0, case .staging(let staging) = vnode.state.bytes else { return }
        vnode.state.closed = fileStatus(staging.file.descriptor).map(ClosedFile.init)
        publisher.submit(vnode.ino)
    }

    func dropBytes(_ vnode: Vnode) {
        if case .staging(let staging) = vnode.state.bytes, vnode.state.isPublished {
            publisher.removeWhenDurable(staging.name)
        }
        vnode.state.bytes = nil
        vnode.state.isPublished = false
    }
}
