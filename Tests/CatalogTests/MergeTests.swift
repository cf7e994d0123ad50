import Catalog
import Simulation
import SystemPackage
import Testing
import Volume

/// Two nodes that change the volume at the same time, also while merges are applied.
struct MergeTests {
    private func merge(
        _ a: ObjectID, _ b: ObjectID, base: ObjectID, _ objects: MemoryObjects
    ) throws -> ObjectID {
        var sink = objects
        return try mergeTrees(a, b, bases: [base], source: objects, sink: &sink)
    }

    /// Brings `tip` to the catalog although things go on there, as a node does: where that is refused, by
    /// committing and merging once more. The first two entries of the top are open.
    private func bring(
        _ tip: ObjectID, to catalog: Catalog, base: ObjectID, _ objects: MemoryObjects
    ) throws {
        let open = try catalog.read { try $0.list(.root, after: 0, limit: 2) }.map(\.target.ino)
        do {
            _ = try pull(tip, into: catalog, objects, pinned: Set(open))
        } catch is ApplyConflict {
            let own = try commit(catalog, objects)
            _ = try pull(
                merge(own, tip, base: base, objects), into: catalog, objects, pinned: Set(open))
        }
        _ = try dump(catalog)
    }

    /// 24: what a refused merge had linked unseen stayed. 58, 67: an entry came elsewhere into a directory
    /// that was removed here and is open. 60: moves here and elsewhere closed a circle.
    @Test(arguments: [24, 58, 60, 67] + (0..<6).map { _ in newSeed("MergeTests") })
    func nodesThatChangeAtTheSameTimeBecomeTheSame(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        func change(_ catalog: Catalog, _ count: Range<Int>) throws {
            for _ in 0..<Int.random(in: count, using: &generator) {
                try randomChange(catalog, &generator)
            }
        }
        /// Some files of the top are being written from here on, others no more.
        func write(_ catalog: Catalog) throws {
            let entries = try catalog.read { try $0.list(.root, after: 0, limit: .max) }
            for file in entries where file.target.kind == .file {
                try catalog.perform { transaction in
                    switch Int.random(in: 0..<4, using: &generator) {
                    case 0:
                        try transaction.setStaging(
                            Staging(
                                ino: file.target.ino, name: "1.1", base: transaction.stamp()))
                    case 1: try transaction.clearStaging(file.target.ino)
                    default: break
                    }
                }
            }
        }
        try withTwo(seed: seed) { a, b, objects in
            var base = try commit(a, objects)
            _ = try pull(base, into: b, objects)
            for _ in 0..<25 {
                for catalog in [a, b] { try change(catalog, 1..<15) }
                let (own, other) = (try commit(a, objects), try commit(b, objects))
                for catalog in [a, b] {
                    try change(catalog, 0..<6)
                    try write(catalog)
                }
                try bring(merge(own, other, base: base, objects), to: a, base: own, objects)
                let first = try commit(a, objects)
                try bring(first, to: b, base: other, objects)
                base = try commit(b, objects)
                _ = try pull(base, into: a, objects)
                try expectSame(a, b)
                for catalog in [a, b] { try reapAll(catalog) }
            }
        }
    }
}
