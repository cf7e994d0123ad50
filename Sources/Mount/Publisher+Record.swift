import Catalog
import Logging
import Store
import SystemPackage
import Volume

/// The object went before the row named it. The staging file has the bytes, and becomes one anew.
struct ObjectVanished: Error {}

// The last step: the catalog's row gets the content.
extension Publisher {
    private enum Standing {
        case linked
        /// It had no name any more and was given one.
        case revived
        case unlinked
    }

    /// What the row became, and what else changed.
    private struct Recorded {
        let inode: CatalogInode
        var effects = VolumeChange()
        var standing: Standing
        /// Nothing was changed here, but elsewhere: that stays.
        var isOverruled = false
    }

    /// Records the content, gives the vnode its new state and the queue its entry back.
    func finish(_ candidate: Candidate, _ content: Content, milliseconds: UInt64) throws {
        let vnode = candidate.vnode
        let result = try vnode.locked { () -> (Recorded, [Waiter])? in
            let isCurrent = vnode.state.writeGeneration == candidate.generation
            guard isCurrent, let staged = vnode.state.staged, staged.isUnpublished else {
                return nil
            }
            let facts = try facts(of: staged)
            let recorded: Recorded
            do {
                recorded = try record(candidate, content, facts)
            } catch Errno.noSuchFileOrDirectory {
                // Removed since it was looked at: it is submitted again if it gets a name.
                return nil
            }
            vnodes.record(vnode)
            if candidate.isCopy {
                vnode.state.copied = candidate.facts
                return (recorded, [])
            }
            return (recorded, settle(vnode, staged, recorded, content, milliseconds))
        }
        if candidate.isCopy { try? store.removeStaging(candidate.name) }
        guard let (recorded, waiting) = result else {
            abandon(content.extents)
            return unpin(vnode)
        }
        for waiter in waiting { waiter.proceed(nil) }
        switch recorded.standing {
        case .linked: break
        case .revived: vnodes.linked(vnode.ino)
        case .unlinked: unlinked(vnode.ino)
        }
        published(content.extents)
        if recorded.isOverruled || !recorded.effects.entries.isEmpty { notify(recorded.effects) }
        if candidate.isCopy {
            postpone(
                candidate.entry, milliseconds: Self.leaseRetryMilliseconds, .held(isCopied: true))
        } else {
            unpin(vnode)
        }
    }

    /// Became objects for a file that is written to again, or gone: the collector shall know of them.
    private func abandon(_ extents: [Extent]) {
        do {
            try catalog.perform { tx in
                for extent in extents where try store.objectLength(extent.root) == extent.length {
                    try tx.abandon(extent, at: Monotonic.wallMilliseconds)
                }
            }
        } catch { logger.warning("noting objects that no file has: \(error)") }
    }

    func facts(of staged: StagedFile) throws(StoreError) -> FileFacts {
        if case .sealed(_, let facts) = staged.phase { return facts }
        return try store.stagingFacts(staged.name)
    }

    /// The vnode after its row has the content. Under its lock.
    ///
    /// - Returns: who waited for the end of a split.
    private func settle(
        _ vnode: Vnode, _ staged: StagedFile, _ recorded: Recorded, _ content: Content,
        _ milliseconds: UInt64
    ) -> [Waiter] {
        if !recorded.isOverruled {
            let version = Version(recorded.inode, content)
            if vnode.state.pages == vnode.state.version?.stamp { vnode.state.pages = version.stamp }
            vnode.state.version = version
        }
        vnode.state.hashing = nil
        vnode.state.copied = nil
        vnode.state.publishing.published(hashingMilliseconds: milliseconds)
        if vnode.state.split != nil {
            let waiting = vnode.state.waiting ?? []
            vnode.state.waiting = nil
            vnode.state.split = nil
            vnode.state.unload()
            removeWhenDurable(staged)
            return waiting
        }
        var staged = staged
        if case .sealed(let extent, _) = staged.phase, vnode.state.isInUse {
            vnode.state.bytes = .object(extent, staged.file)
            removeWhenDurable(staged)
        } else {
            staged.phase = .published
            staged.original = nil
            vnode.state.bytes = .staging(staged)
            unloadIfIdle(vnode)
        }
        return []
    }

    // MARK: In the catalog

