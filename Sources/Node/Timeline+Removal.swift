import Catalog
import Mount
import Synchronization
import Volume

/// Whether what comes from elsewhere removes much, and who is told.
extension Timeline {
    struct Removal {
        var files = 0
        /// The tops of what goes.
        var paths: [[FileName]] = []
        /// Files in the volume before.
        var total = 0
    }

    /// What a change that is not applied yet removes.
    func removal(in change: TreeDifference) throws -> Removal {
        var removal = Removal(total: Int(catalog.counts.files))
        let gone = change.records.filter { $0.value == nil }.map(\.key)
        for part in stride(from: 0, to: gone.count, by: Self.lookedUpMax) {
            let ids = gone[part..<min(part + Self.lookedUpMax, gone.count)]
            removal.files += try catalog.read { reader in
                try ids.count { try reader.inode(id: $0)?.kind == .file }
            }
        }
        guard removal.files > 0 else { return removal }
        var directories: [LineageID: [FileName]?] = [:]
        for case (let place, nil) in change.places {
            if case .some(nil) = change.records[place.directory] { continue }
            let directory =
                try directories[place.directory]
                ?? catalog.read { reader in
                    try reader.inode(id: place.directory).flatMap { try? reader.path(of: $0.ino) }
                }
            directories[place.directory] = .some(directory)
            if let directory { removal.paths.append(directory + [place.name]) }
        }
        return removal
    }

    func warn(of removal: Removal, from commit: ObjectID) {
        let alarm = state.withLock { state in
            state.massRemoval.removed(
                removal.files, removal.paths, from: commit, of: removal.total,
                at: Monotonic.milliseconds)
        }
        if let alarm { hooks.withLock { $0.removedMuch }(alarm) }
    }
}
