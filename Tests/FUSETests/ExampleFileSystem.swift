import Glibc
import Synchronization
import SystemPackage

@testable import FUSE

/// A small file system in memory, for tests that mount it.
///
/// Files named `backed…` keep their bytes in a real file and are opened in passthrough mode where
/// the session has it. Reading a file named `stuck…` waits until the caller is interrupted; one
/// named `stuckdirect…` is opened without the page cache.
final class ExampleFileSystem: FileSystem {
    struct Node {
        var attributes: Attributes
        var parent: UInt64 = 0
        var content: [UInt8] = []
        var target: [UInt8] = []
        var children: [(name: [UInt8], id: UInt64, cookie: UInt64)] = []
        var xattrs: [[UInt8]: [UInt8]] = [:]
        var lookups: UInt64 = 0
        var opens = 0
        var isStuck = false
        var isUncached = false
        var backingFile: Int32?
        var backingID: Int32 = 0

        var isDirectory: Bool { attributes.mode & S_IFMT == S_IFDIR }
    }

    struct State {
        var nodes: [UInt64: Node] = [:]
        var nextID: UInt64 = 2
        var nextCookie: UInt64 = 3
        var counts: [String: Int] = [:]
        var stuckReads = 0
        var interruptedReads = 0
        var isEnded = false
    }

    let state: Mutex<State>
    let scratch: FilePath
    /// Set once, between the making of the session and its start.
    let session = Mutex<Session?>(nil)
    let valid: Duration

    init(scratch: FilePath, valid: Duration = .seconds(1)) {
        self.scratch = scratch
        self.valid = valid
        var root = Node(attributes: Attributes(ino: 1, mode: S_IFDIR | 0o777, nlink: 2))
        root.lookups = 1
        state = Mutex(State(nodes: [1: root]))
    }

    func count(of request: String) -> Int { state.withLock { $0.counts[request, default: 0] } }

    func ended() {
        state.withLock { state in
            state.isEnded = true
            for node in state.nodes.values {
                if let file = node.backingFile { close(file) }
            }
        }
    }

    private func counting<Result>(
        _ request: String, _ body: (inout State) -> Result
    ) -> Result {
        state.withLock { state in
            state.counts[request, default: 0] += 1
            return body(&state)
        }
    }

    private func entry(_ id: UInt64, _ node: Node) -> EntryOut {
        EntryOut(
            nodeid: id, entryValid: valid, attributesValid: valid, attributes: shown(node))
    }

    private func shown(_ node: Node) -> Attributes {
        var attributes = node.attributes
        if let file = node.backingFile {
            var status = stat()
            if fstat(file, &status) == 0 { attributes.size = UInt64(status.st_size) }
        } else if !node.isDirectory {
            attributes.size = UInt64(max(node.content.count, node.target.count))
        }
        return attributes
    }

    // MARK: - Names

    func lookup(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        let found = counting("lookup") { state -> EntryOut? in
            guard let id = state.child(request.nodeid, name) else { return nil }
            state.nodes[id]?.lookups += 1
            return state.nodes[id].map { entry(id, $0) }
        }
        guard let found else {
            reply.error(.noSuchFileOrDirectory)
            return
        }
        if !reply.entry(found) { forget(nodeid: found.nodeid, count: 1) }
    }

    func forget(nodeid: UInt64, count: UInt64) {
        counting("forget") { state in
            guard var node = state.nodes[nodeid] else { return }
            precondition(node.lookups >= count, "more forgets than lookups")
            node.lookups -= count
            state.nodes[nodeid] = node
            state.drop(nodeid)
        }
    }

