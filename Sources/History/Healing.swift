import Glibc
import Synchronization
public import SystemPackage
public import Volume

extension HistoryError {
    /// The repository may not be what this program left, or its disk cannot read it.
    public var isDamage: Bool {
        switch code {
        case .notFound, .malformed, .incomplete, .library: true
        case .system: libraryCode == EIO
        case .tooLarge, .unrelated, .noSpace: false
        }
    }
}

/// What was found wrong with a repository, and what became of it.
public struct HistoryDamage: Sendable, CustomStringConvertible {
    /// Set aside; what could be read of them is kept.
    public internal(set) var packs: [String] = []
    public internal(set) var objectsSaved = 0
    /// References that led to what is not whole.
    public internal(set) var references: [String] = []
    public internal(set) var commitsBefore = 0
    public internal(set) var commits = 0

    public var description: String {
        "\(packs.count) packs were damaged, \(objectsSaved) objects of them could be read; "
            + (references.isEmpty
                ? "nothing is missing"
                : "\(references.joined(separator: ", ")) led to what is missing")
            + "; \(commits) commits are whole"
    }
}

/// A repository that was damaged is made of what can be proven whole; the rest comes from peers.
///
/// **Invariant:** nothing unproven stays: packs are indexed anew, and a commit is in the graph only if a
/// walk found all it needs.
extension History {
    private static let unusable = "unusable"

    /// Makes a new repository at `path` of what is whole in the one at `old`, which stays as it is.
    public static func restore(
        from old: FilePath, to path: FilePath
    ) throws -> (history: History, found: HistoryDamage) {
        let history = try create(path)
        var found = HistoryDamage()
        let packs = PackFiles(directory: old.appending("objects/pack"))
        for name in try Files.names(in: packs.directory) where PackFiles.isName(name) {
            try history.takeIn(name, from: packs, &found)
        }
        if let graph = try? Files.read(old.appending(graphFile)) {
            try Files.replace(path.appending(graphFile), with: graph)
        }
        try history.readers.refresh()
        try history.prove(named(in: old), &found)
        return (history, found)
    }

    /// Looks at everything, and puts aside what is damaged; nil: all is well. The graph has less
    /// afterwards when something is missing. Takes a minute for a million objects.
    public func heal() throws -> HistoryDamage? {
        try repacking.withLock { _ in try healAlone() }
    }

    private func healAlone() throws -> HistoryDamage? {
        var found = HistoryDamage()
        found.commitsBefore = graph.count
        let aside = PackFiles(directory: path.appending(Self.unusable))
        try Files.makeDirectory(aside.directory)
        for name in try Files.names(in: packs.directory) where PackFiles.isName(name) {
            let isSame = try takeIn(name, from: packs, &found)
            if isSame { continue }
            for file in [packs.path(name), packs.indexPath(name)] {
                guard let last = file.lastComponent, Files.size(file) != nil else { continue }
                try Files.rename(file, to: aside.directory.appending(last))
            }
        }
        let names = try Set(Files.names(in: packs.directory))
        for name in names
        where name.hasSuffix(".idx") && !names.contains(name.dropLast(4) + ".pack") {
            try Files.remove(packs.directory.appending(name))
        }
        try Files.remove(packs.directory.appending("multi-pack-index"))
        try Files.synchronize(packs.directory)
        try references.reopen()
        try readers.startOver()
        try prove(Self.named(in: path), &found)
        let isWell = found.packs.isEmpty && found.references.isEmpty
        return isWell && found.commits >= found.commitsBefore ? nil : found
    }

    // MARK: Packs

