internal import GRDB
internal import GRDBSQLite
internal import Glibc
public import SystemPackage

/// The database is not what this program left: bytes are missing, changed or cannot be read.
public struct CatalogDamage: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String

    init(_ description: String) { self.description = description }
}

extension Catalog {
    /// A database of up to so many bytes is checked whole at each start, in a few milliseconds; a
    /// larger one when something in it was met that cannot be, and by `check`.
    public static let checkedBytesMax = 16 << 20

    /// Opens or makes the database, as `init`; what is damaged is left as it is.
    ///
    /// Throws `CatalogDamage` as well.
    public static func open(_ path: FilePath, options: Options) throws -> Catalog {
        let marker = FilePath(path.string + "-damaged")
        let isSuspect = access(marker.string, F_OK) == 0
        if isSuspect || size(of: path) <= checkedBytesMax, let damage = damage(of: path) {
            throw damage
        }
        if isSuspect { unlink(marker.string) }
        do {
            var options = options
            let report = options.onDamage
            options.onDamage = { reason in
                // For the next start: it looks at everything.
                try? FileDescriptor.open(
                    marker, .writeOnly, options: [.create, .closeOnExec],
                    permissions: .ownerReadWrite
                ).close()
                report(reason)
            }
            return try Catalog(path: path, options: options)
        } catch let error where !(error is Schema.TooNew) {
            throw damage(of: path) ?? error
        }
    }

    private static func size(of path: FilePath) -> Int {
        var status = stat()
        return stat(path.string, &status) == 0 ? Int(status.st_size) : 0
    }

    /// The first thing that is wrong with the database; nil: nothing, or there is none. Reads all of it.
    ///
    /// SQLite sees damage to its structure, not to values that stay possible.
    public static func damage(of path: FilePath) -> CatalogDamage? {
        guard size(of: path) > 0 else { return nil }
        useOwnMemory
        do {
            let queue = try DatabaseQueue(
                path: path.string, configuration: checking)
            defer { try? queue.close() }
            return try queue.unsafeRead { db in
                let version = try Int.fetchOne(db, sql: "PRAGMA user_version") ?? 0
                guard (0...Schema.versionMax).contains(version) else {
                    return CatalogDamage("its version is \(version), which cannot be")
                }
                let found = try String.fetchOne(db, sql: "PRAGMA integrity_check(1)") ?? "nothing"
                guard found == "ok" else { return CatalogDamage(found) }
                return try lacksTables(db, version) ? CatalogDamage("tables are missing") : nil
            }
        } catch let error as DatabaseError {
            // Whatever else may be the reason for a refusal, full memory for instance, is no damage.
            let isDamage =
                [SQLITE_CORRUPT, SQLITE_NOTADB].contains(error.resultCode.rawValue)
                || unreadable.contains(error.extendedResultCode.rawValue)
            return isDamage ? CatalogDamage("\(error)") : nil
        } catch { return nil }
    }

    private static func lacksTables(_ db: Database, _ version: Int) throws -> Bool {
        let names = Set(try String.fetchAll(db, sql: "SELECT name FROM sqlite_schema"))
        return version == 0 ? !names.isEmpty : !names.isSuperset(of: Schema.tables)
    }

    /// `SQLITE_IOERR_READ`, `_SHORT_READ` and `_CORRUPTFS`, which Swift does not import.
    private static let unreadable = [1, 2, 33].map { SQLITE_IOERR | $0 << 8 }

    private static var checking: Configuration {
        var configuration = Configuration()
        configuration.busyMode = .timeout(10)
        configuration.prepareDatabase { db in
            try db.execute(sql: "PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY")
        }
        return configuration
    }
}
