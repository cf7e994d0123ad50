import Catalog
import Foundation
import Simulation
import Synchronization
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

/// Changes that are applied in parts, between which operations go on.
struct ApplyingAheadTests {
    private static let files = 300

    /// What one node does to the many files, and what it wrote last that nobody here removed.
    private struct Worker {
        let catalog: Catalog
        let mark: UInt8
        var generator: SeededGenerator
        var count: UInt16 = 0
        var written: [InodeNumber: [UInt8]] = [:]

        mutating func work() throws {
            let text = "n\(Int.random(in: 0..<ApplyingAheadTests.files, using: &generator))"
            count += 1
            let bytes = [mark, UInt8(count >> 8), UInt8(count & 255)]
            do {
                switch Int.random(in: 0..<8, using: &generator) {
                case 0:
                    let file = try name(text)
                    let ino = try catalog.perform { tx in
                        let inode = try tx.lookup(.root, file)
                        _ = try tx.unlink(.root, file, now: time(2))
                        return inode.ino
                    }
                    written[ino] = nil
                case 1: try catalog.move(text, to: "\(mark).\(count)", into: .root)
                case 2: try write(bytes, to: try catalog.make("\(mark).\(count)").ino)
                case 3: try write(bytes, to: try catalog.make(text).ino)
                default:
                    let file = try name(text)
                    try write(bytes, to: catalog.read { try $0.lookup(.root, file).ino })
                }
            } catch is Errno {
                // The name is there, or is not.
            }
        }

        private mutating func write(_ bytes: [UInt8], to ino: InodeNumber) throws {
            _ = try catalog.perform {
                try $0.setContent(ino, .inline(bytes), modified: time(3), now: time(3))
            }
            written[ino] = bytes
        }
    }

    @Test(arguments: [2, 4, 6])
    func whatGoesOnMeanwhileIsKept(seed: UInt64) throws {
        try withTwo(seed: seed) { a, b, objects in
            for number in 0..<Self.files { try a.make("n\(number)") }
            var base = try commit(a, objects)
            _ = try pull(base, into: b, objects)
            for round in 0..<4 as Range<UInt8> {
                var there = Worker(
                    catalog: a, mark: 100 + round, generator: SeededGenerator(seed: seed))
                for _ in 0..<400 { try there.work() }
                let tip = try commit(a, objects)
                let (here, isApplied) = try bring(tip, to: b, base, objects, round, seed)
                var next = try commit(b, objects)
                if !isApplied {
                    var sink = objects
                    next = try mergeTrees(
                        next, tip, bases: [base], source: objects, sink: &sink)
                    _ = try pull(next, into: b, objects)
                }
                _ = try pull(next, into: a, objects)
                base = next
                try expectSame(a, b)
                let bodies = Set(try dump(b).values.map(\.record.content.value.body))
                for bytes in here.written.values {
                    #expect(bodies.contains(.file(.inline(bytes))), "\(bytes) in round \(round)")
                }
            }
        }
    }

    /// Applies while somebody works there, in every other round without a pause.
    private func bring(
        _ tip: ObjectID, to catalog: Catalog, _ base: ObjectID, _ objects: MemoryObjects,
        _ round: UInt8, _ seed: UInt64
    ) throws -> (Worker, isApplied: Bool) {
        let change = try difference(from: base, to: tip, source: objects)
        let end = Atomic(false)
        let outcome = Mutex<(worker: Worker?, failure: (any Error)?)>((nil, nil))
        DispatchQueue.concurrentPerform(iterations: 2) { thread in
            do {
                if thread == 0 {
                    defer { end.store(true, ordering: .relaxed) }
                    _ = try catalog.apply(change, commit: tip) { _ in false }
                } else {
                    var worker = Worker(
                        catalog: catalog, mark: round, generator: SeededGenerator(seed: ~seed))
                    while !end.load(ordering: .relaxed) {
                        try worker.work()
                        if round % 2 == 0 { usleep(4000) }
                    }
                    outcome.withLock { [worker] in $0.worker = worker }
                }
            } catch { outcome.withLock { [error] in $0.failure = error } }
        }
        let (worker, failure) = outcome.withLock { $0 }
        if let failure, !(failure is ApplyConflict) { throw failure }
        return (try #require(worker), failure == nil)
    }
}
