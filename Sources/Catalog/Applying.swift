internal import Glibc
internal import Synchronization
internal import SystemPackage
public import Volume

/// What the mount must tell the kernel after `apply`, and replication the swarm.
public struct AppliedEffects: Hashable, Sendable {
    public struct EntryChange: Hashable, Sendable {
        public var parent: InodeNumber
        public var name: FileName
        public var before: InodeNumber?
        public var after: InodeNumber?

        public init(
            parent: InodeNumber, name: FileName, before: InodeNumber?, after: InodeNumber?
        ) {
            self.parent = parent
            self.name = name
            self.before = before
            self.after = after
        }
    }

    /// Whose attributes, link count or extended attributes changed. New inodes are not in it.
    public var attributes: Set<InodeNumber> = []
    /// Files whose content changed.
    public var contents: Set<InodeNumber> = []
    /// Names that lead elsewhere now.
    public var entries: [EntryChange] = []
    /// Inodes that are linked nowhere now and kept: to be reaped when they are closed. What is being
    /// written here has a `lostName`, to which publishing leads it back.
    public var orphaned: Set<InodeNumber> = []
    /// Inodes that are gone.
    public var removed: Set<InodeNumber> = []
    /// Row numbers (`Holding.number`) of the contents that were not known before.
    public var newContents: ClosedRange<Int64>?
}

/// The commit changes what was changed here as well and is not committed yet in a way that only a
/// merge can settle: commit, merge, and apply the outcome. Nothing has been applied, or of a large change
/// some of what concerns one inode each.
public struct ApplyConflict: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String

    init(_ description: String) { self.description = description }
}

extension Catalog {
    /// Operations wait for no longer than this for the parts of an apply that nobody can see yet.
    private static let applyChunk = Duration.milliseconds(2)
    /// Between those parts, so that whoever waits gets the catalog: its lock is not fair. As long as
    /// somebody comes in each such pause the next follows: a listing is a thousand requests, one by one.
    private static let chunkPauseMicroseconds: UInt32 = 500
    private static let chunkPausesMax = 8

    /// Makes the rows represent `commit`; `difference` is from the commit applied to this one.
    ///
    /// What is not reachable yet (new inodes, the inside of new directories) is written in chunks
    /// between which operations go on, and of a large change what concerns one inode alone
    /// (`applyAhead`); the rest changes in one operation, which sets `applied`. If that throws, the
    /// rows that cannot be reached are taken back: the next difference may want them elsewhere. If the
    /// process dies before it, they are orphans, which a start reaps.
    ///
    /// One at a time.
    ///
    /// - Parameter isPinned: whether an inode is open: then it is kept when its last link goes, as is
    ///   one with a staging file. Called with the catalog's lock held; must not call the catalog.
    /// - Parameter ahead: is told what becomes visible before the end, part by part, with no lock held.
    /// - Throws: `ApplyConflict`; EIO when the difference contradicts itself or the rows.
    public func apply(
        _ difference: TreeDifference, commit: ObjectID,
        isPinned: @escaping (InodeNumber) -> Bool, ahead: (AppliedEffects) -> Void = { _ in }
    ) throws -> AppliedEffects {
        let lastContent = try read { try $0.lastContentNumber() }
        let clock = ContinuousClock()
        // Here only where taking them back failed as well.
        try discardUnseen(clock)
        do {
            var rest = difference
            let isLarge = difference.records.count + difference.places.count > appliedAtOnceMax
            if isLarge { try checkAhead(difference, clock) }
            try insertUnseen(&rest, isPinned, clock, ahead)
            let newborn = unseen.withLock(\.self)
            try fillUnseen(&rest, newborn: newborn, clock)
            if isLarge {
                try applyAhead(&rest, newborn: newborn, isPinned, clock, ahead)
            }
            let effects = try perform { transaction in
                var application = Application(transaction, isPinned, newborn: newborn)
                var effects = try application.run(rest, commit: commit)
                let last = try transaction.lastContentNumber()
                if last > lastContent { effects.newContents = lastContent + 1...last }
                return effects
            }
            unseen.withLock { $0 = [] }
            return effects
        } catch {
            try? discardUnseen(clock)
            throw error
        }
    }

