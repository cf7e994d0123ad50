public import FUSE
import Catalog
import Glibc
import Store
import Synchronization
import SystemPackage
import Volume

// Bytes. Passthrough files send none of these; what comes here is served by the daemon.
extension VolumeFileSystem {
    public func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int, reply: consuming Reply
    ) {
        if let bytes = virtual.read(handle) {
            reply.data(Array(bytes.dropFirst(Int(clamping: offset)).prefix(size)))
            return
        }
        guard let vnode = handles.handle(handle)?.vnode else {
            reply.error(.badFileDescriptor)
            return
        }
        vnode.lock()
        let bytes = vnode.state.bytes
        vnode.unlock()
        switch bytes {
        case .inline(let bytes):
            reply.data(Array(bytes.dropFirst(Int(clamping: offset)).prefix(size)))
        case .object(_, let file):
            reply.data(ofFile: file.descriptor.rawValue, offset: offset, size: size)
        case .staging(let staging):
            reply.data(ofFile: staging.file.descriptor.rawValue, offset: offset, size: size)
        case .extents(let extents):
            read(extents, offset..<offset + UInt64(size), reply.detach())
        case nil:
            reply.error(.badFileDescriptor)
        }
    }

    /// A range over extents some of which may be elsewhere: waits for each part in turn, then
    /// answers with all of them, because a short answer would read as the end of the file.
    private func read(_ extents: [ExtentBytes], _ range: Range<UInt64>, _ reply: PendingReply) {
        let parts = extents.compactMap { part -> (ExtentBytes, Range<UInt64>)? in
            let whole = part.offset..<part.offset + part.extent.length
            let wanted = whole.clamped(to: range)
            return wanted.isEmpty
                ? nil : (part, wanted.lowerBound - part.offset..<wanted.upperBound - part.offset)
        }
        reply.onInterrupt { reply.error(.interrupted) }
        if parts.count == 1, case .remote(let stream) = parts[0].0.source {
            let wanted = parts[0].1
            stream.whenReadable(wanted) { result in
                switch result {
                case .success(let file):
                    reply.data(
                        ofFile: file.descriptor.rawValue, offset: wanted.lowerBound,
                        size: wanted.count)
                case .failure(let error): reply.error(error)
                }
            }
            return
        }
        collect(parts[...], []) { result in
            switch result {
            case .success(let bytes): reply.data(bytes)
            case .failure(let error): reply.error(error)
            }
        }
    }

    private func collect(
        _ parts: ArraySlice<(ExtentBytes, Range<UInt64>)>, _ collected: [UInt8],
        _ body: @escaping @Sendable (Result<[UInt8], Errno>) -> Void
    ) {
        guard let (part, range) = parts.first else { return body(.success(collected)) }
        let rest = Array(parts.dropFirst())
        let append: @Sendable (SharedDescriptor) -> Void = { file in
            let more = [UInt8](unsafeUninitializedCapacity: range.count) { buffer, count in
                count = (try? file.descriptor.read(
                    fromAbsoluteOffset: Int64(range.lowerBound),
                    into: UnsafeMutableRawBufferPointer(buffer))) ?? 0
            }
            guard more.count == range.count else { return body(.failure(.ioError)) }
            self.collect(rest[...], collected + more, body)
        }
        switch part.source {
        case .local(let file): append(file)
        case .remote(let stream):
            stream.whenReadable(range) { result in
                switch result {
                case .success(let file): append(file)
                case .failure(let error): body(.failure(error))
                }
            }
        }
    }

    public func write(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer,
        flags: WriteFlags, reply: consuming Reply
    ) {
        do throws(Errno) {
            let (vnode, file) = try stagingFile(handle)
            guard offset + UInt64(data.count) <= Limits.fileBytesMax else { throw .fileTooLarge }
            if flags.contains(.killPrivileges) { try dropPrivileges(vnode) }
            var done = 0
            while done < data.count {
                let count = pwrite(
                    file.descriptor.rawValue, data.baseAddress.map { $0 + done }, data.count - done,
                    off_t(offset) + off_t(done))
                if count < 0 {
                    if Glibc.errno == EINTR { continue }
                    if done > 0 { break }
                    throw Errno(rawValue: Glibc.errno)
                }
                done += count
            }
            reply.written(done)
        } catch { reply.error(error) }
    }

    /// The file that a handle open for writing writes to.
    private func stagingFile(_ number: UInt64) throws(Errno) -> (Vnode, SharedDescriptor) {
        guard let handle = handles.handle(number), handle.writes else { throw .badFileDescriptor }
        let file = handle.vnode.read { state -> SharedDescriptor? in
            if case .staging(let staging) = state.bytes { return staging.file }
            return nil
        }
        guard let file else { throw .badFileDescriptor }
        return (handle.vnode, file)
    }

    func dropPrivileges(_ vnode: Vnode) throws(Errno) {
        _ = try perform("write") { tx throws(Errno) in try tx.clearSetID(vnode.ino, now: .now) }
    }

    /// At each close: what was written survives a kill of this process from now on, because its
    /// row is committed (the bytes lie in the staging file already).
    public func flush(
        _ request: RequestHeader, handle: UInt64, lockOwner: UInt64, reply: consuming Reply
    ) {
        do throws(Errno) {
            if let handle = handles.handle(handle), handle.writes {
                do { try catalog.commitBatch() } catch { throw errno(error, "close") }
            }
            reply.empty()
        } catch { reply.error(error) }
    }

    public func fsync(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) {
        let file = handles.handle(handle)?.vnode.read { state -> SharedDescriptor? in
            if case .staging(let staging) = state.bytes { return staging.file }
            return nil
        }
        synchronize(file, reply.detach())
    }

    public func fsyncdir(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) { synchronize(nil, reply.detach()) }

    public func syncfs(_ request: RequestHeader, reply: consuming Reply) {
        synchronize(nil, reply.detach())
    }

    /// Bytes first, then the row: a durable name never leads to bytes that are not.
    private func synchronize(_ file: SharedDescriptor?, _ reply: PendingReply) {
        synchronization.submit {
            do {
                if let file { try self.store.synchronizeStaging(file.descriptor) }
                try self.catalog.flush()
                reply.empty()
            } catch { reply.error(self.errno(error, "fsync")) }
        }
    }

    public func fallocate(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, length: UInt64, mode: Int32,
        reply: consuming Reply
    ) {
        do throws(Errno) {
            let (vnode, file) = try stagingFile(handle)
            guard offset + length <= Limits.fileBytesMax else { throw .fileTooLarge }
            try dropPrivileges(vnode)
            do throws(StoreError) {
                try store.allocate(file.descriptor, mode: mode, offset: offset, length: length)
            } catch { throw error.errno }
            reply.empty()
        } catch { reply.error(error) }
    }

    public func lseek(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, whence: Int32,
        reply: consuming Reply
    ) {
        guard let vnode = handles.handle(handle)?.vnode else {
            reply.error(.badFileDescriptor)
            return
        }
        vnode.lock()
        let bytes = vnode.state.bytes
        vnode.unlock()
        do throws(Errno) {
            switch bytes {
            case .object(_, let file): reply.lseek(try seek(file, offset, whence))
            case .staging(let staging): reply.lseek(try seek(staging.file, offset, whence))
            case .inline(let bytes): reply.lseek(try dense(UInt64(bytes.count), offset, whence))
            case .extents(let extents):
                let size = extents.reduce(0) { $0 + $1.extent.length }
                reply.lseek(try dense(size, offset, whence))
            case nil: throw .badFileDescriptor
            }
        } catch { reply.error(error) }
    }

    /// `SEEK_HOLE` of `lseek(2)`; the other value that is sent is `SEEK_DATA`.
    private static let seekHole: Int32 = 4

    private func seek(
        _ file: SharedDescriptor, _ offset: UInt64, _ whence: Int32
    ) throws(Errno) -> UInt64 {
        do throws(StoreError) {
            return try store.seek(
                file.descriptor, from: offset, toHole: whence == Self.seekHole)
        } catch { throw error.errno }
    }

    /// SEEK_DATA and SEEK_HOLE where all counts as data up to the end.
    private func dense(_ size: UInt64, _ offset: UInt64, _ whence: Int32) throws(Errno) -> UInt64 {
        guard offset < size else { throw .noSuchAddressOrDevice }
        return whence == Self.seekHole ? size : offset
    }

    public func copyFileRange(
        _ request: RequestHeader, _ copy: CopyRequest, reply: consuming Reply
    ) {
        do throws(Errno) {
            guard let source = handles.handle(copy.handle) else { throw .badFileDescriptor }
            let file = source.vnode.read { state -> SharedDescriptor? in
                switch state.bytes {
                case .object(_, let file): return file
                case .staging(let staging): return staging.file
                default: return nil
                }
            }
            // The kernel copies through the page cache instead.
            guard let file else { throw .improperLink }
            let (vnode, target) = try stagingFile(copy.targetHandle)
            try dropPrivileges(vnode)
            do throws(StoreError) {
                reply.written(
                    try store.copySome(
                        from: file.descriptor, at: copy.offset, to: target.descriptor,
                        at: copy.targetOffset, length: min(copy.length, 1 << 30)))
            } catch { throw error.errno }
        } catch { reply.error(error) }
    }
}
