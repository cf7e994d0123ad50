public import SystemPackage
public import Volume

/// One operation on the catalog: everything in it happens, or nothing.
///
/// Valid only inside the body it was passed to, on that thread. Methods throw the errno that the
/// kernel is to see; permissions are checked by the kernel (`default_permissions`).
public final class Transaction: Reader {
    /// What is kept in memory and must be taken back with a savepoint.
    struct Volatile {
        var counts = Counts()
        var local = LocalContent()
        /// Milliseconds that the persisted clock floor covers.
        var clockReserved: UInt64 = 0
        var cookieReserved: UInt64 = 0
    }

    var volatile = Volatile()
    var nodeNumbers: [NodeID: Int64] = [:]

    // Never taken back: a gap is harmless, a repetition is not.
    private var clock: HybridClock
    private var nextCookie: UInt64
    private var nextVersion: UInt64
    private var identities: IdentitySequence
    /// Too many after a rollback do no harm.
    var changes = ContentChanges.these([])
    private let wall: @Sendable () -> UInt64
    private let random: @Sendable () -> UInt64

    private static let clockReserveMilliseconds: UInt64 = 10_000
    private static let cookieReserve: UInt64 = 1 << 20
    static let firstCookie: UInt64 = 16

    init(_ connection: Connection, options: Catalog.Options) throws {
        wall = options.wallMilliseconds
        random = options.random
        clock = HybridClock(node: options.node, floor: 0)
        nextCookie = Self.firstCookie
        nextVersion = 1
        identities = IdentitySequence()
        super.init(connection)
        let floor = try metaInteger(.clockFloor) ?? 0
        clock = HybridClock(node: options.node, floor: floor)
        nextCookie = max(try metaInteger(.cookieFloor) ?? 0, Self.firstCookie)
        nextVersion = 1 + (try newestVersion())
        volatile.counts = try countAll()
        volatile.local = try countLocalContent()
    }

    // MARK: - Stamps and identities

    /// The node that this catalog's stamps name.
    public var node: NodeID { clock.node }

    /// A new stamp, greater than every one given or observed before.
    public func stamp() throws(Errno) -> Stamp {
        let stamp = clock.next(wall: wall())
        try reserveClock()
        return stamp
    }

    /// Makes all later stamps greater than this one.
    public func observe(_ stamp: Stamp) throws(Errno) {
        clock.observe(stamp)
        try reserveClock()
    }

    /// The floor is written ahead and in the same batch as the stamps it covers: stamps of a batch
    /// that is lost never left this node.
    private func reserveClock() throws(Errno) {
        guard clock.milliseconds >= volatile.clockReserved else { return }
        let floor = clock.milliseconds + Self.clockReserveMilliseconds
        try setMeta(.clockFloor, integer: floor)
        volatile.clockReserved = floor
    }

    /// A number that no inode here has, as `ino` or as `id`.
    public func nextIdentity() throws(Errno) -> UInt64 {
        if let identity = identities.next() { return identity }
        // 38 random bits against the prefixes in use: 64 clashes in a row do not happen.
        for _ in 0..<64 {
            let prefix = random() >> (64 - IdentitySequence.prefixBits)
            guard prefix > 0, try isUnused(prefix) else { continue }
            identities = IdentitySequence(prefix: prefix)
            if let identity = identities.next() { return identity }
        }
        throw .ioError
    }

    private func isUnused(_ prefix: UInt64) throws(Errno) -> Bool {
        let first = prefix << IdentitySequence.counterBits
        let last = first | (1 << IdentitySequence.counterBits - 1)
        let ino = try connection.first(
            "SELECT 1 FROM inode WHERE ino BETWEEN ? AND ? LIMIT 1", first, last
        ) { _ in true }
        let id = try connection.first(
            "SELECT 1 FROM inode WHERE id <> ino AND id BETWEEN ? AND ? LIMIT 1", first, last
        ) { _ in true }
        return ino == nil && id == nil
    }

    func nextLinkID() -> LinkID { LinkID(rawValue: max(random() >> 1, 1)) }

    func cookie() throws(Errno) -> UInt64 {
        if nextCookie >= volatile.cookieReserved {
            let floor = nextCookie + Self.cookieReserve
            try setMeta(.cookieFloor, integer: floor)
            volatile.cookieReserved = floor
        }
        nextCookie += 1
        return nextCookie - 1
    }

    // MARK: - Nodes