    /// Removes what is in `unseen`, whose rows lead to each other alone: the links first.
    private func discardUnseen(_ clock: ContinuousClock) throws {
        let ids = unseen.withLock(\.self).sorted()
        try inChunks(ids, clock) { application, id in
            guard let row = try application.transaction.inode(id: id), row.isDirectory else {
                return
            }
            try application.transaction.detachAll(in: row.ino)
        }
        try inChunks(ids, clock) { application, id in
            guard let row = try application.transaction.inode(id: id) else { return }
            try application.transaction.reap(row.ino)
        }
        unseen.withLock { $0 = [] }
    }

    /// Calls the body for each, in operations that take `applyChunk` or little more.
    ///
    /// - Parameter done: is told what became visible, operation by operation.
    func inChunks<Item>(
        _ items: [Item], _ clock: ContinuousClock,
        _ isPinned: @escaping (InodeNumber) -> Bool = { _ in false },
        _ done: (AppliedEffects) -> Void = { _ in },
        _ body: (inout Application, Item) throws -> Void
    ) throws {
        var index = 0
        while index < items.count {
            if index > 0 { letOthers() }
            let deadline = clock.now + Self.applyChunk
            let effects = try perform { transaction in
                var application = Application(transaction, isPinned)
                repeat {
                    try body(&application, items[index])
                    index += 1
                } while index < items.count && clock.now < deadline
                return application.finished
            }
            try endScatteredBatch()
            if !effects.isEmpty { done(effects) }
        }
    }

    private func letOthers() {
        var before = entered
        for _ in 0..<Self.chunkPausesMax {
            usleep(Self.chunkPauseMicroseconds)
            let now = entered
            guard now != before else { return }
            before = now
        }
    }

    /// Inserts the inodes that there are no rows for, linked nowhere, and takes them out of `rest`.
    private func insertUnseen(
        _ rest: inout TreeDifference, _ isPinned: @escaping (InodeNumber) -> Bool,
        _ clock: ContinuousClock, _ done: (AppliedEffects) -> Void
    ) throws {
        let records = rest.records.values.compactMap(\.self).sorted { $0.id < $1.id }
        try inChunks(records, clock, isPinned, done) { application, record in
            // A record removed here and not committed yet is settled with the rest.
            guard try application.transaction.inode(id: record.id) == nil,
                try !application.transaction.isDirty(record.id)
            else { return }
            try application.insert(record)
            unseen.withLock { _ = $0.insert(record.id) }
        }
        for id in unseen.withLock(\.self) { rest.records.removeValue(forKey: id) }
    }

    /// Links new inodes into new directories: places that nobody can reach yet.
    private func fillUnseen(
        _ rest: inout TreeDifference, newborn: Set<LineageID>, _ clock: ContinuousClock
    ) throws {
        let entries = rest.places.compactMap { place, link in
            link.map { (place: place, link: $0) }
        }.filter {
            newborn.contains($0.place.directory) && newborn.contains($0.link.target)
                && $0.place.directory != .root
        }.sorted { $0.place < $1.place }
        try inChunks(entries, clock) { application, entry in
            try application.set(entry.place, entry.link)
        }
        for entry in entries { rest.places.removeValue(forKey: entry.place) }
    }
}

