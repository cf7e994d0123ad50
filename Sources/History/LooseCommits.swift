import Synchronization
import Volume

extension History {
    /// Commits that are here and in no reference's past, in no order: of what a crash cut off, merges
    /// that were replaced. Looks at every object, which takes seconds for a million.
    public func looseCommits() throws -> [Commit] {
        var found: [Commit] = []
        for pack in try packs.list() {
            for key in try PackIndex.keys(packs.indexPath(pack.name)) {
                let isKnown = table.withLock { $0.number(of: key) != nil }
                guard !isKnown, try readers.with({ try $0.header(key)?.kind }) == .commit else {
                    continue
                }
                found.append(try Commit(decoding: readers.with { try $0.read(key, as: .commit) }))
            }
        }
        return found
    }
}
