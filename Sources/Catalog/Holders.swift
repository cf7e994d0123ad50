public import SystemPackage
public import Volume

/// What a node says about a content.
public enum HolderState: Int64, Sendable {
    /// Counts as a copy.
    case stored = 1
    case cached
    /// Has begun to fetch it: counts against the need, never as a copy.
    case cloning
}

public struct Holder: Hashable, Sendable {
    public var node: NodeID
    public var state: HolderState
    /// Milliseconds since 1970.
    public var since: UInt64
}

/// When a content has the copies that it is to have.
public struct CopyRule: Sendable {
    public struct Place: Hashable, Sendable {
        public var machine: String
        public var isOnline: Bool
        /// False: what is there counts as no copy.
        public var counts: Bool

        public init(machine: String, isOnline: Bool, counts: Bool = true) {
            self.machine = machine
            self.isOnline = isOnline
            self.counts = counts
        }
    }

    /// The nodes that are there.
    public var places: [NodeID: Place]
    /// Where no directory says anything.
    public var copies: Int
    /// The node that asks.
    public var own: NodeID

    public init(places: [NodeID: Place], copies: Int, own: NodeID) {
        self.places = places
        self.copies = copies
        self.own = own
    }
}

/// Contents whose holders or references changed: who counts copies need not look at the others.
public enum ContentChanges: Hashable, Sendable {
    /// Row numbers remembered; with more it is all.
    static let countMax = 65_536

    case these(Set<Int64>)
    case all

    mutating func insert(_ number: Int64) {
        guard case .these(var numbers) = self else { return }
        self = .all  // Gives up the storage, which would be copied otherwise.
        guard numbers.count < Self.countMax else { return }
        numbers.insert(number)
        self = .these(numbers)
    }
}

/// A content with everything that replication asks about it.
public struct Holding: Hashable, Sendable {
    /// Pass it as `after` to go on behind this one.
    public var number: Int64
    public var extent: Extent
    public var state: ContentState
    /// Whether a file has it.
    public var isReferenced: Bool
    /// How many copies it is to have.
    public var copies: Int
    public var holders: [Holder]
}

/// One entry of a node's chained log of what it has; its encoding is the caller's.
public struct HolderLogEntry: Hashable, Sendable {
    public var epoch: UInt64
    /// From 1, without gaps in one epoch.
    public var number: UInt64
    public var entry: [UInt8]
    /// The hash over this entry and all before it.
    public var chain: [UInt8]
    public var signature: [UInt8]

    public init(
        epoch: UInt64, number: UInt64, entry: [UInt8], chain: [UInt8], signature: [UInt8]
    ) {
        self.epoch = epoch
        self.number = number
        self.entry = entry
        self.chain = chain
        self.signature = signature
    }
}

/// For modules that import another `HolderLogEntry` too: a module with a class of its own name
/// cannot qualify.
public typealias StoredLogEntry = HolderLogEntry

/// A node as this one knows it.
public struct NodeEntry: Hashable, Sendable {
    public var id: NodeID
    /// Nil: the volume does not list it.
    public var description: NodeDescription?
    /// Milliseconds since 1970; nil: never.
    public var seen: UInt64?
    /// In the caller's encoding: addresses, space, head.
    public var info: [UInt8]?
}

extension Reader {
    public func holders(of root: ContentRoot) throws(Errno) -> [Holder] {
        try connection.all(
            """
            SELECT n.id, h.state, h.since FROM holder h JOIN node n ON n.number = h.node
            WHERE h.content = (SELECT number FROM content WHERE root = ?) ORDER BY h.node
            """, root
        ) { row throws(Errno) in
            guard let node = NodeID(bytes: row.bytes(0)),
                let state = HolderState(rawValue: row.int64(1))
            else { throw .ioError }
            return Holder(node: node, state: state, since: row.uint64(2))
        }
    }

    /// - Parameter copies: how many it is to have where no directory says anything.
    public func holding(_ number: Int64, copies: Int) throws(Errno) -> Holding? {
        let holding = try connection.first(
            """
            SELECT c.number, c.root, c.length, c.state,
                EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            FROM content c WHERE c.number = ?
            """, number
        ) { row throws(Errno) in try decodeHolding(row, copies) }
        guard var holding else { return nil }
        holding.copies = try self.copies(of: number, otherwise: copies)
        holding.holders = try holders(of: holding.extent.root)
        return holding
    }

