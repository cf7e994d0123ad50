import Catalog
public import FUSE
import Glibc
import Store
import SystemPackage
import Volume

extension VolumeFileSystem {
    public func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply) {
        do throws(Errno) {
            let (attributes, valid) = try shown(try vnode(request))
            reply.attributes(attributes, valid: valid)
        } catch { reply.error(error) }
    }

    private func shown(_ vnode: Vnode) throws(Errno) -> (Attributes, Duration) {
        let time = vnodes.recorded
        let inode = try query("stat") { reader throws(Errno) in try reader.inode(vnode.ino) }
        guard let inode else { throw .staleNFSFileHandle }
        return shown(inode, readAt: time, vnode)
    }

    // MARK: Changing

    public func setattr(
        _ request: RequestHeader, _ changes: SetAttributes, reply: consuming Reply
    ) {
        do throws(Errno) {
            let vnode = try vnode(request)
            if changes.fields.contains(.size) {
                guard changes.size <= Limits.fileBytesMax else { throw .fileTooLarge }
                vnode.lock()
                guard try truncateAndUnlock(vnode, changes) else {
                    let pending = reply.detach()
                    wait(for: vnode, pending) { self.truncate(vnode, changes, pending, $0) }
                    vnode.unlock()
                    Interruption.whenEnding(pending, of: request) { [weak pending] in
                        pending?.error(.interrupted)
                    }
                    return
                }
            }
            let time = vnodes.recorded
            let (attributes, valid) =
                if let inode = try setFields(vnode, changes) {
                    shown(inode, readAt: time, vnode)
                } else { try shown(vnode) }
            reply.attributes(attributes, valid: valid)
        } catch {
            if changes.fields.contains(.size) { forgetSize(request.nodeid) }
            reply.error(error)
        }
    }

    /// What comes after a truncation may fail, and of a request that failed the kernel believes that
    /// nothing has changed.
    private func forgetSize(_ nodeid: UInt64) {
        session?.notifier.forgetAttributes(ofRequested: nodeid)
    }

    /// A truncation that had to wait for its bytes, tried again.
    private func truncate(
        _ vnode: Vnode, _ changes: SetAttributes, _ reply: PendingReply, _ failure: Errno?
    ) {
        do throws(Errno) {
            if let failure { throw failure }
            guard !reply.isAnswered else { return }
            vnode.lock()
            guard try truncateAndUnlock(vnode, changes) else {
                wait(for: vnode, reply) { self.truncate(vnode, changes, reply, $0) }
                vnode.unlock()
                return
            }
            _ = try setFields(vnode, changes)
            // A change from elsewhere may have been announced while this request waited: then the
            // kernel must not keep the answer.
            reply.attributes(try shown(vnode).0, valid: .zero)
        } catch {
            forgetSize(vnode.nodeid)
            reply.error(error)
        }
    }

    /// A truncation counts as open, truncate, close.
    ///
    /// - Returns: false, with the lock still held, when the bytes are being prepared.
    private func truncateAndUnlock(
        _ vnode: Vnode, _ changes: SetAttributes
    ) throws(Errno) -> Bool {
        var isWaiting = false
        defer { if !isWaiting { vnode.unlock() } }
        guard vnode.state.waiting == nil else {
            isWaiting = true
            return false
        }
        guard !vnode.state.isSuperseded else { throw .staleNFSFileHandle }
        defer { unloadIfIdle(vnode) }
        guard try acquireStaging(vnode, keeping: changes.size) else {
            isWaiting = true
            return false
        }
        defer { endWriting(vnode) }
        vnode.state.pageCacheIsStale = true
        try resize(vnode, to: changes.size)
        return true
    }

    /// - Returns: the inode afterwards; nil: as it is in the catalog.
    private func setFields(_ vnode: Vnode, _ changes: SetAttributes) throws(Errno) -> Inode? {
        let fields = changes.fields
        let now = Volume.Timestamp.now
        var update = AttributeChange()
        if fields.contains(.mode) { update.mode = UInt16(changes.mode & 0o7777) }
        if fields.contains(.uid) || fields.contains(.gid) {
            let owner = storedOwner(uid: changes.uid, gid: changes.gid)
            if fields.contains(.uid) { update.uid = owner.uid }
            if fields.contains(.gid) { update.gid = owner.gid }
        }
        if fields.contains(.atimeNow) {
            update.accessed = now
        } else if fields.contains(.atime) {
            update.accessed = Volume.Timestamp(changes.atime)
        }
        if fields.contains(.mtimeNow) {
            update.modified = now
        } else if fields.contains(.mtime) {
            update.modified = Volume.Timestamp(changes.mtime)
        }
        var dropped: Privileges = []
        if fields.contains(.killPrivileges) { dropped.insert(.setID) }
        if fields.contains(.size) || update.uid != nil || update.gid != nil {
            dropped.insert(.capability)
        }
        let (change, privileges) = (update, dropped)
        let isChange = change != AttributeChange() || fields.contains(.ctime)
        guard isChange || !privileges.isEmpty else { return nil }
        let inode = try vnode.locked { () throws(Errno) -> Inode? in
            let row = try setTime(vnode, change)
            vnode.state.isUncommitted = true
            let inode = try perform("setattr") { tx throws(Errno) -> Inode? in
                try drop(privileges, of: vnode.ino, tx)
                return isChange ? try tx.setAttributes(vnode.ino, row, now: now) : nil
            }
            // Who has it open for writing through the kernel goes on so; see docs/posix.md.
            if let mode = change.mode, mode & 0o6000 != 0 { vnode.state.privileges.insert(.setID) }
            return inode
        }
        changed()
        return inode
    }

    /// While a file is unpublished its staging file has the modification time, and the row gets it
    /// with the content: a time set here must not look like a version of its own.
    ///
    /// - Returns: what remains to be changed in the row.
    private func setTime(
        _ vnode: Vnode, _ change: AttributeChange
    ) throws(Errno) -> AttributeChange {
        guard let modified = change.modified, var staged = vnode.state.staged, staged.isUnpublished
        else { return change }
        let file = try readable(staged)
        do throws(StoreError) {
            try store.setModified(file.descriptor, modified)
            if case .sealed(let extent, _) = staged.phase {
                staged.phase = .sealed(extent, try store.facts(of: file.descriptor))
            }
        } catch { throw error.errno }
        staged.original = nil
        vnode.state.bytes = .staging(staged)
        var rest = change
        rest.modified = nil
        return rest
    }

    // MARK: Set-id bits and file capabilities

    static let capabilityName = Array("security.capability".utf8)

    /// A write takes away what the file has of these.
    func dropPrivileges(_ vnode: Vnode, _ privileges: Privileges) throws(Errno) {
        try vnode.locked { () throws(Errno) in try dropPrivilegesLocked(vnode, privileges) }
    }

    func dropPrivilegesLocked(_ vnode: Vnode, _ privileges: Privileges) throws(Errno) {
        let present = privileges.intersection(vnode.state.privileges)
        guard !present.isEmpty else { return }
        vnode.state.isUncommitted = true
        try perform("write") { tx throws(Errno) in try drop(present, of: vnode.ino, tx) }
        vnode.state.privileges.subtract(present)
        // After a write the kernel asks for sizes and times again, but not for the mode.
        session?.notifier.forgetAttributes(ofRequested: vnode.nodeid)
        changed()
    }

    private func drop(
        _ privileges: Privileges, of ino: InodeNumber, _ tx: Transaction
    ) throws(Errno) {
        if privileges.contains(.setID) { _ = try tx.clearSetID(ino, now: .now) }
        if privileges.contains(.capability), try tx.xattrNames(ino).contains(Self.capabilityName) {
            _ = try tx.removeXattr(ino, Self.capabilityName, now: .now)
        }
    }

    // MARK: Owners, the whole

    func stored(_ request: RequestHeader) -> Owner {
        storedOwner(uid: request.uid, gid: request.gid)
    }

    private func storedOwner(uid: UInt32, gid: UInt32) -> Owner {
        let owner = Owner(uid: uid, gid: gid)
        return options.owners?.stored(owner) ?? owner
    }

    public func statfs(_ request: RequestHeader, reply: consuming Reply) {
        reply.statfs(statistics())
    }
}
