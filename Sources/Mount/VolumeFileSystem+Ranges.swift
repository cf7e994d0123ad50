public import FUSE
import Glibc
import Store
import SystemPackage
import Volume

// Ranges of files: reserving, punching, finding holes, copying between files.
extension VolumeFileSystem {
    /// More than this takes more than one COPY_FILE_RANGE: the caller goes on where it ended.
    static let copiedBytesMax: UInt64 = 64 << 20
    /// Where blocks are shared, not copied.
    static let sharedBytesMax: UInt64 = 1 << 30

    public func fallocate(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, length: UInt64, mode: Int32,
        reply: consuming Reply
    ) {
        do throws(Errno) {
            let (vnode, file) = try writableFile(handle)
            guard Self.fits(offset, length) else { throw .fileTooLarge }
            try dropPrivileges(vnode, Self.droppedByWrite(of: request))
            let pending = reply.detach()
            // Zeros may have to be written.
            preparation.submit {
                do {
                    let range = offset..<offset + length
                    if try self.allocateOverlaid(vnode, mode: mode, range: range) == nil {
                        try self.store.allocate(
                            file.descriptor, mode: mode, offset: offset, length: length)
                    }
                    pending.empty()
                } catch { pending.error(self.errno(error, "fallocate")) }
            }
        } catch { reply.error(error) }
    }

    /// Neither request says whether its caller may keep set-id bits; root may.
    private static func droppedByWrite(of request: RequestHeader) -> Privileges {
        request.uid == 0 ? .capability : [.setID, .capability]
    }

    /// `SEEK_HOLE` of `lseek(2)`; the other value that is sent is `SEEK_DATA`.
    private static let seekHole: Int32 = 4

    public func lseek(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, whence: Int32,
        reply: consuming Reply
    ) {
        do throws(Errno) {
            guard let vnode = handles.handle(handle)?.vnode else { throw .badFileDescriptor }
            let toHole = whence == Self.seekHole
            switch try source(of: vnode) {
            case .overlay(let overlay):
                reply.lseek(try overlay.seek(from: offset, toHole: toHole))
            case .file(let file), .object(_, let file):
                do throws(StoreError) {
                    reply.lseek(
                        try store.seek(file.descriptor, from: offset, toHole: toHole))
                } catch { throw error.errno }
            case .inline, .extents, nil:
                // Without a file all counts as data up to the end.
                let size = vnode.locked { vnode.state.version?.content.length ?? 0 }
                guard offset < size else { throw .noSuchAddressOrDevice }
                reply.lseek(toHole ? size : offset)
            }
        } catch { reply.error(error) }
    }

    public func copyFileRange(
        _ request: RequestHeader, _ copy: CopyRequest, reply: consuming Reply
    ) {
        do throws(Errno) {
            guard let source = handles.handle(copy.handle) else { throw .badFileDescriptor }
            // EXDEV: the kernel copies through the page cache instead.
            switch try self.source(of: source.vnode) {
            case .file(let file), .object(_, let file):
                let model = source.vnode.locked { source.vnode.state.object }
                self.copy(from: file, model, request, copy, reply)
            default: throw .improperLink
            }
        } catch { reply.error(error) }
    }

    /// - Parameter model: the object that the source is, as far as anybody knows.
    func copy(
        from source: SharedDescriptor, _ model: Extent?, _ request: RequestHeader,
        _ copy: CopyRequest, _ reply: consuming Reply
    ) {
        do throws(Errno) {
            let (vnode, target) = try writableFile(copy.targetHandle)
            guard vnode.locked({ vnode.state.staged?.overlay == nil }) else { throw .improperLink }
            let limit = sharesBlocks ? Self.sharedBytesMax : Self.copiedBytesMax
            let length = min(copy.length, limit)
            guard Self.fits(copy.targetOffset, length) else { throw .fileTooLarge }
            try dropPrivileges(vnode, Self.droppedByWrite(of: request))
            if copy.offset == 0, copy.targetOffset == 0 {
                vnode.locked { vnode.state.noteCopy(of: model) }
            }
            let pending = reply.detach()
            preparation.submit {
                do throws(StoreError) {
                    pending.written(
                        try self.store.copySome(
                            from: source.descriptor, at: copy.offset, to: target.descriptor,
                            at: copy.targetOffset, length: length))
                } catch { pending.error(error.errno) }
            }
        } catch { reply.error(error) }
    }
}
