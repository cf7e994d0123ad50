/// The statements of the open batch with what was bound to them, in order.
///
/// A COMMIT that fails on a full disk discards the whole batch although its operations have been
/// answered. Running the same statements with the same parameters on the same committed state gives
/// the same rows, because no statement here uses the clock, randomness or a generated key: the
/// log is exact, and operations need no closures that outlive their call.
struct RedoLog {
    private(set) var statements: [Statement] = []
    private(set) var bytes: [UInt8] = []

    /// Where an operation began, for taking it back.
    struct Mark: Equatable {
        let statements: Int
        let bytes: Int
    }

    init(_ statements: [Statement] = [], _ parameters: [UInt8] = []) {
        self.statements = statements
        bytes = parameters
    }

    var mark: Mark { Mark(statements: statements.count, bytes: bytes.count) }
    var isEmpty: Bool { statements.isEmpty }

    mutating func truncate(to mark: Mark) {
        statements.removeLast(statements.count - mark.statements)
        bytes.removeLast(bytes.count - mark.bytes)
    }

    mutating func removeAll() {
        statements.removeAll(keepingCapacity: true)
        // One huge batch must not keep its memory for ever.
        bytes.removeAll(keepingCapacity: bytes.capacity <= 1 << 20)
    }

    mutating func begin(_ statement: Statement) { statements.append(statement) }

    mutating func append(_ value: Value) {
        switch value {
        case .null:
            bytes.append(0)
        case .integer(let integer):
            bytes.append(1)
            append(integer)
        case .blob(let blob):
            bytes.append(2)
            append(Int64(blob.count))
            bytes.append(contentsOf: blob)
        }
    }

    private mutating func append(_ integer: Int64) {
        withUnsafeBytes(of: integer.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// Calls the body with every statement and its parameters, oldest first.
    ///
    /// - Returns: false when parameters are missing.
    func replay<E: Error>(_ body: (Statement, [Value]) throws(E) -> Void) throws(E) -> Bool {
        var cursor = RedoCursor(bytes[...])
        for statement in statements {
            var values: [Value] = []
            for _ in 0..<statement.parameterCount {
                guard let value = cursor.value() else { return false }
                values.append(value)
            }
            try body(statement, values)
        }
        return true
    }
}

/// Takes numbers and bytes off the front; nil where there are no more.
struct RedoCursor {
    private(set) var rest: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    /// In the array that the bytes are of.
    var offset: Int { rest.startIndex }

    mutating func bytes(_ count: Int) -> ArraySlice<UInt8>? {
        guard count >= 0, count <= rest.count else { return nil }
        defer { rest = rest.dropFirst(count) }
        return rest.prefix(count)
    }

    mutating func integer<T: FixedWidthInteger>(_: T.Type) -> T? {
        bytes(MemoryLayout<T>.size)?.withUnsafeBytes {
            T(littleEndian: $0.loadUnaligned(as: T.self))
        }
    }

    mutating func value() -> Value? {
        switch integer(UInt8.self) {
        case 0: return .null
        case 1: return integer(Int64.self).map(Value.integer)
        case 2:
            guard let count = integer(Int64.self) else { return nil }
            return bytes(Int(count)).map { .blob(Array($0)) }
        default: return nil
        }
    }
}
