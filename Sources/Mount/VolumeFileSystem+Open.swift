import Catalog
public import FUSE
import Glibc
import Store
import SystemPackage
import Volume

// Opening and closing: whether the kernel serves an inode by itself.
extension VolumeFileSystem {
    struct Opened {
        let handle: UInt64
        let flags: OpenFlags
        let backing: Int32
    }

    /// What an OPEN asks for.
    private struct Opening {
        let writes: Bool
        let truncates: Bool
        let mayMap: Bool
        /// What a truncation takes away.
        let dropped: Privileges

        init(_ flags: Int32, killsPrivileges: Bool) {
            truncates = flags & O_TRUNC != 0
            writes = flags & O_ACCMODE != O_RDONLY || truncates
            mayMap = VolumeFileSystem.mayMap(flags)
            dropped = !truncates ? [] : killsPrivileges ? [.setID, .capability] : .capability
        }
    }

    public func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply
    ) {
        do throws(Errno) {
            let opening = Opening(flags, killsPrivileges: killPrivileges)
            let vnode = try vnode(request)
            vnode.lock()
            defer { vnode.unlock() }
            if let opened = try openLocked(vnode, opening) {
                let delivered = reply.open(
                    opened.handle, flags: opened.flags, backing: opened.backing)
                if !delivered { abandon(opened, vnode) }
            } else {
                let pending = reply.detach()
                wait(for: vnode, pending) { self.reopen(vnode, opening, pending, $0) }
                Interruption.whenEnding(pending, of: request) { [weak pending] in
                    pending?.error(.interrupted)
                }
            }
        } catch { reply.error(error) }
    }

    /// The request goes on when the bytes are there, or have failed to come. Under the vnode's lock.
    func wait(
        for vnode: Vnode, _ reply: PendingReply, _ body: @escaping @Sendable (Errno?) -> Void
    ) {
        vnode.state.waiting?.append(Waiter(reply: reply, proceed: body))
    }

    /// An open that had to wait for its bytes, tried again.
    private func reopen(
        _ vnode: Vnode, _ opening: Opening, _ reply: PendingReply, _ failure: Errno?
    ) {
        if let failure {
            reply.error(failure)
            return
        }
        guard !reply.isAnswered else { return }
        do throws(Errno) {
            vnode.lock()
            defer { vnode.unlock() }
            if let opened = try openLocked(vnode, opening) {
                let delivered = reply.open(
                    opened.handle, flags: opened.flags, backing: opened.backing)
                if !delivered { abandon(opened, vnode) }
            } else {
                wait(for: vnode, reply) { self.reopen(vnode, opening, reply, $0) }
            }
        } catch { reply.error(error) }
    }

    // MARK: Creating

    public func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            let name = try mutableName(name, in: directory)
            let new = newFile(mode, umask, stored(request))
            let (inode, staged): (Inode, StagedFile)
            do throws(Errno) {
                (inode, staged) = try createStaged { tx throws(Errno) in
                    try tx.create(directory.ino, name, new, now: .now)
                }
            } catch .fileExists where flags & O_EXCL == 0 {
                // It came from elsewhere since the kernel looked: that it look again.
                throw .staleNFSFileHandle
            }
            answerCreated(inode, staged, flags, reply)
        } catch { reply.error(error) }
    }

    public func tmpfile(
        _ request: RequestHeader, flags: Int32, mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            let new = newFile(mode, umask, stored(request))
            let (inode, staged) = try createStaged { tx throws(Errno) in
                try tx.createUnlinked(in: directory.ino, new, now: .now)
            }
            answerCreated(inode, staged, flags, reply)
        } catch { reply.error(error) }
    }

    private func newFile(_ mode: UInt32, _ umask: UInt32, _ owner: Owner) -> NewInode {
        NewInode(
            body: .file(.empty), mode: UInt16(mode & 0o7777), owner: owner,
            umask: UInt16(umask & 0o777))
    }

    /// Row and staging file come into being together: the file is made inside the operation.
    private func createStaged(
        _ body: (Transaction) throws(Errno) -> Inode
    ) throws(Errno) -> (Inode, StagedFile) {
        var made: StagedFile?
        guard !options.isFull() else { throw .noSpace }
        do {
            let inode = try catalog.perform { tx in
                let inode = try body(tx)
                let staged = try newStaging(inode.ino, modified: inode.modified)
                made = staged
                try tx.setStaging(
                    Staging(
                        ino: inode.ino, name: "\(staged.name)", base: inode.contentStamp,
                        isNewborn: true))
                return inode
            }
            guard let made else { throw Errno.ioError }
            changed()
            return (inode, made)
        } catch {
            if let made { try? store.removeStaging(made.name) }
            throw errno(error, "create")
        }
    }

    private func answerCreated(
        _ inode: Inode, _ staged: StagedFile, _ flags: Int32, _ reply: consuming Reply
    ) {
        let vnode = vnodes.lookUp(inode.ino)
        if inode.linkCount == 0 { _ = vnodes.unlinked(inode.ino) }
        let opened: Opened
        do throws(Errno) {
            opened = try vnode.locked { () throws(Errno) in
                vnode.state.bytes = .staging(staged)
                vnode.state.isUncommitted = true
                vnode.state.version = Version(inode, .empty)
                vnode.state.privileges = inode.mode & 0o6000 == 0 ? [] : .setID
                beginWriting(vnode)
                let opened = try admitWriter(vnode)
                // The kernel has no attributes to forget.
                if Self.mayMap(flags) { _ = noteMapping(vnode) }
                return opened
            }
        } catch {
            forget(nodeid: vnode.nodeid, count: 1)
            reply.error(error)
            return
        }
        // The kernel does not know the node yet: nobody opens it before this answer, and an open
        // file that nobody else knows is not published.
        let delivered = reply.create(
            entry(inode, readAt: vnodes.recorded, vnode), handle: opened.handle,
            flags: opened.flags,
            backing: opened.backing)
        if !delivered {
            release(opened.handle)
            forget(nodeid: vnode.nodeid, count: 1)
        }
    }

    // MARK: Under the vnode's lock

    /// - Returns: nil when the bytes are being prepared; the caller then waits in `state.waiting`.
    private func openLocked(_ vnode: Vnode, _ opening: Opening) throws(Errno) -> Opened? {
        let mayOpen =
            vnode.state.waiting == nil || !opening.writes && vnode.state.isReadableMeanwhile
        guard mayOpen else { return nil }
        // The name leads to another vnode by now: that the kernel look it up again.
        guard !vnode.state.isSuperseded else { throw .staleNFSFileHandle }
        do throws(Errno) {
            guard opening.writes else {
                try load(vnode)
                return try admit(vnode, writes: false)
            }
            let isStaged = vnode.state.staged != nil
            guard try acquireStaging(vnode, keeping: opening.truncates ? 0 : .max) else {
                return nil
            }
            let opened = try admitWriter(vnode, dropping: opening.dropped)
            if opening.truncates, isStaged { try empty(vnode, opened) }
            if opening.mayMap, noteMapping(vnode) {
                session?.notifier.forgetAttributes(ofRequested: vnode.nodeid)
            }
            return opened
        } catch {
            unloadIfIdle(vnode)
            if opening.truncates { session?.notifier.forgetAttributes(ofRequested: vnode.nodeid) }
            throw error
        }
    }

    /// The last step of an open: one that fails takes nothing away.
    private func empty(_ vnode: Vnode, _ opened: Opened) throws(Errno) {
        do throws(Errno) { try resize(vnode, to: 0) } catch {
            abandon(opened, vnode)
            throw error
        }
    }

    /// A file that is stored into by a shared mapping was opened for reading too.
    private static func mayMap(_ flags: Int32) -> Bool { flags & O_ACCMODE == O_RDWR }

    /// - Returns: whether the kernel may remember attributes from before.
    private func noteMapping(_ vnode: Vnode) -> Bool {
        guard case .passthrough = vnode.state.mode, case .staging(var staged) = vnode.state.bytes,
            !staged.mayBeMapped
        else { return false }
        staged.mayBeMapped = true
        vnode.state.bytes = .staging(staged)
        return true
    }

    private func admitWriter(
        _ vnode: Vnode, dropping privileges: Privileges = []
    ) throws(Errno) -> Opened {
        do throws(Errno) {
            try dropPrivilegesLocked(vnode, privileges)
            return try admit(vnode, writes: true)
        } catch {
            endWriting(vnode)
            throw error
        }
    }

    /// Counts one more open and chooses its mode; the bytes are there.
    private func admit(_ vnode: Vnode, writes: Bool) throws(Errno) -> Opened {
        // What the kernel writes by itself nobody sees: the set-id bits would stay. (Of a
        // passthrough file the daemon may answer READ and WRITE, with this flag.)
        let throughDaemon =
            writes && (passthrough == .readOnly || !vnode.state.privileges.isEmpty)
        let flags: OpenFlags
        var id: Int32 = 0
        switch try mode(of: vnode) {
        case .passthrough(let backing, let opens):
            if throughDaemon {
                try serveFromDaemon(vnode)
            } else if writes {
                // The writer may outlive this process: the row that names its file must too.
                try commitRows(of: vnode, "open for writing")
            }
            vnode.state.mode = .passthrough(backing: backing, opens: opens + 1)
            if writes { vnode.state.pageCacheIsStale = true }
            flags = throughDaemon ? [.passthrough, .directIO] : .passthrough
            id = backing
        case .cached(let opens):
            try serveFromDaemon(vnode)
            if writes { try commitRows(of: vnode, "open for writing") }
            vnode.state.mode = .cached(opens: opens + 1)
            let isFresh =
                !vnode.state.pageCacheIsStale && vnode.state.pages == vnode.state.version?.stamp
            flags = isFresh ? .keepCache : []
            vnode.state.pageCacheIsStale = false
            vnode.state.pages = vnode.state.version?.stamp
        case .closed: preconditionFailure("a mode was chosen above")
        }
        vnodes.pin(vnode)
        vnode.state.opens += 1
        let handle = handles.insert(Handle(vnode: vnode, writes: writes))
        return Opened(handle: handle, flags: flags, backing: id)
    }

    /// The mode that the kernel allows now; of a closed inode the better one.
    private func mode(of vnode: Vnode) throws(Errno) -> IOMode {
        guard vnode.state.mode == .closed else { return vnode.state.mode }
        let mayPass =
            switch passthrough {
            case .none: false
            case .readOnly: vnode.state.writers == 0
            case .readWrite: true
            }
        // What a writer prepares will be another file.
        guard mayPass, vnode.state.waiting == nil, let backing = try registerBacking(vnode) else {
            return .cached(opens: 0)
        }
        // From here on the inode has a backing file in the kernel: close it if the open fails.
        vnode.state.mode = .passthrough(backing: backing, opens: 0)
        return vnode.state.mode
    }

    /// - Returns: nil when the kernel cannot, or another inode reads that object through it.
    private func registerBacking(_ vnode: Vnode) throws(Errno) -> Int32? {
        guard let session else { return nil }
        switch vnode.state.bytes {
        case .staging(let staged) where staged.overlay != nil: return nil
        case .staging(var staged):
            let file = try readable(staged)
            var object: Extent?
            if case .sealed(let extent, _) = staged.phase { object = extent }
            guard let id = register(file, object, vnode, session) else { return nil }
            staged.close()
            vnode.state.bytes = .staging(staged)
            return id
        case .object(let extent, let known):
            let opened: SharedDescriptor?
            if let known { opened = known } else { opened = try openObject(extent, for: vnode) }
            guard let file = opened else { throw .ioError }
            guard let id = register(file, extent, vnode, session) else { return nil }
            vnode.state.bytes = .object(extent, nil)
            return id
        default: return nil
        }
    }

    /// - Parameter object: that the file is, if it is one.
    private func register(
        _ file: SharedDescriptor, _ object: Extent?, _ vnode: Vnode, _ session: Session
    ) -> Int32? {
        if let root = object?.root {
            guard publisher.users.claim(root, for: vnode.nodeid) else { return nil }
            vnode.state.claimed = root
        }
        guard let facts = try? store.facts(of: file.descriptor),
            let id = try? session.openBacking(file.descriptor.rawValue)
        else {
            publisher.releaseClaim(vnode)
            return nil
        }
        vnode.state.backing = facts.identity
        return id
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
        guard let handle = handles.remove(number) else { return }
        handle.vnode.locked { close(handle.vnode, writes: handle.writes) }
        unpin(handle.vnode)
    }

    /// Of a mount that was taken away with files open (an aborted connection) the kernel neither
    /// releases nor forgets anything any more: what was written is published all the same.
    public func ended() {
        for handle in handles.open { release(handle) }
        for nodeid in vnodes.known { forget(nodeid: nodeid, count: .max) }
        virtual.ended()
    }

    /// An open whose answer the kernel did not take: RELEASE will not come.
    private func abandon(_ opened: Opened, _ vnode: Vnode) {
        guard let handle = handles.remove(opened.handle) else { return }
        close(vnode, writes: handle.writes)
        unpin(vnode)
    }

    private func close(_ vnode: Vnode, writes: Bool) {
        vnode.state.opens -= 1
        switch vnode.state.mode {
        case .closed: preconditionFailure("more was closed than was open")
        case .cached(let opens): vnode.state.mode = .cached(opens: opens - 1)
        case .passthrough(let backing, let opens):
            vnode.state.mode = .passthrough(backing: backing, opens: opens - 1)
        }
        if writes { endWriting(vnode) }
        unloadIfIdle(vnode)
    }

    /// One writer less; after the last one the publisher has work.
    func endWriting(_ vnode: Vnode) {
        vnode.state.writers -= 1
        if vnode.state.writers == 0 { vnode.state.publishing.closed(now: Monotonic.milliseconds) }
        publisher.submitIfClosed(vnode)
    }

    /// Gives up what only open files need: the mode when nothing is open, the bytes when nobody
    /// uses them either.
    func unloadIfIdle(_ vnode: Vnode) {
        switch vnode.state.mode {
        case .passthrough(let backing, opens: 0):
            session?.closeBacking(backing)
            vnode.state.mode = .closed
            vnode.state.backing = nil
            publisher.releaseClaim(vnode)
        case .cached(opens: 0): vnode.state.mode = .closed
        default: break
        }
        publisher.unloadIfIdle(vnode)
    }
}
