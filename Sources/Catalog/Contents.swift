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

    /// Whether parts of any content are here.
    public func hasPartial() throws(Errno) -> Bool {
        try connection.first("SELECT 1 FROM content WHERE state = 1 AND state > 0 LIMIT 1") { _ in
            true
        } ?? false
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
}

/// The complete content on this disk.
public struct LocalContent: Hashable, Sendable {
    public struct Total: Hashable, Sendable {
        public var count: UInt64 = 0
        public var bytes: UInt64 = 0
    }

    public var stored = Total()
    public var cached = Total()

    public var count: UInt64 { stored.count + cached.count }
    public var bytes: UInt64 { stored.bytes + cached.bytes }

    mutating func add(_ state: ContentState, count: UInt64 = 1, bytes: UInt64) {
        switch state {
        case .stored:
            stored.count += count
            stored.bytes += bytes
        case .cached:
            cached.count += count
            cached.bytes += bytes
        case .absent, .partial, .dropping: break
        }
    }

    mutating func remove(_ state: ContentState, bytes: UInt64) {
        switch state {
        case .stored:
            stored.count -= 1
            stored.bytes -= bytes
        case .cached:
            cached.count -= 1
            cached.bytes -= bytes
        case .absent, .partial, .dropping: break
        }
    }
}

extension Transaction {
    private struct KnownContent {
        let number: Int64
        let length: UInt64
        let state: ContentState
    }

    private func known(_ root: ContentRoot) throws(Errno) -> KnownContent? {
        try connection.first(
            "SELECT number, length, state FROM content WHERE root = ?", root
        ) { row throws(Errno) in
            guard let state = ContentState(rawValue: row.int64(2)) else { throw .ioError }
            return KnownContent(number: row.int64(0), length: row.uint64(1), state: state)
        }
    }

    private func add(_ extent: Extent) throws(Errno) -> Int64 {
        let number =
            1
            + (try connection.first("SELECT max(number) FROM content") { row in row.int64(0) }
                ?? 0)
        try connection.run(
            "INSERT INTO content VALUES(?, ?, ?, 0, NULL, 0, 0)", number, extent.root,
            extent.length)
        return number
    }

    /// The row number of a content of which a peer claims something, given on first sight; nil when
    /// it is known by another length, so that the claim is about nothing.
    func number(claimed extent: Extent) throws(Errno) -> Int64? {
        guard let known = try known(extent.root) else { return try add(extent) }
        return known.length == extent.length ? known.number : nil
    }

    /// The row number of a content that a file has or that was verified here, given on first sight.
    /// Its length is the right one: the row may have been made after a wrong claim.
    ///
    /// Throws EIO when the content is complete here with another length.
    func number(of extent: Extent) throws(Errno) -> Int64 {
        guard let known = try known(extent.root) else { return try add(extent) }
        guard known.length != extent.length else { return known.number }
        guard known.state == .absent || known.state == .partial else { throw .ioError }
        try connection.run(
            "UPDATE content SET length = ?, state = 0, verified = NULL WHERE number = ?",
            extent.length, known.number)
        return known.number
    }

    /// Sets how much of a content is here; `verified` belongs to `partial` alone.
    ///
    /// Throws EINVAL for a partial content that is known by another length, EIO as `number(of:)`.
    public func setContentState(
        _ extent: Extent, _ state: ContentState, verified: [UInt8]? = nil, at now: UInt64
    ) throws(Errno) {
        precondition(verified == nil || state == .partial)
        // What is being fetched has not proved its length yet.
        let number = state == .partial ? try number(claimed: extent) : try number(of: extent)
        guard let number, let before = try known(extent.root) else { throw .invalidArgument }
        try connection.run(
            "UPDATE content SET state = ?, verified = ?, since = ?, used = ? WHERE number = ?",
            Int(state.rawValue), verified, now, now, number)
        volatile.local.remove(before.state, bytes: extent.length)
        volatile.local.add(state, bytes: extent.length)
    }

    func countLocalContent() throws(Errno) -> LocalContent {
        var local = LocalContent()
        let totals = try connection.all(
            """
            SELECT state, count(*), coalesce(sum(length), 0) FROM content
            WHERE state > 0 GROUP BY state
            """
        ) { row in (state: ContentState(rawValue: row.int64(0)), row.uint64(1), row.uint64(2)) }
        for (state, count, bytes) in totals {
            if let state { local.add(state, count: count, bytes: bytes) }
        }
        return local
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
