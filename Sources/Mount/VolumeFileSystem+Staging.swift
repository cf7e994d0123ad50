import Catalog
import Dispatch
import Glibc
import Logging
import Store
import SystemPackage
import Volume

// Getting a file ready to be written: existing content is immutable, a writer gets a private copy.
extension VolumeFileSystem {
    /// Copies up to this size are made on the reader thread; larger ones on the preparation queue.
    static let immediateCopyBytesMax: UInt64 = 1 << 20
    /// Where blocks cannot be shared, of more than this only the changed blocks are kept beside.
    static let copiedLengthMax: UInt64 = 64 << 20
    /// Where blocks cannot be shared, a writer that meets readers of more than this does not take
    /// their file: it gets a new nodeid and they keep the old version.
    static let movedBytesMax: UInt64 = 1 << 30
    /// A file modified longer ago than this before it was copied gets another time by any write,
    /// however coarse the disk's clock.
    static let clockStepSeconds: Int64 = 1
    /// How long a writer waits for peers' reads of the object to end.
    static let letGoSeconds = 10.0
    /// How long a writer waits for the row of what became an object a moment ago, and between looks.
    static let recordMillisecondsMax: UInt64 = 10_000
    static let recordLookMicroseconds: UInt32 = 5000

    /// Makes the bytes a staging file and counts one more writer. Under the vnode's lock, which
    /// nobody waits for and which is not superseded.
    ///
    /// - Parameter keeping: how many of the present bytes the writer needs; 0 for a truncation. What is
    ///   staged already keeps all: to empty it is the caller's, when nothing else can fail any more.
    /// - Returns: false when that takes time; `state.waiting` then holds who is to be called.
    func acquireStaging(_ vnode: Vnode, keeping: UInt64) throws(Errno) -> Bool {
        // What would be written now could not be published any more.
        guard !catalog.hasFailed else { throw .readOnlyFileSystem }
        try load(vnode)
        if vnode.state.writers == 0 { vnode.state.privileges = try privileges(of: vnode.ino) }
        switch vnode.state.bytes {
        case .unloaded: preconditionFailure("bytes were loaded above")
        case .staging(var staged):
            switch staged.phase {
            case .sealed(let extent, _):
                let file = try openStaged(staged, writing: false)
                return try replaceObject(vnode, extent, file, keeping: keeping)
            case .published:
                _ = try nameStaging(vnode, staged)
                staged.phase = .unpublished
                staged.original = nil
                vnode.state.bytes = .staging(staged)
            case .unpublished: break
            }
            beginWriting(vnode)
            return true
        case .inline(let bytes):
            let staged = try keeping == 0 ? newStaging(vnode.ino) : newCopy(vnode.ino)
            try write(Array(bytes.prefix(Int(clamping: keeping))), to: staged)
            store.oweSync(staged.name)
            // A truncation counts as a change even of what is empty.
            try adopt(
                staged, vnode, keepsTime: keeping > 0 && keeping >= UInt64(bytes.count),
                isEmpty: keeping == 0)
        case .object(let extent, let known):
            let file: SharedDescriptor?
            if case .passthrough = vnode.state.mode {
                file = nil
            } else if let known {
                file = known
            } else {
                file = try openObject(extent, for: vnode)
            }
            return try replaceObject(vnode, extent, file, keeping: keeping)
        case .extents(let extents):
            guard keeping == 0 else {
                assemble(vnode, extents, keeping: keeping)
                return false
            }
            try adopt(try newStaging(vnode.ino), vnode, keepsTime: false, isEmpty: true)
        }
        beginWriting(vnode)
        return true
    }

    func beginWriting(_ vnode: Vnode) {
        vnode.state.writers += 1
        vnode.state.writeGeneration += 1
        vnode.state.hashing?.cancel()
    }

    private func privileges(of ino: InodeNumber) throws(Errno) -> Privileges {
        try query("open for writing") { reader throws(Errno) in
            guard let inode = try reader.inode(ino) else { throw .staleNFSFileHandle }
            var found: Privileges = inode.mode & 0o6000 == 0 ? [] : .setID
            if try reader.xattrNames(ino).contains(Self.capabilityName) {
                found.insert(.capability)
            }
            return found
        }
    }