    private func add(
        _ request: RequestHeader, _ name: [UInt8], mode: UInt32, target: [UInt8] = []
    ) -> Result<EntryOut, Errno> {
        counting("add") { state in
            if state.child(request.nodeid, name) != nil { return .failure(.fileExists) }
            let id = state.nextID
            state.nextID += 1
            var node = Node(
                attributes: Attributes(ino: id, mode: mode, uid: request.uid, gid: request.gid))
            node.target = target
            node.parent = request.nodeid
            node.lookups = 1
            node.isStuck = name.starts(with: "stuck".utf8)
            node.isUncached = name.starts(with: "stuckdirect".utf8)
            if node.isDirectory { node.attributes.nlink = 2 }
            if name.starts(with: "backed".utf8), mode & S_IFMT == S_IFREG {
                let path = scratch.appending("backing-\(id)")
                node.backingFile = path.withPlatformString {
                    Glibc.open($0, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
                }
            }
            state.nodes[id] = node
            state.attach(request.nodeid, name, id)
            return .success(entry(id, node))
        }
    }

    private func answer(_ result: Result<EntryOut, Errno>, _ reply: consuming Reply) {
        switch result {
        case .success(let entry): reply.entry(entry)
        case .failure(let error): reply.error(error)
        }
    }

    func mkdir(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        answer(add(request, name, mode: S_IFDIR | mode), reply)
    }

    func mknod(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32, device: UInt32,
        reply: consuming Reply
    ) {
        answer(add(request, name, mode: mode), reply)
    }

    func symlink(
        _ request: RequestHeader, name: [UInt8], target: [UInt8], reply: consuming Reply
    ) {
        answer(add(request, name, mode: S_IFLNK | 0o777, target: target), reply)
    }

    func readlink(_ request: RequestHeader, reply: consuming Reply) {
        reply.data(counting("readlink") { $0.nodes[request.nodeid]?.target ?? [] })
    }

    func link(
        _ request: RequestHeader, target: UInt64, name: [UInt8], reply: consuming Reply
    ) {
        let result = counting("link") { state -> Result<EntryOut, Errno> in
            guard var node = state.nodes[target] else { return .failure(.noSuchFileOrDirectory) }
            if state.child(request.nodeid, name) != nil { return .failure(.fileExists) }
            node.attributes.nlink += 1
            node.lookups += 1
            state.nodes[target] = node
            state.attach(request.nodeid, name, target)
            return .success(entry(target, node))
        }
        answer(result, reply)
    }

    func unlink(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        remove(request, name, reply)
    }

    func rmdir(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        remove(request, name, reply)
    }

    private func remove(_ request: RequestHeader, _ name: [UInt8], _ reply: consuming Reply) {
        let error = counting("remove") { state -> Errno? in
            guard let id = state.child(request.nodeid, name), let node = state.nodes[id] else {
                return .noSuchFileOrDirectory
            }
            if !node.children.isEmpty { return .directoryNotEmpty }
            state.detach(request.nodeid, name)
            return nil
        }
        if let error { reply.error(error) } else { reply.empty() }
    }

    func rename(
        _ request: RequestHeader, name: [UInt8], newParent: UInt64, newName: [UInt8],
        flags: RenameFlags, reply: consuming Reply
    ) {
        let error = counting("rename") { state -> Errno? in
            guard let id = state.child(request.nodeid, name) else { return .noSuchFileOrDirectory }
            if state.child(newParent, newName) != nil {
                if flags.contains(.noReplace) { return .fileExists }
                state.detach(newParent, newName)
            }
            state.nodes[id]?.attributes.nlink += 1
            state.attach(newParent, newName, id)
            state.detach(request.nodeid, name)
            return nil
        }
        if let error { reply.error(error) } else { reply.empty() }
    }

    // MARK: - Attributes

    func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply) {
        guard let node = counting("getattr", { $0.nodes[request.nodeid] }) else {
            reply.error(.noSuchFileOrDirectory)
            return
        }
        reply.attributes(shown(node), valid: valid)
    }

