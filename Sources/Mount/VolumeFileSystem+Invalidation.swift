public import Catalog
import FUSE
import Synchronization
import SystemPackage
public import Volume

/// What the kernel is to forget.
struct Invalidation {
    struct Name: Hashable {
        let parent: UInt64
        let name: [UInt8]
    }

    /// By nodeid: whether the pages go too, or the attributes alone.
    var nodes: [UInt64: Bool] = [:]
    var names: Set<Name> = []

    var isEmpty: Bool { nodes.isEmpty && names.isEmpty }

    mutating func add(_ nodeid: UInt64, withPages: Bool) {
        nodes[nodeid] = withPages || nodes[nodeid] == true
    }

    mutating func merge(_ other: Invalidation) {
        for (nodeid, withPages) in other.nodes { add(nodeid, withPages: withPages) }
        names.formUnion(other.names)
    }

    /// Takes out as many notifications as the kernel is sent in one go.
    mutating func takeSome(_ limit: Int) -> Invalidation {
        var taken = Invalidation()
        for (nodeid, withPages) in nodes.prefix(limit) { taken.nodes[nodeid] = withPages }
        for nodeid in taken.nodes.keys { nodes[nodeid] = nil }
        let some = names.prefix(limit - taken.nodes.count)
        taken.names = Set(some)
        names.subtract(taken.names)
        return taken
    }
}

// What came from elsewhere: the kernel forgets what it remembers, open descriptors keep what they
// have.
extension VolumeFileSystem {
    /// Notifications queued at once: well below the notifier's bound.
    static let notificationsMax = 4096

    /// The catalog has changed already.
    public func invalidate(_ effects: AppliedEffects) { invalidate(VolumeChange(effects)) }

    func invalidate(_ effects: VolumeChange) {
        var news = Invalidation()
        for ino in effects.contents {
            guard let vnode = vnodes.current(ino) else { continue }
            let withPages = vnode.locked { contentChanged(vnode, &news) }
            news.add(vnode.nodeid, withPages: withPages)
        }
        for ino in effects.attributes {
            if let vnode = vnodes.current(ino) { news.add(vnode.nodeid, withPages: false) }
        }
        for change in effects.entries {
            if let ino = change.after, vnodes.linked(ino) { returned(ino) }
            guard let parent = vnodes.current(change.parent) else { continue }
            news.names.insert(.init(parent: parent.nodeid, name: change.name.bytes))
            // The listing that the kernel keeps of the directory.
            news.add(parent.nodeid, withPages: true)
        }
        send(news)
    }

    /// A removed inode has a name again. For the kernel a directory that it removed is dead, whatever it is
    /// told later: the name gets a new vnode.
    private func returned(_ ino: InodeNumber) {
        let row = try? query("invalidate") { reader throws(Errno) in try reader.inode(ino) }
        guard row?.isDirectory == true, let vnode = vnodes.current(ino) else { return }
        vnodes.supersede(vnode)
    }

    /// An open file keeps its version under its nodeid, the name gets a new one. What is being
    /// written here stays: publishing keeps both versions.
    ///
    /// - Returns: whether the kernel's pages of the nodeid are out of date. Of an open file they
    ///   never are, so that no notification waits for a read that waits for the network.
    private func contentChanged(_ vnode: Vnode, _ news: inout Invalidation) -> Bool {
        if vnode.state.staged?.isUnpublished == true { return false }
        vnode.state.pageCacheIsStale = true
        guard let version = vnode.state.version else { return true }
        let row = try? query("invalidate") { reader throws(Errno) in
            try reader.content(of: vnode.ino)
        }
        // Loaded since: it is the new version.
        if row != version.content { markSuperseded(vnode, &news) }
        return false
    }

    /// From now on the inode's names lead to a new vnode. Under the vnode's lock.
    func supersede(_ vnode: Vnode) {
        var news = Invalidation()
        markSuperseded(vnode, &news)
        send(news)
    }

