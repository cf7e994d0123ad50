import Synchronization
import SystemPackage
import Volume

/// Whether the repository is what it should be.
extension History {
    /// Findings, at most `HistoryLimits.problemsMax`; empty if all is well.
    ///
    /// Quickly: every pack fits its index, every reference's commit and top tree can be read.
    /// Thoroughly: every object that the references reach is read and hashed, which takes about a
    /// minute for a million files.
    public func problems(thoroughly: Bool = false) throws -> [HistoryError] {
        let findings = Findings()
        for pack in try packs.list() {
            try findings.gather {
                let (own, expected) = try packs.checksums(pack.name)
                guard own == expected, own.count == 20 else {
                    throw HistoryError(.malformed, "check", "\(pack.name) does not fit its index")
                }
            }
        }
        let heads = try references.list("refs/").sorted { $0.key < $1.key }
        for (name, id) in heads {
            try findings.gather {
                guard let commit = try commit(id) else {
                    throw HistoryError(.incomplete, "check", "\(name): commit \(id) is missing")
                }
                _ = try tree(commit.tree)
            }
        }
        if thoroughly { try checkObjects(from: heads.map(\.value), findings) }
        return findings.errors
    }

    private func checkObjects(from heads: [ObjectID], _ findings: Findings) throws {
        // A handle and reads of its own: what is cached proves nothing about the disk.
        let database = try ObjectDatabase(objects: path.appending("objects"))
        var walk = ObjectWalk(
            read: { try PackedTree(parsing: database.read($0, as: .tree)) },
            visit: { key, kind in
                guard kind == .blob else { return }
                try findings.gather { _ = try database.read(key, as: .blob) }
            })
        let known = heads.filter { graph.contains($0) }
        for key in try graph.commits(from: known, excluding: []) {
            guard !findings.isFull else { return }
            try findings.gather {
                let commit = try Commit(decoding: database.read(key, as: .commit))
                let parents = try commit.parents.map { try graph.tree(of: $0) }
                try walk.walk(commit.tree, against: parents)
            }
        }
    }

    private final class Findings {
        private(set) var errors: [HistoryError] = []
        var isFull: Bool { errors.count >= HistoryLimits.problemsMax }

        /// Only findings of our own kind are findings; others end the check.
        func gather(_ body: () throws -> Void) throws {
            do {
                try body()
            } catch let error as HistoryError {
                if !isFull { errors.append(error) }
            } catch let error as Errno {
                if !isFull { errors.append(HistoryError(.system, "check", "\(error)")) }
            }
        }
    }
}
