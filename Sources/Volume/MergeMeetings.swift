/// What the walks of a merge met, by tree.
final class MergeMeetings {
    var records: MetByTree<LineageID, MetRecord>
    var links: MetByTree<LinkID, MetLink>
    /// Directories above or among the differences.
    var directories: MetByTree<LineageID, ObjectID>

    init(trees: Int) {
        records = MetByTree(trees: trees)
        links = MetByTree(trees: trees)
        directories = MetByTree(trees: trees)
    }

    /// - Parameter edges: The trees that were compared: base and side.
    func complete(along edges: [(base: Int, side: Int)]) {
        records.complete(along: edges)
        links.complete(along: edges)
        directories.complete(along: edges)
    }
}

/// A table of one kind of thing: a row for each that was met, a column for each tree.
struct MetByTree<Key: Hashable, Value> {
    private(set) var rows: [Key: Int] = [:]
    private let trees: Int
    /// Row by row: nil not known, `.some(nil)` known to be absent.
    private var cells: [Value??] = []

    init(trees: Int) { self.trees = trees }

    /// Notes what is in a tree, and that it is absent from the tree at the other end of the walk unless
    /// it is met there, too.
    mutating func meet(_ value: Value, _ key: Key, in tree: Int, against other: Int?) {
        let row = row(of: key)
        cells[row * trees + tree] = .some(value)
        guard let other, cells[row * trees + other] == nil else { return }
        cells[row * trees + other] = .some(nil)
    }

    /// Notes what is the same in all trees.
    mutating func meetEverywhere(_ value: Value, _ key: Key) {
        let row = row(of: key)
        for tree in 0..<trees { cells[row * trees + tree] = .some(value) }
    }

    private mutating func row(of key: Key) -> Int {
        if let row = rows[key] { return row }
        let row = rows.count
        rows[key] = row
        cells.append(contentsOf: repeatElement(nil, count: trees))
        return row
    }

    /// What a walk did not meet is the same on both its ends; from that follows the value in every
    /// tree of all that any walk met, and the rest is the same in all of them.
    mutating func complete(along edges: [(base: Int, side: Int)]) {
        for first in stride(from: 0, to: cells.count, by: trees) {
            guard cells[first..<first + trees].contains(where: { $0 == nil }) else { continue }
            // Every base has an edge to both sides, so that two rounds reach every tree.
            for _ in 0..<2 {
                for (base, side) in edges {
                    if cells[first + base] == nil {
                        cells[first + base] = cells[first + side]
                    } else if cells[first + side] == nil {
                        cells[first + side] = cells[first + base]
                    }
                }
            }
        }
    }

    func value(row: Int, in tree: Int) -> Value? { cells[row * trees + tree] ?? nil }

    func value(_ key: Key, in tree: Int) -> Value? {
        rows[key].flatMap { value(row: $0, in: tree) }
    }
}