    private func record(
        _ candidate: Candidate, _ content: Content, _ facts: FileFacts
    ) throws -> Recorded {
        let ino = candidate.vnode.ino
        return try catalog.perform { tx in
            guard let before = try tx.inode(ino), let staging = try tx.staging(of: ino) else {
                throw Errno.noSuchFileOrDirectory
            }
            for extent in content.extents {
                // One that was here before, of another file, may have been dropped since.
                guard try store.objectLength(extent.root) == extent.length else {
                    throw ObjectVanished()
                }
                try tx.setContentState(extent, .stored, at: Monotonic.wallMilliseconds)
            }
            let standing: Standing = before.isLinked ? .linked : .unlinked
            var recorded = Recorded(inode: before, standing: standing)
            let present = try tx.content(of: ino)
            let isOther =
                before.contentStamp != staging.base && before.contentStamp.node != tx.node
            let began = candidate.vnode.state.version
            if isOther, began?.stamp == staging.base, began?.content == content {
                recorded.isOverruled = true
                recorded.effects.contents = [ino]
            } else if present != content || before.modified != facts.modified {
                let isPrecious = staging.isDoubtful && present.length > 0
                if present != content, isOther || isPrecious {
                    try keepOther(before, present, tx, &recorded.effects)
                }
                // As stat showed it: neither publishing nor the link is a change.
                let changed = max(before.changed, facts.changed)
                recorded = Recorded(
                    inode: try tx.setContent(
                        ino, content, modified: facts.modified, now: changed),
                    effects: recorded.effects, standing: standing)
            }
            // Opened for writing and not changed, it stays removed.
            if !before.isLinked, present != content, !recorded.isOverruled {
                try revive(ino, tx, &recorded.effects)
                recorded.standing = .revived
            }
            if candidate.isCopy {
                let base = recorded.isOverruled ? staging.base : recorded.inode.contentStamp
                try tx.setStaging(Staging(ino: ino, name: staging.name, base: base))
                // A copy is a version that others may see.
                try tx.endNewborn(ino)
            } else {
                try tx.clearStaging(ino)
            }
            return recorded
        }
    }

    /// Edited here and elsewhere, or the disk may have spoiled what was edited: this version keeps the
    /// name, the other stays beside it.
    private func keepOther(
        _ other: CatalogInode, _ content: Content, _ tx: Transaction,
        _ effects: inout VolumeChange
    ) throws {
        guard let link = try tx.links(of: other.ino).min(by: { $0.link < $1.link }) else { return }
        let node = other.contentStamp.node
        let name = try conflictName(
            original: link.name, node: try tx.nodeDescriptions()[node]?.name ?? "\(node)",
            stamp: other.contentStamp, id: other.id,
            taken: { try tx.child(named: $0, in: link.parent) })
        let copy = try tx.create(
            link.parent, name,
            NewInode(body: .file(content), mode: other.mode, owner: other.owner), now: .now)
        _ = try tx.setAttributes(
            copy.ino, AttributeChange(accessed: other.accessed, modified: other.modified),
            now: .now)
        for xattr in try tx.xattrNames(other.ino) {
            _ = try tx.setXattr(copy.ino, xattr, try tx.xattr(other.ino, xattr), now: .now)
        }
        effects.named(copy.ino, link.parent, name)
    }

    /// Removed elsewhere while it was edited here: the edit survives, under the name that it had,
    /// or, when the directory went too, in the top directory.
    private func revive(
        _ ino: InodeNumber, _ tx: Transaction, _ effects: inout VolumeChange
    ) throws {
        guard let lost = try tx.lostName(of: ino) else { throw Errno.noSuchFileOrDirectory }
        let parent = try tx.inode(lost.parent)?.isLinked == true ? lost.parent : .root
        var name = lost.name
        if try tx.child(named: name, in: parent) {
            guard let inode = try tx.inode(ino) else { throw Errno.noSuchFileOrDirectory }
            name = try conflictName(
                original: name, node: try tx.nodeDescriptions()[tx.node]?.name ?? "\(tx.node)",
                stamp: inode.contentStamp, id: inode.id,
                taken: { try tx.child(named: $0, in: parent) })
        }
        _ = try tx.link(ino, parent, name, now: .now)
        effects.named(ino, parent, name)
    }
}

extension Reader {
    fileprivate func child(
        named name: FileName, in parent: InodeNumber
    ) throws(Errno) -> Bool {
        do throws(Errno) {
            _ = try lookup(parent, name)
            return true
        } catch .noSuchFileOrDirectory { return false }
    }
}
