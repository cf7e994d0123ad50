public import SystemPackage
public import Volume

/// A repository in which nothing is made, changed or removed: of a disk that may be damaged or
/// read-only. Used by one thread, while nobody has the repository open.
///
/// What cannot be read as it lies is looked for in a copy, made when it is needed first, of what is
/// whole: packs are indexed anew there, and of damaged ones each object that can be read is kept.
public final class HistoryReader {
    private static let blockBytes = 1 << 20

    private let path: FilePath
    private let scratch: FilePath
    private let packs: PackFiles
    /// Nil when only the copy will do.
    private let readers: Readers?
    private var copy: History?
    /// What the copy could not be made of.
    public private(set) var damage: HistoryDamage?

    /// - Parameter scratch: where the copy may be made; nothing may be there.
    /// - Throws: `HistoryError`, `notFound` when there is no repository; `Errno`.
    public init(_ path: FilePath, copyingTo scratch: FilePath) throws {
        try Library.require()
        self.path = path
        self.scratch = scratch
        packs = PackFiles(directory: path.appending("objects/pack"))
        guard Files.isDirectory(packs.directory) else {
            throw HistoryError(.notFound, "open", "\(path) is no repository")
        }
        readers = try Self.isReadable(packs) ? Readers(path.appending("objects")) : nil
    }

    /// libgit2 maps packs: a sector that cannot be read would be SIGBUS. It does not see a pack without
    /// index, which a crash may leave as the last thing that was written.
    private static func isReadable(_ packs: PackFiles) throws -> Bool {
        let names = try Set(Files.names(in: packs.directory))
        for name in names where PackFiles.isName(name) {
            guard names.contains(name.dropLast(5) + ".idx") else { return false }
            for file in [packs.path(name), packs.indexPath(name)] {
                do { try readThrough(file) } catch Errno.ioError { return false }
            }
        }
        return true
    }

    private static func readThrough(_ path: FilePath) throws {
        let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        try file.closeAfter {
            let buffer = UnsafeMutableRawBufferPointer.allocate(
                byteCount: blockBytes, alignment: 4096)
            defer { buffer.deallocate() }
            while try file.read(into: buffer) > 0 {}
        }
    }

    /// Removes the copy.
    public func close() {
        copy = nil
        try? Files.removeTree(scratch)
    }

    // MARK: Objects

    private func read<T>(_ body: (Readers) throws -> T) throws -> T {
        if let readers {
            do { return try body(readers) } catch let error as HistoryError where error.isDamage {}
        }
        return try body(copied().readers)
    }

    private func copied() throws -> History {
        if let copy { return copy }
        let copy = try History.create(scratch)
        var found = HistoryDamage()
        for name in try Files.names(in: packs.directory) where PackFiles.isName(name) {
            try copy.takeIn(name, from: packs, &found)
        }
        try copy.readers.refresh()
        self.copy = copy
        damage = found
        return copy
    }

    private func commit(_ id: ObjectID) throws -> Commit {
        try read { try Commit(decoding: $0.with { try $0.read(id, as: .commit) }) }
    }

    // MARK: Commits

    /// The last state of this node: what its branch names, or what it made of that and a crash kept from
    /// the branch. Where that cannot be read: the latest one that can.
    ///
    /// - Parameter node: whose repository it is, where that is known.
    /// - Returns: nil when there is none.
    public func newestCommit(of node: NodeID?) throws -> (commit: Commit, isBranch: Bool)? {
        let named = History.named(in: path)
        let main = try named[History.main].flatMap { id in
            try ignoringDamage { try commit(id) }
        }
        guard var newest = main, try isReadable(newest) else {
            let all = try commits { _, _ in true }.sorted { $0.stamp > $1.stamp }
            for candidate in all {
                guard let commit = try ignoringDamage({ try commit(candidate.id) }),
                    try isReadable(commit)
                else { continue }
                return (commit, false)
            }
            return nil
        }
        let rejected = Set(named.filter { $0.key.hasPrefix("refs/rejected/") }.values)
        let stamp = try CommitMessage(decoding: newest.message).newestStamp
        let later = try commits { commit, message in
            guard case .change(let author) = message.kind else { return false }
            return message.newestStamp >= stamp && !rejected.contains(commit.id)
                && author == node ?? author
        }
        var isAfter = Set(later.map(\.id))
        isAfter.remove(newest.id)
        while let next = try isAfter.lazy.map({ try commit($0) }).first(where: {
            try $0.parents == [newest.id] && isReadable($0)
        }) {
            isAfter.remove(next.id)
            newest = next
        }
        return (newest, true)
    }

    /// Whether there is something to begin with.
    private func isReadable(_ commit: Commit) throws -> Bool {
        try ignoringDamage {
            let top = try VolumeTree(reading: commit.tree, from: self).root
            return try DirectoryTree(reading: top, from: self)
        } != nil
    }

    /// Looks at every object, which takes seconds for a million.
    private func commits(
        _ isWanted: (Commit, CommitMessage) -> Bool
    ) throws -> [(id: ObjectID, stamp: Stamp)] {
        var found: [(ObjectID, Stamp)] = []
        func look(in packs: PackFiles) throws -> Bool {
            var isWhole = true
            for pack in try packs.list() {
                let keys = try ignoringDamage { try PackIndex.keys(packs.indexPath(pack.name)) }
                isWhole = isWhole && keys != nil
                for key in keys ?? [] {
                    guard let commit = try commitIfOne(key),
                        let message = try? CommitMessage(decoding: commit.message),
                        isWanted(commit, message)
                    else { continue }
                    found.append((key, message.newestStamp))
                }
            }
            return isWhole
        }
        if readers == nil || copy != nil {
            _ = try look(in: copied().packs)
        } else if try !look(in: packs) {
            found = []
            _ = try look(in: copied().packs)
        }
        return found
    }

    /// Nil for what is no commit, or cannot be read.
    private func commitIfOne(_ key: ObjectID) throws -> Commit? {
        try ignoringDamage {
            let kind = try read { readers in
                guard let header = try readers.with({ try $0.header(key) }) else {
                    throw HistoryError(.notFound, "read", "\(key) is missing")
                }
                return header.kind
            }
            return kind == .commit ? try commit(key) : nil
        }
    }

    private func ignoringDamage<T>(_ body: () throws -> T?) throws -> T? {
        do { return try body() } catch let error as HistoryError where error.isDamage {
            return nil
        } catch is InvalidTree { return nil }
    }
}

extension HistoryReader: TreeSource {
    public func tree(_ id: ObjectID) throws -> [TreeEntry] { try read { try $0.tree(id).unpacked } }

    public func blob(_ id: ObjectID) throws -> [UInt8] {
        try read { try $0.with { try $0.read(id, as: .blob) } }
    }
}
