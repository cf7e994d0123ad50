/// What stands at a name in a directory of a commit, with its record.
public enum TreeItem: Sendable {
    public struct Directory: Sendable {
        public let record: Record
        /// The Git tree: equal ids are equal directories.
        public let id: ObjectID
        public let tree: DirectoryTree
    }

    case directory(Directory)
    /// Anything else, and how many names it has in the commit.
    case other(Record, links: Int)

    public var record: Record {
        switch self {
        case .directory(let directory): directory.record
        case .other(let record, _): record
        }
    }
}

extension VolumeTree {
    /// Reads what a directory of this commit says that it has.
    public func item(_ child: TreeChild, from source: some TreeSource) throws -> TreeItem {
        switch child {
        case .directory(let id): return .directory(try directory(id, from: source))
        case .blob(let id):
            switch try EntryBlob(decoding: source.blob(id)) {
            case .single(let record, _) where !record.isDirectory: return .other(record, links: 1)
            case .reference(let link):
                guard let shared = try sharedRecord(link.target, from: source) else {
                    throw InvalidTree("a link to a record that is not there")
                }
                return .other(shared.record, links: shared.links)
            default: throw InvalidTree("a directory's or shared record at a file's place")
            }
        }
    }

    public func directory(
        _ id: ObjectID, from source: some TreeSource
    ) throws -> TreeItem.Directory {
        let tree = try DirectoryTree(reading: id, from: source)
        return TreeItem.Directory(record: try tree.record(from: source).record, id: id, tree: tree)
    }
}