/// One run of `apply` inside one operation.
///
/// Nothing here marks anything dirty: the rows become what a commit says. What is dirty and touched by
/// the difference is either merged group by group, where the later stamp decides, or refused.
struct Application {
    let transaction: Transaction
    private let isPinned: (InodeNumber) -> Bool
    /// Inserted by the operations before this one.
    private let newborn: Set<LineageID>
    private var effects = AppliedEffects()
    private var directories: [LineageID: InodeNumber] = [:]
    private var movedDirectories: Set<InodeNumber> = []
    /// Inodes inserted in this operation.
    private var inserted: Set<InodeNumber> = []
    /// Names that lead elsewhere: they keep their offset for listings under way. And where in
    /// `effects.entries` they are.
    private var replaced: [Place: (cookie: UInt64, change: Int)] = [:]

    init(
        _ transaction: Transaction, _ isPinned: @escaping (InodeNumber) -> Bool,
        newborn: Set<LineageID> = []
    ) {
        self.transaction = transaction
        self.newborn = newborn
        self.isPinned = isPinned
    }

    mutating func run(
        _ difference: TreeDifference, commit: ObjectID
    ) throws -> AppliedEffects {
        try checkDirty(difference)
        let records = difference.records.sorted { $0.key < $1.key }
        for case (let id, let record?) in records { try set(id, record) }
        let places = difference.places.sorted { $0.key < $1.key }
        for (place, link) in places { try remove(place, unless: link) }
        for case (let place, let link?) in places { try set(place, link) }
        for case (let id, nil) in records { try remove(id) }
        try checkMoved()
        try transaction.setTrees(difference.trees)
        if let settings = difference.settings { try transaction.setSettings(settings) }
        if let horizon = difference.horizon { try transaction.setHorizon(horizon) }
        for (node, description) in difference.nodes.sorted(by: { $0.key < $1.key }) {
            try transaction.setNode(node, description)
        }
        try transaction.setApplied(commit)
        return finished
    }

    /// What this has changed so far.
    var finished: AppliedEffects {
        var effects = effects
        effects.attributes.subtract(inserted)
        effects.attributes.subtract(effects.removed)
        effects.contents.subtract(effects.removed)
        return effects
    }

    /// Before anything changes: what rows and marks mean together is lost afterwards.
    private func checkDirty(_ difference: TreeDifference) throws {
        for (place, link) in difference.places { try check(place, link) }
        for case (let id, nil) in difference.records { try check(id, nil) }
    }

    func check(_ place: Place, _ link: Link?) throws {
        if try transaction.isDirty(place) {
            throw ApplyConflict(
                "\(place.name) in \(place.directory.rawValue) changed here as well")
        }
        guard let link else { return }
        if try isRemovedHere(place.directory) {
            throw ApplyConflict(
                "directory \(place.directory.rawValue) was removed here and got entries elsewhere"
            )
        }
        if try isRemovedHere(link.target) {
            throw ApplyConflict(
                "inode \(link.target.rawValue) was removed here and moved elsewhere")
        }
    }

    func check(_ id: LineageID, _ record: Record?) throws {
        guard try transaction.isDirty(id) else { return }
        guard let row = try transaction.inode(id: id), row.isLinked else {
            guard record == nil || newborn.contains(id) else {
                throw ApplyConflict("inode \(id.rawValue) was removed here and changed elsewhere")
            }
            return
        }
        guard let record else {
            throw ApplyConflict("inode \(id.rawValue) was removed elsewhere and changed here")
        }
        if row.kind == record.content.value.body.kind { _ = try merge(record, into: row) }
    }

    /// Removed and in no commit without it yet, whether or not the row is there still: it is while the
    /// inode is open. What is done to such a row would go with the next commit, and elsewhere too.
    private func isRemovedHere(_ id: LineageID) throws(Errno) -> Bool {
        guard !newborn.contains(id), try transaction.isDirty(id) else { return false }
        return try transaction.inode(id: id)?.isLinked != true
    }

    // MARK: - Records