    /// A writer opens what is an object. Under the vnode's lock.
    private func replaceObject(
        _ vnode: Vnode, _ extent: Extent, _ file: SharedDescriptor?, keeping: UInt64
    ) throws(Errno) -> Bool {
        if case .passthrough = vnode.state.mode, let backing = vnode.state.backing {
            let mayMove =
                (extent.length <= Self.movedBytesMax || sharesBlocks)
                && publisher.users.isOnlyUser(vnode, of: extent.root)
            guard mayMove || vnode.state.staged != nil else {
                supersede(vnode)
                throw .staleNFSFileHandle
            }
            prepare(vnode) { _ in try self.moveObjectAway(vnode, extent, backing) }
            return false
        }
        guard keeping > 0 else {
            try adopt(try newStaging(vnode.ino), vnode, keepsTime: false, isEmpty: true)
            beginWriting(vnode)
            return true
        }
        guard let file else { throw .ioError }
        let range = 0..<min(extent.length, keeping)
        let isWhole = keeping >= extent.length
        if isOverlaid(range.upperBound) {
            let staged = try newOverlay(vnode, [extent], keeping: keeping)
            store.oweSync(staged.name)
            try adopt(staged, vnode, keepsTime: isWhole)
            beginWriting(vnode)
            return true
        }
        guard UInt64(range.count) <= Self.immediateCopyBytesMax || sharesBlocks else {
            prepare(vnode) { cancellation in
                let staged = try self.copied(vnode, file, range, cancellation)
                try self.synchronizeCopy(staged)
                try self.adoptPrepared(staged, vnode, isWhole: isWhole)
            }
            return false
        }
        let staged = try copied(vnode, file, range)
        store.oweSync(staged.name)
        try adopt(staged, vnode, keepsTime: isWhole)
        beginWriting(vnode)
        return true
    }

    // MARK: Staging files

    /// A new, empty staging file.
    /// - Parameter modified: the modification time that stat shows; nil: now.
    func newStaging(
        _ ino: InodeNumber, modified: Volume.Timestamp? = nil
    ) throws(Errno) -> StagedFile {
        let name = publisher.stagingName(for: ino)
        do throws(StoreError) {
            let file = SharedDescriptor(try store.createStaging(name))
            if let modified { try store.setModified(file.descriptor, modified) }
            return StagedFile(name: name, file: file, isWritable: true)
        } catch {
            try? store.removeStaging(name)
            throw error.errno
        }
    }

    /// A staging file for older bytes. Refused while the disk is about to be full, other than an empty
    /// one: what is truncated to nothing makes room.
    private func newCopy(_ ino: InodeNumber) throws(Errno) -> StagedFile {
        guard !options.isFull() else { throw .noSpace }
        return try newStaging(ino)
    }

    func openStaged(_ staged: StagedFile, writing: Bool) throws(Errno) -> SharedDescriptor {
        do throws(StoreError) {
            return SharedDescriptor(
                try store.openStaging(staged.name, writing ? .readWrite : .read), staged.use)
        } catch { throw error.errno }
    }

    /// A descriptor to read by: the daemon's, or one for this request.
    func readable(_ staged: StagedFile) throws(Errno) -> SharedDescriptor {
        if let file = staged.file { return file }
        return try openStaged(staged, writing: false)
    }

    /// A descriptor to write by: the daemon's, or one for this request.
    func writable(_ staged: StagedFile) throws(Errno) -> SharedDescriptor {
        if staged.isWritable, let file = staged.file { return file }
        return try openStaged(staged, writing: true)
    }

    private func write(_ bytes: [UInt8], to staged: StagedFile) throws(Errno) {
        do {
            _ = try staged.file?.descriptor.writeAll(toAbsoluteOffset: 0, bytes)
        } catch {
            try? store.removeStaging(staged.name)
            throw errno(error, "staging")
        }
    }

    private func copied(
        _ vnode: Vnode, _ file: SharedDescriptor, _ range: Range<UInt64>,
        _ cancellation: Cancellation? = nil
    ) throws(Errno) -> StagedFile {
        let staged = try newCopy(vnode.ino)
        guard let target = staged.file else { throw .ioError }
        do throws(StoreError) {
            try store.clone(
                from: file.descriptor, to: target.descriptor, range: range,
                cancellation: cancellation)
            return staged
        } catch {
            try? store.removeStaging(staged.name)
            throw error.errno
        }
    }

    /// A large copy: to sync it with a batch of the catalog would hold up everybody who waits for
    /// that.
    private func synchronizeCopy(_ staged: StagedFile) throws(Errno) {
        guard let file = staged.file else { throw .ioError }
        do throws(StoreError) { try store.synchronizeStaging(staged.name, file.descriptor) } catch {
            try? store.removeStaging(staged.name)
            throw error.errno
        }
    }

