import Catalog
import Glibc
import Store
import Synchronization
import SystemPackage
import Volume

// Getting a file ready to be written: existing content is immutable, a writer gets a private copy.
extension VolumeFileSystem {
    /// Under the vnode's lock: makes the bytes a staging file and counts one more writer.
    ///
    /// - Parameter keeping: how many of the present bytes the writer needs; 0 for a truncation.
    /// - Returns: false when that takes time; `state.waiting` then holds who is to be called.
    func acquireStaging(_ vnode: Vnode, keeping: UInt64) throws(Errno) -> Bool {
        guard vnode.state.waiting == nil else { return false }
        if vnode.state.bytes == nil { vnode.state.bytes = try load(vnode) }
        switch vnode.state.bytes {
        case .staging(let staging):
            if let sealed = vnode.state.sealed {
                // Its inode is an object by now: goes on as one.
                vnode.state.bytes = .object(sealed, staging.file)
                vnode.state.passthroughRoot = sealed.root
                return try acquireStaging(vnode, keeping: keeping)
            }
            if vnode.state.isPublished {
                try setStaging(vnode, staging.name)
                vnode.state.isPublished = false
                try reopenForWriting(vnode, staging.name)
            }
            if keeping == 0 { try truncate(staging, to: 0) }
        case .inline(let bytes):
            let staging = try newStaging(vnode.ino)
            try write(Array(bytes.prefix(Int(clamping: keeping))), to: staging)
            try adopt(staging, vnode)
        case .object(let extent, let file):
            if case .passthrough = vnode.state.mode {
                prepare(vnode) { try self.moveObjectAway(vnode, extent, file, keeping: keeping) }
                return false
            }
            if keeping == 0 || extent.length <= Self.immediateCopyBytesMax || sharesBlocks {
                try adopt(try copied(vnode, file, extent.length, keeping: keeping), vnode)
            } else {
                prepare(vnode) {
                    let staging = try self.copied(vnode, file, extent.length, keeping: keeping)
                    try vnode.withLock { _ throws(Errno) in try self.adopt(staging, vnode) }
                }
                return false
            }
        case .extents(let extents):
            if keeping == 0 {
                try adopt(try newStaging(vnode.ino), vnode)
            } else {
                assemble(vnode, extents, keeping: keeping)
                return false
            }
        case nil: preconditionFailure("bytes were loaded above")
        }
        vnode.state.writers += 1
        vnode.state.writeGeneration += 1
        return true
    }

    /// From now on the staging file is the inode's bytes, in the catalog too.
    private func adopt(_ staging: StagingFile, _ vnode: Vnode) throws(Errno) {
        do throws(Errno) {
            try setStaging(vnode, staging.name)
        } catch {
            try? store.removeStaging(staging.name)
            throw error
        }
        vnode.state.bytes = .staging(staging)
        vnode.state.isPublished = false
    }

    private func setStaging(_ vnode: Vnode, _ name: StagingName) throws(Errno) {
        try perform("open for writing") { tx throws(Errno) in
            guard let inode = try tx.inode(vnode.ino) else { throw .staleNFSFileHandle }
            try tx.setStaging(
                Staging(ino: vnode.ino, name: "\(name)", base: inode.contentStamp))
        }
        vnode.state.sealed = nil
    }

    /// A published staging file that is still open was left with a read-only descriptor.
    private func reopenForWriting(_ vnode: Vnode, _ name: StagingName) throws(Errno) {
        do {
            let file = SharedDescriptor(try store.openStaging(name, .readWrite))
            vnode.state.bytes = .staging(StagingFile(name: name, file: file))
        } catch { throw errno(error, "open for writing") }
    }

    private func truncate(_ staging: StagingFile, to size: UInt64) throws(Errno) {
        guard ftruncate(staging.file.descriptor.rawValue, off_t(size)) == 0 else {
            throw Errno(rawValue: Glibc.errno)
        }
    }