    public func holding(of root: ContentRoot, copies: Int) throws(Errno) -> Holding? {
        let number = try connection.first("SELECT number FROM content WHERE root = ?", root) {
            row in row.int64(0)
        }
        return try number.flatMap { number throws(Errno) in try holding(number, copies: copies) }
    }

    private func decodeHolding(_ row: Statement, _ copies: Int) throws(Errno) -> Holding {
        guard let root = ContentRoot(bytes: row.bytes(1)),
            let state = ContentState(rawValue: row.int64(3))
        else { throw .ioError }
        return Holding(
            number: row.int64(0), extent: Extent(root: root, length: row.uint64(2)),
            state: state, isReferenced: row.int64(4) != 0, copies: copies, holders: [])
    }

    /// All contents, in the order in which this node came to know of them; without their holders.
    ///
    /// - Parameter copies: how many they are to have where no directory says anything; nil: nobody
    ///   asks how many, which is 0 then.
    public func holdings(
        after number: Int64, limit: Int, copies: Int? = nil
    ) throws(Errno) -> [Holding] {
        var holdings = try connection.all(
            """
            SELECT c.number, c.root, c.length, c.state,
                EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            FROM content c WHERE c.number > ? ORDER BY c.number LIMIT ?
            """, number, limit
        ) { row throws(Errno) in try decodeHolding(row, copies ?? 0) }
        guard let copies, try hasPolicies() else { return holdings }
        for index in holdings.indices {
            holdings[index].copies = try self.copies(
                of: holdings[index].number, otherwise: copies)
        }
        return holdings
    }

    /// The row numbers of contents of files behind `number` that have fewer copies than they are to
    /// have, or none online, or more than that with one of them here.
    ///
    /// Looks at no more than `limit` contents; `next` is where to go on, nil at the end.
    public func deviating(
        from rule: CopyRule, after number: Int64, limit: Int
    ) throws(Errno) -> (found: [Int64], next: Int64?) {
        let last = try connection.first(
            "SELECT max(number), count(*) FROM (SELECT number FROM content WHERE number > ? LIMIT ?)",
            number, limit
        ) { row in (number: row.int64(0), count: Int(row.int64(1))) }
        guard let last, last.count > 0 else { return ([], nil) }
        let machines = Array(Set(rule.places.values.filter(\.counts).map(\.machine)))
        var values: [Value] = [
            number.value, last.number.value, rule.copies.value, machines.count.value,
            rule.own.value,
        ]
        for (node, place) in rule.places {
            values += [
                node.value, (place.counts ? machines.firstIndex(of: place.machine) : nil).value,
                place.isOnline ? 1.value : .null,
            ]
        }
        // Behind the numbered ones.
        let live = (0..<rule.places.count).map {
            ", (?\(3 * $0 + 6), ?\(3 * $0 + 7), ?\(3 * $0 + 8))"
        }
        .joined()
        let targets =
            try hasPolicies()
            ? CopiesPolicy.targets(of: "e.content > ?1 AND e.content <= ?2", otherwise: "?3")
            : "target(content, copies) AS (SELECT NULL, NULL WHERE 0)"
        let found = try connection.all(
            text: """
                WITH RECURSIVE live(id, machine, online) AS (VALUES (NULL, NULL, NULL)\(live)),
                \(targets)
                SELECT c.number FROM content c
                LEFT JOIN target t ON t.content = c.number
                LEFT JOIN holder h ON h.content = c.number AND h.state IN (1, 2)
                LEFT JOIN node n ON n.number = h.node LEFT JOIN live l ON l.id = n.id
                WHERE c.number > ?1 AND c.number <= ?2
                AND EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
                GROUP BY c.number
                HAVING count(CASE h.state WHEN 1 THEN l.machine END) < coalesce(t.copies, ?3)
                OR count(DISTINCT CASE h.state WHEN 1 THEN l.machine END)
                    < min(coalesce(t.copies, ?3), ?4)
                OR count(l.online) = 0
                OR max(h.state = 1 AND l.id = ?5) = 1
                    AND count(CASE WHEN h.state = 1 AND l.id <> ?5 THEN l.machine END)
                        >= coalesce(t.copies, ?3)
                ORDER BY c.number
                """, values
        ) { row in row.int64(0) }
        return (found, last.count < limit ? nil : last.number)
    }