    /// From now on the staging file is the inode's bytes, in the catalog too. Under the vnode's
    /// lock. When it fails the file is removed. A copy of older bytes is synced already or owed
    /// (`Store.oweSync`): else a power cut would leave the row with a copy that never got to the
    /// disk.
    ///
    /// - Parameter isEmpty: it takes away what was there: then its row survives a kill at once, or
    ///   everything is as before.
    private func adopt(
        _ staged: StagedFile, _ vnode: Vnode, keepsTime: Bool, isEmpty: Bool = false
    ) throws(Errno) {
        var staged = staged
        do throws(Errno) {
            guard !vnode.state.isSuperseded else { throw .staleNFSFileHandle }
            let (inode, row) = try nameStaging(vnode, staged)
            vnode.state.isUncommitted = true
            if isEmpty { try commitName(vnode, orGoBackTo: row) }
            if keepsTime, let file = staged.file {
                staged.original = try keepTime(of: inode, vnode.state.staged, file)
            }
        } catch {
            try? store.removeStaging(staged.name)
            throw error
        }
        let replaced = vnode.state.staged
        vnode.state.bytes = .staging(staged)
        publisher.releaseClaim(vnode)
        if let replaced { publisher.removeWhenDurable(replaced) }
    }

    private func commitName(_ vnode: Vnode, orGoBackTo row: Staging?) throws(Errno) {
        do throws(Errno) { try commitRows(of: vnode, "open for writing") } catch {
            try perform("open for writing") { tx throws(Errno) in
                if let row { try tx.setStaging(row) } else { try tx.clearStaging(vnode.ino) }
            }
            throw error
        }
    }

    /// Opening for writing alone changes no modification time.
    ///
    /// - Parameter replaced: what is sealed the row does not have yet: neither does it know the
    ///   time, nor may it go on with what it has when nothing is written.
    private func keepTime(
        of inode: Inode, _ replaced: StagedFile?, _ file: SharedDescriptor
    ) throws(Errno) -> FileFacts? {
        do throws(StoreError) {
            if case .sealed(_, let sealed) = replaced?.phase {
                try store.setModified(file.descriptor, sealed.modified)
                return nil
            }
            try store.setModified(file.descriptor, inode.modified)
            let facts = try store.facts(of: file.descriptor)
            let isOld = facts.modified.seconds + Self.clockStepSeconds < facts.changed.seconds
            return isOld ? facts : nil
        } catch { throw error.errno }
    }

    /// The row names the staging file, and remembers what it began from.
    ///
    /// - Returns: also the staging row from before.
    /// - Throws: ESTALE when another version came since the bytes were loaded: the kernel looks the
    ///   name up again.
    private func nameStaging(
        _ vnode: Vnode, _ staged: StagedFile
    ) throws(Errno) -> (Inode, Staging?) {
        let version = vnode.state.version
        return try perform("open for writing") { tx throws(Errno) in
            guard let inode = try tx.inode(vnode.ino) else { throw .staleNFSFileHandle }
            // Sealed and not recorded: what began from the old base goes on from there.
            let row = try tx.staging(of: vnode.ino)
            var base = row?.base
            if base == nil {
                let content = try tx.content(of: vnode.ino)
                guard inode.contentStamp == version?.stamp || content == version?.content
                else { throw .staleNFSFileHandle }
                base = inode.contentStamp
            }
            try tx.setStaging(
                Staging(
                    ino: vnode.ino, name: "\(staged.name)", base: base ?? inode.contentStamp,
                    overlay: staged.overlay?.map.encoded))
            return (inode, row)
        }
    }

    // MARK: Off the lock

    /// Runs `body` on the preparation queue, then everybody who waits for the vnode. Under the
    /// vnode's lock; the caller appends itself to `state.waiting` before it lets go of it.
    private func prepare(
        _ vnode: Vnode, _ body: @escaping @Sendable (Cancellation) throws -> Void
    ) {
        vnode.state.waiting = []
        vnodes.pin(vnode)
        preparation.submit { self.finishPreparation(vnode, body) }
    }

    private func finishPreparation(_ vnode: Vnode, _ body: (Cancellation) throws -> Void) {
        var failure: Errno?
        let isUnwanted = Cancellation {
            vnode.locked { vnode.state.waiting?.allSatisfy(\.isGone) == true }
        }
        do { try body(isUnwanted) } catch { failure = errno(error, "open for writing") }
        let waiting = vnode.locked {
            defer { vnode.state.waiting = nil }
            return vnode.state.waiting ?? []
        }
        // The error is the first one's, who asked for it; others try for themselves.
        for (index, waiter) in waiting.enumerated() {
            waiter.proceed(index == 0 ? failure : nil)
        }
        vnode.locked {
            unloadIfIdle(vnode)
            // Whoever waited may be gone: what was prepared is published like any closed file.
            publisher.submitIfClosed(vnode)
        }
        unpin(vnode)
    }

