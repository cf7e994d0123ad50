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

/// A content with everything that replication asks about it.
public struct Holding: Hashable, Sendable {
    /// Pass it as `after` to go on behind this one.
    public var number: Int64
    public var extent: Extent
    public var state: ContentState
    /// Whether a file has it.
    public var isReferenced: Bool
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

    /// All contents, in the order in which this node came to know of them.
    public func holdings(after number: Int64, limit: Int) throws(Errno) -> [Holding] {
        var holdings = try connection.all(
            """
            SELECT c.number, c.root, c.length, c.state,
                EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
            FROM content c WHERE c.number > ? ORDER BY c.number LIMIT ?
            """, number, limit
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(1)),
                let state = ContentState(rawValue: row.int64(3))
            else { throw .ioError }
            return Holding(
                number: row.int64(0), extent: Extent(root: root, length: row.uint64(2)),
                state: state, isReferenced: row.int64(4) != 0, holders: [])
        }
        for index in holdings.indices {
            holdings[index].holders = try holders(of: holdings[index].extent.root)
        }
        return holdings
    }

    /// Contents of files that fewer than `target` of the given nodes have stored, behind `number`,
    /// with how many do. Machines are the caller's to compare (`holders`).
    ///
    /// Looks at no more than `limit` contents; `next` is where to go on, nil at the end.
    public func underReplicated(
        online: [NodeID], target: Int, after number: Int64, limit: Int
    ) throws(Errno) -> (found: [(extent: Extent, copies: Int)], next: Int64?) {
        let marks = Array(repeating: "?", count: online.count).joined(separator: ", ")
        let last = try connection.first(
            "SELECT max(number), count(*) FROM (SELECT number FROM content WHERE number > ? LIMIT ?)",
            number, limit
        ) { row in (number: row.int64(0), count: Int(row.int64(1))) }
        guard let last, last.count > 0 else { return ([], nil) }
        let found = try connection.all(
            text: """
                SELECT root, length, (
                    SELECT count(*) FROM holder h JOIN node n ON n.number = h.node
                    WHERE h.content = c.number AND h.state = 1 AND n.id IN (\(marks))) AS copies
                FROM content c WHERE number > ? AND number <= ? AND copies < ?
                AND EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number)
                ORDER BY number
                """,
            online.map(\.value) + [number.value, last.number.value, target.value]
        ) { row throws(Errno) in
            guard let root = ContentRoot(bytes: row.bytes(0)) else { throw .ioError }
            return (
                extent: Extent(root: root, length: row.uint64(1)), copies: Int(row.int64(2))
            )
        }
        return (found, last.count < limit ? nil : last.number)
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
    /// nil: the node no longer has it.
    public func setHolder(
        of extent: Extent, _ node: NodeID, _ state: HolderState?, since: UInt64
    ) throws(Errno) {
        let content = try number(of: extent)
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
