import Volume

/// All known commits in memory: about 64 bytes each. Parents come before children.
///
/// Grows only by commits that were accepted or made here, whose parents are all in it.
struct CommitTable: Sendable {
    private var keys: [ObjectID] = []
    private var trees: [ObjectID] = []
    private var generations: [UInt32] = []
    /// Number of the first parent; -1 for none. A merge's others are in `moreParents`.
    private var firstParents: [Int32] = []
    private var moreParents: [Int32: [Int32]] = [:]
    /// Open addressing with linear probing over the numbers; -1 is free. At most half full.
    private var slots: [Int32] = Array(repeating: -1, count: 64)

    var count: Int { keys.count }

    func number(of key: ObjectID) -> Int32? {
        let mask = slots.count - 1
        var slot = Int(truncatingIfNeeded: key.slot) & mask
        while slots[slot] >= 0 {
            if keys[Int(slots[slot])] == key { return slots[slot] }
            slot = (slot + 1) & mask
        }
        return nil
    }

    func key(_ number: Int32) -> ObjectID { keys[Int(number)] }
    func tree(_ number: Int32) -> ObjectID { trees[Int(number)] }
    /// 1 for a commit without parents, else one more than the greatest of the parents.
    func generation(_ number: Int32) -> UInt32 { generations[Int(number)] }

    func parents(_ number: Int32) -> [Int32] {
        let first = firstParents[Int(number)]
        guard first >= 0 else { return [] }
        return [first] + (moreParents[number] ?? [])
    }

    /// Throws `incomplete` if a parent is not in the table. Inserting twice is harmless.
    mutating func insert(key: ObjectID, tree: ObjectID, parents: [ObjectID]) throws {
        guard number(of: key) == nil else { return }
        let numbers = try parents.map { parent in
            guard let known = number(of: parent) else {
                throw HistoryError(.incomplete, "graph", "parent \(parent) of \(key) is unknown")
            }
            return known
        }
        guard keys.count < Int(Int32.max) else {
            throw HistoryError(.tooLarge, "graph", "\(keys.count) commits")
        }
        let added = Int32(keys.count)
        keys.append(key)
        trees.append(tree)
        generations.append(1 + (numbers.map { generation($0) }.max() ?? 0))
        firstParents.append(numbers.first ?? -1)
        if numbers.count > 1 { moreParents[added] = Array(numbers.dropFirst()) }
        if keys.count * 2 > slots.count {
            slots = Array(repeating: -1, count: slots.count * 2)
            for number in keys.indices { place(Int32(number)) }
        } else {
            place(added)
        }
    }

    private mutating func place(_ number: Int32) {
        let mask = slots.count - 1
        var slot = Int(truncatingIfNeeded: keys[Int(number)].slot) & mask
        while slots[slot] >= 0 { slot = (slot + 1) & mask }
        slots[slot] = number
    }

    /// Whether `ancestor` is `descendant` or reachable from it.
    func isAncestor(_ ancestor: Int32, of descendant: Int32) -> Bool {
        if ancestor == descendant { return true }
        let floor = generation(ancestor)
        var seen: Set<Int32> = [descendant]
        var stack = [descendant]
        while let number = stack.popLast() {
            for parent in parents(number) where seen.insert(parent).inserted {
                if parent == ancestor { return true }
                if generation(parent) > floor { stack.append(parent) }
            }
        }
        return false
    }

    /// Commits reachable from `wanted` and from none of `known`, parents before children.
    ///
    /// Visits by falling generation, so that it stops where only known commits are left and the
    /// cost follows the difference.
    func reachable(from wanted: [Int32], excluding known: [Int32]) -> [Int32] {
        var queue = GenerationQueue()
        var isKnown: [Int32: Bool] = [:]
        var open = 0
        func less(_ a: Int32, _ b: Int32) -> Bool {
            (generation(a), a) < (generation(b), b)
        }
        func mark(_ number: Int32, known: Bool) {
            switch isKnown[number] {
            case nil:
                isKnown[number] = known
                queue.push(number, by: less)
                if !known { open += 1 }
            case .some(false) where known:
                isKnown[number] = true
                open -= 1
            default: break
            }
        }
        for number in known { mark(number, known: true) }
        for number in wanted { mark(number, known: false) }
        var result: [Int32] = []
        while open > 0, let number = queue.pop(by: less) {
            let known = isKnown[number] ?? false
            if !known {
                open -= 1
                result.append(number)
            }
            for parent in parents(number) { mark(parent, known: known) }
        }
        return result.reversed()
    }
}

/// A binary heap of commit numbers, greatest first.
private struct GenerationQueue {
    private var heap: [Int32] = []

    mutating func push(_ number: Int32, by less: (Int32, Int32) -> Bool) {
        heap.append(number)
        var at = heap.count - 1
        while at > 0, less(heap[(at - 1) / 2], heap[at]) {
            heap.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    mutating func pop(by less: (Int32, Int32) -> Bool) -> Int32? {
        guard let top = heap.first, let last = heap.popLast() else { return nil }
        guard !heap.isEmpty else { return top }
        heap[0] = last
        var at = 0
        while true {
            var greatest = at
            for child in [2 * at + 1, 2 * at + 2] where child < heap.count {
                if less(heap[greatest], heap[child]) { greatest = child }
            }
            guard greatest != at else { return top }
            heap.swapAt(at, greatest)
            at = greatest
        }
    }
}
