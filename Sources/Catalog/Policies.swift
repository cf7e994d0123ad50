public import SystemPackage
public import Volume

/// How many copies directories ask for of what is below them: `user.delugefs.copies`, which counts
/// for all directories below that do not say otherwise.
public enum CopiesPolicy {
    public static let name = Array("user.delugefs.copies".utf8)
    /// How many of them an `fsync` waits for.
    public static let syncName = Array("user.delugefs.fsync-copies".utf8)
    /// The same for SQL, where the index of such attributes must be recognized.
    static let nameText = text(name)
    static let syncNameText = text(syncName)

    private static func text(_ name: [UInt8]) -> String {
        "x'" + name.map { String($0, radix: 16) }.joined() + "'"
    }

    /// The number that the attribute of a directory gives; NULL: none, or it is no number of copies.
    /// What other programs or nodes wrote may be anything.
    static func copies(of directory: String, in attribute: String = nameText) -> String {
        """
        (SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM xattr WHERE ino = \(directory)
            AND name = \(attribute) AND CAST(CAST(value AS TEXT) AS INTEGER) BETWEEN 1 AND \(Limits.copiesMax))
        """
    }

    /// Tables for a query over contents: `target(content, copies)`, one row for each content of a
    /// file whose number of copies the directories above it decide.
    ///
    /// Of several names the one that asks for most counts; where no directory says anything it is
    /// the volume's number.
    ///
    /// - Parameters:
    ///   - contents: a condition on `e.content`.
    ///   - copies: what counts where no directory says anything, as SQL.
    static func targets(of contents: String, otherwise copies: String) -> String {
        """
        place(content, directory) AS MATERIALIZED (
            SELECT DISTINCT e.content, d.parent FROM extent e JOIN dentry d ON d.ino = e.ino
            WHERE \(contents)),
        above(start, directory, copies) AS (
            SELECT directory, directory, \(CopiesPolicy.copies(of: "directory"))
            FROM (SELECT DISTINCT directory FROM place)
            UNION ALL
            SELECT a.start, i.parent, \(CopiesPolicy.copies(of: "i.parent"))
            FROM above a JOIN inode i ON i.ino = a.directory
            WHERE a.copies IS NULL AND a.directory <> 1 AND i.parent IS NOT NULL),
        target(content, copies) AS MATERIALIZED (
            SELECT p.content, max(coalesce(a.copies, \(copies))) FROM place p
            JOIN above a ON a.start = p.directory
            WHERE a.copies IS NOT NULL OR a.directory = 1 GROUP BY p.content)
        """
    }
}

extension Reader {
    /// Whether any directory says how many copies it wants.
    func hasPolicies() throws(Errno) -> Bool {
        try connection.all(
            text: "SELECT 1 FROM xattr WHERE name = \(CopiesPolicy.nameText) LIMIT 1", []
        ) { _ in true }.isEmpty == false
    }

    /// How many copies a content is to have.
    ///
    /// - Parameter otherwise: where no directory says anything.
    func copies(of content: Int64, otherwise copies: Int) throws(Errno) -> Int {
        guard try hasPolicies() else { return copies }
        return try connection.all(
            text: """
                WITH RECURSIVE \(CopiesPolicy.targets(of: "e.content = ?1", otherwise: "?2"))
                SELECT copies FROM target
                """, [content.value, copies.value]
        ) { row in Int(row.int64(0)) }.first ?? copies
    }

    /// As `copies(of:otherwise:)`, of a content by its root.
    public func copies(of root: ContentRoot, otherwise copies: Int) throws(Errno) -> Int {
        guard try hasPolicies() else { return copies }
        let number = try connection.first("SELECT number FROM content WHERE root = ?", root) {
            row in row.int64(0)
        }
        return try number.map { number throws(Errno) in
            try self.copies(of: number, otherwise: copies)
        } ?? copies
    }

    /// How many copies files in a directory are to have: what it says, else what the next one above
    /// it says.
    ///
    /// - Parameter otherwise: where none says anything.
    public func copies(in directory: InodeNumber, otherwise copies: Int) throws(Errno) -> Int {
        guard try hasPolicies() else { return copies }
        return try nearest(above: "VALUES(?1)", directory, CopiesPolicy.nameText) ?? copies
    }

    /// How many copies an `fsync` of a file waits for: what the directory that it is in says, else
    /// the next one above it; of several names the one that asks for most counts.
    public func syncCopies(of ino: InodeNumber) throws(Errno) -> Int {
        try nearest(
            above: "SELECT parent FROM dentry WHERE ino = ?1", ino, CopiesPolicy.syncNameText) ?? 1
    }

    /// The largest number that an attribute gives, of each directory itself or the next one above it.
    private func nearest(
        above directories: String, _ ino: InodeNumber, _ attribute: String
    ) throws(Errno) -> Int? {
        try connection.all(
            text: """
                WITH RECURSIVE start(directory) AS (\(directories)),
                above(directory, copies) AS (
                    SELECT directory, \(CopiesPolicy.copies(of: "directory", in: attribute)) FROM start
                    UNION ALL
                    SELECT i.parent, \(CopiesPolicy.copies(of: "i.parent", in: attribute))
                    FROM above a JOIN inode i ON i.ino = a.directory
                    WHERE a.copies IS NULL AND a.directory <> 1 AND i.parent IS NOT NULL)
                SELECT max(copies) FROM above HAVING max(copies) IS NOT NULL
                """, [ino.value]
        ) { row in Int(row.int64(0)) }.first
    }
}

extension Transaction {
    /// A name leads to this inode now: other directories may be above it.
    func copiesMayChange(of ino: InodeNumber) throws(Errno) {
        guard try hasPolicies() else { return }
        let contents = try connection.all("SELECT content FROM extent WHERE ino = ?", ino) { row in
            row.int64(0)
        }
        for content in contents { changes.insert(content) }
        let hasEntries = try connection.first("SELECT 1 FROM dentry WHERE parent = ? LIMIT 1", ino)
        {
            _ in true
        }
        if hasEntries == true { changes = .all }
    }
}
