public import Catalog
import FUSE
import Volume

// What came from elsewhere: the kernel forgets what it remembers, open descriptors keep what they
// have.
extension VolumeFileSystem {
    /// The catalog has changed already. An invalidation goes out only after every request that
    /// began before it was answered, else a stale answer would be kept for an hour.
    public func invalidate(_ effects: AppliedEffects) {
        guard let session else { return }
        var superseded: Set<InodeNumber> = []
        for ino in effects.contents {
            guard let vnode = vnodes.existing(ino) else { continue }
            let isOpen = vnode.read { state in
                if case .staging = state.bytes { return false }
                return state.opens > 0
            }
            if isOpen {
                vnode.lock()
                vnode.state.isSuperseded = true
                vnode.unlock()
                vnodes.supersede(vnode)
                superseded.insert(ino)
            }
        }
        let nodes = effects.contents.union(effects.attributes).compactMap { ino in
            vnodes.existing(ino).map { ($0.nodeid, effects.contents.contains(ino)) }
        }
        let entries = effects.entries.compactMap { change in
            vnodes.existing(change.parent).map { ($0.nodeid, change.name.bytes) }
        }
        let links = superseded.flatMap { ino in
            (try? catalog.read { try $0.links(of: ino) }) ?? []
        }.compactMap { link in
            vnodes.existing(link.parent).map { ($0.nodeid, link.name.bytes) }
        }
        session.afterCurrentRequests {
            let notifier = session.notifier
            for (nodeid, hasNewBytes) in nodes {
                if hasNewBytes {
                    _ = notifier.invalidateInode(nodeid)
                } else {
                    _ = notifier.invalidateAttributes(nodeid)
                }
            }
            for (parent, name) in entries + links {
                _ = notifier.invalidateEntry(parent: parent, name: name)
                // The listing that the kernel keeps of the directory.
                _ = notifier.invalidateInode(parent)
            }
        }
        for ino in effects.removed {
            if vnodes.existing(ino) == nil { reap(ino) }
        }
    }

    /// Ends the threads that work for requests; the session is over.
    public func drain() {
        preparation.drain()
        synchronization.drain()
    }
}
