import FUSE
import Glibc
import Synchronization
import SystemPackage
import Volume

// `at/TIME|COMMIT/…`: answered on threads that may block, from trees that never change. Which state a
// time stands for may change, so the kernel asks again.
extension VirtualDirectory {
    /// How long the kernel may believe what a name in `at` leads to.
    private static let stateLifetime = Duration.seconds(1)
    /// And everything below.
    private static let lifetime = VolumeFileSystem.cacheLifetime
    /// `SEEK_HOLE` of `lseek(2)`; the other value that is sent is `SEEK_DATA`.
    private static let seekHole: Int32 = 4

    /// Nothing that is answered here is ever invalidated.
    private func later(
        _ what: StaticString, _ reply: consuming Reply,
        _ body: @escaping @Sendable (PendingReply) throws -> Void
    ) {
        let pending = reply.detachUnordered()
        queue.submit { [derived] in
            guard !pending.isAnswered else { return }
            do { try body(pending) } catch {
                pending.error(derived.failures.errno(error, what))
            }
        }
    }

    // MARK: Names

    func lookUpState(_ name: [UInt8], _ reply: consuming Reply) {
        later("at", reply) { [self] reply in
            let state = try names.state(name, now: Monotonic.milliseconds) {
                try tree.source.find(name).map { try tree.state($0) }
            }
            guard let state else { throw Errno.noSuchFileOrDirectory }
            answer(try tree.top(of: state), in: state, parent: nil, reply)
        }
    }

    func lookUpPast(_ directory: PastNode, _ name: [UInt8], _ reply: consuming Reply) {
        later("lookup", reply) { [self] reply in
            guard name.count <= Limits.nameBytesMax else { throw Errno.fileNameTooLong }
            guard let name = FileName(name) else { throw Errno.invalidArgument }
            guard let inode = try tree.child(name, of: directory) else {
                reply.entry(.negative(valid: Self.lifetime))
                return
            }
            answer(inode, in: directory.state, parent: directory.ino, reply)
        }
    }

    /// - Parameter parent: nil for the top of a state.
    private func answer(
        _ inode: PastInode, in state: PastState, parent: UInt64?, _ reply: PendingReply
    ) {
        let node = nodes.lookUp(inode, in: state, parent: parent ?? Self.states)
        let lifetime = parent == nil ? Self.stateLifetime : Self.lifetime
        if !reply.entry(entry(inode, node, valid: lifetime)) { nodes.forget(node.nodeid, count: 1) }
    }

    private func entry(_ inode: PastInode, _ node: PastNode, valid: Duration) -> EntryOut {
        EntryOut(
            nodeid: node.nodeid, entryValid: valid, attributesValid: Self.lifetime,
            attributes: tree.attributes(inode, ino: node.ino))
    }

    func showPast(_ node: PastNode, _ reply: consuming Reply) {
        later("stat", reply) { [self] reply in
            let inode = try tree.inode(of: node)
            reply.attributes(tree.attributes(inode, ino: node.ino), valid: Self.lifetime)
        }
    }

    func readlink(_ request: RequestHeader, reply: consuming Reply) {
        withRecord(request, "readlink", reply) { record, reply in
            guard case .symlink(let target) = record.content.value.body else {
                throw Errno.invalidArgument
            }
            reply.data(target)
        }
    }

    private func withRecord(
        _ request: RequestHeader, _ what: StaticString, _ reply: consuming Reply,
        _ body: @escaping @Sendable (Record, PendingReply) throws -> Void
    ) {
        do throws(Errno) {
            let node = try node(request)
            later(what, reply) { [tree] reply in try body(try tree.inode(of: node).record, reply) }
        } catch { reply.error(error) }
    }

    // MARK: Directories

    func openPastDirectory(_ node: PastNode, _ reply: consuming Reply) {
        later("list", reply) { [self] reply in
            let listing = PastListing(try tree.directory(node))
            let handle = handles.insert(.directory(node, listing))
            if !reply.open(handle, flags: [.cacheDirectory, .keepCache]) { close(handle) }
        }
    }

    func openStates(_ reply: consuming Reply) {
        later("at", reply) { [self] reply in
            let states = try tree.source.list().map { name, state in
                (name: name, ino: PastState.top(of: state.tree), mode: S_IFDIR)
            }
            let handle = handles.insert(.states(states))
            if !reply.open(handle) { close(handle) }
        }
    }

