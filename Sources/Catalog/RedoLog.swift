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
    struct Mark {
        fileprivate let statements: Int
        fileprivate let bytes: Int
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
            withUnsafeBytes(of: integer) { bytes.append(contentsOf: $0) }
        case .blob(let blob):
            bytes.append(2)
            withUnsafeBytes(of: Int64(blob.count)) { bytes.append(contentsOf: $0) }
            bytes.append(contentsOf: blob)
        }
    }

    /// Calls the body with every statement and its parameters, oldest first.
    func replay<E: Error>(_ body: (Statement, [Value]) throws(E) -> Void) throws(E) {
        var offset = 0
        func integer() -> Int64 {
            defer { offset += 8 }
            return bytes[offset..<offset + 8].withUnsafeBytes { $0.loadUnaligned(as: Int64.self) }
        }
        for statement in statements {
            var values: [Value] = []
            for _ in 0..<statement.parameterCount {
                let tag = bytes[offset]
                offset += 1
                switch tag {
                case 0: values.append(.null)
                case 1: values.append(.integer(integer()))
                default:
                    let count = Int(integer())
                    values.append(.blob(Array(bytes[offset..<offset + count])))
                    offset += count
                }
            }
            try body(statement, values)
        }
    }
}
