import History
import Volume

/// A volume's state in a few words: files by path, their ids and stamps follow from path and content.
struct VolumeFiles {
    /// Bytes of the file at each path; directories follow from the slashes.
    var files: [String: String]
    /// Directories without anything in them.
    var directories: [String] = []
    /// Names of files that have several: by path, which.
    var links: [String: String] = [:]
    /// Where a file or directory came from: it has the id of that path.
    var origins: [String: String] = [:]
    var modes: [String: UInt16] = [:]

    private static let node = NodeID(high: 1, low: 1)

    init(_ files: [String: String]) { self.files = files }

    // MARK: The state by id

    fileprivate struct Whole {
        var records: [LineageID: Record] = [:]
        var places: [Place: Link] = [:]
    }

    private func identity(_ text: String) -> UInt64 {
        // FNV-1a: the same in every process.
        let hash = text.utf8.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
        return max(hash >> 2, 2)
    }

    private func id(_ path: Substring) -> LineageID {
        if path.isEmpty { return .root }
        let path = String(path)
        return LineageID(rawValue: identity(links[path].map { "link \($0)" } ?? origin(path)))
    }

    private func origin(_ path: String) -> String { origins[path] ?? path }

    private func record(_ path: Substring, _ body: Body, _ text: String) -> Record {
        let stamp = Stamp(
            milliseconds: 1 + identity(text) % 1000, counter: 0, node: Self.node)
        return Record(
            id: id(path), ino: InodeNumber(rawValue: id(path).rawValue),
            content: Stamped(
                BodyGroup(body: body, modified: Timestamp(seconds: 1, nanoseconds: 2)), stamp),
            mode: Stamped(modes[String(path)] ?? 0o644, stamp),
            owner: Stamped(Owner(uid: 0, gid: 0), stamp))
    }

    private func whole() -> Whole {
        var whole = Whole()
        whole.records[.root] = record("", .directory, "")
        func place(_ path: Substring, _ make: () -> Record) {
            let parts = path.split(separator: "/")
            let above = parts.dropLast().joined(separator: "/")
            if !above.isEmpty, whole.records[id(above[...])] == nil {
                place(above[...]) { record(above[...], .directory, "") }
            }
            let made = make()
            whole.records[made.id] = made
            let linkID = links[String(path)] == nil ? origin(String(path)) : String(path)
            whole.places[Place(directory: id(above[...]), name: String(parts.last ?? "").file)] =
                Link(
                    id: LinkID(rawValue: identity("name \(linkID)")),
                    stamp: Stamp(milliseconds: 1, counter: 0, node: Self.node), target: made.id)
        }
        for path in directories { place(path[...]) { record(path[...], .directory, "") } }
        for (path, text) in files.merging(links, uniquingKeysWith: { first, _ in first }) {
            let content = Content.inline(Array(text.utf8))
            place(path[...]) { record(path[...], .file(content), text) }
        }
        return whole
    }

    func write(into batch: inout Batch) throws -> ObjectID {
        var sink = batch
        let outcome = try commitTree(
            onto: nil, dirty: DirtySet(), live: FilesByID(whole()),
            settings: VolumeSettings(
                volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0)),
            nodes: [Self.node: NodeDescription(name: "n1", machine: "m1")], source: batch,
            sink: &sink)
        batch = sink
        return outcome.root
    }
}

private struct FilesByID: LiveState {
    private let whole: VolumeFiles.Whole
    private var byTarget: [LineageID: [(place: Place, link: Link)]] = [:]
    private var byDirectory: [LineageID: [(name: FileName, link: Link)]] = [:]

    init(_ whole: VolumeFiles.Whole) {
        self.whole = whole
        for (place, link) in whole.places {
            byTarget[link.target, default: []].append((place, link))
            byDirectory[place.directory, default: []].append((place.name, link))
        }
    }

    func record(_ id: LineageID) -> Record? { whole.records[id] }
    func links(of id: LineageID) -> [(place: Place, link: Link)] { byTarget[id] ?? [] }
    func link(at place: Place) -> Link? { whole.places[place] }
    func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        byDirectory[directory] ?? []
    }
    func tree(of directory: LineageID) -> ObjectID? { nil }
}

extension History {
    /// Commits the state on the parents; `main` moves there.
    @discardableResult
    func commit(
        _ files: VolumeFiles, on parents: [ObjectID] = [], seconds: Int64 = 1_700_000_000,
        stamp: Int64 = 1_700_000_000_000, node: NodeID = NodeID(high: 1, low: 1)
    ) throws -> ObjectID {
        let newest = Stamp(milliseconds: UInt64(stamp), counter: 0, node: node)
        let id = try write { batch in
            let tree = try files.write(into: &batch)
            let message = CommitMessage(kind: .change(node), newestStamp: newest)
            return try batch.write(
                commit: Commit(
                    tree: tree, parents: parents, seconds: seconds, message: message.encoded))
        }
        try setHead(id)
        return id
    }
}