    func listPast(
        _ number: UInt64, _ node: PastNode, _ listing: PastListing, _ page: DirectoryPage,
        _ reply: consuming Reply
    ) {
        later("list", reply) { [self] reply in
            var (page, listing) = (page, listing)
            /// Each entry in the answer counts as a lookup.
            var counted: [UInt64] = []
            var isTaken = false
            defer { if !isTaken { for nodeid in counted { nodes.forget(nodeid, count: 1) } } }
            try fill(&page, node, &listing, &counted)
            handles.replace(number, .directory(node, listing))
            isTaken = reply.directory(page.buffer)
        }
    }

    private func fill(
        _ page: inout DirectoryPage, _ directory: PastNode, _ listing: inout PastListing,
        _ counted: inout [UInt64]
    ) throws {
        let hasDots = page.fill([
            ([0x2E], directory.ino, S_IFDIR), ([0x2E, 0x2E], directory.parent, S_IFDIR),
        ])
        guard hasDots else { return }
        let state = directory.state
        while let (cookie, name, child) = try listing.next(
            after: page.offset, from: tree.source.objects)
        {
            let inode = try tree.inode(at: child, in: state)
            guard page.isPlus else {
                let ino = state.shown(inode.record.ino)
                let entry = EntryOut(nodeid: 0, attributes: tree.attributes(inode, ino: ino))
                guard page.append(name.bytes, entry, cookie: cookie) else { return }
                continue
            }
            let node = nodes.lookUp(inode, in: state, parent: directory.ino)
            let entry = entry(inode, node, valid: Self.lifetime)
            guard page.append(name.bytes, entry, cookie: cookie) else {
                nodes.forget(node.nodeid, count: 1)
                return
            }
            counted.append(node.nodeid)
        }
    }

    // MARK: Files

    func openPast(_ node: PastNode, _ reply: consuming Reply) {
        names.used(node.state, now: Monotonic.milliseconds)
        later("open", reply) { [self] reply in
            guard case .file(let content) = try tree.inode(of: node).record.content.value.body
            else { throw Errno.invalidArgument }
            try files.whenFound(content, of: node) { [self] failure in
                if let failure {
                    reply.error(failure)
                    return
                }
                queue.submit { [self] in open(content, of: node, reply) }
            }
        }
    }

    private func open(_ content: Content, of node: PastNode, _ reply: PendingReply) {
        node.file.withLock { file in
            do throws(Errno) {
                let opened = try files.open(content, of: node, &file)
                let handle = handles.insert(.file(node))
                let isTaken = reply.open(handle, flags: opened.flags, backing: opened.backing)
                guard !isTaken else { return }
                handles.remove(handle)
                files.close(node, &file)
            } catch { reply.error(error) }
        }
    }

    func lseek(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, whence: Int32,
        reply: consuming Reply
    ) {
        guard case .file(let node) = handles.handle(handle) else {
            reply.error(.badFileDescriptor)
            return
        }
        files.seek(node, from: offset, toHole: whence == Self.seekHole, reply)
    }

    /// Out of the past: where the disk shares blocks, a large file takes no time.
    func copyFileRange(_ request: RequestHeader, _ copy: CopyRequest, reply: consuming Reply) {
        guard case .file(let node) = handles.handle(copy.handle),
            let (file, extent) = files.object(of: node),
            let copying = copying.withLock({ $0 })
        else {
            // The kernel copies through the page cache instead.
            reply.error(.improperLink)
            return
        }
        copying(file, extent, request, copy, reply)
    }

    // MARK: Extended attributes

    func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply
    ) {
        guard nodes.node(request.nodeid) != nil else {
            reply.error(.noData)
            return
        }
        withRecord(request, "getxattr", reply) { [derived] record, reply in
            let content: Content? =
                if case .file(let content) = record.content.value.body { content } else { nil }
            let value =
                try content.flatMap { try derived.value(name, of: $0.extents) }
                ?? record.xattrs[name]?.value
            guard let value else { throw Errno.noData }
            reply.xattr(value, capacity: capacity)
        }
    }

    func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply) {
        guard nodes.node(request.nodeid) != nil else {
            reply.xattr([], capacity: capacity)
            return
        }
        withRecord(request, "listxattr", reply) { record, reply in
            let names = record.xattrs.keys.sorted { $0.lexicographicallyPrecedes($1) }
            reply.xattr(names.flatMap { $0 + [0] }, capacity: capacity)
        }
    }
}
