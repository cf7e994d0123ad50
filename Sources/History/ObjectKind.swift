import CGit
import Volume

extension ObjectID {
    init(_ oid: git_oid) { self = withUnsafeBytes(of: oid) { ObjectID($0) } }

    var oid: git_oid {
        var oid = git_oid()
        withUnsafeMutableBytes(of: &oid) { store(to: $0) }
        return oid
    }
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
    func id(of bytes: [UInt8]) throws -> ObjectID {
        try Library.require()
        guard bytes.count <= bytesMax else {
            throw HistoryError(.tooLarge, "hash", "\(self) of \(bytes.count) bytes")
        }
        var oid = git_oid()
        let code = bytes.withUnsafeBytes { git_odb_hash(&oid, $0.baseAddress, $0.count, type) }
        try check(code, "hash")
        return ObjectID(oid)
    }
}
