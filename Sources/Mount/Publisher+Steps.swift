import Catalog
import Glibc
import Logging
import Store
import SystemPackage
import Volume

/// A closed file, seen under its lock to have no writer.
struct Candidate: Sendable {
    let entry: Publisher.Queue.Entry
    /// Of the file to publish: the staging file, or a copy of it.
    let name: StagingName
    let file: SharedDescriptor
    let generation: UInt64
    let facts: FileFacts
    let cancellation: Cancellation
    /// Somebody can still write to the staging file itself: it stays unpublished.
    let isCopy: Bool
    /// The file has the changed blocks only.
    var overlay: Overlay?
    /// Objects that it may be a copy of.
    var models: [Extent] = []

    var vnode: Vnode { entry.item }
}

// One batch, step by step.
extension Publisher {
    private enum Step {
        /// Nothing to publish, or a writer or a preparation will submit it again.
        case none
        case later(milliseconds: UInt64, Queue.Delay)
        case publish(Candidate)
        /// Somebody can still write to it, and somebody waits.
        case copy(Candidate)
        /// It is an object already; the row is to say so.
        case record(Candidate, Extent)
        /// It was being split when that failed, or when an earlier run ended.
        case split(Candidate, Publication)
        /// It is no file to publish: an overlay, or what was written to it may not be on the disk.
        case replace(Candidate)
        /// It was opened for writing, and nothing was written.
        case discard
    }

    private struct Hashed {
        let candidate: Candidate
        let extent: HashedExtent
        let milliseconds: UInt64
    }

    func publish(_ batch: [Queue.Entry]) {
        var objects: [Hashed] = []
        for entry in batch {
            do {
                switch try step(entry) {
                case .none: unpin(entry.item)
                case .later(let milliseconds, let delay):
                    postpone(entry, milliseconds: milliseconds, delay)
                case .discard:
                    // A version from elsewhere may have come: the mount looks.
                    notify(VolumeChange(contents: [entry.item.ino]))
                    unpin(entry.item)
                case .replace(let candidate):
                    attempt(candidate) { try replace(candidate) }
                case .record(let candidate, let extent):
                    // The crash or the error that it was left by may have come before this.
                    try store.synchronizeNames(of: [extent.root])
                    try finish(candidate, .extents([extent]), milliseconds: 0)
                case .publish(let candidate):
                    // A writer may have cut it off meanwhile, who submits it again.
                    attempt(candidate) {
                        if let hashed = try begin(candidate) { objects.append(hashed) }
                    }
                case .split(let candidate, let publication):
                    try split(candidate, publication, milliseconds: 0)
                case .copy(let candidate):
                    let copy = try copied(candidate)
                    do {
                        if let hashed = try begin(copy) { objects.append(hashed) }
                    } catch {
                        try? store.removeStaging(copy.name)
                        throw error
                    }
                }
            } catch { failed(entry, error) }
        }
        if !objects.isEmpty { publishObjects(objects) }
    }

    private func failed(_ entry: Queue.Entry, _ error: any Error) {
        if (error as? StoreError)?.reason == .canceled {
            unpin(entry.item)
            return
        }
        if error is ObjectVanished {
            postpone(entry, milliseconds: 0, .quiet)
            return
        }
        noteFailure(entry.item.ino, error)
        logger.warning(
            "publishing inode \(entry.item.ino.rawValue) failed, will try again: \(error)")
        postpone(entry, milliseconds: Self.failureRetryMilliseconds, .failed)
    }

    /// A writer has it open again, or had, since it was looked at: then it is not ours any more.
    private func isOutdated(_ candidate: Candidate) -> Bool {
        let state = candidate.vnode.state
        return state.writeGeneration != candidate.generation || state.staged == nil
    }

    // MARK: Looking at a file

    private func step(_ entry: Queue.Entry) throws -> Step {
        let vnode = entry.item
        vnode.lock()
        defer { vnode.unlock() }
        guard vnode.state.writers == 0, var staged = vnode.state.staged, staged.isUnpublished,
            vnode.state.waiting == nil || vnode.state.split != nil
        else { return .none }
        let now = Monotonic.milliseconds
        let due = vnode.state.publishing.due
        if !entry.isHurried, due > now { return .later(milliseconds: due - now, .quiet) }
        let hasName = try catalog.read { reader in
            try reader.inode(vnode.ino)?.isLinked == true || reader.lostName(of: vnode.ino) != nil
        }
        // It goes when it is closed, or is submitted again when it gets a name.
        guard hasName else { return .none }
        let candidate = try candidate(entry, staged)
        let (file, facts) = (candidate.file, candidate.facts)
        if let publication = vnode.state.split { return .split(candidate, publication) }
        if case .sealed(let extent, _) = staged.phase,
            try store.objectLength(extent.root) == extent.length
        {
            return .record(candidate, extent)
        }
        // The daemon's own writable descriptor would count against the lease.
        if staged.file != nil {
            staged.file = file
            staged.isWritable = false
            vnode.state.bytes = .staging(staged)
        }
        if try hasWriters(file) {
            let isCopied =
                vnode.state.copied?.modified == facts.modified
                && vnode.state.copied?.size == facts.size
            if entry.isHurried, !isCopied { return .copy(candidate) }
            return .later(milliseconds: Self.leaseRetryMilliseconds, .held(isCopied: isCopied))
        }
        if staged.isUntouched(facts) {
            try discard(vnode, staged)
            return .discard
        }
        if store.isDamaged(staged.name) {
            guard vnode.state.isInUse else { return .replace(candidate) }
            return .later(milliseconds: Self.failureRetryMilliseconds, .failed)
        }
        vnode.state.hashing = candidate.cancellation
        return staged.overlay == nil ? .publish(candidate) : .replace(candidate)
    }

