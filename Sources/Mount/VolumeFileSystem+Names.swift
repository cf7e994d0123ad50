import Catalog
public import FUSE
import Glibc
import Store
import SystemPackage
import Volume

// Requests on names: each is one transaction of the catalog.
extension VolumeFileSystem {
    public func lookup(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        do throws(Errno) {
            if request.nodeid == VnodeTable.rootNode, name == VirtualDirectory.name?.bytes {
                reply.entry(try virtual.top(request))
                return
            }
            let directory = try vnode(request)
            let name = try self.name(name)
            let inode: Inode?
            let time = vnodes.recorded
            do throws(Errno) {
                inode = try query("lookup") { reader throws(Errno) in
                    try reader.lookup(directory.ino, name)
                }
            } catch .noSuchFileOrDirectory { inode = nil }
            guard let inode else {
                reply.entry(.negative(valid: Self.cacheLifetime))
                return
            }
            answer(inode, readAt: time, reply)
        } catch { reply.error(error) }
    }

    public func mkdir(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        make(request, name, .directory, mode: mode, umask: umask, reply)
    }

    public func mknod(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32, device: UInt32,
        reply: consuming Reply
    ) {
        let (major, minor) = DeviceNumber.decode(device)
        let body: Body
        switch mode & S_IFMT {
        case S_IFREG, 0: body = .file(.empty)
        case S_IFIFO: body = .fifo
        case S_IFSOCK: body = .socket
        case S_IFCHR: body = .characterDevice(major: major, minor: minor)
        case S_IFBLK: body = .blockDevice(major: major, minor: minor)
        default:
            reply.error(.invalidArgument)
            return
        }
        make(request, name, body, mode: mode, umask: umask, reply)
    }

    public func symlink(
        _ request: RequestHeader, name: [UInt8], target: [UInt8], reply: consuming Reply
    ) {
        guard target.count <= Limits.symlinkBytesMax else {
            reply.error(.fileNameTooLong)
            return
        }
        make(request, name, .symlink(target), mode: 0o777, umask: 0, reply)
    }

    private func make(
        _ request: RequestHeader, _ name: [UInt8], _ body: Body, mode: UInt32, umask: UInt32,
        _ reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            let name = try mutableName(name, in: directory)
            let new = NewInode(
                body: body, mode: UInt16(mode & 0o7777), owner: stored(request),
                umask: UInt16(umask & 0o777))
            let time = vnodes.recorded
            let inode = try performMaking("create") { tx throws(Errno) in
                try tx.create(directory.ino, name, new, now: .now)
            }
            changed()
            answer(inode, readAt: time, reply)
        } catch { reply.error(error) }
    }

    public func unlink(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        remove(request, name, reply) { tx, directory, name throws(Errno) in
            try tx.unlink(directory, name, now: .now)
        }
    }

    public func rmdir(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        remove(request, name, reply) { tx, directory, name throws(Errno) in
            try tx.rmdir(directory, name, now: .now)
        }
    }

    private func remove(
        _ request: RequestHeader, _ name: [UInt8], _ reply: consuming Reply,
        _ body: (Transaction, InodeNumber, FileName) throws(Errno) -> Inode
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            let name = try mutableName(name, in: directory)
            let gone = try perform("unlink") { tx throws(Errno) in
                try body(tx, directory.ino, name)
            }
            changed()
            unlinked(gone)
            reply.empty()
        } catch { reply.error(error) }
    }

    public func rename(
        _ request: RequestHeader, name: [UInt8], newParent: UInt64, newName: [UInt8],
        flags: FUSE.RenameFlags, reply: consuming Reply
    ) {
        do throws(Errno) {
            let source = try vnode(request)
            let target = try vnode(newParent)
            let mode: RenameMode
            switch flags {
            case []: mode = .replace
            case .noReplace: mode = .keepExisting
            case .exchange: mode = .exchange
            default: throw .invalidArgument
            }
            let oldName = try mutableName(name, in: source)
            let newName = try mutableName(newName, in: target)
            let outcome = try perform("rename") { tx throws(Errno) in
                let outcome = try tx.rename(
                    source.ino, oldName, to: target.ino, newName, mode, now: .now)
                if outcome.displaced != nil, let moved = outcome.moved { try oweSync(moved, tx) }
                return outcome
            }
            changed()
            if let displaced = outcome.displaced { unlinked(displaced) }
            reply.empty()
        } catch { reply.error(error) }
    }

    /// What takes the place of another file must be on the disk when that is gone from there: many
    /// programs write a new version, without fsync, and rename it.
    private func oweSync(_ inode: Inode, _ tx: Transaction) throws(Errno) {
        guard inode.kind == .file, let staging = try tx.staging(of: inode.ino),
            let name = StagingName(staging.name)
        else { return }
        store.oweSync(name)
    }

    public func link(
        _ request: RequestHeader, target: UInt64, name: [UInt8], reply: consuming Reply
    ) {
        do throws(Errno) {
            let directory = try vnode(request)
            // A name for what is in the past would be one for another file system's file.
            guard !VirtualDirectory.has(target) else { throw .improperLink }
            let file = try vnode(target)
            let name = try mutableName(name, in: directory)
            let time = vnodes.recorded
            let inode = try performMaking("link") { tx throws(Errno) in
                try tx.link(file.ino, directory.ino, name, now: .now)
            }
            changed()
            if inode.linkCount == 1 { named(file) }
            answer(inode, readAt: time, reply)
        } catch { reply.error(error) }
    }

    public func readlink(_ request: RequestHeader, reply: consuming Reply) {
        do throws(Errno) {
            let ino = try vnode(request).ino
            reply.data(
                try query("readlink") { reader throws(Errno) in try reader.target(of: ino) })
        } catch { reply.error(error) }
    }

    /// An inode lost a name: when it was the last and nobody holds it, it goes.
    private func unlinked(_ inode: Inode) {
        if inode.linkCount == 0 { publisher.unlinked(inode.ino) }
    }

    /// A file without a name got its first: what was closed before is published now.
    private func named(_ vnode: Vnode) {
        vnodes.linked(vnode.ino)
        vnode.locked { publisher.submitIfClosed(vnode) }
    }
}
