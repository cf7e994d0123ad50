import Volume

/// Walks what commits' trees hold that their parents' trees do not.
///
/// Used both to list what a peer needs and to prove that what a peer sent is whole. Only what
/// stands in a parent's tree is skipped, never what merely exists: an object may be here without
/// what it names. Every object is given once, however many commits hold it; the cost follows the
/// changes. Explicit stacks only: depth and shape come from peers.
struct ObjectWalk {
    private struct Entry: Hashable {
        let key: ObjectID
        let isTree: Bool
    }

    private struct Pair {
        let new: ObjectID
        let old: [ObjectID]
    }

    /// Given so far. Kind included: an id named once as a file and once as a directory is read
    /// as both, and one of them fails.
    private var visited: Set<Entry> = []
    private let read: (ObjectID) throws -> PackedTree
    private let visit: (ObjectID, ObjectKind) throws -> Void

    /// - Parameters:
    ///   - read: a tree's entries; throws when it is missing or malformed.
    ///   - visit: each new tree, after it was read, and each new blob.
    init(
        read: @escaping (ObjectID) throws -> PackedTree,
        visit: @escaping (ObjectID, ObjectKind) throws -> Void
    ) {
        self.read = read
        self.visit = visit
    }

    /// The objects of the tree `new` that none of the trees `old` has in the same place.
    mutating func walk(_ new: ObjectID, against old: [ObjectID]) throws {
        guard !old.contains(new) else { return }
        var appeared: [Entry] = []
        var vanished: Set<Entry> = []
        var pairs: [Pair] = []
        push(Pair(new: new, old: old), on: &pairs)
        while let pair = pairs.popLast() {
            let tree = try read(pair.new)
            try visit(pair.new, .tree)
            let oldTrees = try pair.old.map(read)
            compare(tree, oldTrees, &appeared, &vanished, &pairs)
        }
        try expand(appeared, vanished)
    }

    private mutating func push(_ pair: Pair, on pairs: inout [Pair]) {
        if visited.insert(Entry(key: pair.new, isTree: true)).inserted { pairs.append(pair) }
    }

    /// One directory against the same one in the parents, side by side in Git's order.
    private mutating func compare(
        _ tree: PackedTree, _ oldTrees: [PackedTree], _ appeared: inout [Entry],
        _ vanished: inout Set<Entry>, _ pairs: inout [Pair]
    ) {
        var next = Array(repeating: 0, count: oldTrees.count)
        tree.bytes.withUnsafeBytes { bytes in
            for entry in tree.entries {
                var counterparts: [ObjectID] = []
                var isSame = false
                for index in oldTrees.indices {
                    let old = oldTrees[index]
                    let counterpart = Self.advance(&next[index], old, bytes, entry, &vanished)
                    guard let counterpart else { continue }
                    if counterpart.key == entry.key { isSame = true }
                    counterparts.append(counterpart.key)
                }
                if isSame { continue }
                for key in counterparts { vanished.insert(Entry(key: key, isTree: entry.isTree)) }
                if entry.isTree, !counterparts.isEmpty {
                    push(Pair(new: entry.key, old: counterparts), on: &pairs)
                } else {
                    appeared.append(Entry(key: entry.key, isTree: entry.isTree))
                }
            }
        }
        for (old, position) in zip(oldTrees, next) {
            for entry in old.entries[position...] {
                vanished.insert(Entry(key: entry.key, isTree: entry.isTree))
            }
        }
    }

    /// Moves on in an old directory to where `entry` stands; what is passed has vanished.
    private static func advance(
        _ position: inout Int, _ old: PackedTree, _ bytes: UnsafeRawBufferPointer,
        _ entry: PackedTree.Entry, _ vanished: inout Set<Entry>
    ) -> PackedTree.Entry? {
        old.bytes.withUnsafeBytes { oldBytes in
            while position < old.entries.count {
                let candidate = old.entries[position]
                let order = PackedTree.order(oldBytes, candidate, bytes, entry)
                if order > 0 { return nil }
                position += 1
                if order == 0 { return candidate }
                vanished.insert(Entry(key: candidate.key, isTree: candidate.isTree))
            }
            return nil
        }
    }

    /// Lists what appeared, level by level, save what only moved: it vanished elsewhere. The
    /// vanished directories are looked into at the same pace, for those changed inside as well.
    private mutating func expand(_ appeared: [Entry], _ vanished: Set<Entry>) throws {
        var vanished = vanished
        var blobs = appeared.filter { !$0.isTree }
        var level = appeared.filter(\.isTree)
        var gone = vanished.filter(\.isTree)
        var budget = HistoryLimits.vanishedTreesMax
        while true {
            level.removeAll { vanished.contains($0) || visited.contains($0) }
            guard !level.isEmpty else { break }
            var goneBelow: Set<Entry> = []
            for directory in gone where budget > 0 {
                budget -= 1
                for entry in try read(directory.key).entries {
                    let entry = Entry(key: entry.key, isTree: entry.isTree)
                    if vanished.insert(entry).inserted, entry.isTree { goneBelow.insert(entry) }
                }
            }
            gone = goneBelow
            var below: [Entry] = []
            for directory in level where !vanished.contains(directory) {
                guard visited.insert(directory).inserted else { continue }
                let tree = try read(directory.key)
                try visit(directory.key, .tree)
                for entry in tree.entries {
                    let entry = Entry(key: entry.key, isTree: entry.isTree)
                    if entry.isTree { below.append(entry) } else { blobs.append(entry) }
                }
            }
            level = below
        }
        for blob in blobs where !vanished.contains(blob) && visited.insert(blob).inserted {
            try visit(blob.key, .blob)
        }
    }
}
