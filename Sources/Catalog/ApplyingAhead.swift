internal import Synchronization
internal import Volume

/// What a large change says of one inode alone is applied ahead of the rest, in parts between which
/// operations go on: a record, a new file with all its names, the removal of a file with all its
/// names. What is dirty here waits for the rest, and so do moves and the names of directories.
///
/// For that while the rows are ahead of `applied`. Should the rest be refused, or a crash come, this
/// does no harm: the next commit has of it what was changed here as well only, under the stamps that
/// the other side has, so that a merge finds it equal, and the next apply finds it done.
extension Catalog {
    /// Everything that could be refused now is refused before anything is applied.
    func checkAhead(_ difference: TreeDifference, _ clock: ContinuousClock) throws {
        guard try read({ try $0.isDirty() }) else { return }
        try inChunks(Array(difference.places), clock) { try $0.check($1.key, $1.value) }
        try inChunks(Array(difference.records), clock) { try $0.check($1.key, $1.value) }
    }

    /// Takes out of `rest` what it has applied.
    ///
    /// - Parameter done: is told what became visible, part by part.
    func applyAhead(
        _ rest: inout TreeDifference, newborn: Set<LineageID>,
        _ isPinned: @escaping (InodeNumber) -> Bool, _ clock: ContinuousClock,
        _ done: (AppliedEffects) -> Void
    ) throws {
        let whole = rest
        let gone = whole.records.filter { $0.value == nil }.keys.sorted()
        try inChunks(gone, clock, isPinned, done) { application, id in
            guard let places = try application.removeAhead(id, whole) else { return }
            rest.records.removeValue(forKey: id)
            for place in places { rest.places.removeValue(forKey: place) }
        }
        let records = whole.records.values.compactMap(\.self).sorted { $0.id < $1.id }
        try inChunks(records, clock, isPinned, done) { application, record in
            guard try application.overwriteAhead(record) else { return }
            rest.records.removeValue(forKey: record.id)
        }
        var names: [LineageID: [Place: Link]] = [:]
        for case (let place, let link?) in whole.places where newborn.contains(link.target) {
            names[link.target, default: [:]][place] = link
        }
        let added = names.sorted { $0.key < $1.key }
        try inChunks(added, clock, isPinned, done) { application, file in
            guard try application.addAhead(file.key, file.value) else { return }
            // From here on it is seen, and nothing that may be taken back.
            unseen.withLock { _ = $0.remove(file.key) }
            for place in file.value.keys { rest.places.removeValue(forKey: place) }
        }
    }
}

extension Application {
    /// A file that goes with all its names, none of which changed here.
    ///
    /// - Returns: the names; nil: it waits for the rest.
    fileprivate mutating func removeAhead(
        _ id: LineageID, _ difference: TreeDifference
    ) throws -> [Place]? {
        guard let row = try transaction.inode(id: id), !row.isDirectory, row.isLinked,
            try !transaction.isDirty(id)
        else { return nil }
        var places: [Place] = []
        for link in try transaction.links(of: row.ino) {
            guard let parent = try transaction.inode(link.parent) else { return nil }
            let place = Place(directory: parent.id, name: link.name)
            guard let after = difference.places[place], after == nil,
                try !transaction.isDirty(place)
            else { return nil }
            places.append(place)
        }
        for place in places { try remove(place, unless: nil) }
        try remove(id)
        return places
    }

    /// The record of an inode that is here under the same number, not changed here.
    fileprivate mutating func overwriteAhead(_ record: Record) throws -> Bool {
        guard let row = try transaction.inode(id: record.id), row.isLinked,
            row.ino == record.ino, row.kind == record.content.value.body.kind,
            try !transaction.isDirty(record.id)
        else { return false }
        try transaction.observe(record.newestStamp)
        try write(record, over: row)
        return true
    }

    /// A new file, under all its names at once, which are free here.
    fileprivate mutating func addAhead(_ id: LineageID, _ names: [Place: Link]) throws -> Bool {
        guard let row = try transaction.inode(id: id), !row.isDirectory, !row.isLinked else {
            return false
        }
        for place in names.keys {
            guard let parent = try directory(place.directory),
                try transaction.inode(parent)?.isLinked == true,
                try !transaction.isDirty(place),
                try transaction.findEntry(parent, place.name) == nil
            else { return false }
        }
        for (place, link) in names.sorted(by: { $0.key < $1.key }) { try set(place, link) }
        return true
    }
}

extension AppliedEffects {
    var isEmpty: Bool { self == AppliedEffects() }
}