    /// Under the vnode's lock.
    private func candidate(_ entry: Queue.Entry, _ staged: StagedFile) throws -> Candidate {
        let file = SharedDescriptor(try store.openStaging(staged.name, .read))
        let state = entry.item.state
        return Candidate(
            entry: entry, name: staged.name, file: file, generation: state.writeGeneration,
            facts: try store.facts(of: file.descriptor), cancellation: Cancellation(),
            isCopy: false, overlay: staged.overlay?.map,
            models: [staged.copyOf, state.object].compactMap { $0 })
    }

    /// A file that could not be synced is read once more, into one that can be; an overlay becomes whole.
    /// Of a damaged one nobody has it open, who would go on with the old one.
    private func replace(_ candidate: Candidate) throws {
        let vnode = candidate.vnode
        let copy = try copied(candidate)
        let replaced: StagedFile
        do {
            try store.setModified(copy.file.descriptor, candidate.facts.modified)
            try store.synchronizeStaging(copy.name, copy.file.descriptor)
            replaced = try vnode.locked {
                let isFree = candidate.overlay != nil || !vnode.state.isInUse
                guard !isOutdated(candidate), isFree, let replaced = vnode.state.staged else {
                    throw Errno.resourceBusy
                }
                try catalog.perform { tx in
                    guard var staging = try tx.staging(of: vnode.ino) else {
                        throw Errno.noSuchFileOrDirectory
                    }
                    staging.name = "\(copy.name)"
                    staging.overlay = nil
                    try tx.setStaging(staging)
                }
                let isRead = vnode.state.opens > 0
                vnode.state.bytes = .staging(
                    StagedFile(name: copy.name, file: isRead ? copy.file : nil))
                return replaced
            }
        } catch {
            try? store.removeStaging(copy.name)
            throw error
        }
        removeWhenDurable(replaced)
        postpone(candidate.entry, milliseconds: 0, .quiet)
    }

    /// Where leases cannot tell, the kernel was not given the file: all writes came by the daemon.
    private func hasWriters(_ file: SharedDescriptor) throws -> Bool {
        do throws(StoreError) {
            return try store.hasWriters(file.descriptor)
        } catch {
            let unsupported: [Errno] = [.invalidArgument, .permissionDenied, .notSupported]
            guard unsupported.contains(error.errno) else { throw error }
            return false
        }
    }

    /// The row goes on with what it has. Under the vnode's lock.
    private func discard(_ vnode: Vnode, _ staged: StagedFile) throws {
        try catalog.perform { try $0.clearStaging(vnode.ino) }
        var staged = staged
        staged.phase = .published
        vnode.state.bytes = .staging(staged)
        unloadIfIdle(vnode)
    }

    /// A snapshot of a file that can still be written to.
    private func copied(_ candidate: Candidate) throws -> Candidate {
        let name = stagingName(for: candidate.vnode.ino)
        let target = SharedDescriptor(try store.createStaging(name))
        do {
            if let overlay = candidate.overlay {
                try compose(candidate, overlay, into: target)
            } else {
                let length = try store.facts(of: candidate.file.descriptor).size
                try store.clone(
                    from: candidate.file.descriptor, to: target.descriptor, range: 0..<length)
            }
            var facts = candidate.facts
            // Who writes to it may have made it longer since.
            facts.size = try store.facts(of: target.descriptor).size
            return Candidate(
                entry: candidate.entry, name: name,
                file: SharedDescriptor(try store.openStaging(name, .read)),
                generation: candidate.generation, facts: facts,
                cancellation: candidate.cancellation, isCopy: true)
        } catch {
            try? store.removeStaging(name)
            throw error
        }
    }

