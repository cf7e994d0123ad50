public import Volume

/// Trees and blobs in memory: the twin of the repository for tests and for the simulator.
///
/// A reference type, so that one store serves as source and as sink of the same call. Confined to
/// the thread that uses it.
public final class MemoryObjects: TreeSource, TreeSink {
    public struct Missing: Error, Sendable {
        public let id: ObjectID
    }

    private var trees: [ObjectID: [TreeEntry]] = [:]
    private var blobs: [ObjectID: [UInt8]] = [:]

    /// Calls so far, for tests that the cost of an operation follows the change.
    public private(set) var reads = 0
    public private(set) var writes = 0

    public init() {}

    public func tree(_ id: ObjectID) throws -> [TreeEntry] {
        reads += 1
        guard let tree = trees[id] else { throw Missing(id: id) }
        return tree
    }

    public func blob(_ id: ObjectID) throws -> [UInt8] {
        reads += 1
        guard let blob = blobs[id] else { throw Missing(id: id) }
        return blob
    }

    @discardableResult
    public func write(blob: [UInt8]) -> ObjectID {
        writes += 1
        let id = Self.id(of: Array("blob ".utf8) + blob)
        blobs[id] = blob
        return id
    }

    @discardableResult
    public func write(tree: [TreeEntry]) -> ObjectID {
        write(treeAsIs: tree.sorted(by: TreeEntry.precedesInGit))
    }

    /// Stores entries without sorting them, as a faulty peer might.
    public func write(treeAsIs sorted: [TreeEntry]) -> ObjectID {
        writes += 1
        var bytes = Array("tree ".utf8)
        for entry in sorted {
            bytes.append(entry.kind == .tree ? 1 : 0)
            bytes.append(contentsOf: entry.name)
            bytes.append(0)
            bytes.append(contentsOf: entry.id.bytes)
        }
        let id = Self.id(of: bytes)
        trees[id] = sorted
        return id
    }

    private static func id(of bytes: [UInt8]) -> ObjectID {
        guard let id = ObjectID(bytes: Array(PureSHA256.digest(bytes).prefix(20))) else {
            preconditionFailure("a digest has 32 bytes")
        }
        return id
    }
}