    /// Contents of which a node's own log says something else than their state here.
    public func misstated(by node: NodeID) throws(Errno) -> [Extent] {
        // Of `HolderState` and `ContentState`: stored is 1 and 3, cached is 2 and 2.
        try connection.all(
            """
            SELECT c.root, c.length FROM content c LEFT JOIN holder h ON h.content = c.number
                AND h.node = (SELECT number FROM node WHERE id = ?1)
            WHERE c.state > 0 AND c.state IN (2, 3) AND coalesce(h.state, 0) <> 4 - c.state
            UNION ALL
            SELECT c.root, c.length FROM holder h JOIN content c ON c.number = h.content
            WHERE h.node = (SELECT number FROM node WHERE id = ?1) AND c.state NOT IN (2, 3)
            """, node
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(0)) else { throw .ioError }
            return Extent(root: root, length: row.uint64(1))
        }
    }

    /// Whether commits have the file as it is here.
    public func isCommitted(_ inode: InodeRow) throws(Errno) -> Bool {
        try connection.first(
            """
            SELECT 1 FROM dirty_record WHERE id = ?1 UNION ALL
            SELECT 1 FROM dentry d JOIN inode p ON p.ino = d.parent
            JOIN dirty_place m ON m.directory = p.id AND m.name = d.name WHERE d.ino = ?2 LIMIT 1
            """, inode.id, inode.ino
        ) { _ in true } == nil
    }

    /// Contents of files that are stored on this disk for the volume.
    public func storedForFiles() throws(Errno) -> LocalContent.Total {
        try connection.first(
            """
            SELECT count(*), coalesce(sum(length), 0) FROM content c WHERE state IN (3, 4)
            AND state > 0 AND EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            """
        ) { row in LocalContent.Total(count: row.uint64(0), bytes: row.uint64(1)) }
            ?? LocalContent.Total()
    }

    /// Bytes of contents that each node stores. Reads all that is known of holders: ask a snapshot.
    public func storedBytes() throws(Errno) -> [NodeID: UInt64] {
        var bytes: [NodeID: UInt64] = [:]
        let rows = try connection.all(
            """
            SELECT n.id, sum(c.length) FROM holder h JOIN content c ON c.number = h.content
            JOIN node n ON n.number = h.node WHERE h.state = 1 GROUP BY h.node
            """
        ) { row in (node: row.bytes(0), bytes: row.uint64(1)) }
        for row in rows {
            guard let node = NodeID(bytes: row.node) else { throw .ioError }
            bytes[node] = row.bytes
        }
        return bytes
    }

    /// Contents of files that no other node of the volume has, as far as is known.
    public func heldOnly(by node: NodeID) throws(Errno) -> LocalContent.Total {
        try connection.first(
            """
            SELECT count(*), coalesce(sum(c.length), 0) FROM holder h
            JOIN content c ON c.number = h.content
            WHERE h.node = (SELECT number FROM node WHERE id = ?) AND h.state IN (1, 2)
            AND EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            AND NOT EXISTS(SELECT 1 FROM holder o JOIN node n ON n.number = o.node
                WHERE o.content = h.content AND o.node <> h.node AND o.state IN (1, 2)
                AND length(n.name) > 0)
            """, node
        ) { row in LocalContent.Total(count: row.uint64(0), bytes: row.uint64(1)) }
            ?? LocalContent.Total()
    }

    /// The greatest number that content has; 0: there is none.
    public func lastContentNumber() throws(Errno) -> Int64 {
        try connection.first("SELECT max(number) FROM content") { row in row.int64(0) } ?? 0
    }

    /// Of the contents with these numbers, those that are stored here and of which at most so many
    /// nodes are known to have all.
    public func stored(in numbers: Range<Int64>, holdersMax: Int) throws(Errno) -> [Extent] {
        // By the number, not by the index of what is here: that one is in another order.
        try connection.all(
            """
            SELECT c.root, c.length FROM content c
            WHERE c.number >= ?1 AND c.number < ?2 AND +c.state = 3
            AND (SELECT count(*) FROM holder h WHERE h.content = c.number AND h.state IN (1, 2)) <= ?3
            ORDER BY c.number
            """, numbers.lowerBound, numbers.upperBound, holdersMax
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(0)) else { throw .ioError }
            return Extent(root: root, length: row.uint64(1))
        }
    }

    // MARK: - Logs

    /// The last entry of a node's newest epoch; nil: nothing is known of it.
    public func logHead(of node: NodeID) throws(Errno) -> HolderLogEntry? {
        try connection.first(
            """
            SELECT epoch, number, entry, chain, signature FROM holder_log
            WHERE node = (SELECT number FROM node WHERE id = ?)
            ORDER BY epoch DESC, number DESC LIMIT 1
            """, node
        ) { row in Self.decodeLogEntry(row) }
    }

    /// A node's log from entry `first` of that epoch on.
    public func logEntries(
        of node: NodeID, epoch: UInt64, from first: UInt64, limit: Int
    ) throws(Errno) -> [HolderLogEntry] {
        try connection.all(
            """
            SELECT epoch, number, entry, chain, signature FROM holder_log
            WHERE node = (SELECT number FROM node WHERE id = ?) AND epoch = ? AND number >= ?
            ORDER BY number LIMIT ?
            """, node, epoch, first, limit
        ) { row in Self.decodeLogEntry(row) }
    }

    private static func decodeLogEntry(_ row: Statement) -> HolderLogEntry {
        HolderLogEntry(
            epoch: row.uint64(0), number: row.uint64(1), entry: row.bytes(2), chain: row.bytes(3),
            signature: row.bytes(4))
    }

    // MARK: - Nodes

    public func nodes() throws(Errno) -> [NodeEntry] {
        try connection.all("SELECT id, name, machine, seen, info FROM node ORDER BY number") {
            row throws(Errno) in
            guard let id = NodeID(bytes: row.bytes(0)) else { throw .ioError }
            let name = row.bytes(1)
            let description = NodeDescription(
                name: String(decoding: name, as: UTF8.self),
                machine: String(decoding: row.bytes(2), as: UTF8.self))
            return NodeEntry(
                id: id, description: name.isEmpty ? nil : description,
                seen: row.int64(3) == 0 ? nil : row.uint64(3),
                info: row.isNull(4) ? nil : row.bytes(4))
        }
    }

    /// The nodes that the volume lists, as commits have them.
    public func nodeDescriptions() throws(Errno) -> [NodeID: NodeDescription] {
        var descriptions: [NodeID: NodeDescription] = [:]
        for node in try nodes() { descriptions[node.id] = node.description }
        return descriptions
    }
}

