import CGit
import Glibc
import Synchronization
import SystemPackage
public import Volume

/// The commit graph at start: what the references reach.
///
/// Reading a million commits one by one takes twenty seconds, so most of the graph is kept in a
/// file of ours. It is never trusted for what is here: only the commits that the references reach
/// are taken from it, and what they name is read. Losing it costs time alone.
extension History {
    static let graphFile = "delugefs-graph"

    func loadGraph() throws {
        let file = path.appending(Self.graphFile)
        let saved = try Files.read(file).flatMap { CommitTable(decoding: $0) } ?? CommitTable()
        let heads = try references.list("refs/").values.sorted()
        // The list passes over a file that is no reference.
        _ = try head()
        for head in heads {
            guard try commit(head) != nil else {
                throw HistoryError(.incomplete, "open", "commit \(head) is missing")
            }
        }
        let unsaved = try table.withLock { table in
            var unsaved = 0
            for head in heads { try adopt(head, saved, into: &table, &unsaved) }
            return unsaved
        }
        if unsaved > max(HistoryLimits.unsavedCommitsMax, saved.count / 4) {
            try Files.replace(file, with: table.withLock { try $0.encoded() })
        }
    }

    /// Takes a commit that was written here into the graph although no reference names it: a crash
    /// came before the reference moved. Throws `incomplete` unless it is here with all it needs.
    public func restore(_ id: ObjectID) throws {
        var whole = table.withLock(\.self)
        try addWhole([id], to: &whole)
        guard whole.number(of: id) != nil else {
            throw HistoryError(.incomplete, "restore", "commit \(id) is missing")
        }
        table.withLock { [whole] in $0 = whole }
    }

    /// Puts a commit and all before it into the table.
    private func adopt(
        _ head: ObjectID, _ saved: CommitTable, into table: inout CommitTable,
        _ unsaved: inout Int
    ) throws {
        var stack = [head]
        var read: [ObjectID: (tree: ObjectID, parents: [ObjectID])] = [:]
        while let key = stack.last {
            if table.number(of: key) != nil {
                stack.removeLast()
                continue
            }
            let commit = try read[key] ?? look(key, saved, &unsaved)
            let missing = commit.parents.filter { table.number(of: $0) == nil }
            if missing.isEmpty {
                try table.insert(key: key, tree: commit.tree, parents: commit.parents)
                read[key] = nil
                stack.removeLast()
            } else {
                read[key] = commit
                stack += missing
            }
        }
    }

    private func look(_ key: ObjectID, _ saved: CommitTable, _ unsaved: inout Int) throws
        -> (tree: ObjectID, parents: [ObjectID])
    {
        if let number = saved.number(of: key) {
            return (saved.tree(number), saved.parents(number).map { saved.key($0) })
        }
        unsaved += 1
        let commit = try Commit(decoding: readers.with { try $0.read(key, as: .commit) })
        return (commit.tree, commit.parents)
    }
}

/// OFFSET 0: `delugefs graph 1\n`; then for each commit, parents first: id (20), top tree (20),
/// number of parents (2), their numbers (4 each), all big-endian; last the 20 bytes of the blob id
/// that all before has.
extension CommitTable {
    private static let magic = Array("delugefs graph 1\n".utf8)

    func encoded() throws -> [UInt8] {
        var bytes = Self.magic
        bytes.reserveCapacity(count * 48)
        for number in 0..<Int32(count) {
            let parents = parents(number)
            bytes += key(number).bytes
            bytes += tree(number).bytes
            bytes += [UInt8(parents.count >> 8), UInt8(parents.count & 0xFF)]
            for parent in parents {
                for shift in [24, 16, 8, 0] {
                    bytes.append(UInt8(truncatingIfNeeded: parent >> shift))
                }
            }
        }
        return bytes + (try Self.checksum(bytes[...]))
    }

    private static func checksum(_ bytes: ArraySlice<UInt8>) throws -> [UInt8] {
        var oid = git_oid()
        let code = bytes.withUnsafeBytes {
            git_odb_hash(&oid, $0.baseAddress, $0.count, GIT_OBJECT_BLOB)
        }
        try check(code, "hash")
        return ObjectID(oid).bytes
    }

    /// Nil unless the bytes are those that `encoded` made.
    init?(decoding bytes: [UInt8]) {
        let end = bytes.count - 20
        guard end >= Self.magic.count, bytes.starts(with: Self.magic),
            let sum = try? Self.checksum(bytes[..<end]), sum == Array(bytes[end...])
        else { return nil }
        self.init()
        let filled: Bool = bytes.withUnsafeBytes { raw in
            func number(_ offset: Int, _ count: Int) -> Int {
                raw[offset..<(offset + count)].reduce(0) { $0 << 8 | Int($1) }
            }
            var at = Self.magic.count
            while at < end {
                guard at + 42 <= end, at + 42 + 4 * number(at + 40, 2) <= end else { return false }
                let key = ObjectID(UnsafeRawBufferPointer(rebasing: raw[at...]))
                let tree = ObjectID(UnsafeRawBufferPointer(rebasing: raw[(at + 20)...]))
                let numbers = (0..<number(at + 40, 2)).map { number(at + 42 + 4 * $0, 4) }
                guard numbers.allSatisfy({ $0 < count }) else { return false }
                let parents = numbers.map { self.key(Int32($0)) }
                guard (try? insert(key: key, tree: tree, parents: parents)) != nil else {
                    return false
                }
                at += 42 + 4 * numbers.count
            }
            return true
        }
        guard filled else { return nil }
    }
}
