internal import GRDB

/// The tables. `PRAGMA user_version` counts the migrations that ran; a database of a later version
/// is refused.
///
/// - Names are BLOBs: bytes, never text.
/// - A stamp is two columns: milliseconds << 16 | counter, and a row number of `node`.
/// - Rows name inodes by `ino`; what goes into commits names them by `id` (lineage).
enum Schema {
    static let version = migrations.count
    /// No version will ever be greater: what says so is damaged.
    static let versionMax = 1000
    static let tables: Set<String> = [
        "inode", "body", "dentry", "xattr", "staging", "content", "extent", "holder", "holder_log",
        "node", "meta", "dirty_place", "dirty_record",
    ]

    struct TooNew: Error, CustomStringConvertible {
        let found: Int
        var description: String {
            "catalog.sqlite has schema \(found), this program knows \(Schema.version): upgrade"
        }
    }

    static func migrate(_ db: Database) throws {
        let found = try Int.fetchOne(db, sql: "PRAGMA user_version") ?? 0
        guard found <= version else { throw TooNew(found: found) }
        for next in found..<version {
            try db.inTransaction {
                try db.execute(sql: migrations[next])
                try db.execute(sql: "PRAGMA user_version = \(next + 1)")
                return .commit
            }
        }
    }

    /// The number of the batch that was open; nil where there is no redo file yet.
    static func batch(_ db: Database) throws -> UInt64? {
        guard try Int.fetchOne(db, sql: "PRAGMA user_version") ?? 0 >= 4 else { return nil }
        let value = try String.fetchOne(
            db, sql: "SELECT hex(value) FROM meta WHERE key = CAST(? AS BLOB)",
            arguments: [MetaKey.batch.rawValue])
        return value.flatMap { UInt64($0, radix: 16) }
    }

    private static let migrations = [
        namespace + contents + history, unreferenced, lostNames, batchNumbers, policies,
    ]

    private static let namespace = """
        CREATE TABLE inode(
            ino INTEGER PRIMARY KEY,
            id INTEGER NOT NULL,
            kind INTEGER NOT NULL,            -- InodeRow.Kind
            mode INTEGER NOT NULL,            -- permission bits
            uid INTEGER NOT NULL,
            gid INTEGER NOT NULL,
            rdev INTEGER NOT NULL,            -- major << 32 | minor
            nlink INTEGER NOT NULL,           -- directories: 2 while linked, + subdirectories
            size INTEGER NOT NULL,            -- of the published content
            atime INTEGER NOT NULL,           -- ns; local to this node
            mtime INTEGER NOT NULL,           -- s, with mtime_ns: exact, for it is committed
            mtime_ns INTEGER NOT NULL,
            ctime INTEGER NOT NULL,           -- ns; local
            content_stamp INTEGER NOT NULL, content_node INTEGER NOT NULL,
            mode_stamp INTEGER NOT NULL, mode_node INTEGER NOT NULL,
            owner_stamp INTEGER NOT NULL, owner_node INTEGER NOT NULL,
            parent INTEGER,                   -- directories: where `..` leads; NULL: linked nowhere
            tree BLOB                         -- directories: Git tree id as of `applied`
        );
        -- At creation id = ino: only the others need an index.
        CREATE UNIQUE INDEX inode_id ON inode(id) WHERE id <> ino;
        CREATE INDEX inode_directory ON inode(parent) WHERE kind = 2;
        CREATE INDEX inode_orphan ON inode(ino)
            WHERE nlink = 0 OR (kind = 2 AND parent IS NULL);

        -- Inline content of files, and targets of symlinks: apart, so that inode rows stay dense.
        CREATE TABLE body(ino INTEGER PRIMARY KEY, data BLOB NOT NULL);

        CREATE TABLE dentry(
            parent INTEGER NOT NULL,
            name BLOB NOT NULL,
            ino INTEGER NOT NULL,
            link INTEGER NOT NULL,            -- LinkID
            stamp INTEGER NOT NULL, node INTEGER NOT NULL,
            cookie INTEGER NOT NULL,          -- readdir offset: given once, kept while it exists
            PRIMARY KEY(parent, name)
        ) WITHOUT ROWID;
        CREATE UNIQUE INDEX dentry_cookie ON dentry(parent, cookie, ino);
        CREATE INDEX dentry_ino ON dentry(ino);

        CREATE TABLE xattr(
            ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
            stamp INTEGER NOT NULL, node INTEGER NOT NULL,
            PRIMARY KEY(ino, name)
        ) WITHOUT ROWID;

        CREATE TABLE staging(
            ino INTEGER PRIMARY KEY,
            name BLOB NOT NULL,
            stamp INTEGER NOT NULL, node INTEGER NOT NULL,   -- content stamp that it began from
            overlay BLOB,                     -- opaque here: base and changed ranges
            newborn INTEGER NOT NULL          -- created open, and in no commit yet
        );
        """