extension Transaction {
    /// nil: the node no longer has it. What names a known content by another length says nothing.
    public func setHolder(
        of extent: Extent, _ node: NodeID, _ state: HolderState?, since: UInt64
    ) throws(Errno) {
        guard let content = try number(claimed: extent) else { return }
        changes.insert(content)
        if let state {
            try connection.run(
                "INSERT OR REPLACE INTO holder VALUES(?, ?, ?, ?)", content, try number(of: node),
                Int(state.rawValue), since)
        } else {
            try connection.run(
                "DELETE FROM holder WHERE content = ? AND node = ?", content, try number(of: node))
        }
    }

    /// Forgets everything that a node said: it begins a new epoch.
    public func clearHolders(_ node: NodeID) throws(Errno) {
        let number = try number(of: node)
        changes = .all
        try connection.run("DELETE FROM holder WHERE node = ?", number)
        try connection.run("DELETE FROM holder_log WHERE node = ?", number)
    }

    /// Appends to a node's log.
    ///
    /// Throws EINVAL when the entry does not follow the last one of its epoch.
    public func appendLog(_ entry: HolderLogEntry, of node: NodeID) throws(Errno) {
        let last = try logHead(of: node)
        let expected = last?.epoch == entry.epoch ? (last?.number ?? 0) + 1 : 1
        guard entry.epoch >= last?.epoch ?? 0, entry.number == expected else {
            throw .invalidArgument
        }
        try connection.run(
            "INSERT INTO holder_log VALUES(?, ?, ?, ?, ?, ?)", try number(of: node), entry.epoch,
            entry.number, entry.entry, entry.chain, entry.signature)
    }

    /// nil: the volume no longer lists the node; its row stays, for stamps name it.
    public func setNode(_ node: NodeID, _ description: NodeDescription?) throws(Errno) {
        try connection.run(
            "UPDATE node SET name = ?, machine = ? WHERE number = ?",
            Array((description?.name ?? "").utf8), Array((description?.machine ?? "").utf8),
            try number(of: node))
    }

    public func setNodeInfo(
        _ node: NodeID, seen: UInt64, info: [UInt8]?
    ) throws(Errno) {
        try connection.run(
            "UPDATE node SET seen = ?, info = ? WHERE number = ?", seen, info,
            try number(of: node))
    }
}
