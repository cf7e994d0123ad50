public import SystemPackage
public import Volume

/// What became of one name that was to be as it was.
public enum RestoredEntry: Hashable, Sendable {
    case made(InodeNumber)
    case changed(InodeNumber)
    /// It was so already.
    case same(InodeNumber)
    /// A directory with entries stands there now, where something else did.
    case blocked

    public var ino: InodeNumber? {
        switch self {
        case .made(let ino), .changed(let ino), .same(let ino): ino
        case .blocked: nil
        }
    }
}

/// Makes names lead again to what they led to once: one run, in any number of operations.
///
/// Everything is done as an edit of today: fresh stamps, so that merges keep it; a fresh id for what
/// is made, because the old one is known to be removed; what is replaced stays in the history.
/// Nothing that came since under other names is touched.
public struct Restoring {
    private var effects = AppliedEffects()
    /// By id in the past: what was made or found for it. Links to one inode become that again.
    private var found: [LineageID: InodeNumber] = [:]
    /// The other way around: two files of the past are never put into one of today.
    private var taken: [InodeNumber: LineageID] = [:]
    /// Content that a commit has, by its stamp. What is done to the inode here makes it dirty, not that.
    private var committed: [InodeNumber: Stamp] = [:]
    /// What this operation added to `found` and `taken`.
    private var added: (found: [LineageID], taken: [InodeNumber]) = ([], [])

    public init() {}

    /// The operation has happened. Returns what the mount has to be told, as after an `apply`.
    public mutating func keep() -> AppliedEffects {
        defer { effects = AppliedEffects() }
        added = ([], [])
        return effects
    }

    /// Nothing of the operation has happened.
    public mutating func takeBack() {
        for id in added.found { found[id] = nil }
        for ino in added.taken { taken[ino] = nil }
        effects = AppliedEffects()
        added = ([], [])
    }

    /// Restores what a name led to: a directory without its entries.
    ///
    /// - Parameter isShared: whether it had other names: to be remembered.
    /// - Throws: EBUSY (no commit has yet what would be replaced), ENOENT (the directory is gone),
    ///   ENAMETOOLONG (too deep), EMLINK.
    public mutating func restore(
        _ record: Record, isShared: Bool, at name: FileName, in parent: InodeNumber,
        _ transaction: Transaction, now: Timestamp
    ) throws(Errno) -> RestoredEntry {
        let existing = try transaction.child(parent, name)
        if let ino = found[record.id], try transaction.inode(ino)?.isLinked == true {
            if existing?.ino == ino { return .same(ino) }
            guard try clear(existing, name, parent, transaction, now) else { return .blocked }
            _ = try transaction.link(ino, parent, name, now: now)
            note(parent, name, before: existing?.ino, after: ino)
            effects.attributes.insert(ino)
            return .changed(ino)
        }
        let outcome: RestoredEntry
        if let existing, try isToBeEdited(existing, record, transaction) {
            // A directory gets its attributes last: each entry changes its time.
            let isChanged =
                record.isDirectory ? false : try edit(existing, to: record, transaction, now)
            outcome = isChanged ? .changed(existing.ino) : .same(existing.ino)
        } else {
            guard try clear(existing, name, parent, transaction, now) else { return .blocked }
            let ino = try make(record, at: name, in: parent, transaction, now)
            note(parent, name, before: existing?.ino, after: ino)
            outcome = .made(ino)
        }
        if let ino = outcome.ino, !record.isDirectory {
            taken[ino] = record.id
            added.taken.append(ino)
            if isShared {
                found[record.id] = ino
                added.found.append(record.id)
            }
        }
        return outcome
    }

    /// Gives a directory whose entries were restored the attributes that it had.
    public mutating func finish(
        _ ino: InodeNumber, as record: Record, _ transaction: Transaction, now: Timestamp
    ) throws(Errno) {
        guard let row = try transaction.inode(ino), row.isLinked else { return }
        _ = try edit(row, to: record, transaction, now)
    }

    /// Whether what stands at the name goes on under it, and is not replaced: another name of it,
    /// which the past knows nothing of, would change with it.
    private func isToBeEdited(
        _ row: InodeRow, _ record: Record, _ transaction: Transaction
    ) throws(Errno) -> Bool {
        guard row.kind == record.content.value.body.kind else { return false }
        if row.isDirectory { return true }
        guard taken[row.ino] == nil else { return false }
        if row.id != record.id, row.linkCount > 1 {
            return try difference(transaction.record(of: row), record).isEmpty
        }
        if row.kind == .file { return true }
        return try transaction.body(of: row) == record.content.value.body
    }

