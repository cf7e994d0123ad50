public import Volume

/// What a commit did at a path.
public struct LoggedCommit: Sendable {
    public let commit: ObjectID
    /// Since 1970, of its last change.
    public let milliseconds: Int64
    /// Who made it; nil: a merge, which is the same whoever makes it.
    public let author: NodeID?
    /// Where the path's file or directory stood after it.
    public let path: [FileName]
    /// Paths are from the top; nil as in `TreeChange`.
    public let changes: [TreeChange]
    /// Whether `changes` are all.
    public let isWhole: Bool
}

/// Where a log is: the commits that are still to be looked at, and what the path was called there.
public struct LogPosition: Hashable, Sendable {
    public let commit: ObjectID
    public let path: [FileName]

    public init(commit: ObjectID, path: [FileName]) {
        self.commit = commit
        self.path = path
    }
}

/// Goes back through the commits that changed something at a path: newest first, after renames under
/// the earlier name. A commit with the same tree at the path as its parent costs a few reads of trees
/// that are in memory already.
///
/// Each commit comes after all those that follow it: by the greatest stamp of its ancestry, which
/// never falls from parent to child, then by generation. So the positions that are left say all that
/// is needed to go on.
public struct PathLog {
    private struct Waiting {
        let position: LogPosition
        let commit: Commit
        let stamp: Stamp?
        let generation: Int

        func isBefore(_ other: Waiting) -> Bool {
            if let a = stamp, let b = other.stamp, a != b { return a > b }
            if generation != other.generation { return generation > other.generation }
            return position.commit > other.position.commit
        }
    }

    /// Entries looked at for one commit; the rest of a larger change is not told.
    public static let entriesMax = 20_000

    private let entriesMax: Int
    private let history: History
    /// Few: as many as nodes were apart at that time. Newest last.
    private var waiting: [Waiting] = []
    private var known: Set<LogPosition> = []

    public init(
        _ positions: [LogPosition], of history: History, entriesMax: Int = Self.entriesMax
    ) throws {
        self.history = history
        self.entriesMax = entriesMax
        for position in positions { try push(position) }
    }

    public var positions: [LogPosition] { waiting.map(\.position) }
    public var isAtEnd: Bool { waiting.isEmpty }

    /// Looks at one commit; nil if it changed nothing there.
    public mutating func next() throws -> LoggedCommit? {
        guard let item = waiting.popLast() else { return nil }
        known.remove(item.position)
        let step = try look(at: item)
        for position in step.next { try push(position) }
        guard !step.changes.isEmpty else { return nil }
        var author: NodeID?
        if case .change(let node)? = try? CommitMessage(decoding: item.commit.message).kind {
            author = node
        }
        return LoggedCommit(
            commit: item.commit.id,
            milliseconds: try history.milliseconds(of: item.commit.id), author: author,
            path: item.position.path, changes: step.changes, isWhole: step.isWhole)
    }

    private mutating func push(_ position: LogPosition) throws {
        guard known.insert(position).inserted else { return }
        guard let commit = try history.commit(position.commit) else {
            throw HistoryError(.notFound, "log", "commit \(position.commit) is missing")
        }
        let item = Waiting(
            position: position, commit: commit,
            stamp: (try? CommitMessage(decoding: commit.message))?.newestStamp,
            generation: try history.graph.generation(of: position.commit))
        let index = waiting.firstIndex { $0.isBefore(item) } ?? waiting.endIndex
        waiting.insert(item, at: index)
    }

    // MARK: One commit

    private struct Step {
        var changes: [TreeChange] = []
        var isWhole = true
        var next: [LogPosition] = []
    }

    private struct Side {
        let top: TopTrees
        let child: TreeChild?
        var place: TreePlace? { child.map { TreePlace($0, inodes: top.inodes) } }
        var whole: TreePlace { TreePlace(.directory(top.root), inodes: top.inodes) }
    }