    /// Takes a pack in that proves whole, else what can be read of it.
    /// - Returns: whether it is whole, and here under the same name.
    @discardableResult
    func takeIn(
        _ name: String, from source: PackFiles, _ found: inout HistoryDamage
    ) throws -> Bool {
        let quarantine = try makeQuarantine()
        defer { try? Files.removeTree(quarantine) }
        let proven = PackFiles(directory: quarantine.appending("pack"))
        do {
            let copy = try Indexer.index(source.path(name), into: proven.directory)
            let isHere = source.directory == packs.directory && copy == name
            if isHere, try Files.read(proven.indexPath(copy)) == Files.read(packs.indexPath(name)) {
                return true
            }
            try packs.takeOver(copy, from: proven)
            return isHere
        } catch let error as HistoryError where error.code == .noSpace {
            throw error
        } catch is HistoryError {
        } catch Errno.ioError {}
        found.packs.append(name)
        found.objectsSaved += try saveObjects(of: name, from: source)
        return false
    }

    /// Writes what can be read of a damaged pack into a new one.
    private func saveObjects(of name: String, from source: PackFiles) throws -> Int {
        guard let keys = try? PackIndex.keys(source.indexPath(name)) else { return 0 }
        let quarantine = try makeQuarantine()
        defer { try? Files.removeTree(quarantine) }
        let copy = PackFiles(directory: quarantine.appending("pack"))
        // libgit2 maps packs: a sector that cannot be read would be SIGBUS.
        try Files.copyReadable(source.path(name), to: copy.path(name))
        try Files.copyReadable(source.indexPath(name), to: copy.indexPath(name))
        let database = try ObjectDatabase(objects: quarantine)
        var saved: [ObjectID: StagedObject] = [:]
        var bytes = 0
        var count = 0
        for key in keys {
            guard let object = try? database.read(key), try object.kind.id(of: object.bytes) == key
            else { continue }
            saved[key] = StagedObject(kind: object.kind, bytes: object.bytes)
            bytes += object.bytes.count
            count += 1
            guard bytes > HistoryLimits.batchBytesMax else { continue }
            try writePack(saved)
            saved = [:]
            bytes = 0
        }
        try writePack(saved)
        return count
    }

    // MARK: References and commits