    /// Takes away what stands at a name; false: a directory with entries.
    private mutating func clear(
        _ row: InodeRow?, _ name: FileName, _ parent: InodeNumber, _ transaction: Transaction,
        _ now: Timestamp
    ) throws(Errno) -> Bool {
        guard let row else { return true }
        try requireCommitted(row, transaction)
        if row.isDirectory {
            guard try transaction.isEmpty(row.ino) else { return false }
            _ = try transaction.rmdir(parent, name, now: now)
        } else {
            _ = try transaction.unlink(parent, name, now: now)
        }
        if row.isDirectory || row.linkCount == 1 { effects.orphaned.insert(row.ino) }
        effects.attributes.insert(row.ino)
        return true
    }

    /// What is replaced stays in the history: it has to be there first.
    private mutating func requireCommitted(
        _ row: InodeRow, _ transaction: Transaction
    ) throws(Errno) {
        guard !row.isDirectory, committed[row.ino] != row.contentStamp else { return }
        if try transaction.isDirty(row.id) { throw .resourceBusy }
        committed[row.ino] = row.contentStamp
    }

    private mutating func note(
        _ parent: InodeNumber, _ name: FileName, before: InodeNumber?, after: InodeNumber
    ) {
        effects.entries.append(.init(parent: parent, name: name, before: before, after: after))
        effects.attributes.insert(parent)
    }

    private func make(
        _ record: Record, at name: FileName, in parent: InodeNumber, _ transaction: Transaction,
        _ now: Timestamp
    ) throws(Errno) -> InodeNumber {
        let directory = try transaction.openDirectory(parent)
        let body = record.content.value.body
        if record.isDirectory,
            try transaction.ancestors(of: parent).count > Limits.directoryDepthMax
        {
            throw .fileNameTooLong
        }
        let stamp = try transaction.stamp()
        let new = NewInode(body: body, mode: record.mode.value, owner: record.owner.value)
        var row = transaction.newInode(
            InodeNumber(rawValue: try transaction.nextIdentity()), new, stamp: stamp, now: now)
        row.modified = record.content.value.modified
        row.linkCount = row.isDirectory ? 2 : 1
        if row.isDirectory { row.parent = parent }
        try transaction.insert(row, new)
        for (name, value) in record.xattrs {
            try transaction.writeXattr(row.ino, name, Stamped(value.value, stamp))
        }
        try transaction.insertEntry(
            directory, name, row.ino, transaction.nextLinkID(), stamp,
            cookie: try transaction.cookie())
        try transaction.entriesChanged(directory, links: row.isDirectory ? 1 : 0, stamp, now)
        try transaction.markDirty(row.id)
        transaction.count(nil, row)
        return row.ino
    }

    private struct Difference {
        var isContent: Bool
        var isBody: Bool
        var isMode: Bool
        var isOwner: Bool
        var xattrs: Set<[UInt8]>

        var isEmpty: Bool { !isContent && !isMode && !isOwner && xattrs.isEmpty }
    }

    private func difference(_ present: Record, _ record: Record) -> Difference {
        Difference(
            isContent: present.content.value != record.content.value,
            isBody: present.content.value.body != record.content.value.body,
            isMode: present.mode.value != record.mode.value,
            isOwner: present.owner.value != record.owner.value,
            xattrs: Set(present.xattrs.keys).union(record.xattrs.keys).filter {
                present.xattrs[$0]?.value != record.xattrs[$0]?.value
            })
    }

    /// Group by group: what is so already keeps its stamp.
    private mutating func edit(
        _ row: InodeRow, to record: Record, _ transaction: Transaction, _ now: Timestamp
    ) throws(Errno) -> Bool {
        var difference = difference(try transaction.record(of: row), record)
        if try transaction.staging(of: row.ino) != nil {
            // What is being written here has to meet another version when it is published.
            difference.isContent = true
            difference.isBody = true
        }
        guard !difference.isEmpty else { return false }
        let stamp = try transaction.stamp()
        var after = row
        if difference.isContent {
            after.contentStamp = stamp
            after.modified = record.content.value.modified
            after.size = record.content.value.body.size
        }
        if difference.isBody {
            try requireCommitted(row, transaction)
            try transaction.deleteBody(row.ino)
            try transaction.writeBody(row.ino, record.content.value.body)
            effects.contents.insert(row.ino)
        }
        if difference.isMode {
            after.mode = record.mode.value
            after.modeStamp = stamp
        }
        if difference.isOwner {
            after.owner = record.owner.value
            after.ownerStamp = stamp
        }
        for name in difference.xattrs {
            if let value = record.xattrs[name]?.value {
                try transaction.writeXattr(row.ino, name, Stamped(value, stamp))
            } else {
                try transaction.deleteXattr(row.ino, name)
            }
        }
        after.changed = now
        try transaction.update(after)
        transaction.count(row, after)
        try transaction.markDirty(row.id)
        effects.attributes.insert(row.ino)
        return true
    }
}

extension Reader {
    public func hasNoEntries(_ directory: InodeNumber) throws(Errno) -> Bool {
        try isEmpty(directory)
    }

    /// What a name leads to; nil: nothing.
    public func find(_ name: FileName, in parent: InodeNumber) throws(Errno) -> InodeRow? {
        try child(parent, name)
    }
}
