public import Volume

/// One state of the volume and what it came from.
///
/// There is one encoding for each commit: author and committer are fixed, the zone is UTC, so that
/// nodes that make the same merge make the same id.
public struct Commit: Hashable, Sendable {
    public let id: ObjectID
    public let tree: ObjectID
    /// In the order given; a merge's are sorted by its maker.
    public let parents: [ObjectID]
    /// Seconds since 1970, UTC.
    public let seconds: Int64
    /// Any bytes without NUL.
    public let message: [UInt8]

    static let author = "DelugeFS <delugefs@localhost>"
    static let secondsEnd = Int64(Limits.stampMillisecondsEnd / 1000)

    /// Throws `malformed` for a time before 1970 or after 2199, a NUL in the message or a parent
    /// given twice; `tooLarge` beyond `HistoryLimits`.
    public init(tree: ObjectID, parents: [ObjectID], seconds: Int64, message: [UInt8]) throws {
        guard (0..<Self.secondsEnd).contains(seconds), !message.contains(0),
            Set(parents).count == parents.count
        else { throw HistoryError(.malformed, "commit", "time, message or parents are not valid") }
        guard parents.count <= HistoryLimits.commitParentsMax else {
            throw HistoryError(.tooLarge, "commit", "\(parents.count) parents")
        }
        self.tree = tree
        self.parents = parents
        self.seconds = seconds
        self.message = message
        let bytes = Self.encode(tree: tree, parents: parents, seconds: seconds, message: message)
        id = try ObjectKind.commit.id(of: bytes)
    }

    /// The object's bytes.
    public var encoded: [UInt8] {
        Self.encode(tree: tree, parents: parents, seconds: seconds, message: message)
    }

    private static func encode(
        tree: ObjectID, parents: [ObjectID], seconds: Int64, message: [UInt8]
    ) -> [UInt8] {
        var text = "tree \(tree)\n"
        for parent in parents { text += "parent \(parent)\n" }
        text += "author \(author) \(seconds) +0000\ncommitter \(author) \(seconds) +0000\n\n"
        return Array(text.utf8) + message
    }

    /// Throws `malformed` unless the bytes are the one encoding of what they say.
    init(decoding bytes: [UInt8]) throws {
        var rest = bytes[...]
        func line(_ prefix: String) -> ArraySlice<UInt8>? {
            guard rest.starts(with: prefix.utf8), let end = rest.firstIndex(of: 0x0A) else {
                return nil
            }
            defer { rest = rest[(end + 1)...] }
            return rest[(rest.startIndex + prefix.utf8.count)..<end]
        }
        func id(_ hex: ArraySlice<UInt8>) -> ObjectID? { Hex.decode(hex).flatMap(ObjectID.init) }

        let malformed = HistoryError(.malformed, "commit", "not a commit of this volume")
        guard let tree = line("tree ").flatMap(id) else { throw malformed }
        var parents: [ObjectID] = []
        while let hex = line("parent ") {
            guard let parent = id(hex) else { throw malformed }
            parents.append(parent)
        }
        guard let stamp = line("author \(Self.author) "), line("committer ") != nil,
            rest.first == 0x0A,
            let seconds = stamp.split(separator: 0x20).first.flatMap({
                Int64(String(decoding: $0, as: UTF8.self))
            })
        else { throw malformed }
        try self.init(
            tree: tree, parents: parents, seconds: seconds, message: Array(rest.dropFirst()))
        guard encoded == bytes else { throw malformed }
    }
}