    private func compose(
        _ candidate: Candidate, _ overlay: Overlay, into target: SharedDescriptor
    ) throws {
        let bases = try store.openBases(of: candidate.name, overlay)
        let blocks = try bases.reduce(candidate.facts.blocks) {
            try $0 + store.facts(of: $1.descriptor).blocks
        }
        try requireRoom(for: blocks * 512)
        try OpenOverlay(overlay, changes: candidate.file, bases: bases).look {
            try $0.compose(into: target.descriptor, cancellation: candidate.cancellation)
        }
    }

    // MARK: Hashing

    /// - Returns: nil when it is done, or given up.
    private func begin(_ candidate: Candidate) throws -> Hashed? {
        let length = candidate.facts.size
        if length <= UInt64(Limits.inlineBytesMax) {
            try publishInline(candidate, Int(length))
            return nil
        }
        for extent in candidate.models
        where try store.isClone(candidate.file.descriptor, of: extent) {
            try finish(candidate, .extents([extent]), milliseconds: 0)
            return nil
        }
        if length > Limits.extentBytesMax { try requireRoomToSplit() }
        let start = Monotonic.milliseconds
        let result = try store.hash(
            candidate.file.descriptor, length: length, cancellation: candidate.cancellation)
        let milliseconds = Monotonic.milliseconds - start
        if result.extents.count == 1 {
            return Hashed(
                candidate: candidate, extent: result.extents[0], milliseconds: milliseconds)
        }
        try beginSplit(candidate, result, milliseconds)
        return nil
    }

    private func publishInline(_ candidate: Candidate, _ length: Int) throws {
        var bytes = [UInt8](repeating: 0, count: length)
        let count = try bytes.withUnsafeMutableBytes {
            try candidate.file.descriptor.read(fromAbsoluteOffset: 0, into: $0)
        }
        guard count == length else { throw Errno.ioError }
        try finish(candidate, .inline(bytes), milliseconds: 0)
    }

    // MARK: Objects

    private func publishObjects(_ objects: [Hashed]) {
        publishObjects(objects, together: objects.count >= Self.wholeDiskSyncFilesMin)
    }

    private func publishObjects(_ objects: [Hashed], together: Bool) {
        var prepared: [(Hashed, PreparedObject)] = []
        for hashed in objects {
            attempt(hashed.candidate) {
                let object = try store.prepareObject(
                    hashed.candidate.name, hashed.extent, synchronizing: !together)
                prepared.append((hashed, object))
            }
        }
        if together {
            do throws(StoreError) { try store.synchronizeDisk() } catch {
                for (_, object) in prepared { store.discard(object) }
                return publishObjects(prepared.map(\.0), together: false)
            }
        }
        var linked: [Hashed] = []
        for (hashed, object) in prepared {
            attempt(hashed.candidate) {
                if try link(hashed.candidate, object) {
                    linked.append(hashed)
                } else {
                    unpin(hashed.candidate.vnode)
                }
            }
        }
        do throws(StoreError) {
            try store.synchronizeNames(of: linked.map(\.extent.extent.root))
        } catch {
            for hashed in linked { attempt(hashed.candidate) { throw error } }
            return
        }
        for hashed in linked {
            attempt(hashed.candidate) {
                try finish(
                    hashed.candidate, .extents([hashed.extent.extent]),
                    milliseconds: hashed.milliseconds)
            }
        }
    }

    /// One file's failure does not hold up the others.
    private func attempt(_ candidate: Candidate, _ body: () throws -> Void) {
        do { try body() } catch {
            if candidate.isCopy { try? store.removeStaging(candidate.name) }
            let isOutdated = candidate.vnode.locked { self.isOutdated(candidate) }
            if isOutdated { unpin(candidate.vnode) } else { failed(candidate.entry, error) }
        }
    }

    /// Gives the staging file's inode the object's name: from here on a writer gets a copy.
    ///
    /// - Returns: false when a writer was faster.
    private func link(_ candidate: Candidate, _ object: PreparedObject) throws -> Bool {
        let vnode = candidate.vnode
        vnode.lock()
        defer { vnode.unlock() }
        guard !isOutdated(candidate), var staged = vnode.state.staged else {
            store.discard(object)
            if candidate.isCopy { try? store.removeStaging(candidate.name) }
            return false
        }
        if candidate.isCopy {
            try store.link(object)
            return true
        }
        // Before the link, which sets the change time, and after which others find the object.
        let facts = try facts(of: staged)
        let extent = object.hashed.extent
        let use = users.use(extent.root, for: vnode.nodeid)
        if case .passthrough = vnode.state.mode {
            users.add(extent.root, for: vnode.nodeid)
            vnode.state.claimed = extent.root
        }
        do throws(StoreError) { try store.link(object) } catch {
            releaseClaim(vnode)
            throw error
        }
        staged.seal(extent, facts, use)
        vnode.state.bytes = .staging(staged)
        return true
    }

    // MARK: Files of several extents

