import CGit
import Volume

/// An object's id in 20 bytes without allocation: what tables and walks hold by the million.
struct ObjectKey: Hashable, Sendable, Comparable {
    private let high: UInt64
    private let middle: UInt64
    private let low: UInt32

    /// - Precondition: `bytes` has at least 20 bytes.
    init(_ bytes: UnsafeRawBufferPointer) {
        high = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt64.self))
        middle = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        low = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self))
    }

    init(_ id: ObjectID) { self = id.bytes.withUnsafeBytes { ObjectKey($0) } }

    init(_ oid: git_oid) { self = withUnsafeBytes(of: oid) { ObjectKey($0) } }

    var oid: git_oid {
        var oid = git_oid()
        withUnsafeMutableBytes(of: &oid) { target in
            target.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
            target.storeBytes(of: middle.bigEndian, toByteOffset: 8, as: UInt64.self)
            target.storeBytes(of: low.bigEndian, toByteOffset: 16, as: UInt32.self)
        }
        return oid
    }

    var bytes: [UInt8] { withUnsafeBytes(of: oid) { Array($0.prefix(20)) } }

    var id: ObjectID {
        guard let id = ObjectID(bytes: bytes) else { preconditionFailure("20 bytes are an id") }
        return id
    }

    /// An id is a hash already, and Swift keys its own; eight bytes of it spread as well as twenty.
    func hash(into hasher: inout Hasher) { hasher.combine(high) }

    /// Unkeyed, for tables that grow only by accepted commits.
    var slot: UInt64 { high }

    static func < (a: Self, b: Self) -> Bool {
        (a.high, a.middle, a.low) < (b.high, b.middle, b.low)
    }
}

extension ObjectKey: CustomStringConvertible {
    var description: String { Hex.encode(bytes) }
}

/// The kinds of object in a volume's repository. There are no tags.
enum ObjectKind: Hashable, Sendable {
    case commit, tree, blob

    init?(_ type: git_object_t) {
        switch type {
        case GIT_OBJECT_COMMIT: self = .commit
        case GIT_OBJECT_TREE: self = .tree
        case GIT_OBJECT_BLOB: self = .blob
        default: return nil
        }
    }

    var type: git_object_t {
        switch self {
        case .commit: GIT_OBJECT_COMMIT
        case .tree: GIT_OBJECT_TREE
        case .blob: GIT_OBJECT_BLOB
        }
    }

    /// Bytes that an object of this kind may have.
    var bytesMax: Int {
        switch self {
        case .commit: HistoryLimits.commitBytesMax
        case .tree: HistoryLimits.treeBytesMax
        case .blob: Limits.recordBytesMax
        }
    }

    /// The id of an object of this kind with these bytes.
    func key(of bytes: [UInt8]) throws -> ObjectKey {
        try Library.require()
        guard bytes.count <= bytesMax else {
            throw HistoryError(.tooLarge, "hash", "\(self) of \(bytes.count) bytes")
        }
        var oid = git_oid()
        let code = bytes.withUnsafeBytes { git_odb_hash(&oid, $0.baseAddress, $0.count, type) }
        try check(code, "hash")
        return ObjectKey(oid)
    }
}
