import Catalog
import Testing
import Volume

/// What no file has any more, and what may go.
@Suite struct CollectionTests {
    private func unreferenced(_ catalog: Catalog, at now: UInt64) throws -> [Unreferenced] {
        try catalog.perform { try $0.noteUnreferenced(at: now) }
        return try catalog.read { try $0.unreferenced(limit: 9) }
    }

    @Test("Content is noted when its last file lets go of it, and forgotten when one takes it up")
    func references() throws {
        try withCatalog { catalog in
            let extent = try extent(1)
            let files = [try catalog.make("a"), try catalog.make("b")]
            try catalog.perform { tx in
                for file in files {
                    _ = try tx.setContent(
                        file.ino, .extents([extent]), modified: time(1), now: time(1))
                }
                try tx.setContentState(extent, .stored, at: 1)
            }
            #expect(try unreferenced(catalog, at: 5).isEmpty)
            for file in files {
                #expect(try unreferenced(catalog, at: 6).isEmpty)
                try catalog.perform {
                    _ = try $0.setContent(
                        file.ino, .empty, modified: time(2), now: time(2))
                }
            }
            let old = try unreferenced(catalog, at: 7)
            #expect(old.map(\.extent) == [extent])
            #expect(old.map(\.since) == [7])
            #expect(try catalog.read { try $0.unreferencedBytes() } == extent.length)
            // No commit is without it yet.
            #expect(old.map(\.head) == [nil])
            #expect(try unreferenced(catalog, at: 8).map(\.since) == [7])

            try catalog.perform {
                _ = try $0.setContent(
                    files[0].ino, .extents([extent]), modified: time(3), now: time(3))
            }
            #expect(try unreferenced(catalog, at: 9).isEmpty)
            #expect(try catalog.read { try $0.unreferencedBytes() } == 0)
        }
    }

    @Test("What is marked stays when a file has taken it up meanwhile")
    func marking() throws {
        try withCatalog { catalog in
            let extent = try extent(1)
            let file = try catalog.make("a")
            try catalog.perform { try $0.setContentState(extent, .stored, at: 1) }
            #expect(try catalog.perform { try $0.beginDropping(extent, at: 2) })
            #expect(try catalog.read { try $0.content(extent.root)?.state } == .dropping)
            try catalog.perform {
                _ = try $0.setContent(
                    file.ino, .extents([extent]), modified: time(1), now: time(1))
            }
            #expect(try !catalog.perform { try $0.beginDropping(extent, at: 3) })
            #expect(try catalog.read { try $0.content(extent.root)?.state } == .stored)
        }
    }

    @Test("A copy that no file ever had counts as unreferenced only after a while")
    func strays() throws {
        try withCatalog { catalog in
            let extent = try extent(1)
            try catalog.perform { try $0.setContentState(extent, .stored, at: 100) }
            try catalog.flush()
            #expect(try !catalog.snapshot { try $0.hasStrays(olderThan: 100) })
            #expect(try catalog.snapshot { try $0.hasStrays(olderThan: 101) })
            try catalog.perform { try $0.noteStrays(olderThan: 100) }
            #expect(try unreferenced(catalog, at: 200).isEmpty)
            try catalog.perform { try $0.noteStrays(olderThan: 101) }
            #expect(try unreferenced(catalog, at: 200).map(\.extent) == [extent])
        }
    }
}
