import Catalog
import Logging
import Store
public import FUSE
import Glibc
import SystemPackage
import Volume

extension VolumeFileSystem {
    public func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply) {
        if let attributes = virtual.attributes(request.nodeid) {
            reply.attributes(attributes, valid: .zero)
            return
        }
        do throws(Errno) {
            let vnode = try vnode(request)
            answerAttributes(vnode, try inode(vnode), reply)
        } catch { reply.error(error) }
    }

    func inode(_ vnode: Vnode) throws(Errno) -> Inode {
        guard let inode = try perform("stat", { tx throws(Errno) in try tx.inode(vnode.ino) }) else {
            throw .staleNFSFileHandle
        }
        return inode
    }

    private func answerAttributes(_ vnode: Vnode, _ inode: Inode, _ reply: consuming Reply) {
        let (attributes, valid) = shown(inode, vnode)
        reply.attributes(attributes, valid: valid)
    }

    public func setattr(
        _ request: RequestHeader, _ changes: SetAttributes, reply: consuming Reply
    ) {
        do throws(Errno) {
            let vnode = try vnode(request)
            let inode = try inode(vnode)
            if changes.fields.contains(.size) {
                guard inode.kind == .file else { throw .isDirectory }
                guard changes.size <= Limits.fileBytesMax else { throw .fileTooLarge }
                vnode.lock()
                let done: Bool
                do throws(Errno) {
                    done = try truncateLocked(vnode, changes)
                } catch {
                    vnode.unlock()
                    throw error
                }
                if !done {
                    let pending = reply.detach()
                    vnode.state.waiting?.append { self.retruncate(vnode, changes, pending, $0) }
                    vnode.unlock()
                    return
                }
                vnode.unlock()
            }
            try setFields(vnode, changes)
            answerAttributes(vnode, try self.inode(vnode), reply)
        } catch { reply.error(error) }
    }

    private func retruncate(
        _ vnode: Vnode, _ changes: SetAttributes, _ reply: PendingReply, _ error: Errno?
    ) {
        do throws(Errno) {
            if let error { throw error }
            vnode.lock()
            let done: Bool
            do throws(Errno) {
                done = try truncateLocked(vnode, changes)
            } catch {
                vnode.unlock()
                throw error
            }
            if !done {
                vnode.state.waiting?.append { self.retruncate(vnode, changes, reply, $0) }
                vnode.unlock()
                return
            }
            vnode.unlock()
            try setFields(vnode, changes)
            let (attributes, valid) = shown(try inode(vnode), vnode)
            reply.attributes(attributes, valid: valid)
        } catch { reply.error(error) }
    }

    /// A truncation counts as open, truncate, close.
    ///
    /// - Returns: false when the bytes are being prepared.
    private func truncateLocked(_ vnode: Vnode, _ changes: SetAttributes) throws(Errno) -> Bool {
        guard try acquireStaging(vnode, keeping: changes.size) else { return false }
        vnode.state.pageCacheIsStale = true
        var result: Errno?
        if case .staging(let staging) = vnode.state.bytes,
            ftruncate(staging.file.descriptor.rawValue, off_t(changes.size)) != 0
        {
            result = Errno(rawValue: Glibc.errno)
        }
        releaseWriter(vnode)
        if vnode.state.opens == 0, vnode.state.writers == 0 { dropBytes(vnode) }
        if let result { throw result }
        return true
    }

    private func setFields(_ vnode: Vnode, _ changes: SetAttributes) throws(Errno) {
        let fields = changes.fields
        let now = Volume.Timestamp.now
        var update = AttributeChange()
        if fields.contains(.mode) { update.mode = UInt16(changes.mode & 0o7777) }
        if fields.contains(.uid) || fields.contains(.gid) {
            let mapped = storedOwner(uid: changes.uid, gid: changes.gid)
            if fields.contains(.uid) { update.uid = mapped.uid }
            if fields.contains(.gid) { update.gid = mapped.gid }
        }
        if fields.contains(.atimeNow) { update.accessed = now
        } else if fields.contains(.atime) { update.accessed = .init(changes.atime) }
        if fields.contains(.mtimeNow) { update.modified = now
        } else if fields.contains(.mtime) { update.modified = .init(changes.mtime) }
        if fields.contains(.killPrivileges) { try dropPrivileges(vnode) }
        if update == AttributeChange(), !fields.contains(.ctime) { return }
        if let mtime = update.modified { setStagingTime(vnode, mtime) }
        _ = try perform("setattr") { tx throws(Errno) in
            try tx.setAttributes(vnode.ino, update, now: now)
        }
        changed()
    }

    /// The modification time of a file that is being written is the staging file's.
    private func setStagingTime(_ vnode: Vnode, _ mtime: Volume.Timestamp) {
        vnode.lock()
        defer { vnode.unlock() }
        var file: SharedDescriptor?
        if case .staging(let staging) = vnode.state.bytes {
            file = staging.file
        } else if vnode.state.bytes == nil,
            case .staging(let staging)? = try? load(vnode)
        {
            file = staging.file
        }
        guard let file else { return }
        do { try store.setModified(file.descriptor, mtime) } catch {
            logger.warning("setting a modification time: \(error)")
        }
        if let status = fileStatus(file.descriptor), vnode.state.closed != nil {
            vnode.state.closed = ClosedFile(status)
        }
    }

    func stored(_ request: RequestHeader) -> Owner { storedOwner(uid: request.uid, gid: request.gid) }

    private func storedOwner(uid: UInt32, gid: UInt32) -> Owner {
        let owner = Owner(uid: uid, gid: gid)
        return options.owners?.stored(owner) ?? owner
    }

    public func statfs(_ request: RequestHeader, reply: consuming Reply) {
        reply.statfs(statistics())
    }
}
