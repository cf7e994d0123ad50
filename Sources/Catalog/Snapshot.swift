internal import SystemPackage
public import Volume

/// A durable state of the catalog, held still. Valid only inside the body it was passed to.
public final class Snapshot: Reader, LiveState {
    public func record(_ id: LineageID) throws -> Record? { try volumeRecord(id) }

    public func links(of id: LineageID) throws -> [(place: Place, link: Link)] {
        guard let inode = try inode(id: id) else { return [] }
        return try connection.all(
            """
            SELECT p.id, d.name, d.link, d.stamp, d.node FROM dentry d
            JOIN inode p ON p.ino = d.parent WHERE d.ino = ?
            """, inode.ino
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(1)) else { throw .ioError }
            let link = Link(
                id: LinkID(rawValue: row.uint64(2)), stamp: try stamp(row, 3), target: id)
            return (Place(directory: LineageID(rawValue: row.uint64(0)), name: name), link)
        }
    }

    public func link(at place: Place) throws -> Link? {
        guard let directory = try inode(id: place.directory) else { return nil }
        return try connection.first(
            """
            SELECT i.id, d.link, d.stamp, d.node FROM dentry d JOIN inode i ON i.ino = d.ino
            WHERE d.parent = ? AND d.name = ?
            """, directory.ino, place.name
        ) { row throws(Errno) in
            Link(
                id: LinkID(rawValue: row.uint64(1)), stamp: try stamp(row, 2),
                target: LineageID(rawValue: row.uint64(0)))
        }
    }

    public func children(of directory: LineageID) throws -> [(name: FileName, link: Link)] {
        guard let directory = try inode(id: directory) else { return [] }
        return try connection.all(
            """
            SELECT d.name, i.id, d.link, d.stamp, d.node FROM dentry d
            JOIN inode i ON i.ino = d.ino WHERE d.parent = ?
            """, directory.ino
        ) { row throws(Errno) in
            guard let name = FileName(row.bytes(0)) else { throw .ioError }
            let link = Link(
                id: LinkID(rawValue: row.uint64(2)), stamp: try stamp(row, 3),
                target: LineageID(rawValue: row.uint64(1)))
            return (name, link)
        }
    }

    public func tree(of directory: LineageID) throws -> ObjectID? {
        guard let directory = try inode(id: directory) else { return nil }
        return try connection.first("SELECT tree FROM inode WHERE ino = ?", directory.ino) { row in
            row.isNull(0) ? nil : ObjectID(bytes: row.bytes(0))
        } ?? nil
    }
}

/// The second connection: reads only what survives power loss.
///
/// `@unchecked Sendable`: the connection and its reader are used with `lock` held.
final class DurableReader: @unchecked Sendable {
    private let lock = Lock()
    private let connection: Connection
    private let reader: Snapshot
    private let writer: Writer
    private let groupCommit: GroupCommit

    init(connection: Connection, writer: Writer, groupCommit: GroupCommit) {
        self.connection = connection
        self.writer = writer
        self.groupCommit = groupCommit
        reader = Snapshot(connection)
    }

    func snapshot<T>(_ body: (Snapshot) throws -> T) throws -> T {
        lock.lock()
        defer { lock.unlock() }
        // Also when choosing the state fails half way: the next BEGIN must find none open.
        defer { if connection.isInTransaction { _ = try? connection.control("COMMIT") } }
        // The state is chosen first and then waited for: between two COMMITs, so that the number
        // says exactly what is in it.
        let operation = try writer.lock.withLock {
            try connection.control("BEGIN")
            _ = try reader.meta("")
            return writer.committed
        }
        try groupCommit.waitUntilDurable(operation)
        return try body(reader)
    }

    func close() { lock.withLock { connection.close() } }
}
