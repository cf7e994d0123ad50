import Synchronization
public import Volume

/// When a commit was made, as far as its author's clock knew.
struct CommitMoment {
    /// The greatest stamp of the commit and all before it, milliseconds: nothing before it has a
    /// later one.
    let newest: Int64
    /// The last change in it: the stamp, unless that ran ahead of the author's clock.
    let milliseconds: Int64
}

extension History {
    /// The state at a point in this node's past: a commit.
    ///
    /// For a time it is the newest state at or before it. Clocks may be wrong, so a commit counts as
    /// made when its author's clock said, but not before the commits that it follows (a clock that
    /// was behind), and no clock is believed that was ahead of this node's present time. Where
    /// several commits are the newest, on nodes that were apart then, it is their merge, which has
    /// what all of them had.
    ///
    /// - Parameter now: milliseconds since 1970.
    /// - Throws: `PastError` with a sentence for the person who asked.
    public func commit(at point: PastPoint, now: Int64) throws -> ObjectID {
        switch point {
        case .commit(let digits): return try commit(beginningWith: digits)
        case .time(let time):
            guard let head = try head() else { throw PastError("There is no commit yet.") }
            if time >= now { return head }
            let heads = try newest(before: time, now: now, from: head)
            guard let first = heads.first else {
                throw PastError("There is no commit before that time: the volume is younger.")
            }
            return heads.count == 1 ? first : try merge(heads)
        }
    }

    private func commit(beginningWith digits: String) throws -> ObjectID {
        var found = table.withLock { $0.keys(beginningWith: digits, limit: 2) }
        if found.isEmpty, let id = ObjectID(hex: digits), (try? self.commit(id)) != nil {
            // Merges that no reference leads to are in no graph after a start.
            try restore(id)
            found = [id]
        }
        guard let first = found.first else { throw PastError("There is no commit \(digits).") }
        guard found.count == 1 else {
            throw PastError("\(digits) is ambiguous: more than one commit begins with it.")
        }
        return first
    }

    /// The commits that count as made at or before a time and are no ancestors of each other. Reads
    /// what is newer and, where no clock was ahead, one commit more on each line.
    private func newest(before time: Int64, now: Int64, from head: ObjectID) throws -> [ObjectID] {
        var isBefore: [ObjectID: Bool] = [:]
        var found: Set<ObjectID> = []
        var stack = [head]
        while let id = stack.last {
            guard isBefore[id] == nil else {
                stack.removeLast()
                continue
            }
            let moment = try moment(of: id)
            if moment.newest <= time {
                isBefore[id] = true
                continue
            }
            let parents = try graph.parents(of: id)
            let unknown = parents.filter { isBefore[$0] == nil }
            guard unknown.isEmpty else {
                stack += unknown
                continue
            }
            let counts = moment.milliseconds <= time || moment.milliseconds > now
            let all = counts && parents.allSatisfy { isBefore[$0] == true }
            isBefore[id] = all
            if !all { found.formUnion(parents.filter { isBefore[$0] == true }) }
        }
        return isBefore[head] == true ? [head] : try graph.reduceToMaximal(found)
    }

    /// When the last change in a commit was made, as far as its author's clock knew; since 1970.
    public func milliseconds(of commit: ObjectID) throws -> Int64 {
        try moment(of: commit).milliseconds
    }

    func moment(of id: ObjectID) throws -> CommitMoment {
        guard let commit = try self.commit(id) else {
            throw HistoryError(.notFound, "read", "commit \(id) is missing")
        }
        let end = commit.seconds * 1000 + 999
        let newest =
            (try? CommitMessage(decoding: commit.message)).map {
                Int64($0.newestStamp.milliseconds)
            } ?? end
        return CommitMoment(newest: newest, milliseconds: min(newest, end))
    }

    // MARK: Merges

    /// The commit with these parents, the same on every node that makes it. Its message carries the
    /// greatest stamp of the ancestry, so that a rebuilt catalog regains it.
    public func merge(_ heads: [ObjectID]) throws -> ObjectID {
        try write { batch in
            var sink = batch
            let folded = try foldHeads(heads, graph: graph, source: self, sink: &sink)
            let parents = try folded.parents.map { id in
                guard let commit = try self.commit(id) else {
                    throw HistoryError(.notFound, "merge", "commit \(id) is missing")
                }
                return commit
            }
            let stamps = try parents.map { try CommitMessage(decoding: $0.message).newestStamp }
            guard let newest = stamps.max(), let seconds = parents.map(\.seconds).max() else {
                throw HistoryError(.malformed, "merge", "nothing to merge")
            }
            let message = CommitMessage(
                kind: .merge(rules: VolumeSettings.rules), newestStamp: newest)
            let commit = try Commit(
                tree: folded.tree, parents: folded.parents, seconds: seconds,
                message: message.encoded)
            _ = try sink.write(commit: commit)
            batch = sink
            return commit.id
        }
    }
}

extension CommitTable {
    /// At most so many commits whose ids begin with these digits.
    func keys(beginningWith digits: String, limit: Int) -> [ObjectID] {
        guard let low = ObjectID(padding: digits, with: "0"),
            let high = ObjectID(padding: digits, with: "f")
        else { return [] }
        var found: [ObjectID] = []
        for number in 0..<Int32(count) where found.count < limit {
            let key = self.key(number)
            if key >= low, key <= high { found.append(key) }
        }
        return found
    }
}

extension ObjectID {
    fileprivate init?(padding digits: String, with digit: Character) {
        self.init(
            hex: digits + String(repeating: digit, count: max(0, 40 - digits.utf8.count)))
    }
}