    private func write(_ bytes: [UInt8], to staging: StagingFile) throws(Errno) {
        do {
            _ = try staging.file.descriptor.writeAll(toAbsoluteOffset: 0, bytes)
        } catch {
            try? store.removeStaging(staging.name)
            throw errno(error, "staging")
        }
    }

    private func copied(
        _ vnode: Vnode, _ file: SharedDescriptor, _ length: UInt64, keeping: UInt64
    ) throws(Errno) -> StagingFile {
        let staging = try newStaging(vnode.ino)
        do {
            if keeping > 0 {
                try store.clone(
                    from: file.descriptor, to: staging.file.descriptor,
                    range: 0..<min(length, keeping))
            }
            return staging
        } catch {
            try? store.removeStaging(staging.name)
            throw errno(error, "copy before writing")
        }
    }

    // MARK: Off the lock

    /// Runs `body` on the preparation queue, then everybody who waits for the vnode.
    private func prepare(_ vnode: Vnode, _ body: @escaping @Sendable () throws -> Void) {
        vnode.state.waiting = []
        vnodes.pin(vnode)
        preparation.submit { self.finishPreparation(vnode) { try body() } }
    }

    private func finishPreparation(_ vnode: Vnode, _ body: () throws -> Void) {
        var failure: Errno?
        do { try body() } catch { failure = errno(error, "open for writing") }
        vnode.lock()
        let waiting = vnode.state.waiting ?? []
        vnode.state.waiting = nil
        vnode.unlock()
        for wake in waiting { wake(failure) }
        vnode.lock()
        if vnode.state.opens == 0, vnode.state.writers == 0 {
            let unpublished: Bool
            if case .staging = vnode.state.bytes { unpublished = !vnode.state.isPublished } else { unpublished = false }
            dropBytes(vnode)
            if unpublished { publisher.submit(vnode.ino) }
        }
        vnode.unlock()
        if vnodes.unpin(vnode) { reap(vnode.ino) }
    }

    /// Passthrough readers keep the file that they have: it becomes the staging file, and a copy
    /// takes its place as the object. The copy stands before the first write can happen.
    private func moveObjectAway(
        _ vnode: Vnode, _ extent: Extent, _ file: SharedDescriptor, keeping: UInt64
    ) throws {
        let name = publisher.stagingName(for: vnode.ino)
        let staging = StagingFile(
            name: name,
            file: SharedDescriptor(
                try store.detachObject(extent.root, to: name, copyBytesMax: .max)))
        try vnode.withLock { state throws(Errno) in
            try adopt(staging, vnode)
            if let root = state.passthroughRoot {
                passthroughOwners.withLock { $0[root] = nil }
                state.passthroughRoot = nil
            }
        }
    }

    /// Content that is partly elsewhere: fetched whole, then copied.
    private func assemble(_ vnode: Vnode, _ extents: [ExtentBytes], keeping: UInt64) {
        vnode.state.waiting = []
        vnodes.pin(vnode)
        fetch(extents[...]) { error in
            self.preparation.submit {
                self.finishPreparation(vnode) {
                    if let error { throw error }
                    let staging = try self.newStaging(vnode.ino)
                    do {
                        for part in extents where part.offset < keeping {
                            let object = try self.object(part.extent)
                            try self.store.clone(
                                from: object.descriptor, to: staging.file.descriptor,
                                range: 0..<min(part.extent.length, keeping - part.offset),
                                at: part.offset)
                        }
                    } catch {
                        try? self.store.removeStaging(staging.name)
                        throw error
                    }
                    try vnode.withLock { _ throws(Errno) in try self.adopt(staging, vnode) }
                }
            }
        }
    }

    private func fetch(
        _ extents: ArraySlice<ExtentBytes>, _ body: @escaping @Sendable (Errno?) -> Void
    ) {
        guard let first = extents.first else { return body(nil) }
        guard case .remote(let stream) = first.source else {
            return fetch(extents.dropFirst(), body)
        }
        stream.whenComplete { result in
            switch result {
            case .success: self.fetch(extents.dropFirst(), body)
            case .failure(let error): body(error)
            }
        }
    }
}
