/// One entry of a Git tree.
public struct TreeEntry: Hashable, Sendable {
    public enum Kind: Hashable, Sendable { case blob, tree }

    /// As it stands in the tree (escaped), sorted as Git sorts.
    public let name: [UInt8]
    public let kind: Kind
    public let id: ObjectID

    public init(name: [UInt8], kind: Kind, id: ObjectID) {
        self.name = name
        self.kind = kind
        self.id = id
    }
}

/// Where trees and blobs are read from: the repository, or memory in tests.
///
/// Called synchronously on the caller's thread. Throws when an object is missing or malformed.
public protocol TreeSource {
    func tree(_ id: ObjectID) throws -> [TreeEntry]
    func blob(_ id: ObjectID) throws -> [UInt8]
}

/// Where new trees and blobs go. Ids are functions of the bytes alone; writing twice is harmless.
public protocol TreeSink {
    mutating func write(blob: [UInt8]) throws -> ObjectID
    /// Entries in any order; the sink sorts them as Git does.
    mutating func write(tree: [TreeEntry]) throws -> ObjectID
}