    private mutating func set(_ id: LineageID, _ record: Record) throws {
        try transaction.observe(record.newestStamp)
        guard try !isRemovedHere(id) else {
            throw ApplyConflict("inode \(id.rawValue) was removed here and changed elsewhere")
        }
        var present = try transaction.inode(id: id)
        if let row = present, try isToBeLeftBehind(row) {
            try transaction.giveFreshID(row)
            present = nil
        }
        guard let found = present else {
            try insert(record)
            return
        }
        guard found.kind == record.content.value.body.kind else {
            throw ApplyConflict("inode \(id.rawValue) changed its kind")
        }
        let row = found.ino == record.ino ? found : try renumber(found, to: record)
        let isDirty = try transaction.isDirty(id)
        let merged = isDirty ? try merge(record, into: row) : record
        try write(merged, over: row)
    }

    /// Removed here while it was being written, and alive elsewhere: what is written into it is seen by
    /// who has it open alone, and goes with the last close. Its id is that of the file that others
    /// have. What was removed elsewhere is another matter: its `lostName` leads it back.
    private func isToBeLeftBehind(_ row: InodeRow) throws(Errno) -> Bool {
        guard !row.isLinked, !row.isDirectory, try transaction.staging(of: row.ino) != nil else {
            return false
        }
        return try transaction.lostName(of: row.ino) == nil
    }

    /// `links` and `parent`: of the names that lead to it, what is known already.
    @discardableResult
    mutating func insert(
        _ record: Record, links: UInt32 = 0, parent: InodeNumber? = nil
    ) throws -> InodeNumber {
        try transaction.observe(record.newestStamp)
        let ino = try freeNumber(for: record)
        var row = Self.row(record, ino: ino)
        row.linkCount = links
        if record.id == .root {
            row.linkCount = 2
            row.parent = .root
        } else if row.isDirectory, let parent {
            row.linkCount = 2
            row.parent = parent
        }
        try transaction.insert(row)
        try transaction.writeBody(ino, record.content.value.body)
        for (name, value) in record.xattrs.sorted(by: { $0.key.lexicographicallyPrecedes($1.key) })
        {
            try transaction.writeXattr(ino, name, value)
        }
        transaction.count(nil, row)
        inserted.insert(ino)
        return ino
    }

    private static func row(_ record: Record, ino: InodeNumber) -> InodeRow {
        let body = record.content.value.body
        let changed = Timestamp(record.newestStamp)
        return InodeRow(
            ino: ino, id: record.id, kind: body.kind, mode: record.mode.value,
            owner: record.owner.value, major: body.device.major, minor: body.device.minor,
            linkCount: 0, size: body.size, accessed: record.content.value.modified,
            modified: record.content.value.modified, changed: changed,
            contentStamp: record.content.stamp, modeStamp: record.mode.stamp,
            ownerStamp: record.owner.stamp, parent: nil)
    }

    /// Both changed: group by group the later stamp, except where that would lose content.
    private func merge(_ theirs: Record, into row: InodeRow) throws -> Record {
        var merged = try transaction.record(of: row)
        if !row.isDirectory, merged.content.stamp != theirs.content.stamp {
            throw ApplyConflict("the content of inode \(row.id.rawValue) changed here as well")
        }
        guard Set(merged.xattrs.keys) == Set(theirs.xattrs.keys) else {
            throw ApplyConflict("attributes of inode \(row.id.rawValue) came or went here as well")
        }
        if theirs.content.stamp > merged.content.stamp { merged.content = theirs.content }
        if theirs.mode.stamp > merged.mode.stamp { merged.mode = theirs.mode }
        if theirs.owner.stamp > merged.owner.stamp { merged.owner = theirs.owner }
        merged.xattrs.merge(theirs.xattrs) { $1.stamp > $0.stamp ? $1 : $0 }
        return merged
    }

