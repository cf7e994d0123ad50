internal import GRDB
internal import GRDBSQLite
internal import SystemPackage

/// One SQLite connection with its prepared statements.
///
/// GRDB opens, configures and closes it; after that every statement runs on the C handle that GRDB
/// exports, under a lock of the catalog's own: a request is ten statements, and neither a dispatch
/// queue hop nor a row object per statement fits into its 20 microseconds.
///
/// Not Sendable: confined to whoever holds the lock that its owner documents.
final class Connection {
    private let queue: DatabaseQueue
    let handle: OpaquePointer
    /// By the address of the SQL literal: bounded by the number of literals in this module.
    private var statements: [UnsafeRawPointer: Statement] = [:]
    private var dynamicStatements: [String: Statement] = [:]
    /// Filled while `isLogging`.
    var redo = RedoLog()
    var isLogging = false
    private let log: @Sendable (String) -> Void
    private let onDamage: @Sendable (String) -> Void

    init(queue: DatabaseQueue, _ options: Catalog.Options) throws {
        self.queue = queue
        log = options.log
        onDamage = options.onDamage
        handle = try queue.unsafeRead { db in
            guard let handle = db.sqliteConnection else { throw Errno.ioError }
            // GRDB observes statements that it runs itself; these run beside it.
            sqlite3_commit_hook(handle, nil, nil)
            sqlite3_rollback_hook(handle, nil, nil)
            sqlite3_set_authorizer(handle, nil, nil)
            return handle
        }
    }

    func close() {
        for statement in statements.values { statement.finalize() }
        for statement in dynamicStatements.values { statement.finalize() }
        statements.removeAll()
        dynamicStatements.removeAll()
        do { try queue.close() } catch { log("closing the catalog: \(error)") }
    }

    /// By statement: rows met since the last call in searches that no index narrowed.
    var scannedRows: [(text: String, rows: Int)] {
        (Array(statements.values) + dynamicStatements.values).map { ($0.text, $0.scannedRows) }
    }

    var isInTransaction: Bool { sqlite3_get_autocommit(handle) == 0 }

    private func prepared(_ sql: StaticString) throws(Errno) -> Statement {
        let key = UnsafeRawPointer(sql.utf8Start)
        if let statement = statements[key] { return statement }
        let statement = try made(sql.description)
        statements[key] = statement
        return statement
    }

    private func made(_ sql: String) throws(Errno) -> Statement {
        do throws(SQLiteFailure) { return try Statement(sql, on: handle) } catch {
            precondition(!error.isSyntax, "\(error) in: \(sql)")
            throw failed(error)
        }
    }

    private func failed(_ failure: SQLiteFailure) -> Errno {
        log(failure.description)
        if failure.isDamage { onDamage(failure.description) }
        return failure.errno
    }

    /// Runs a statement that changes rows and returns none.
    func run<each V: Bindable>(_ sql: StaticString, _ values: repeat each V) throws(Errno) {
        let statement = try prepared(sql)
        let mark = redo.mark
        if isLogging { redo.begin(statement) }
        var index: Int32 = 0
        for value in repeat each values {
            index += 1
            let value = value.value
            statement.bind(value, at: index)
            if isLogging { redo.append(value) }
        }
        assert(Int(index) == statement.parameterCount, "parameters of \(sql)")
        defer { statement.reset() }
        do throws(SQLiteFailure) {
            _ = try statement.step()
        } catch {
            if isLogging { redo.truncate(to: mark) }
            throw failed(error)
        }
    }

    /// Runs BEGIN, COMMIT and their like: never part of the redo log.
    func control<each V: Bindable>(
        _ sql: StaticString, _ values: repeat each V
    ) throws(SQLiteFailure) {
        guard let statement = try? prepared(sql) else {
            throw SQLiteFailure(handle, statement: nil)
        }
        var index: Int32 = 0
        for value in repeat each values {
            index += 1
            statement.bind(value.value, at: index)
        }
        defer { statement.reset() }
        _ = try statement.step()
    }