    /// - Throws: EINTR when whoever needed a part only, for a truncation, was interrupted: adopting it
    ///   would truncate.
    private func adoptPrepared(_ staged: StagedFile, _ vnode: Vnode, isWhole: Bool) throws(Errno) {
        try vnode.locked { () throws(Errno) in
            guard isWhole || vnode.state.waiting?.first?.isGone == false else {
                try? store.removeStaging(staged.name)
                throw .interrupted
            }
            try adopt(staged, vnode, keepsTime: isWhole)
        }
    }

    /// Passthrough readers keep the file that they have: it becomes the staging file, and a copy
    /// takes its place as the object. The copy stands before the first write can happen.
    private func moveObjectAway(
        _ vnode: Vnode, _ extent: Extent, _ backing: FileIdentity
    ) throws {
        let name = publisher.stagingName(for: vnode.ino)
        let file: SharedDescriptor
        do throws(StoreError) {
            file = SharedDescriptor(
                try store.detachObject(
                    extent.root, to: name, copyBytesMax: .max, expecting: backing
                ) { (exchange) throws(StoreError) in
                    try publisher.users.take(extent.root, for: vnode, exchange)
                })
        } catch {
            guard error.errno == .staleNFSFileHandle || error.errno == .noSuchFileOrDirectory
            else { throw error }
            // Others use the object's file too, or it was removed, or removed and fetched again,
            // under the readers: theirs is a file that cannot be had any more.
            try awaitRecord(vnode)
            vnode.locked { supersede(vnode) }
            throw Errno.staleNFSFileHandle
        }
        // On the preparation queue, whose threads may wait.
        let done = DispatchSemaphore(value: 0)
        remote.letGo(of: extent) { done.signal() }
        if done.wait(timeout: .now() + Self.letGoSeconds) == .timedOut {
            logger.warning("peers still read \(extent.root) while it is moved")
        }
        let staged = StagedFile(name: name, file: file, isWritable: true)
        try vnode.locked { try adopt(staged, vnode, keepsTime: true) }
    }

    /// Until the row has what is sealed: the next vnode begins with what the row says.
    private func awaitRecord(_ vnode: Vnode) throws(Errno) {
        let deadline = Monotonic.milliseconds + Self.recordMillisecondsMax
        while vnode.locked({ vnode.state.staged?.isUnpublished == true }) {
            guard Monotonic.milliseconds < deadline else { throw .resourceBusy }
            usleep(Self.recordLookMicroseconds)
        }
    }

    /// Content that is partly elsewhere: what is needed is fetched, then copied.
    private func assemble(_ vnode: Vnode, _ extents: [ExtentBytes], keeping: UInt64) {
        vnode.state.waiting = []
        vnodes.pin(vnode)
        let needed = extents.filter { $0.offset < keeping }
        let isWhole = keeping >= extents.reduce(0) { $0 + $1.extent.length }
        fetch(needed[...]) { failure in
            self.preparation.submit {
                self.finishPreparation(vnode) { cancellation in
                    if let failure { throw failure }
                    let staged = try self.joined(vnode, needed, keeping: keeping, cancellation)
                    try self.synchronizeCopy(staged)
                    try self.adoptPrepared(staged, vnode, isWhole: isWhole)
                }
            }
        }
    }

    private func joined(
        _ vnode: Vnode, _ extents: [ExtentBytes], keeping: UInt64, _ cancellation: Cancellation
    ) throws -> StagedFile {
        if isOverlaid(min(keeping, extents.reduce(0) { $0 + $1.extent.length })) {
            return try newOverlay(vnode, extents.map(\.extent), keeping: keeping)
        }
        let staged = try newCopy(vnode.ino)
        do {
            guard let target = staged.file else { throw Errno.ioError }
            for part in extents {
                guard let object = try openObject(part.extent, for: vnode) else {
                    throw Errno.ioError
                }
                try store.clone(
                    from: object.descriptor, to: target.descriptor,
                    range: 0..<min(part.extent.length, keeping - part.offset), at: part.offset,
                    cancellation: cancellation)
            }
            return staged
        } catch {
            try? store.removeStaging(staged.name)
            throw error
        }
    }

    private func fetch(
        _ extents: ArraySlice<ExtentBytes>, _ body: @escaping @Sendable (Errno?) -> Void
    ) {
        guard let first = extents.first else { return body(nil) }
        guard case .remote(let stream, _) = first.source else {
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
