public import SystemPackage
public import Volume

/// How much of a content is on this disk.
public enum ContentState: Int64, Sendable {
    /// Known of only.
    case absent = 0
    case partial
    /// Complete, evictable.
    case cached
    /// Complete, counted as a copy.
    case stored
    /// Marked before asking holders and unlinking: neither confirmed nor counted.
    case dropping
}

/// A content as this node knows it.
public struct ContentEntry: Hashable, Sendable {
    public var extent: Extent
    public var state: ContentState
    /// Of a partial content: a bit per verified piece, in the caller's order.
    public var verified: [UInt8]?
    /// Milliseconds since 1970: of the state, and of the last use.
    public var since: UInt64
    public var used: UInt64
}

extension Reader {
    private func decodeContent(_ row: Statement, from first: Int32 = 0) throws(Errno)
        -> ContentEntry
    {
        guard let root = ContentRoot(bytes: row.bytes(first)),
            let state = ContentState(rawValue: row.int64(first + 2))
        else { throw .ioError }
        return ContentEntry(
            extent: Extent(root: root, length: row.uint64(first + 1)), state: state,
            verified: row.isNull(first + 3) ? nil : row.bytes(first + 3),
            since: row.uint64(first + 4), used: row.uint64(first + 5))
    }

    public func content(_ root: ContentRoot) throws(Errno) -> ContentEntry? {
        try connection.first(
            "SELECT root, length, state, verified, since, used FROM content WHERE root = ?", root
        ) { row throws(Errno) in try decodeContent(row) }
    }

    /// What is in that state, least recently used first.
    public func contents(in state: ContentState, limit: Int) throws(Errno) -> [ContentEntry] {
        precondition(state != .absent, "only what is here is indexed")
        return try connection.all(
            """
            SELECT root, length, state, verified, since, used FROM content
            WHERE state = ? AND state > 0 ORDER BY used LIMIT ?
            """, Int(state.rawValue), limit
        ) { row throws(Errno) in try decodeContent(row) }
    }

    /// How many extents of files (open and unlinked ones too) are this content.
    public func references(to root: ContentRoot) throws(Errno) -> Int {
        try connection.first(
            """
            SELECT count(*) FROM extent
            WHERE content = (SELECT number FROM content WHERE root = ?)
            """, root
        ) { row in Int(row.int64(0)) } ?? 0
    }

    /// The inodes that have the content.
    public func inodes(with root: ContentRoot, limit: Int) throws(Errno) -> [InodeNumber] {
        try connection.all(
            """
            SELECT DISTINCT ino FROM extent
            WHERE content = (SELECT number FROM content WHERE root = ?) LIMIT ?
            """, root, limit
        ) { row in InodeNumber(rawValue: row.uint64(0)) }
    }

    /// Number and bytes of the contents in that state.
    public func total(_ state: ContentState) throws(Errno) -> (count: UInt64, bytes: UInt64) {
        precondition(state != .absent, "only what is here is indexed")
        return try connection.first(
            """
            SELECT count(*), coalesce(sum(length), 0) FROM content WHERE state = ? AND state > 0
            """, Int(state.rawValue)
        ) { row in (row.uint64(0), row.uint64(1)) } ?? (0, 0)
    }
}

extension Transaction {
    /// The row number of a content, given on first sight.
    func number(of extent: Extent) throws(Errno) -> Int64 {
        let found = try connection.first(
            "SELECT number FROM content WHERE root = ?", extent.root
        ) { row in row.int64(0) }
        if let found { return found }
        let number =
            1
            + (try connection.first("SELECT max(number) FROM content") { row in row.int64(0) }
                ?? 0)
        try connection.run(
            "INSERT INTO content VALUES(?, ?, ?, 0, NULL, 0, 0)", number, extent.root,
            extent.length)
        return number
    }

    /// Sets how much of a content is here; `verified` belongs to `partial` alone.
    public func setContentState(
        _ extent: Extent, _ state: ContentState, verified: [UInt8]? = nil, at now: UInt64
    ) throws(Errno) {
        precondition(verified == nil || state == .partial)
        try connection.run(
            "UPDATE content SET state = ?, verified = ?, since = ?, used = ? WHERE number = ?",
            Int(state.rawValue), verified, now, now, try number(of: extent))
    }

    /// The verified pieces of a partial content; nothing when it is not partial (any more).
    public func setVerified(_ root: ContentRoot, _ verified: [UInt8]) throws(Errno) {
        try connection.run(
            "UPDATE content SET verified = ? WHERE root = ? AND state = 1", verified, root)
    }

    public func touchContent(_ root: ContentRoot, at now: UInt64) throws(Errno) {
        try connection.run("UPDATE content SET used = ? WHERE root = ?", now, root)
    }

    /// Deletes up to `limit` rows of contents that are not here, that no file has, and that nobody
    /// is known to hold. Returns where to go on: nil when the end was reached.
    public func forgetContents(after number: Int64, limit: Int) throws(Errno) -> Int64? {
        let numbers = try connection.all(
            "SELECT number FROM content WHERE number > ? ORDER BY number LIMIT ?", number, limit
        ) { row in row.int64(0) }
        guard let last = numbers.last else { return nil }
        try connection.run(
            """
            DELETE FROM content WHERE number > ? AND number <= ? AND state = 0
            AND NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = content.number)
            AND NOT EXISTS(SELECT 1 FROM holder h WHERE h.content = content.number)
            """, number, last)
        return numbers.count < limit ? nil : last
    }
}