    func setattr(
        _ request: RequestHeader, _ changes: SetAttributes, reply: consuming Reply
    ) {
        let node = counting("setattr") { state -> Node? in
            guard var node = state.nodes[request.nodeid] else { return nil }
            if changes.fields.contains(.mode) {
                node.attributes.mode = node.attributes.mode & S_IFMT | changes.mode & 0o7777
            }
            if changes.fields.contains(.uid) { node.attributes.uid = changes.uid }
            if changes.fields.contains(.gid) { node.attributes.gid = changes.gid }
            if changes.fields.contains(.mtime) { node.attributes.mtime = changes.mtime }
            if changes.fields.contains(.size) { node.resize(Int(changes.size)) }
            state.nodes[request.nodeid] = node
            return node
        }
        guard let node else {
            reply.error(.noSuchFileOrDirectory)
            return
        }
        reply.attributes(shown(node), valid: valid)
    }

    func setxattr(
        _ request: RequestHeader, name: [UInt8], value: UnsafeRawBufferPointer,
        flags: SetXattrFlags, reply: consuming Reply
    ) {
        counting("setxattr") { $0.nodes[request.nodeid]?.xattrs[name] = [UInt8](value) }
        reply.empty()
    }

    func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply
    ) {
        guard let value = counting("getxattr", { $0.nodes[request.nodeid]?.xattrs[name] }) else {
            reply.error(.noData)
            return
        }
        reply.xattr(value, capacity: capacity)
    }

    func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply) {
        let names = counting("listxattr") { state in
            state.nodes[request.nodeid]?.xattrs.keys.sorted { $0.lexicographicallyPrecedes($1) }
        }
        reply.xattr((names ?? []).flatMap { $0 + [0] }, capacity: capacity)
    }

    // MARK: - Open files

    func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply
    ) {
        let session = session.withLock { $0 }
        // The lock is held until the reply is written: all opens of a node agree on its mode.
        var reply: Reply? = reply
        state.withLock { state in
            state.counts["open", default: 0] += 1
            guard var node = state.nodes[request.nodeid] else {
                reply.take()?.error(.noSuchFileOrDirectory)
                return
            }
            if flags & O_TRUNC != 0 { node.resize(0) }
            node.register(session)
            node.opens += 1
            state.nodes[request.nodeid] = node
            let flags: OpenFlags =
                node.isUncached ? [.directIO] : [.keepCache]
            let isDelivered = reply.take()?.open(
                request.nodeid, flags: node.backingID == 0 ? flags : [], backing: node.backingID)
            if isDelivered != true {
                state.release(request.nodeid, session)
            }
        }
    }

    func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply
    ) {
        let session = session.withLock { $0 }
        switch add(request, name, mode: mode) {
        case .failure(let error):
            reply.error(error)
        case .success(let entry):
            var reply: Reply? = reply
            state.withLock { state in
                state.nodes[entry.nodeid]?.register(session)
                state.nodes[entry.nodeid]?.opens += 1
                let backing = state.nodes[entry.nodeid]?.backingID ?? 0
                reply.take()?.create(entry, handle: entry.nodeid, backing: backing)
            }
        }
    }

    func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        let node = counting("read") { $0.nodes[handle] }
        guard let node else {
            reply.error(.badFileDescriptor)
            return
        }
        if node.isStuck {
            let pending = reply.detach()
            state.withLock { $0.stuckReads += 1 }
            pending.onInterrupt { [self] in
                // Holds the reply until the interrupt, so that it is not dropped.
                state.withLock { $0.interruptedReads += 1 }
                pending.error(.interrupted)
            }
        } else if let file = node.backingFile {
            reply.data(ofFile: file, offset: offset, size: size)
        } else {
            let start = min(Int(offset), node.content.count)
            reply.data(Array(node.content[start..<min(start + size, node.content.count)]))
        }
    }

    func write(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer,
        flags: WriteFlags, reply: consuming Reply
    ) {
        counting("write") { state in
            guard var node = state.nodes[handle] else { return }
            // Take it out, so that the bytes have one owner and are changed in place.
            state.nodes[handle] = nil
            if let file = node.backingFile {
                _ = pwrite(file, data.baseAddress, data.count, off_t(offset))
            } else {
                let end = Int(offset) + data.count
                if node.content.count < end { node.resize(end) }
                node.content.replaceSubrange(Int(offset)..<end, with: data)
            }
            state.nodes[handle] = node
        }
        reply.written(data.count)
    }

    func release(
        _ request: RequestHeader, handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags,
        lockOwner: UInt64, reply: consuming Reply
    ) {
        let session = session.withLock { $0 }
        counting("release") { $0.release(handle, session) }
        reply.empty()
    }

    // MARK: - Directories

    func readdir(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        var buffer = DirectoryBuffer(capacity: size)
        counting("readdir") { state in
            for child in state.listing(request.nodeid) where child.cookie > offset {
                guard let node = state.nodes[child.id],
                    buffer.append(
                        name: child.name, ino: node.attributes.ino, mode: node.attributes.mode,
                        cookie: child.cookie)
                else { break }
            }
        }
        reply.directory(buffer)
    }

    func readdirplus(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        var buffer = DirectoryBuffer(capacity: size)
        var counted: [UInt64] = []
        counting("readdirplus") { state in
            for child in state.listing(request.nodeid) where child.cookie > offset {
                guard let node = state.nodes[child.id] else { continue }
                var entry = entry(child.id, node)
                let isDots = child.cookie < 3
                if isDots { entry.nodeid = 0 }
                guard buffer.append(name: child.name, entry: entry, cookie: child.cookie) else {
                    break
                }
                if isDots { continue }
                state.nodes[child.id]?.lookups += 1
                counted.append(child.id)
            }
        }
        if !reply.directory(buffer) {
            for id in counted { forget(nodeid: id, count: 1) }
        }
    }
}

