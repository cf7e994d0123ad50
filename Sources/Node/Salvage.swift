import Catalog
import History
import Logging
import Mount
import Store
import SystemPackage
import Volume

/// Gives a catalog that was lost, damaged or replaced by an older copy what the history, `objects/` and
/// `staging/` know.
///
/// The commits have all names, records and inode numbers; what no commit had yet is lost with the
/// catalog, apart from bytes that are still in `staging/`: those become files beside the committed
/// ones, never in their place, for nothing says whether they are whole. Access times are lost too.
struct Salvage {
    /// Objects looked up in one operation.
    private static let batchMax = 512
    /// Name of what no commit knows. (Not nil: it is a name.)
    private static let nameless = FileName("recovered")!

    let root: FilePath
    let catalog: Catalog
    let history: History
    let store: Store
    let node: NodeID
    /// Of this node, for names.
    let name: String
    let logger: Logger

    /// The history is ahead: the catalog is an older copy, or lost its last changes.
    func isOutdated() throws -> Bool {
        guard let main = try history.head(), let applied = try catalog.read({ try $0.applied() }),
            history.graph.contains(applied)
        else { return false }
        return try !history.graph.isAncestor(main, of: applied)
    }

    /// Fills an empty catalog, or begins anew. Until it is done the catalog has no settings.
    ///
    /// - Parameter description: of this node, if it joins: for its first commit.
    func rebuild(
        from head: ObjectID, describing description: NodeDescription? = nil
    ) throws -> VolumeSettings {
        let tree = try VolumeTree(reading: history.graph.tree(of: head), from: history)
        try catalog.load(tree, commit: head, from: history)
        try takeStock(owner: tree.settings.owner)
        try catalog.perform { tx in
            try tx.setSettings(tree.settings)
            if let description { try tx.describe(node, as: description) }
        }
        try catalog.flush()
        return tree.settings
    }

    /// The last commit that was made here: `main`, or what a crash kept from becoming it.
    func newestCommit() throws -> ObjectID? {
        guard var newest = try history.head() else { return nil }
        let loose = try history.looseCommits()
        while let next = try loose.first(where: { commit in
            guard commit.parents == [newest] else { return false }
            return try CommitMessage(decoding: commit.message).kind == .change(node)
        }) {
            try history.restore(next.id)
            newest = next.id
        }
        return newest
    }

    /// What `objects/` and `staging/` hold.
    func takeStock(owner: Owner) throws {
        try countObjects()
        try adoptStaging(owner: owner)
        try catalog.flush()
    }

    // MARK: Objects

    /// What is here is a copy, and what is not here is none.
    private func countObjects() throws {
        var present: [ContentRoot: UInt64] = [:]
        try store.forEachObject { (root, length) throws(StoreError) in
            present[root] = length
            return true
        }
        let known = try catalog.read {
            try $0.contents(in: .stored, limit: .max) + $0.contents(in: .cached, limit: .max)
        }
        let gone = known.map(\.extent).filter { present[$0.root] != $0.length }
        let complete = Set(known.map(\.extent)).subtracting(gone)
        let found = present.map { Extent(root: $0.key, length: $0.value) }
            .filter { !complete.contains($0) }
        try inBatches(gone) { tx, extent in
            try tx.setContentState(extent, .absent, at: Monotonic.wallMilliseconds)
        }
        try inBatches(found) { tx, extent in
            guard try tx.references(to: extent.root) > 0 else {
                return try tx.abandon(extent, at: Monotonic.wallMilliseconds)
            }
            // A file says another length: by that it is nothing.
            guard try tx.content(extent.root)?.extent == extent else { return }
            try tx.setContentState(extent, .stored, at: Monotonic.wallMilliseconds)
        }
    }

    private func inBatches(
        _ extents: [Extent], _ body: (Transaction, Extent) throws -> Void
    ) throws {
        for start in stride(from: 0, to: extents.count, by: Self.batchMax) {
            try catalog.perform { tx in
                for extent in extents[start...].prefix(Self.batchMax) { try body(tx, extent) }
            }
        }
    }

    // MARK: Staging files

    private func adoptStaging(owner: Owner) throws {
        let named = Set(try catalog.read { try $0.unpublished(limit: .max) }.map(\.name))
        for staging in try store.listStaging().sorted() where !named.contains("\(staging)") {
            let facts = try store.stagingFacts(staging)
            let bases = try store.stagingBases(staging)
            let extents = try store.objects(Set(bases.map(\.identity) + [facts.identity]))
            if try !isCommitted(staging, facts, bases, extents[facts.identity]) {
                try adopt(staging, facts, bases.map { extents[$0.identity] }, owner: owner)
            }
        }
    }

    /// Whether the file has nothing that its inode has not. The start of the publisher removes it.
    private func isCommitted(
        _ staging: StagingName, _ facts: FileFacts, _ bases: [FileFacts], _ object: Extent?
    ) throws -> Bool {
        guard facts.size > 0 else { return true }
        let (inode, content) = try catalog.read { reader in
            (try reader.inode(staging.ino), try reader.content(of: staging.ino))
        }
        guard let inode, inode.kind == .file else { return false }
        switch content {
        case .inline(let bytes): return try bases.isEmpty && store.holds(staging, bytes)
        case .extents(let extents):
            if extents == [object].compactMap(\.self) { return true }
            let isUntouched = bases.isEmpty ? inode.modified == facts.modified : facts.blocks == 0
            return inode.size == facts.size && isUntouched
        }
    }

    /// Gives the bytes a name beside the file that they were to become, or in the top directory.
    private func adopt(
        _ staging: StagingName, _ facts: FileFacts, _ bases: [Extent?], owner: Owner
    ) throws {
        let known = bases.compactMap(\.self)
        guard known.count == bases.count else {
            let names = (0..<bases.count).map { "staging/\(staging).base\($0)" }
            let place = try Damaged.setAside(["staging/\(staging)"] + names, of: root)
            logger.error(
                "what was being written to inode \(staging.ino.rawValue) cannot be put together without the catalog; the parts are in \(place ?? root)"
            )
            return
        }
        let overlay = Overlay(over: known, keeping: .max)
        let name = try catalog.perform { tx in
            let inode = try tx.inode(staging.ino)
            let link = try tx.links(of: staging.ino).min { $0.link < $1.link }
            let parent = link?.parent ?? .root
            let original = link?.name ?? Self.nameless
            let milliseconds = UInt64(max(0, facts.modified.seconds)) * 1000
            let name = try conflictName(
                original: original, node: self.name,
                stamp: Stamp(milliseconds: milliseconds, counter: 0, node: node),
                id: LineageID(rawValue: staging.ino.rawValue),
                taken: { name in
                    do throws(Errno) {
                        _ = try tx.lookup(parent, name)
                        return true
                    } catch .noSuchFileOrDirectory { return false }
                })
            let made = try tx.create(
                parent, name,
                NewInode(
                    body: .file(.inline([])), mode: inode?.mode ?? 0o600,
                    owner: inode?.owner ?? owner), now: .now)
            try tx.setStaging(
                Staging(
                    ino: made.ino, name: "\(staging)", base: made.contentStamp,
                    overlay: known.isEmpty ? nil : overlay.encoded, isNewborn: true))
            return name
        }
        logger.warning("what was being written to inode \(staging.ino.rawValue) is in \(name) now")
    }
}
