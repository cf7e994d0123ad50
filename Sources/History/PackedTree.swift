import Glibc
import Volume

/// A tree as it stands in its object, with an index of its entries: what walks and the cache hold.
struct PackedTree: Sendable {
    struct Entry: Sendable {
        let nameStart: Int32
        let nameEnd: Int32
        let isTree: Bool
        let key: ObjectID
    }

    let bytes: [UInt8]
    let entries: [Entry]

    static let empty = PackedTree(bytes: [], entries: [])

    private init(bytes: [UInt8], entries: [Entry]) {
        self.bytes = bytes
        self.entries = entries
    }

    /// Throws `malformed` unless the entries are files and directories only, sorted, each name
    /// once, and none that stock Git refuses.
    init(parsing bytes: [UInt8]) throws {
        guard bytes.count <= HistoryLimits.treeBytesMax else {
            throw HistoryError(.tooLarge, "tree", "\(bytes.count) bytes")
        }
        self.bytes = bytes
        entries = try Self.index(bytes)
    }

    private static func index(_ bytes: [UInt8]) throws -> [Entry] {
        var entries: [Entry] = []
        try bytes.withUnsafeBytes { raw in
            var at = 0
            // Files whose name could return as a directory's further on: Git's order lets other
            // names stand between `a` and `a/`.
            var open: [Entry] = []
            while at < raw.count {
                let entry = try Self.entry(raw, &at)
                if let last = entries.last {
                    guard order(raw, last, raw, entry) < 0, distinct(raw, &open, entry) else {
                        throw malformed("names not sorted or not unique")
                    }
                }
                if !entry.isTree { open.append(entry) }
                entries.append(entry)
            }
        }
        return entries
    }

    private static func malformed(_ reason: String) -> HistoryError {
        HistoryError(.malformed, "tree", reason)
    }

    private static let fileMode = Array("100644 ".utf8)
    private static let treeMode = Array("40000 ".utf8)

    private static func entry(_ raw: UnsafeRawBufferPointer, _ at: inout Int) throws -> Entry {
        let rest = raw[at...]
        let isTree = rest.starts(with: treeMode)
        guard isTree || rest.starts(with: fileMode) else {
            throw malformed("an entry is neither file nor directory")
        }
        let start = at + (isTree ? treeMode.count : fileMode.count)
        guard let end = raw[start...].firstIndex(of: 0), end + 21 <= raw.count else {
            throw malformed("cut short")
        }
        let name = raw[start..<end]
        guard !name.isEmpty, !name.contains(0x2F), !name.elementsEqual([0x2E]),
            !name.elementsEqual([0x2E, 0x2E])
        else { throw malformed("a name that is not allowed") }
        at = end + 21
        return Entry(
            nameStart: Int32(start), nameEnd: Int32(end), isTree: isTree,
            key: ObjectID(UnsafeRawBufferPointer(rebasing: raw[(end + 1)..<at])))
    }

    /// Forgets the open files that cannot return any more; false when `entry` is one that does.
    private static func distinct(
        _ raw: UnsafeRawBufferPointer, _ open: inout [Entry], _ entry: Entry
    ) -> Bool {
        let name = raw[Int(entry.nameStart)..<Int(entry.nameEnd)]
        while let last = open.last {
            let file = raw[Int(last.nameStart)..<Int(last.nameEnd)]
            if name.starts(with: file) { return name.count != file.count }
            open.removeLast()
        }
        return true
    }

    /// Git's order: by bytes, directories as if their names ended in `/`. Negative, 0 or positive.
    static func order(
        _ a: UnsafeRawBufferPointer, _ x: Entry, _ b: UnsafeRawBufferPointer, _ y: Entry
    ) -> Int {
        let left = UnsafeRawBufferPointer(rebasing: a[Int(x.nameStart)..<Int(x.nameEnd)])
        let right = UnsafeRawBufferPointer(rebasing: b[Int(y.nameStart)..<Int(y.nameEnd)])
        let common = min(left.count, right.count)
        if common > 0, let p = left.baseAddress, let q = right.baseAddress {
            let order = memcmp(p, q, common)
            if order != 0 { return Int(order) }
        }
        func next(_ name: UnsafeRawBufferPointer, _ isTree: Bool) -> Int {
            name.count > common ? Int(name[common]) : isTree ? 0x2F : 0
        }
        return next(left, x.isTree) - next(right, y.isTree)
    }

    /// The entries as `Volume` reads them.
    var unpacked: [TreeEntry] {
        entries.map { entry in
            TreeEntry(
                name: Array(bytes[Int(entry.nameStart)..<Int(entry.nameEnd)]),
                kind: entry.isTree ? .tree : .blob, id: entry.key)
        }
    }

    /// The one encoding of these entries, given in any order. Throws `malformed` for a name twice.
    static func encode(_ entries: [TreeEntry]) throws -> PackedTree {
        let isSorted = zip(entries, entries.dropFirst()).allSatisfy(TreeEntry.precedesInGit)
        let sorted = isSorted ? entries : entries.sorted(by: TreeEntry.precedesInGit)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(sorted.reduce(0) { $0 + $1.name.count + 28 })
        for entry in sorted {
            bytes += entry.kind == .tree ? treeMode : fileMode
            bytes += entry.name
            bytes.append(0)
            bytes += entry.id.bytes
        }
        return try PackedTree(parsing: bytes)
    }
}

/// Parsed trees lately used, in two generations: when the young one is full the old one goes.
struct TreeCache: Sendable {
    private var young: [ObjectID: PackedTree] = [:]
    private var old: [ObjectID: PackedTree] = [:]
    private var youngBytes = 0

    mutating func tree(_ key: ObjectID) -> PackedTree? {
        if let tree = young[key] { return tree }
        guard let tree = old.removeValue(forKey: key) else { return nil }
        keep(tree, key)
        return tree
    }

    mutating func keep(_ tree: PackedTree, _ key: ObjectID) {
        guard young.updateValue(tree, forKey: key) == nil else { return }
        youngBytes += tree.bytes.count + tree.entries.count * MemoryLayout<PackedTree.Entry>.stride
        guard youngBytes > HistoryLimits.treeCacheBytes else { return }
        old = young
        young = [:]
        youngBytes = 0
    }
}