    /// The bytes are moved out, so nobody may have it open. Opens wait until it is done.
    private func beginSplit(
        _ candidate: Candidate, _ result: MerkleResult, _ milliseconds: UInt64
    ) throws {
        let publication = Publication(staging: candidate.name, result: result)
        let vnode = candidate.vnode
        if !candidate.isCopy {
            enum Decision { case drop, wait, go }
            let decision: Decision = vnode.locked {
                if isOutdated(candidate) { return .drop }
                if vnode.state.isInUse { return .wait }
                vnode.state.waiting = []
                vnode.state.split = publication
                return .go
            }
            switch decision {
            case .drop: return unpin(vnode)
            case .wait:
                return postpone(
                    candidate.entry, milliseconds: Self.leaseRetryMilliseconds,
                    candidate.entry.isHurried ? .failed : .held(isCopied: false))
            case .go: break
            }
        }
        try split(candidate, publication, milliseconds: milliseconds)
    }

    /// Where blocks cannot be shared an extent is there twice while it is copied. Looked at before the
    /// file is hashed: without room the staging file serves on.
    private func requireRoomToSplit() throws {
        if try store.diskFacts().supportsReflink { return }
        try requireRoom(for: Limits.extentBytesMax)
    }

    private func requireRoom(for length: UInt64) throws {
        guard try store.freeBytes() > length + Store.reserveBytes else { throw Errno.noSpace }
    }

    private func split(
        _ candidate: Candidate, _ publication: Publication, milliseconds: UInt64
    ) throws {
        do {
            try store.moveToObjects(publication)
            try finish(candidate, publication.result.content, milliseconds: milliseconds)
        } catch {
            if !candidate.isCopy { splitFailed(candidate, error) }
            throw error
        }
    }

    /// Bytes in two places are not to be had: who waits for them gets the error, later ones wait again.
    /// While the staging file has all of them it serves on.
    private func splitFailed(_ candidate: Candidate, _ failure: any Error) {
        let vnode = candidate.vnode
        let isWhole = (try? store.interruptedSplit(candidate.name) == nil) == true
        let waiting = vnode.locked {
            defer {
                vnode.state.waiting = isWhole ? nil : []
                if isWhole { vnode.state.split = nil }
            }
            return vnode.state.waiting ?? []
        }
        let error = (failure as? StoreError)?.errno ?? (failure as? Errno) ?? .ioError
        for waiter in waiting { waiter.proceed(isWhole ? nil : error) }
    }

    // MARK: Snapshots

    private enum Snapshot {
        case published
        case busy
        case due(Candidate)
    }

    /// Publishes a file as it is now, whoever may write to it. Blocks while it is copied and hashed.
    ///
    /// - Returns: the extents of what is published of it.
    /// - Throws: EBUSY when it is opened for writing, or published, again and again meanwhile.
    func publishSnapshot(of vnode: Vnode) throws -> [Extent] {
        for _ in 0..<Self.snapshotTriesMax {
            let isPublished =
                switch try vnode.locked({ try snapshot(of: vnode) }) {
                case .published: true
                case .busy: false
                case .due(let candidate): try publishCopy(of: candidate)
                }
            if isPublished {
                return try catalog.read { try $0.content(of: vnode.ino).extents }
            }
            usleep(Self.snapshotPauseMicroseconds)
        }
        throw Errno.resourceBusy
    }

    private func snapshot(of vnode: Vnode) throws -> Snapshot {
        guard let staged = vnode.state.staged, staged.isUnpublished else { return .published }
        guard staged.phase == .unpublished, vnode.state.waiting == nil else { return .busy }
        guard !store.isDamaged(staged.name) else { throw Errno.ioError }
        let entry = Queue.Entry(key: vnode.nodeid, item: vnode, size: 0, isHurried: true)
        let candidate = try candidate(entry, staged)
        return staged.isUntouched(candidate.facts) ? .published : .due(candidate)
    }

    /// - Returns: false when it has to be done again.
    private func publishCopy(of candidate: Candidate) throws -> Bool {
        let vnode = candidate.vnode
        let copy = try copied(candidate)
        // Given back with the queue's entry, which `finish` makes of it.
        vnodes.pin(vnode)
        do {
            if let hashed = try begin(copy) {
                let object = try store.prepareObject(
                    copy.name, hashed.extent, synchronizing: true)
                guard try link(copy, object) else {
                    unpin(vnode)
                    return false
                }
                let extent = hashed.extent.extent
                try store.synchronizeNames(of: [extent.root])
                try finish(copy, .extents([extent]), milliseconds: hashed.milliseconds)
            }
        } catch {
            try? store.removeStaging(copy.name)
            unpin(vnode)
            guard error is ObjectVanished else { throw error }
            return false
        }
        return vnode.locked { vnode.state.copied == copy.facts }
    }
}
