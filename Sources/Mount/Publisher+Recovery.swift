import Catalog
import Logging
import Store
import SystemPackage
import Volume

// What a crash left is brought in line with the catalog, before anybody opens a file.
extension Publisher {
    /// Rows looked at in one query.
    private static let recoveredRowsMax = 1000

    func recover() throws {
        try reapOrphans()
        try takeOnUnpublished()
        try forgetPartials()
    }

    /// What was open without a name.
    private func reapOrphans() throws {
        while true {
            let orphans = try catalog.read { try $0.orphans(limit: Self.recoveredRowsMax) }
            // What an orphaned directory held is an orphan next.
            let reaped = try catalog.perform { tx in
                try orphans.filter { try tx.reap($0) }.count
            }
            if reaped == 0 { return }
        }
    }

    /// Every staging file that a row names is published; the others are nobody's.
    private func takeOnUnpublished() throws {
        var named: Set<StagingName> = []
        var sealed: [FileIdentity: Vnode] = [:]
        var after = InodeNumber(rawValue: 0)
        while true {
            let rows = try catalog.read {
                try $0.unpublished(after: after, limit: Self.recoveredRowsMax)
            }
            guard let last = rows.last else { break }
            for row in rows {
                if let name = StagingName(row.name), try takeOn(row, name, &sealed) {
                    named.insert(name)
                } else {
                    logger.error(
                        "what was written to inode \(row.ino.rawValue) is not in staging/ any more")
                    try catalog.perform { try $0.clearStaging(row.ino) }
                }
            }
            after = last.ino
        }
        // Linked as objects when the crash came: nothing may write to them.
        for (identity, extent) in try store.objects(Set(sealed.keys)) {
            guard let vnode = sealed[identity] else { continue }
            vnode.locked {
                guard var staged = vnode.state.staged,
                    let facts = try? store.stagingFacts(staged.name)
                else { return }
                staged.seal(extent, facts, users.use(extent.root, for: vnode.nodeid))
                vnode.state.bytes = .staging(staged)
            }
        }
        for name in try store.listStaging() where !named.contains(name) {
            try store.removeStaging(name)
        }
    }

    /// - Returns: false when the file is gone.
    private func takeOn(
        _ row: Staging, _ name: StagingName, _ sealed: inout [FileIdentity: Vnode]
    ) throws -> Bool {
        let facts: FileFacts
        do throws(StoreError) { facts = try store.stagingFacts(name) } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return false
        }
        let (inode, content) = try catalog.read { reader in
            (try reader.inode(row.ino), try reader.content(of: row.ino))
        }
        guard let inode else { return false }
        if row.isDoubtful { store.distrust(name) }
        var staged = StagedFile(name: name)
        let split = try store.interruptedSplit(name)
        let vnode = vnodes.pin(row.ino)
        if let encoded = row.overlay {
            guard var map = Overlay(encoded: encoded) else { throw Errno.ioError }
            map.cut(to: facts.size)
            staged.overlay = StagedOverlay(
                map: map, uses: map.bases.map { users.use($0.root, for: vnode.nodeid) },
                isRowWider: map.encoded != encoded)
        }
        vnode.locked {
            vnode.state.bytes = .staging(staged)
            vnode.state.version = Version(inode, content)
            if let split {
                vnode.state.split = split
                vnode.state.waiting = []
            }
            submitIfClosed(vnode)
        }
        unpin(vnode)
        if facts.links > 1 { sealed[facts.identity] = vnode }
        return true
    }

    /// Verified pieces count only with the file that they are in.
    private func forgetPartials() throws {
        var present = Set(try store.listPartial())
        let known = try catalog.read { try $0.contents(in: .partial, limit: .max) }
        // A kill came between the row of a damaged object and its move to `partial/`.
        for entry in known where !present.contains(entry.extent.root) {
            if try store.setAside(entry.extent) { present.insert(entry.extent.root) }
        }
        let lost = known.filter { !present.contains($0.extent.root) }
        if !lost.isEmpty {
            try catalog.perform { tx in
                for entry in lost {
                    try tx.setContentState(
                        entry.extent, .absent, at: Monotonic.wallMilliseconds)
                }
            }
        }
        let wanted = Set(known.map(\.extent.root))
        for root in present where !wanted.contains(root) { try store.removePartial(root) }
    }
}
