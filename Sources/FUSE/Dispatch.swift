import CFUSE

extension FileSystem {
    /// Calls the method for `operation`. INIT, INTERRUPT, FORGET and the like are the session's.
    func dispatch(_ operation: Operation, _ request: RequestHeader, _ reply: consuming Reply) {
        switch operation {
        case .lookup(let name):
            lookup(request, name: name, reply: reply)
        case .getattr(let handle):
            getattr(request, handle: handle, reply: reply)
        case .setattr(let changes):
            setattr(request, changes, reply: reply)
        case .readlink:
            readlink(request, reply: reply)
        case .access(let mask):
            access(request, mask: mask, reply: reply)
        case .statx(let handle, let flags, let mask):
            statx(request, handle: handle, flags: flags, mask: mask, reply: reply)
        case .statfs:
            statfs(request, reply: reply)
        case .syncfs:
            syncfs(request, reply: reply)
        case .setxattr(let name, let value, let flags):
            setxattr(request, name: name, value: value, flags: flags, reply: reply)
        case .getxattr(let name, let capacity):
            getxattr(request, name: name, capacity: capacity, reply: reply)
        case .listxattr(let capacity):
            listxattr(request, capacity: capacity, reply: reply)
        case .removexattr(let name):
            removexattr(request, name: name, reply: reply)
        case .symlink, .mknod, .mkdir, .unlink, .rmdir, .rename, .link:
            dispatchName(operation, request, reply)
        case .opendir, .readdir, .readdirplus, .releasedir, .fsyncdir:
            dispatchDirectory(operation, request, reply)
        case .forget, .batchForget, .interrupt, .initialize, .notifyReply:
            preconditionFailure("the session answers this itself")
        case .destroy:
            reply.empty()
        default:
            dispatchFile(operation, request, reply)
        }
    }

    private func dispatchName(
        _ operation: Operation, _ request: RequestHeader, _ reply: consuming Reply
    ) {
        switch operation {
        case .symlink(let name, let target):
            symlink(request, name: name, target: target, reply: reply)
        case .mknod(let name, let mode, let umask, let device):
            mknod(request, name: name, mode: mode, umask: umask, device: device, reply: reply)
        case .mkdir(let name, let mode, let umask):
            mkdir(request, name: name, mode: mode, umask: umask, reply: reply)
        case .unlink(let name):
            unlink(request, name: name, reply: reply)
        case .rmdir(let name):
            rmdir(request, name: name, reply: reply)
        case .rename(let name, let newParent, let newName, let flags):
            rename(
                request, name: name, newParent: newParent, newName: newName, flags: flags,
                reply: reply)
        case .link(let target, let name):
            link(request, target: target, name: name, reply: reply)
        default:
            preconditionFailure("not a request about names")
        }
    }

    private func dispatchDirectory(
        _ operation: Operation, _ request: RequestHeader, _ reply: consuming Reply
    ) {
        switch operation {
        case .opendir(let flags):
            opendir(request, flags: flags, reply: reply)
        case .readdir(let handle, let offset, let size):
            readdir(request, handle: handle, offset: offset, size: size, reply: reply)
        case .readdirplus(let handle, let offset, let size):
            readdirplus(request, handle: handle, offset: offset, size: size, reply: reply)
        case .releasedir(let handle):
            releasedir(request, handle: handle, reply: reply)
        case .fsyncdir(let handle, let dataOnly):
            fsyncdir(request, handle: handle, dataOnly: dataOnly, reply: reply)
        default:
            preconditionFailure("not a request about open directories")
        }
    }

    private func dispatchFile(
        _ operation: Operation, _ request: RequestHeader, _ reply: consuming Reply
    ) {
        switch operation {
        case .open(let flags, let killPrivileges):
            open(request, flags: flags, killPrivileges: killPrivileges, reply: reply)
        case .create(let name, let flags, let mode, let umask, let killPrivileges):
            create(
                request, name: name, flags: flags, mode: mode, umask: umask,
                killPrivileges: killPrivileges, reply: reply)
        case .tmpfile(let flags, let mode, let umask):
            tmpfile(request, flags: flags, mode: mode, umask: umask, reply: reply)
        case .read(let handle, let offset, let size):
            read(request, handle: handle, offset: offset, size: size, reply: reply)
        case .write(let handle, let offset, let data, let flags):
            write(request, handle: handle, offset: offset, data: data, flags: flags, reply: reply)
        case .flush(let handle, let lockOwner):
            flush(request, handle: handle, lockOwner: lockOwner, reply: reply)
        case .release(let handle, let flags, let releaseFlags, let lockOwner):
            release(
                request, handle: handle, flags: flags, releaseFlags: releaseFlags,
                lockOwner: lockOwner, reply: reply)
        case .fsync(let handle, let dataOnly):
            fsync(request, handle: handle, dataOnly: dataOnly, reply: reply)
        case .fallocate(let handle, let offset, let length, let mode):
            fallocate(
                request, handle: handle, offset: offset, length: length, mode: mode, reply: reply)
        case .lseek(let handle, let offset, let whence):
            lseek(request, handle: handle, offset: offset, whence: whence, reply: reply)
        case .copyFileRange(let copy):
            copyFileRange(request, copy, reply: reply)
        case .lock(let lock):
            self.lock(request, lock, reply: reply)
        case .bmap(let block, let blockSize):
            bmap(request, block: block, blockSize: blockSize, reply: reply)
        case .ioctl(let ioctl):
            self.ioctl(request, ioctl, reply: reply)
        case .poll(let handle, let events):
            poll(request, handle: handle, events: events, reply: reply)
        default:
            preconditionFailure("not a request about open files")
        }
    }

    /// Hands on every node of a BATCH_FORGET.
    func forget(batch: UnsafeRawBufferPointer) {
        let stride = MemoryLayout<cfuse_forget_one>.stride
        for offset in Swift.stride(from: 0, to: batch.count - stride + 1, by: stride) {
            let one = batch.loadUnaligned(fromByteOffset: offset, as: cfuse_forget_one.self)
            part(of: one.nodeid).forget(nodeid: one.nodeid, count: one.nlookup)
        }
    }
}
