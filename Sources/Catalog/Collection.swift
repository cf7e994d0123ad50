public import SystemPackage
public import Volume

/// Content on this disk that no file has any more.
public struct Unreferenced: Hashable, Sendable {
    public var extent: Extent
    /// Milliseconds since 1970: when that was noticed.
    public var since: UInt64
    /// In this commit's tree no file has it; nil: no commit says so yet.
    public var head: ObjectID?
}

extension Reader {
    /// What is here and unreferenced, longest first, of what the collector has noticed.
    public func unreferenced(limit: Int) throws(Errno) -> [Unreferenced] {
        try connection.all(
            """
            SELECT c.root, c.length, u.since, u.head FROM unreferenced u
            JOIN content c ON c.number = u.content
            WHERE u.since > 0 AND c.state IN (2, 3, 4) ORDER BY u.since LIMIT ?
            """, limit
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(0)) else { throw .ioError }
            return Unreferenced(
                extent: Extent(root: root, length: row.uint64(1)), since: row.uint64(2),
                head: row.isNull(3) ? nil : ObjectID(bytes: row.bytes(3)))
        }
    }

    /// Bytes of complete content here that no file has.
    public func unreferencedBytes() throws(Errno) -> UInt64 {
        try connection.first(
            """
            SELECT coalesce(sum(c.length), 0) FROM unreferenced u
            CROSS JOIN content c ON c.number = u.content WHERE c.state IN (2, 3)
            """
        ) { row in row.uint64(0) } ?? 0
    }

    /// Whether `noteStrays` has anything to do. Looks at all that is here: ask a snapshot, which
    /// holds up no operation.
    public func hasStrays(olderThan before: UInt64) throws(Errno) -> Bool {
        try connection.first(
            """
            SELECT EXISTS(SELECT 1 FROM content c WHERE state > 0 AND since < ?
                AND NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
                AND NOT EXISTS(SELECT 1 FROM unreferenced u WHERE u.content = c.number))
            """, before
        ) { row in row.int64(0) != 0 } ?? false
    }

    /// Whether `noteUnreferenced` has anything to do.
    public func hasUnnoted() throws(Errno) -> Bool {
        try connection.first(
            "SELECT EXISTS(SELECT 1 FROM unreferenced WHERE since = 0 OR head IS NULL)"
        ) { row in row.int64(0) != 0 } ?? false
    }
}

extension Transaction {
    /// Notes since when content is unreferenced and, when the rows are all committed, in which
    /// commit; forgets what is not here.
    public func noteUnreferenced(at now: UInt64) throws(Errno) {
        try connection.run(
            """
            DELETE FROM unreferenced WHERE NOT EXISTS(
                SELECT 1 FROM content c WHERE c.number = unreferenced.content AND c.state > 0)
            """)
        try connection.run(
            "UPDATE unreferenced SET since = ? WHERE since = 0 OR since > ?", now, now)
        guard try !isDirty(), let applied = try applied() else { return }
        try connection.run("UPDATE unreferenced SET head = ? WHERE head IS NULL", applied)
    }

    /// Content that came here and that no file had ever: it is unreferenced from `before` on.
    public func noteStrays(olderThan before: UInt64) throws(Errno) {
        try connection.run(
            """
            INSERT OR IGNORE INTO unreferenced SELECT number, 0, NULL FROM content c
            WHERE state > 0 AND since < ?
            AND NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            """, before)
    }

    /// An object that no file got: it is here, and unreferenced from now on.
    public func abandon(_ extent: Extent, at now: UInt64) throws(Errno) {
        guard try content(extent.root)?.state ?? .absent == .absent else { return }
        try setContentState(extent, .cached, at: now)
        try connection.run(
            """
            INSERT OR IGNORE INTO unreferenced SELECT number, 0, NULL FROM content c
            WHERE root = ? AND NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            """, extent.root)
    }

    /// Marks content that is to go, unless a file has it.
    ///
    /// - Returns: false when it stays.
    public func beginDropping(_ extent: Extent, at now: UInt64) throws(Errno) -> Bool {
        guard let entry = try content(extent.root), entry.extent == extent,
            [.cached, .stored, .dropping].contains(entry.state)
        else { return false }
        guard try references(to: extent.root) == 0 else {
            if entry.state == .dropping { try setContentState(extent, .stored, at: now) }
            return false
        }
        try setContentState(extent, .dropping, at: now)
        return true
    }

    /// Old content is to go before its time.
    ///
    /// - Returns: what of it is here and no file has.
    public func expire(_ extents: some Sequence<Extent>) throws(Errno) -> [Extent] {
        var found: [Extent] = []
        for extent in extents {
            guard let entry = try content(extent.root), entry.extent == extent,
                [.cached, .stored, .dropping].contains(entry.state),
                try references(to: extent.root) == 0
            else { continue }
            // After the first moment, which stands for none.
            try connection.run(
                """
                INSERT INTO unreferenced SELECT number, 1, NULL FROM content WHERE root = ?
                ON CONFLICT DO UPDATE SET since = 1
                """, extent.root)
            found.append(extent)
        }
        return found
    }
}
