import Catalog
public import FUSE
import Glibc
import Store
import SystemPackage
import Volume

// Bytes. Passthrough files send none of these; what comes here is served by the daemon.
extension VolumeFileSystem {
    // MARK: Reading

    public func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int, reply: consuming Reply
    ) {
        guard let vnode = handles.handle(handle)?.vnode else {
            reply.error(.badFileDescriptor)
            return
        }
        do throws(Errno) {
            switch try source(of: vnode) {
            case .inline(let bytes):
                reply.data(Array(bytes.dropFirst(Int(clamping: offset)).prefix(size)))
            case .extents(let extents):
                RangeReader.read(extents, offset, size, remote, request, reply.detach())
            case .object(let extent, let file):
                RangeReader.read(extent, file, offset, size, remote, request, reply)
            case .overlay(let overlay):
                reply.data(try overlay.read(from: offset, size: size))
            case .file(let file):
                reply.data(ofFile: file.descriptor.rawValue, offset: offset, size: size)
            case nil: throw .badFileDescriptor
            }
        } catch { reply.error(error) }
    }

    // MARK: Writing

    public func write(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer,
        flags: WriteFlags, reply: consuming Reply
    ) {
        do throws(Errno) {
            let (vnode, file) = try writableFile(handle)
            guard Self.fits(offset, UInt64(data.count)) else { throw .fileTooLarge }
            try dropPrivileges(
                vnode, flags.contains(.killPrivileges) ? [.setID, .capability] : .capability)
            if let written = try writeOverlaid(vnode, data, offset: offset) {
                reply.written(written)
                return
            }
            do throws(StoreError) {
                reply.written(
                    try Store.writeSome(data, to: file.descriptor, at: offset))
            } catch { throw error.errno }
        } catch { reply.error(error) }
    }

    static func fits(_ offset: UInt64, _ length: UInt64) -> Bool {
        let (end, overflow) = offset.addingReportingOverflow(length)
        return !overflow && end <= Limits.fileBytesMax
    }

    // MARK: Durability

    /// At each close: what was written survives a kill of this process from now on, because its
    /// row is kept (the bytes lie in the staging file already).
    public func flush(
        _ request: RequestHeader, handle: UInt64, lockOwner: UInt64, reply: consuming Reply
    ) {
        do throws(Errno) {
            if let handle = handles.handle(handle), handle.writes {
                try handle.vnode.locked { () throws(Errno) in
                    try commitRows(of: handle.vnode, "close")
                }
                let staged = handle.vnode.locked { handle.vnode.state.staged }
                if let staged, store.isDamaged(staged.name) { throw .ioError }
            }
            reply.empty()
        } catch { reply.error(error) }
    }

    public func fsync(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) {
        let pending = reply.detach()
        guard let vnode = handles.handle(handle)?.vnode else { return answerWhenDurable(pending) }
        synchronization.submit {
            do {
                try self.synchronize(vnode)
                let copies = try self.query("fsync") { reader throws(Errno) in
                    try reader.syncCopies(of: vnode.ino)
                }
                if copies > 1 {
                    try self.replicate(vnode, copies, request, pending)
                } else {
                    self.answerWhenDurable(pending)
                }
            } catch { pending.error(self.errno(error, "fsync")) }
        }
    }

    public func fsyncdir(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) { answerWhenDurable(reply.detach()) }

    public func syncfs(_ request: RequestHeader, reply: consuming Reply) {
        answerWhenDurable(reply.detach())
    }

    /// Bytes first, then the row: a durable name never leads to bytes that are not. What is
    /// published is on the disk already.
    private func synchronize(_ vnode: Vnode) throws {
        guard let staged = vnode.locked({ vnode.state.staged }), staged.phase == .unpublished,
            let file = try openUnlessPublished(staged)
        else { return }
        try store.synchronizeStaging(staged.name, file.descriptor)
    }

    /// nil: published since the caller looked, and so on the disk.
    private func openUnlessPublished(_ staged: StagedFile) throws(Errno) -> SharedDescriptor? {
        do throws(Errno) { return try readable(staged) } catch .noSuchFileOrDirectory { return nil }
    }

    /// The file as it is now goes to other disks, though somebody may write on.
    private func replicate(
        _ vnode: Vnode, _ copies: Int, _ request: RequestHeader, _ reply: PendingReply
    ) throws {
        let extents = try publisher.publishSnapshot(of: vnode)
        changed()
        let confirmation = Task {
            do {
                try await self.replicated(extents, copies)
                self.answerWhenDurable(reply)
            } catch { reply.error(self.errno(error, "fsync")) }
        }
        Interruption.whenEnding(reply, of: request) { [weak reply] in
            confirmation.cancel()
            reply?.error(.interrupted)
        }
    }

    private func answerWhenDurable(_ reply: PendingReply) {
        catalog.afterDurable { failure in
            if let failure { reply.error(failure) } else { reply.empty() }
        }
    }
}