extension ExampleFileSystem.Node {
    mutating func resize(_ size: Int) {
        if let file = backingFile {
            ftruncate(file, off_t(size))
        } else if size <= content.count {
            content.removeLast(content.count - size)
        } else {
            content += [UInt8](repeating: 0, count: size - content.count)
        }
    }

    /// One backing id per node, from its first open to its last release.
    mutating func register(_ session: Session?) {
        guard let session, let backingFile, backingID == 0, opens == 0 else { return }
        backingID = (try? session.openBacking(backingFile)) ?? 0
    }
}

extension ExampleFileSystem.State {
    func child(_ parent: UInt64, _ name: [UInt8]) -> UInt64? {
        nodes[parent]?.children.first { $0.name == name }?.id
    }

    mutating func attach(_ parent: UInt64, _ name: [UInt8], _ id: UInt64) {
        nodes[parent]?.children.append((name, id, nextCookie))
        nextCookie += 1
    }

    mutating func detach(_ parent: UInt64, _ name: [UInt8]) {
        guard let id = child(parent, name) else { return }
        nodes[parent]?.children.removeAll { $0.name == name }
        nodes[id]?.attributes.nlink -= 1
        drop(id)
    }

    /// Removes a node that nobody can reach any more.
    mutating func drop(_ id: UInt64) {
        guard let node = nodes[id], node.lookups == 0, node.opens == 0 else { return }
        let isLinked = node.attributes.nlink > (node.isDirectory ? 1 : 0)
        if isLinked || id == 1 { return }
        if let file = node.backingFile { close(file) }
        nodes[id] = nil
    }

    mutating func release(_ id: UInt64, _ session: Session?) {
        guard var node = nodes[id] else { return }
        node.opens -= 1
        if node.opens == 0, node.backingID != 0 {
            session?.closeBacking(node.backingID)
            node.backingID = 0
        }
        nodes[id] = node
        drop(id)
    }

    func listing(_ id: UInt64) -> [(name: [UInt8], id: UInt64, cookie: UInt64)] {
        let parent = nodes[id]?.parent ?? 0
        let dot: [UInt8] = [UInt8(ascii: ".")]
        return [(dot, id, 1), (dot + dot, parent == 0 ? id : parent, 2)]
            + (nodes[id]?.children ?? [])
    }
}