    /// The catalog has failed: its rows are those of its last COMMIT, and the kernel may remember what
    /// came after that. It asks anew; what is not in the rows any more is ESTALE, and then looked up.
    public func catalogFailed() {
        var news = Invalidation()
        for vnode in vnodes.all {
            let isOpen = vnode.locked { vnode.state.opens > 0 }
            news.add(vnode.nodeid, withPages: !isOpen)
            addNames(of: vnode.ino, to: &news)
        }
        send(news)
    }

    private func markSuperseded(_ vnode: Vnode, _ news: inout Invalidation) {
        vnode.state.isSuperseded = true
        vnodes.supersede(vnode)
        addNames(of: vnode.ino, to: &news)
    }

    private func addNames(of ino: InodeNumber, to news: inout Invalidation) {
        let links =
            (try? query("invalidate") { reader throws(Errno) in try reader.links(of: ino) }) ?? []
        for link in links {
            guard let parent = vnodes.current(link.parent) else { continue }
            news.names.insert(.init(parent: parent.nodeid, name: link.name.bytes))
        }
    }

    // MARK: Damage

    /// Files whose content a damaged object is that are looked at.
    private static let damagedFilesMax = 1000

    /// The object is damaged and set aside: what the daemon reads of it comes from what is fetched.
    /// What the kernel reads by itself is the same file, completed in place.
    public func setAside(_ extent: Extent) {
        for vnode in files(with: extent.root) {
            vnode.locked {
                vnode.state.pageCacheIsStale = true
                guard case .cached = vnode.state.mode else { return }
                let parts: [(extent: Extent, isLocal: Bool)]
                switch vnode.state.bytes {
                case .object(extent, _): parts = [(extent, false)]
                case .extents(let known):
                    parts = known.map { part in
                        if case .local = part.source { return (part.extent, part.extent != extent) }
                        return (part.extent, false)
                    }
                default: return
                }
                let bytes = try? contents.open(
                    parts.map(\.extent), parts.map(\.isLocal), for: vnode.nodeid)
                if let bytes { vnode.state.bytes = bytes }
            }
        }
    }

    /// The object is whole again: the kernel forgets the pages that it has of the damaged one.
    public func repaired(_ extent: Extent) {
        var news = Invalidation()
        for vnode in files(with: extent.root) {
            let isWritten = vnode.locked { vnode.state.staged?.isUnpublished == true }
            if !isWritten { news.add(vnode.nodeid, withPages: true) }
        }
        send(news)
    }

    private func files(with root: ContentRoot) -> [Vnode] {
        let numbers = try? query("repair") { reader throws(Errno) in
            try reader.inodes(with: root, limit: Self.damagedFilesMax)
        }
        return (numbers ?? []).compactMap { vnodes.current($0) }
    }

    // MARK: Sending

    /// An invalidation goes out only after every request that began before it was answered, else a
    /// stale answer would be kept for an hour.
    private func send(_ news: Invalidation) {
        guard !news.isEmpty, let session else { return }
        let isAccepted = session.afterCurrentRequests { self.notify(news, session.notifier) }
        // Too many wait already: goes with the next one that gets through.
        if !isAccepted { postponed.withLock { $0.merge(news) } }
    }

    private func notify(_ news: Invalidation, _ notifier: Notifier) {
        var rest = news
        let now = rest.takeSome(Self.notificationsMax)
        for (nodeid, withPages) in now.nodes {
            if withPages {
                notifier.invalidateInode(nodeid)
            } else {
                notifier.invalidateAttributes(nodeid)
            }
        }
        for name in now.names { notifier.invalidateEntry(parent: name.parent, name: name.name) }
        rest.merge(
            postponed.withLock { postponed in
                defer { postponed = Invalidation() }
                return postponed
            })
        send(rest)
    }

    /// Ends the threads that work for requests; the session is over.
    public func drain() {
        preparation.drain()
        virtual.drain()
        synchronization.drain()
    }
}