    private func side(_ tree: ObjectID, _ path: [FileName]) throws -> Side {
        let top = try TopTrees(reading: tree, from: history)
        var child = TreeChild.directory(top.root)
        for name in path {
            guard case .directory(let id) = child,
                let next = try DirectoryTree(reading: id, from: history)
                    .child(name, from: history)
            else { return Side(top: top, child: nil) }
            child = next
        }
        return Side(top: top, child: child)
    }

    private func look(at item: Waiting) throws -> Step {
        let path = item.position.path
        let new = try side(item.commit.tree, path)
        let parents = try item.commit.parents.map { id in
            (id: id, side: try side(history.graph.tree(of: id), path))
        }
        var step = Step()
        // What a merge has from one of its parents is told there.
        let same = try parents.filter { try isSame(new, $0.side) }
        if !same.isEmpty {
            let all = new.child == nil && parents.count > 1 ? parents : Array(same.prefix(1))
            step.next = all.map { LogPosition(commit: $0.id, path: path) }
            return step
        }
        guard let first = parents.first else {
            if let place = new.place { try add(to: &step, place, [], path) }
            return step
        }
        let id = try new.place.map { try lineage($0) }
        let going = try parents.filter { parent in
            guard let id, let place = parent.side.place else { return false }
            return try lineage(place) == id
        }
        if let place = new.place, !going.isEmpty {
            try add(to: &step, place, going.compactMap(\.side.place), path)
            step.next = parents.map { LogPosition(commit: $0.id, path: path) }
            return step
        }
        try follow(&step, new, first, path)
        step.next += parents.dropFirst().map { LogPosition(commit: $0.id, path: path) }
        return step
    }

    /// The path leads to something else in the parent, or one of the two has nothing there.
    private func follow(
        _ step: inout Step, _ new: Side, _ parent: (id: ObjectID, side: Side), _ path: [FileName]
    ) throws {
        let (all, isWhole) = try treeChanges(
            in: new.whole, since: [parent.side.whole], limit: entriesMax, source: history)
        step.isWhole = isWhole
        var earlier = path
        for change in all {
            guard let place = change.path else { continue }
            switch change.what {
            case .renamed(let from) where path.starts(with: place):
                earlier = from + path.dropFirst(place.count)
                step.changes.append(change)
            case .renamed(let from) where path.starts(with: from):
                step.changes.append(change)
            case .linked(let other?) where place == path:
                earlier = other
                step.changes.append(change)
            default:
                // What is in a directory goes with it.
                if place.starts(with: path) || path.starts(with: place) {
                    step.changes.append(change)
                }
            }
        }
        step.next = [LogPosition(commit: parent.id, path: earlier)]
    }

    private func add(
        to step: inout Step, _ new: TreePlace, _ old: [TreePlace], _ path: [FileName]
    ) throws {
        let (changes, isWhole) = try treeChanges(
            in: new, since: old, limit: entriesMax, source: history)
        step.changes += changes.map { $0.below(path) }
        step.isWhole = isWhole
    }

    private func isSame(_ a: Side, _ b: Side) throws -> Bool {
        guard a.child == b.child else { return false }
        guard let place = a.place, let other = b.place, place.inodes != other.inodes else {
            return true
        }
        // Files with several names may have changed where no name shows it.
        switch place.child {
        case .directory: return false
        case .blob(let id):
            guard case .reference(let link) = try EntryBlob(decoding: history.blob(id)) else {
                return true
            }
            return try sharedBlob(link.target, a.top) == sharedBlob(link.target, b.top)
        }
    }

    private func sharedBlob(_ id: LineageID, _ top: TopTrees) throws -> ObjectID? {
        try top.sharedRecord(id, from: history)
    }

    private func lineage(_ place: TreePlace) throws -> LineageID {
        switch place.child {
        case .directory(let id):
            return try DirectoryTree(reading: id, from: history).record(from: history).record.id
        case .blob(let id):
            switch try EntryBlob(decoding: history.blob(id)) {
            case .single(let record, _), .top(let record), .shared(let record, _): return record.id
            case .reference(let link): return link.target
            }
        }
    }
}
