internal import GRDBSQLite
internal import Glibc
internal import SystemPackage

/// SQLite copies the bytes; the C macro is a cast that Swift does not import.
private let transient = unsafeBitCast(-1, to: sqlite3_destructor_type.self)

/// A prepared statement. Confined to whoever holds its connection.
final class Statement {
    private let handle: OpaquePointer
    private let connection: OpaquePointer
    let parameterCount: Int
    let text: String

    init(_ sql: String, on connection: OpaquePointer) throws(SQLiteFailure) {
        var handle: OpaquePointer?
        let code = sqlite3_prepare_v3(
            connection, sql, -1, UInt32(SQLITE_PREPARE_PERSISTENT), &handle, nil)
        guard code == SQLITE_OK, let handle else {
            throw SQLiteFailure(connection, statement: nil)
        }
        self.handle = handle
        self.connection = connection
        text = sql
        parameterCount = Int(sqlite3_bind_parameter_count(handle))
    }

    /// The caller finalizes before closing the connection: a closed handle must not be touched.
    func finalize() { sqlite3_finalize(handle) }

    func bind(_ value: Value, at index: Int32) {
        let code =
            switch value {
            case .null: sqlite3_bind_null(handle, index)
            case .integer(let integer): sqlite3_bind_int64(handle, index, integer)
            case .blob(let bytes):
                // An empty array's base address may be nil, which would bind NULL.
                bytes.isEmpty
                    ? sqlite3_bind_zeroblob(handle, index, 0)
                    : bytes.withUnsafeBufferPointer {
                        sqlite3_bind_blob(handle, index, $0.baseAddress, Int32($0.count), transient)
                    }
            }
        precondition(code == SQLITE_OK, "parameter \(index): code \(code)")
    }

    /// True: there is a row. Throws ENOSPC on a full disk, else EIO.
    func step() throws(SQLiteFailure) -> Bool {
        let code = sqlite3_step(handle)
        if code == SQLITE_ROW { return true }
        if code == SQLITE_DONE { return false }
        throw SQLiteFailure(connection, statement: handle)
    }

    func reset() { sqlite3_reset(handle) }

    /// Rows met since the last call in searches that no index narrowed.
    var scannedRows: Int { Int(sqlite3_stmt_status(handle, SQLITE_STMTSTATUS_FULLSCAN_STEP, 1)) }

    // MARK: - Columns of the current row

    func isNull(_ column: Int32) -> Bool { sqlite3_column_type(handle, column) == SQLITE_NULL }
    func int64(_ column: Int32) -> Int64 { sqlite3_column_int64(handle, column) }
    func uint64(_ column: Int32) -> UInt64 { UInt64(bitPattern: int64(column)) }
    func uint32(_ column: Int32) -> UInt32 { UInt32(truncatingIfNeeded: int64(column)) }

    func bytes(_ column: Int32) -> [UInt8] {
        guard let start = sqlite3_column_blob(handle, column) else { return [] }
        return Array(
            UnsafeRawBufferPointer(start: start, count: Int(sqlite3_column_bytes(handle, column))))
    }
}

/// What SQLite said: its own code is kept, and mapped to an errno in this one place.
struct SQLiteFailure: Error, CustomStringConvertible {
    /// The extended result code.
    let code: Int32
    let description: String
    /// The disk has no room, or the user may have no more of it: ENOSPC or EDQUOT.
    let noRoom: Errno?
    /// `SQLITE_IOERR_WRITE`, which Swift does not import.
    private static let writeFailed = SQLITE_IOERR | 3 << 8
    private static let overQuota = Errno(rawValue: EDQUOT)

    init(_ connection: OpaquePointer, statement: OpaquePointer?) {
        // SQLite keeps what a write failed with, but not of a COMMIT.
        let written = Errno(rawValue: Glibc.errno)
        code = sqlite3_extended_errcode(connection)
        noRoom =
            switch code {
            case SQLITE_FULL: .noSpace
            case Self.writeFailed where written == Self.overQuota: Self.overQuota
            default: nil
            }
        let message = String(cString: sqlite3_errmsg(connection))
        let sql = sqlite3_sql(statement).map { String(cString: $0) } ?? ""
        description = "SQLite \(code): \(message)" + (sql.isEmpty ? "" : " in: \(sql)")
    }

    /// The text of a statement, which is a mistake in this program.
    var isSyntax: Bool { code & 0xFF == SQLITE_ERROR }

    /// The database is not what this program left.
    var isDamage: Bool { [SQLITE_CORRUPT, SQLITE_NOTADB].contains(code & 0xFF) }

    /// Neither the disk's fault nor the machine's: it would fail again.
    var isLasting: Bool { [SQLITE_ERROR, SQLITE_CONSTRAINT].contains(code & 0xFF) }

    var errno: Errno {
        noRoom ?? (code & 0xFF == SQLITE_NOMEM ? .noMemory : .ioError)
    }
}