    private static let contents = """
        -- Random keys are expensive to insert, so a root occurs once and goes by number elsewhere.
        CREATE TABLE content(
            number INTEGER PRIMARY KEY,
            root BLOB NOT NULL UNIQUE,
            length INTEGER NOT NULL,
            state INTEGER NOT NULL,           -- ContentState
            verified BLOB,                    -- partial: bit field of verified pieces
            since INTEGER NOT NULL,           -- ms, of the state
            used INTEGER NOT NULL             -- ms
        );
        CREATE INDEX content_local ON content(state, used) WHERE state > 0;
        CREATE TABLE extent(
            ino INTEGER NOT NULL, position INTEGER NOT NULL, content INTEGER NOT NULL,
            PRIMARY KEY(ino, position)
        ) WITHOUT ROWID;
        CREATE INDEX extent_content ON extent(content);

        CREATE TABLE holder(
            content INTEGER NOT NULL, node INTEGER NOT NULL,
            state INTEGER NOT NULL,           -- HolderState
            since INTEGER NOT NULL,           -- ms
            PRIMARY KEY(content, node)
        ) WITHOUT ROWID;
        CREATE INDEX holder_node ON holder(node);
        CREATE TABLE holder_log(
            node INTEGER NOT NULL, epoch INTEGER NOT NULL, number INTEGER NOT NULL,
            entry BLOB NOT NULL, chain BLOB NOT NULL, signature BLOB NOT NULL,
            PRIMARY KEY(node, epoch, number)
        ) WITHOUT ROWID;

        CREATE TABLE node(
            number INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            name BLOB NOT NULL, machine BLOB NOT NULL,
            seen INTEGER NOT NULL,            -- ms; 0: never
            info BLOB                         -- opaque here
        );
        """

    private static let history = """
        CREATE TABLE meta(key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
        -- What commits do not have yet; version: of the last change.
        CREATE TABLE dirty_place(
            directory INTEGER NOT NULL, name BLOB NOT NULL, version INTEGER NOT NULL,
            PRIMARY KEY(directory, name)
        ) WITHOUT ROWID;
        CREATE TABLE dirty_record(id INTEGER PRIMARY KEY, version INTEGER NOT NULL);
        """

    /// Kept by triggers: whatever gives up or takes up content keeps it right.
    private static let unreferenced = """
        CREATE TABLE unreferenced(
            content INTEGER PRIMARY KEY,
            since INTEGER NOT NULL,           -- ms; 0: not noticed by the collector yet
            head BLOB                         -- a commit in whose tree no file has it
        );
        INSERT INTO unreferenced SELECT number, 0, NULL FROM content c WHERE state > 0
            AND NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = c.number);
        CREATE TRIGGER extent_gone AFTER DELETE ON extent BEGIN
            INSERT OR IGNORE INTO unreferenced SELECT OLD.content, 0, NULL
                WHERE NOT EXISTS(SELECT 1 FROM extent e WHERE e.content = OLD.content);
        END;
        CREATE TRIGGER extent_made AFTER INSERT ON extent BEGIN
            DELETE FROM unreferenced WHERE content = NEW.content;
        END;
        """

    private static let lostNames = """
        -- What led to the file before it was removed elsewhere; set while it is linked nowhere.
        ALTER TABLE staging ADD COLUMN lost_parent INTEGER;
        ALTER TABLE staging ADD COLUMN lost_name BLOB;
        """

    /// What does not know of the redo file must not commit behind it.
    private static let batchNumbers = """
        INSERT INTO meta VALUES(CAST('catalog.batch' AS BLOB), randomblob(8));
        """

    /// Few directories say how many copies they want, and everybody asks whether any does.
    private static let policies = """
        CREATE INDEX xattr_copies ON xattr(ino) WHERE name = \(CopiesPolicy.nameText);
        """
}