    /// The row number of a node, given on first sight.
    func number(of node: NodeID) throws(Errno) -> Int64 {
        if let known = nodeNumbers[node] { return known }
        let found = try connection.first("SELECT number FROM node WHERE id = ?", node) { row in
            row.int64(0)
        }
        let number: Int64
        if let found {
            number = found
        } else {
            number =
                1
                + (try connection.first("SELECT max(number) FROM node") { row in row.int64(0) }
                    ?? 0)
            try connection.run(
                "INSERT INTO node VALUES(?, ?, ?, ?, 0, NULL)", number, node, [UInt8](), [UInt8]())
        }
        nodeNumbers[node] = number
        knownNodes[number] = node
        return number
    }

    /// After a rollback: rows that were added may be gone.
    func forgetCached() {
        nodeNumbers.removeAll()
        knownNodes.removeAll()
    }

    // MARK: - Dirty marks

    private func newestVersion() throws(Errno) -> UInt64 {
        try connection.first(
            """
            SELECT max(coalesce((SELECT max(version) FROM dirty_place), 0),
                       coalesce((SELECT max(version) FROM dirty_record), 0))
            """
        ) { row in row.uint64(0) } ?? 0
    }

    private func version() -> UInt64 {
        nextVersion += 1
        return nextVersion - 1
    }

    func markDirty(_ place: Place) throws(Errno) {
        try connection.run(
            """
            INSERT INTO dirty_place VALUES(?, ?, ?)
            ON CONFLICT DO UPDATE SET version = excluded.version
            """, place.directory, place.name, version())
    }

    func markDirty(_ id: LineageID) throws(Errno) {
        try connection.run(
            """
            INSERT INTO dirty_record VALUES(?, ?)
            ON CONFLICT DO UPDATE SET version = excluded.version
            """, id, version())
    }

    // MARK: - Counts and settings

    public var counts: Counts { volatile.counts }
    var local: LocalContent { volatile.local }

    private func countAll() throws(Errno) -> Counts {
        try connection.first(
            """
            SELECT count(*), sum(kind = 1), sum(CASE kind WHEN 1 THEN size ELSE 0 END)
            FROM inode WHERE CASE kind WHEN 2 THEN parent IS NOT NULL ELSE nlink > 0 END
            """
        ) { row in Counts(inodes: row.uint64(0), files: row.uint64(1), bytes: row.uint64(2)) }
            ?? Counts()
    }

    func recount() throws(Errno) { volatile.counts = try countAll() }

    /// Follows an inode's change from one linked state to the other.
    func count(_ before: InodeRow?, _ after: InodeRow?) {
        if let before, before.isLinked {
            volatile.counts.inodes -= 1
            if before.kind == .file {
                volatile.counts.files -= 1
                volatile.counts.bytes -= before.size
            }
        }
        if let after, after.isLinked {
            volatile.counts.inodes += 1
            if after.kind == .file {
                volatile.counts.files += 1
                volatile.counts.bytes += after.size
            }
        }
    }

    /// nil removes the key. Keys that begin with `catalog.` are the catalog's own.
    public func setMeta(_ key: String, _ value: [UInt8]?) throws(Errno) {
        precondition(!key.hasPrefix("catalog."))
        try writeMeta(key, value)
    }

    func setMeta(_ key: MetaKey, _ value: [UInt8]?) throws(Errno) {
        try writeMeta(key.rawValue, value)
    }

    private func setMeta(_ key: MetaKey, integer: UInt64) throws(Errno) {
        try setMeta(
            key, (0..<8).map { UInt8(truncatingIfNeeded: integer >> (56 - 8 * $0)) })
    }

    private func writeMeta(_ key: String, _ value: [UInt8]?) throws(Errno) {
        if let value {
            try connection.run(
                """
                INSERT INTO meta VALUES(?, ?) ON CONFLICT DO UPDATE SET value = excluded.value
                """, Array(key.utf8), value)
        } else {
            try connection.run("DELETE FROM meta WHERE key = ?", Array(key.utf8))
        }
    }
}

/// InodeRow numbers of one prefix: sequential, so that inserts stay local in the table.
struct IdentitySequence {
    static let prefixBits: UInt64 = 38
    static let counterBits: UInt64 = 24

    private var following: UInt64 = 0
    private var end: UInt64 = 0

    /// Exhausted from the start.
    init() {}

    init(prefix: UInt64) {
        following = prefix << Self.counterBits
        end = following + 1 << Self.counterBits
    }

    mutating func next() -> UInt64? {
        guard following < end else { return nil }
        following += 1
        return following - 1
    }
}
