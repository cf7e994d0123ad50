import Catalog
import FUSE
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
            return (inode, content, try contents.areLocal(content.extents, reader))
        }
        switch content {
        case .inline(let bytes): vnode.state.bytes = .inline(bytes)
        case .extents(let extents):
            vnode.state.bytes = try contents.open(extents, isLocal, for: vnode.nodeid)
        }
        vnode.state.version = Version(inode, content)
        forgetOtherSize(vnode, content.length)
    }

    /// Rows change before the kernel hears of it: it would cut the new version where the old one
    /// ended, and append to it there.
    private func forgetOtherSize(_ vnode: Vnode, _ size: UInt64) {
        guard size != vnode.state.shownSize else { return }
        vnode.state.shownSize = size
        session?.notifier.forgetAttributes(ofRequested: vnode.nodeid)
    }

    func openObject(_ extent: Extent, for vnode: Vnode) throws(Errno) -> SharedDescriptor? {
        try contents.openObject(extent, for: vnode.nodeid)
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
        /// As `file`, of an object.
        case object(Extent, SharedDescriptor)
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
            case .object(let extent, let file?): return .object(extent, file)
            case .object(let extent, nil):
                return try openObject(extent, for: vnode).map { .object(extent, $0) }
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