    mutating func write(_ record: Record, over row: InodeRow) throws {
        let before = try transaction.record(of: row)
        guard before != record else { return }
        if before.content.value.body != record.content.value.body {
            try replaceBody(of: row.ino, before, record)
        }
        var after = Self.row(record, ino: row.ino)
        after.linkCount = row.linkCount
        after.parent = row.parent
        after.accessed = row.accessed
        try transaction.update(after)
        transaction.count(row, after)
        for name in before.xattrs.keys where record.xattrs[name] == nil {
            try transaction.deleteXattr(row.ino, name)
        }
        for (name, value) in record.xattrs where before.xattrs[name] != value {
            try transaction.writeXattr(row.ino, name, value)
        }
        effects.attributes.insert(row.ino)
    }

    private mutating func replaceBody(
        of ino: InodeNumber, _ before: Record, _ after: Record
    ) throws {
        if before.content.value.body.kind == .file { effects.contents.insert(ino) }
        try transaction.deleteBody(ino)
        try transaction.writeBody(ino, after.content.value.body)
    }

    mutating func remove(_ id: LineageID) throws {
        guard let row = try transaction.inode(id: id) else { return }
        if row.isDirectory, try !transaction.isEmpty(row.ino) {
            throw ApplyConflict(
                "directory \(id.rawValue) was removed elsewhere and has entries here")
        }
        guard !row.isLinked else {
            throw ApplyConflict("inode \(id.rawValue) was removed elsewhere and is linked here")
        }
        try drop(row)
    }

    /// The row of an inode that lost its last link.
    private mutating func drop(_ row: InodeRow) throws {
        if try isKept(row.ino) { return try orphan(row.ino) }
        try transaction.delete(row)
        effects.removed.insert(row.ino)
    }

    /// Whether the row outlives its last link: it is open, or bytes of it are nowhere else.
    private func isKept(_ ino: InodeNumber) throws(Errno) -> Bool {
        if isPinned(ino) { return true }
        return try transaction.staging(of: ino) != nil
    }

    /// In this operation, so that a crash keeps the edit and the way back to its name together.
    private mutating func orphan(_ ino: InodeNumber) throws(Errno) {
        effects.orphaned.insert(ino)
        guard try transaction.staging(of: ino) != nil,
            let lost = effects.entries.first(where: { $0.before == ino })
        else { return }
        try transaction.setLostName(of: ino, LostName(parent: lost.parent, name: lost.name))
    }

    // MARK: - InodeRow numbers

    /// The record's own number, unless another inode has it here: of the two the one with the later
    /// stamp gets a new one.
    private mutating func freeNumber(for record: Record) throws -> InodeNumber {
        guard let other = try transaction.inode(record.ino) else { return record.ino }
        let theirs = (record.newestStamp, record.id)
        let ours = (try transaction.record(of: other).newestStamp, other.id)
        if ours > theirs, try !isKept(other.ino) {
            _ = try move(other, to: InodeNumber(rawValue: try transaction.nextIdentity()))
            try transaction.markDirty(other.id)
            return record.ino
        }
        try transaction.markDirty(record.id)
        return InodeNumber(rawValue: try transaction.nextIdentity())
    }

    /// The inode goes on under another number: an editor's save elsewhere, where a new file went on
    /// under the old one's id, or a renumbering.
    private mutating func renumber(_ row: InodeRow, to record: Record) throws -> InodeRow {
        if let other = try transaction.inode(record.ino) {
            guard try !other.isLinked && !isKept(other.ino) else { return row }
            try drop(other)
        }
        guard try !row.isDirectory && isKept(row.ino) else {
            return try move(row, to: record.ino)
        }
        // Whoever has the old one open keeps it, as if it had been replaced by a rename.
        var new = row
        new.ino = record.ino
        var old = row
        old.linkCount = 0
        try transaction.update(old)
        try transaction.giveFreshID(old)
        try transaction.insert(new)
        try transaction.writeBody(new.ino, transaction.body(of: row))
        for (name, value) in try transaction.xattrs(of: row.ino) {
            try transaction.writeXattr(new.ino, name, value)
        }
        try repoint(from: row.ino, to: new.ino)
        try orphan(row.ino)
        inserted.insert(new.ino)
        return new
    }

