import Catalog
import Logging
import Store
import SystemPackage
import Volume

// Which bytes an inode has, and the descriptors that the daemon serves them from.
extension VolumeFileSystem {
    /// Finds out what serves an inode that nobody has open. Under the vnode's lock.
    func load(_ vnode: Vnode) throws(Errno) {
        guard case .unloaded = vnode.state.bytes else { return }
        let (inode, content, isLocal) = try query("open") { reader throws(Errno) in
            guard let inode = try reader.inode(vnode.ino) else { throw .staleNFSFileHandle }
            guard inode.kind == .file else {
                throw inode.isDirectory ? .isDirectory : .invalidArgument
            }
            let content = try reader.content(of: vnode.ino)
            return (
                inode, content,
                try content.extents.map { extent throws(Errno) in
                    try self.isLocal(extent, reader)
                }
            )
        }
        switch content {
        case .inline(let bytes): vnode.state.bytes = .inline(bytes)
        case .extents(let extents): vnode.state.bytes = try located(extents, isLocal, vnode)
        }
        vnode.state.version = Version(inode, content)
    }

    private func located(
        _ extents: [Extent], _ isLocal: [Bool], _ vnode: Vnode
    ) throws(Errno) -> Bytes {
        var offset: UInt64 = 0
        var parts: [ExtentBytes] = []
        for (extent, isLocal) in zip(extents, isLocal) {
            let source: ExtentBytes.Source
            if isLocal, let file = try openObject(extent, for: vnode) {
                if extents.count == 1 { return .object(extent, file) }
                source = .local(file)
            } else {
                let use = publisher.users.use(extent.root, for: vnode)
                source = .remote(remote.stream(extent), use)
            }
            parts.append(ExtentBytes(extent: extent, offset: offset, source: source))
            offset += extent.length
        }
        return .extents(parts)
    }

    private func isLocal(_ extent: Extent, _ reader: Reader) throws(Errno) -> Bool {
        switch try reader.content(extent.root)?.state {
        case .cached, .stored, .dropping: true
        default: false
        }
    }

    /// nil when it is not on the disk, or not whole, whatever the catalog believed: from now on it
    /// knows, and the content is fetched like any other.
    func openObject(
        _ extent: Extent, for vnode: Vnode
    ) throws(Errno) -> SharedDescriptor? {
        let use = publisher.users.use(extent.root, for: vnode)
        do throws(StoreError) {
            if let file = try store.openObject(extent.root) {
                let shared = SharedDescriptor(file, use)
                if try store.facts(of: file).size == extent.length { return shared }
                try store.removeObject(extent.root)
            }
        } catch { throw error.errno }
        logger.error(
            "the object \(extent.root) is not on the disk, or not whole; it is fetched again")
        try perform("open") { tx throws(Errno) in
            try tx.setContentState(extent, .absent, at: Monotonic.wallMilliseconds)
        }
        remote.isMissing(extent)
        return nil
    }

    /// Opens what the daemon needs to answer READ and WRITE. Under the vnode's lock.
    func serveFromDaemon(_ vnode: Vnode) throws(Errno) {
        switch vnode.state.bytes {
        case .object(let extent, nil):
            guard let file = try openObject(extent, for: vnode) else { throw .ioError }
            vnode.state.bytes = .object(extent, file)
        case .staging(var staged):
            let writes = vnode.state.writers > 0
            guard staged.file == nil || (writes && !staged.isWritable) else { return }
            staged.file = try openStaged(staged, writing: writes)
            staged.isWritable = writes
            vnode.state.bytes = .staging(staged)
        default: break
        }
    }

    /// What answers a READ. Found in one look, because it may change its kind at any other moment.
    enum Source {
        case inline([UInt8])
        case extents([ExtentBytes])
        /// The daemon's descriptor, or one for this request.
        case file(SharedDescriptor)
        case overlay(OpenOverlay)
    }

    /// - Returns: nil when nothing is loaded, or what was is not here any more.
    func source(of vnode: Vnode) throws(Errno) -> Source? {
        try vnode.locked { () throws(Errno) -> Source? in
            switch vnode.state.bytes {
            case .unloaded: return nil
            case .inline(let bytes): return .inline(bytes)
            case .extents(let extents): return .extents(extents)
            case .object(_, let file?): return .file(file)
            case .object(let extent, nil):
                return try openObject(extent, for: vnode).map(Source.file)
            case .staging(let staged):
                if let overlay = try openOverlay(vnode, writing: false) {
                    return .overlay(overlay)
                }
                return .file(try readable(staged))
            }
        }
    }

    /// The staging file that a handle open for writing writes to.
    func writableFile(_ number: UInt64) throws(Errno) -> (Vnode, SharedDescriptor) {
        guard let handle = handles.handle(number), handle.writes else { throw .badFileDescriptor }
        let vnode = handle.vnode
        let file = try vnode.locked { () throws(Errno) -> SharedDescriptor? in
            try vnode.state.staged.map { staged throws(Errno) in try writable(staged) }
        }
        guard let file else { throw .badFileDescriptor }
        return (vnode, file)
    }
}