    /// The number under which operations are kept from now on, in `meta`.
    func number(_ batch: UInt64) throws(SQLiteFailure) {
        try control(
            "INSERT INTO meta VALUES(?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            Array(MetaKey.batch.rawValue.utf8), withUnsafeBytes(of: batch.bigEndian, Array.init))
    }

    /// - Returns: false when parameters are missing.
    @discardableResult
    func runAgain(_ log: RedoLog) throws(SQLiteFailure) -> Bool {
        try log.replay { (statement, values) throws(SQLiteFailure) in
            for (offset, value) in values.enumerated() {
                statement.bind(value, at: Int32(offset) + 1)
            }
            defer { statement.reset() }
            _ = try statement.step()
        }
    }

    /// Performs anew what a killed process had performed and not committed. Whole operations, in their
    /// order; behind one that cannot be performed (which is a mistake in this program) none is.
    func perform(_ operations: [RedoFile.Operation]) throws {
        var known: [String: Statement] = [:]
        defer { for statement in known.values { statement.finalize() } }
        for operation in operations {
            try control("SAVEPOINT again")
            do {
                let statements = try operation.texts.map { text in
                    let statement = try known[text] ?? Statement(text, on: handle)
                    known[text] = statement
                    return statement
                }
                guard try runAgain(RedoLog(statements, operation.parameters)) else {
                    throw Errno.ioError
                }
                try control("RELEASE again")
            } catch let failure as SQLiteFailure where failure.isLasting {
                log("performing again what a kill interrupted: \(failure)")
                try control("ROLLBACK TO again")
                return try control("RELEASE again")
            }
        }
    }

    /// The first row, decoded; nil when there is none. The body must not run the same statement.
    func first<each V: Bindable, T>(
        _ sql: StaticString, _ values: repeat each V, decode: (Statement) throws(Errno) -> T
    ) throws(Errno) -> T? {
        let statement = try prepared(sql)
        var index: Int32 = 0
        for value in repeat each values {
            index += 1
            statement.bind(value.value, at: index)
        }
        assert(Int(index) == statement.parameterCount, "parameters of \(sql)")
        defer { statement.reset() }
        do throws(SQLiteFailure) {
            guard try statement.step() else { return nil }
        } catch {
            throw failed(error)
        }
        return try decode(statement)
    }

    /// All rows, decoded. The body must not run the same statement.
    func all<each V: Bindable, T>(
        _ sql: StaticString, _ values: repeat each V, decode: (Statement) throws(Errno) -> T
    ) throws(Errno) -> [T] {
        let statement = try prepared(sql)
        var index: Int32 = 0
        for value in repeat each values {
            index += 1
            statement.bind(value.value, at: index)
        }
        assert(Int(index) == statement.parameterCount, "parameters of \(sql)")
        return try rows(of: statement, decode: decode)
    }

    /// As `all`, for the few statements whose text depends on a list's length. At most 64 are kept.
    func all<T>(
        text sql: String, _ values: [Value], decode: (Statement) throws(Errno) -> T
    ) throws(Errno) -> [T] {
        if dynamicStatements[sql] == nil, dynamicStatements.count >= 64 {
            for statement in dynamicStatements.values { statement.finalize() }
            dynamicStatements.removeAll()
        }
        let statement: Statement
        if let known = dynamicStatements[sql] {
            statement = known
        } else {
            statement = try made(sql)
            dynamicStatements[sql] = statement
        }
        for (offset, value) in values.enumerated() { statement.bind(value, at: Int32(offset) + 1) }
        return try rows(of: statement, decode: decode)
    }

    private func rows<T>(
        of statement: Statement, decode: (Statement) throws(Errno) -> T
    ) throws(Errno) -> [T] {
        defer { statement.reset() }
        var rows: [T] = []
        while true {
            do throws(SQLiteFailure) {
                guard try statement.step() else { return rows }
            } catch {
                throw failed(error)
            }
            rows.append(try decode(statement))
        }
    }
}