    private mutating func move(_ row: InodeRow, to ino: InodeNumber) throws -> InodeRow {
        try repoint(from: row.ino, to: ino)
        let connection = transaction.connection
        try connection.run("UPDATE inode SET ino = ? WHERE ino = ?", ino, row.ino)
        try connection.run("UPDATE body SET ino = ? WHERE ino = ?", ino, row.ino)
        try connection.run("UPDATE extent SET ino = ? WHERE ino = ?", ino, row.ino)
        try connection.run("UPDATE xattr SET ino = ? WHERE ino = ?", ino, row.ino)
        try connection.run("UPDATE staging SET ino = ? WHERE ino = ?", ino, row.ino)
        if row.isDirectory {
            try connection.run("UPDATE dentry SET parent = ? WHERE parent = ?", ino, row.ino)
            try connection.run(
                "UPDATE inode SET parent = ? WHERE parent = ? AND kind = 2", ino, row.ino)
        }
        directories[row.id] = nil
        effects.removed.insert(row.ino)
        inserted.insert(ino)
        var moved = row
        moved.ino = ino
        return moved
    }

    private mutating func repoint(from old: InodeNumber, to new: InodeNumber) throws {
        for link in try transaction.links(of: old) {
            effects.entries.append(
                .init(parent: link.parent, name: link.name, before: old, after: new))
        }
        try transaction.connection.run("UPDATE dentry SET ino = ? WHERE ino = ?", new, old)
    }

    // MARK: - Places

    mutating func directory(_ id: LineageID) throws -> InodeNumber? {
        if let known = directories[id] { return known }
        guard let row = try transaction.inode(id: id), row.isDirectory else { return nil }
        directories[id] = row.ino
        return row.ino
    }

    mutating func remove(_ place: Place, unless link: Link?) throws {
        guard let parent = try directory(place.directory),
            let old = try transaction.findEntry(parent, place.name)
        else { return }
        // The same inode: only link id or stamp change, or it is replaced by itself.
        if let link, try transaction.inode(id: link.target)?.ino == old.target { return }
        try transaction.detach(parent, place.name, old.target)
        effects.entries.append(
            .init(parent: parent, name: place.name, before: old.target, after: nil))
        effects.attributes.formUnion([parent, old.target])
        if link != nil { replaced[place] = (old.cookie, effects.entries.count - 1) }
    }

    mutating func set(_ place: Place, _ link: Link) throws {
        try transaction.observe(link.stamp)
        guard let parent = try directory(place.directory) else {
            throw ApplyConflict("directory \(place.directory.rawValue) is gone here")
        }
        guard let target = try transaction.inode(id: link.target) else {
            throw ApplyConflict("inode \(link.target.rawValue) is gone here")
        }
        if try transaction.findEntry(parent, place.name) != nil {
            return try transaction.rewriteEntry(
                parent, place.name, target.ino, link.id, link.stamp)
        }
        let earlier = replaced[place]
        let cookie = try earlier?.cookie ?? transaction.cookie()
        try transaction.attach(parent, place.name, target.ino, link, cookie: cookie)
        if target.isDirectory { movedDirectories.insert(target.ino) }
        effects.attributes.insert(parent)
        // Else it is new, or has been detached in this operation.
        if target.isLinked { effects.attributes.insert(target.ino) }
        if let earlier {
            effects.entries[earlier.change].after = target.ino
        } else {
            effects.entries.append(
                .init(parent: parent, name: place.name, before: nil, after: target.ino))
        }
    }

    /// Moves here and elsewhere may close a circle, or lead below what was removed here.
    private func checkMoved() throws {
        for ino in movedDirectories {
            guard try transaction.inode(ino) != nil else { continue }
            guard try transaction.ancestors(of: ino).last == .root else {
                throw ApplyConflict("directory \(ino.rawValue) would hang from nothing")
            }
        }
    }
}