    /// What reference files say, however damaged the rest is.
    static func named(in repository: FilePath) -> [String: ObjectID] {
        var named: [String: ObjectID] = [:]
        func look(_ directory: FilePath, _ prefix: String) {
            for name in (try? Files.names(in: directory)) ?? [] {
                let path = directory.appending(name)
                if Files.isDirectory(path) {
                    look(path, "\(prefix)\(name)/")
                } else if let bytes = try? Files.read(path),
                    let id = ObjectID(hex: String(decoding: bytes.prefix(40), as: UTF8.self))
                {
                    named["\(prefix)\(name)"] = id
                } else {
                    named["\(prefix)\(name)"] = ObjectID(bytes: [UInt8](repeating: 0, count: 20))
                }
            }
        }
        look(repository.appending("refs"), "refs/")
        let packed = (try? Files.read(repository.appending("packed-refs"))) ?? nil
        for line in String(decoding: packed ?? [], as: UTF8.self).split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 2, let id = ObjectID(hex: String(words[0])) else { continue }
            named[String(words[1])] = named[String(words[1])] ?? id
        }
        return named
    }

    /// Begins the graph anew with what is whole, and lets references lead to that alone.
    private func prove(_ named: [String: ObjectID], _ found: inout HistoryDamage) throws {
        var whole = CommitTable()
        try addWhole(named.values.sorted(), to: &whole)
        found.commits = whole.count
        table.withLock { [whole] in $0 = whole }
        for (name, id) in named.sorted(by: { $0.key < $1.key }) {
            if graph.contains(id) {
                try ignoringDamage { try references.set(name, to: id) }
                continue
            }
            found.references.append(name)
            try? Files.remove(path.appending(name))
            if name == Self.main, let ancestor = try knownAncestor(of: [id]) {
                try references.set(name, to: ancestor)
            }
        }
        try references.reopen()
    }

    /// Adds the commits before and with `heads` that are here with all they need.
    func addWhole(_ heads: [ObjectID], to table: inout CommitTable) throws {
        var broken: Set<ObjectID> = []
        var read: [ObjectID: Commit] = [:]
        var stack = heads
        var walk = completenessWalk()
        while let key = stack.last {
            guard table.number(of: key) == nil, !broken.contains(key) else {
                stack.removeLast()
                continue
            }
            guard let commit = try read[key] ?? ignoringDamage({ try self.commit(key) }) else {
                broken.insert(key)
                continue
            }
            let parents = commit.parents
            let waiting = parents.filter { table.number(of: $0) == nil && !broken.contains($0) }
            guard waiting.isEmpty else {
                read[key] = commit
                stack += waiting
                continue
            }
            stack.removeLast()
            read[key] = nil
            let trees = parents.compactMap { table.number(of: $0).map { table.tree($0) } }
            let tree = commit.tree
            let isWhole = try ignoringDamage {
                try walk.walk(tree, against: trees)
                return trees.count == parents.count
            }
            guard isWhole == true else {
                broken.insert(key)
                // It has taken some objects for seen with all below them.
                walk = completenessWalk()
                continue
            }
            try table.insert(key: key, tree: tree, parents: parents)
        }
    }

    private func completenessWalk() -> ObjectWalk {
        ObjectWalk(
            read: { try self.readers.tree($0) },
            visit: { key, kind in
                guard kind == .blob else { return }
                guard try self.readers.with({ try $0.header(key)?.kind }) == .blob else {
                    throw HistoryError(.incomplete, "heal", "blob \(key) is missing")
                }
            })
    }

    @discardableResult
    private func ignoringDamage<T>(_ body: () throws -> T?) throws -> T? {
        do { return try body() } catch let error as HistoryError where error.isDamage { return nil }
    }

    /// The latest commit of the graph that is, or is before, one of these; what is between may be
    /// missing here, as far as its parents are known.
    public func knownAncestor(of ids: [ObjectID]) throws -> ObjectID? {
        let saved =
            try Files.read(path.appending(Self.graphFile)).flatMap { CommitTable(decoding: $0) }
            ?? CommitTable()
        var seen = Set(ids)
        var queue = ids
        var found: [(generation: Int, id: ObjectID)] = []
        while let id = queue.popLast() {
            if graph.contains(id) {
                found.append((try graph.generation(of: id), id))
                continue
            }
            let parents: [ObjectID]
            if let commit = try ignoringDamage({ try commit(id) }) {
                parents = commit.parents
            } else if let number = saved.number(of: id) {
                parents = saved.parents(number).map { saved.key($0) }
            } else {
                continue
            }
            queue += parents.filter { seen.insert($0).inserted }
        }
        return found.max { ($0.generation, $0.id) < ($1.generation, $1.id) }?.id
    }
}

extension Files {
    private static let blockBytes = 4096

    /// Copies a file; zeros stand for what the disk cannot read.
    static func copyReadable(_ from: FilePath, to path: FilePath) throws {
        let source = try FileDescriptor.open(from, .readOnly, options: .closeOnExec)
        defer { try? source.close() }
        let target = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .exclusiveCreate, .closeOnExec],
            permissions: .ownerReadWrite)
        defer { try? target.close() }
        let size = try source.seek(offset: 0, from: .end)
        try requireSpace(Int(size), at: path.removingLastComponent())
        var block = [UInt8](repeating: 0, count: blockBytes)
        for offset in stride(from: 0, to: size, by: blockBytes) {
            let count =
                (try? block.withUnsafeMutableBytes {
                    try source.read(fromAbsoluteOffset: offset, into: $0)
                }) ?? 0
            let wanted = min(blockBytes, Int(size - offset))
            for index in min(count, wanted)..<wanted { block[index] = 0 }
            _ = try target.writeAll(toAbsoluteOffset: offset, block.prefix(wanted))
        }
    }
}
