import Catalog
import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing
import Volume

struct GroupCommitTests {
    private struct Undo: Error {}

    /// What a crash at this moment would leave.
    private func copy(_ directory: String, to copy: String) throws {
        try FileManager.default.createDirectory(
            atPath: copy, withIntermediateDirectories: false)
        for suffix in ["", "-wal"] {
            try FileManager.default.copyItem(
                atPath: directory + "/catalog.sqlite" + suffix,
                toPath: copy + "/catalog.sqlite" + suffix)
        }
    }

    @Test func anOperationThatThrowsLeavesNothing() throws {
        try withCatalog { catalog in
            let before = try catalog.get(.root)
            let dirty = try catalog.read { try $0.dirtyState() }
            #expect(throws: Undo.self) {
                try catalog.perform {
                    _ = try $0.create(.root, try name("a"), .file, now: time(1))
                    try $0.setMeta("k", [1])
                    try $0.setNode(NodeID(high: 9, low: 9), nil)
                    throw Undo()
                }
            }
            #expect(try catalog.names().isEmpty)
            #expect(try catalog.get(.root) == before)
            #expect(try catalog.read { try $0.meta("k") } == nil)
            #expect(try catalog.read { try $0.nodes() }.count == 1)
            #expect(try catalog.read { try $0.dirtyState() } == dirty)
            // The node's row number is asked for anew.
            try catalog.perform {
                try $0.setNode(
                    NodeID(high: 9, low: 9), NodeDescription(name: "nine", machine: "m"))
            }
            #expect(try catalog.read { try $0.nodeDescriptions() }.count == 1)
        }
    }

    @Test func whatWasFlushedIsInTheFiles() throws {
        try withDirectory { directory in
            // Long: only `flush` commits.
            var options = options()
            options.commitInterval = .seconds(3600)
            let catalog = try openCatalog(directory, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.make("a")
            try catalog.flush()
            try catalog.make("b")
            try copy(directory, to: directory + "/crash")
            let survivor = try openCatalog(directory + "/crash")
            defer { survivor.close() }
            #expect(try survivor.names() == ["a"])
            #expect(try catalog.names() == ["a", "b"])
        }
    }

    @Test func whatCouldNotBeMadeDurableIsDurablyNotedWithTheBatch() throws {
        try withDirectory { directory in
            var options = options()
            options.commitInterval = .seconds(3600)
            let corrections = Mutex<[String]>([])
            options.beforeCommit = {
                guard let key = corrections.withLock({ $0.popLast() }) else { return nil }
                return { try $0.setMeta(key, [1]) }
            }
            let catalog = try openCatalog(directory, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            corrections.withLock { $0 = ["a", "b"] }
            try catalog.flush()
            try copy(directory, to: directory + "/crash")
            let survivor = try openCatalog(directory + "/crash")
            defer { survivor.close() }
            for key in ["a", "b"] { #expect(try survivor.read { try $0.meta(key) } == [1]) }
        }
    }

    @Test(arguments: [false, true])
    func whatRowsLeadToIsDurableBeforeTheirCommitIsInTheLog(comesLate: Bool) throws {
        try withDirectory { directory in
            var options = options()
            options.commitInterval = .seconds(3600)
            let owes = Mutex(false)
            let calls = Mutex(0)
            let shown = Mutex<[Bool]>([])
            let late = Mutex<Catalog?>(nil)
            options.beforeCommit = {
                let call = calls.withLock { calls in
                    calls += 1
                    return calls
                }
                // After the last look without the lock.
                if call == 2, let catalog = late.withLock({ $0 }) {
                    owes.withLock { $0 = true }
                    _ = try? catalog.make("owing")
                    return nil
                }
                let isDue = owes.withLock { owes in
                    defer { owes = false }
                    return owes
                }
                if isDue {
                    let names = try? names(inACopyOf: directory)
                    shown.withLock { $0.append(names?.contains("owing") ?? true) }
                }
                return nil
            }
            let catalog = try openCatalog(directory, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.flush()
            calls.withLock { $0 = 0 }
            if comesLate {
                late.withLock { $0 = catalog }
                try catalog.make("first")
            } else {
                owes.withLock { $0 = true }
                try catalog.make("owing")
            }
            try catalog.flush()
            late.withLock { $0 = nil }
            #expect(shown.withLock { $0 } == [false])
            #expect(try catalog.names().contains("owing"))
        }
    }

    private func names(inACopyOf directory: String) throws -> [String] {
        try copy(directory, to: directory + "/crash")
        let survivor = try openCatalog(directory + "/crash")
        defer { survivor.close() }
        return try survivor.names()
    }

    @Test func anIdleCatalogCommitsByItself() throws {
        try withDirectory { directory in
            let catalog = try openCatalog(directory)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.make("a")
            try eventually { try catalog.snapshot { try $0.child("a") } }
        }
    }

    @Test func aSnapshotStandsStillAndHoldsNobodyUp() throws {
        var options = options()
        options.commitInterval = .seconds(3600)
        try withCatalog(options) { catalog in
            try catalog.make("a")
            try catalog.flush()
            try catalog.make("b")
            try catalog.snapshot { snapshot in
                #expect(try snapshot.child("a"))
                #expect(try !snapshot.child("b"))
                try catalog.make("c")
                try catalog.flush()
                #expect(try !snapshot.child("b"))
            }
            #expect(try catalog.snapshot { try $0.child("c") })
        }
    }

    @Test func callbacksComeWhenTheirOperationIsDurable() throws {
        var options = options()
        options.commitInterval = .seconds(3600)
        try withCatalog(options) { catalog in
            try catalog.make("a")
            let outcome = Mutex<[String]>([])
            let done = DispatchGroup()
            done.enter()
            catalog.afterDurable { error in
                outcome.withLock { $0.append(error.map { "\($0)" } ?? "durable") }
                done.leave()
            }
            #expect(done.wait(timeout: .now() + 10) == .success)
            #expect(outcome.withLock { $0 } == ["durable"])
            #expect(try catalog.snapshot { try $0.child("a") })
        }
    }

    @Test func manyThreadsPerformAndFlush() throws {
        try withCatalog { catalog in
            let failures = Mutex(0)
            DispatchQueue.concurrentPerform(iterations: 4) { thread in
                do {
                    for index in 0..<50 {
                        try catalog.make("t\(thread)-\(index)")
                        if index % 10 == 0 { try catalog.flush() }
                        _ = try catalog.names()
                    }
                } catch {
                    failures.withLock { $0 += 1 }
                }
            }
            #expect(failures.withLock { $0 } == 0)
            #expect(try catalog.names().count == 200)
            _ = try dump(catalog)
        }
    }

    @Test func stampsGrowAcrossRestartsWithAClockSetBack() throws {
        try withDirectory { directory in
            let wall = Mutex<UInt64>(1_000_000)
            var options = options()
            options.wallMilliseconds = { wall.withLock { $0 } }
            var last: Stamp?
            for _ in 0..<4 {
                let catalog = try openCatalog(directory, options)
                defer { catalog.close() }
                for _ in 0..<3 {
                    let stamp = try catalog.perform { try $0.stamp() }
                    if let last { #expect(stamp > last) }
                    last = stamp
                }
                wall.withLock { $0 -= 100_000 }
            }
            let ahead = Stamp(milliseconds: 9_000_000, counter: 3, node: NodeID(high: 3, low: 3))
            let catalog = try openCatalog(directory, options)
            defer { catalog.close() }
            try catalog.perform { try $0.observe(ahead) }
            #expect(try catalog.perform { try $0.stamp() } > ahead)
        }
    }

    @Test func identitiesAreNeverGivenTwice() throws {
        try withDirectory { directory in
            // Prefixes repeat: those in use must be passed over.
            let draws = Mutex<UInt64>(0)
            var options = options()
            options.random = {
                draws.withLock { draws in
                    draws += 1
                    return (draws / 7 % 5) << 26 | draws
                }
            }
            var seen: Set<UInt64> = []
            for round in 0..<3 {
                let catalog = try openCatalog(directory, options)
                defer { catalog.close() }
                if round == 0 { try makeRoot(catalog) }
                for index in 0..<20 {
                    let made = try catalog.make("f\(round)-\(index)")
                    #expect(seen.insert(made.ino.rawValue).inserted)
                    #expect(made.ino.rawValue < 1 << 62)
                    #expect(made.ino.rawValue >= 1 << 24)
                }
            }
        }
    }

    @Test func aLaterSchemaIsRefused() throws {
        try withDirectory { directory in
            try openCatalog(directory).close()
            // The header's user_version: 4 bytes at offset 60, most significant first.
            let file = try FileDescriptor.open(directory + "/catalog.sqlite", .readWrite)
            try file.writeAll(toAbsoluteOffset: 60, [0, 0, 0, 99])
            try file.close()
            #expect(throws: (any Error).self) { try openCatalog(directory) }
        }
    }

    @Test func theLogStartsOverUnderASteadyLoad() throws {
        try withDirectory { directory in
            let catalog = try openCatalog(directory)
            defer { catalog.close() }
            try makeRoot(catalog)
            let value = Array(repeating: UInt8(7), count: 60_000)
            var total = 0
            for round in 0..<1500 {
                try catalog.perform { try $0.setMeta("k\(round % 8)", value) }
                if round % 4 == 0 { try catalog.flush() }
                total += value.count
            }
            let size =
                try FileManager.default.attributesOfItem(
                    atPath: directory + "/catalog.sqlite-wal")[.size] as? Int
            #expect(try #require(size) < total)
        }
    }
}

extension Snapshot {
    func child(_ text: String) throws -> Bool {
        try link(at: Place(directory: .root, name: name(text))) != nil
    }
}
