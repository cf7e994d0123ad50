import Catalog
import Simulation
import SystemPackage
import Testing
import Volume

/// What was becomes what is, as an edit.
@Suite struct RestoringTests {
    /// A file as a commit had it.
    private func record(_ id: UInt64, _ content: Content) -> Record {
        let stamp = Stamp(milliseconds: 1, counter: 0, node: NodeID(high: 9, low: 9))
        return Record(
            id: LineageID(rawValue: id), ino: InodeNumber(rawValue: id),
            content: Stamped(BodyGroup(body: .file(content), modified: time(-9)), stamp),
            mode: Stamped(0o604, stamp), owner: Stamped(.user, stamp),
            xattrs: [Array("user.a".utf8): Stamped([1, 2], stamp)])
    }

    private func restore(
        _ record: Record, at text: String, isShared: Bool = false, _ restoring: inout Restoring,
        _ catalog: Catalog
    ) throws -> RestoredEntry {
        let name = try name(text)
        return try catalog.perform {
            try restoring.restore(
                record, isShared: isShared, at: name, in: .root, $0, now: time(50))
        }
    }

    @Test("What is gone is a new file with fresh stamps; what is the same is left alone")
    func made() throws {
        try withCatalog { catalog in
            var restoring = Restoring()
            let record = record(77, .extents([try extent(3)]))
            let outcome = try restore(record, at: "a", &restoring, catalog)
            let row = try catalog.find("a")
            #expect(outcome == .made(row.ino))
            #expect(row.id != record.id && row.contentStamp.node != record.content.stamp.node)
            #expect(row.modified == time(-9) && row.mode == 0o604 && row.owner == .user)
            #expect(try catalog.read { try $0.xattr(row.ino, Array("user.a".utf8)) } == [1, 2])
            #expect(try catalog.read { try $0.references(to: extent(3).root) } == 1)
            let effects = restoring.keep()
            #expect(effects.entries.map(\.after) == [row.ino])
            var again = Restoring()
            #expect(try restore(record, at: "a", &again, catalog) == .same(row.ino))
            #expect(try catalog.get(row.ino) == row)
            #expect(again.keep() == AppliedEffects.none)
        }
    }

    @Test("Content that no commit has is not replaced; what is committed is")
    func uncommitted() throws {
        try withCatalog { catalog in
            let objects = MemoryObjects()
            let file = try catalog.make("a")
            var restoring = Restoring()
            let old = record(77, .inline([1]))
            #expect(throws: Errno.resourceBusy) {
                try restore(old, at: "a", &restoring, catalog)
            }
            restoring.takeBack()
            _ = try commit(catalog, objects)
            #expect(try restore(old, at: "a", &restoring, catalog) == .changed(file.ino))
            #expect(try catalog.get(file.ino).id == file.id)
            #expect(restoring.keep().contents == [file.ino])
        }
    }

    @Test(
        "Names that were one file become one again, and a name outside of the past stays as it is")
    func links() throws {
        try withCatalog { catalog in
            let objects = MemoryObjects()
            let outside = try catalog.make("outside")
            let inside = try name("a")
            _ = try catalog.perform { try $0.link(outside.ino, .root, inside, now: time(2)) }
            try catalog.make("b")
            _ = try commit(catalog, objects)
            let before = try catalog.get(outside.ino)
            var restoring = Restoring()
            let shared = record(77, .inline([1]))
            let made = try restore(shared, at: "a", isShared: true, &restoring, catalog)
            _ = restoring.keep()
            _ = try restore(shared, at: "b", isShared: true, &restoring, catalog)
            #expect(try catalog.find("a").ino == made.ino)
            #expect(try catalog.find("b").ino == made.ino)
            #expect(try catalog.find("a").linkCount == 2)
            let after = try catalog.find("outside")
            #expect(after.ino == outside.ino && after.contentStamp == before.contentStamp)
            #expect(after.linkCount == 1)
            // The file that had the name b has none now.
            #expect(restoring.keep().orphaned.count == 1)
        }
    }

    @Test(
        "Two files of the past are never put into one of today, and a failed operation means nothing"
    )
    func apart() throws {
        try withCatalog { catalog in
            let objects = MemoryObjects()
            let file = try catalog.make("a")
            let other = try name("b")
            _ = try catalog.perform { try $0.link(file.ino, .root, other, now: time(2)) }
            _ = try commit(catalog, objects)
            var restoring = Restoring()
            for _ in 0..<2 {
                #expect(throws: Errno.ioError) {
                    try catalog.perform { tx in
                        _ = try restoring.restore(
                            record(77, .inline([1])), isShared: true, at: name("a"), in: .root, tx,
                            now: time(5))
                        throw Errno.ioError
                    }
                }
                restoring.takeBack()
            }
            _ = try restore(record(77, .inline([1])), at: "a", &restoring, catalog)
            _ = restoring.keep()
            _ = try restore(record(78, .inline([2])), at: "b", &restoring, catalog)
            let (a, b) = (try catalog.find("a"), try catalog.find("b"))
            #expect(a.ino != b.ino)
            #expect(try catalog.read { try $0.content(of: a.ino) } == .inline([1]))
            #expect(try catalog.read { try $0.content(of: b.ino) } == .inline([2]))
        }
    }

    @Test("Old content that is to go before its time is the first to go")
    func expiring() throws {
        try withCatalog { catalog in
            let (used, old, absent) = (try extent(1), try extent(2), try extent(3))
            let file = try catalog.make("a")
            try catalog.perform { tx in
                for extent in [used, old] { try tx.setContentState(extent, .stored, at: 1) }
                _ = try tx.setContent(
                    file.ino, .extents([used]), modified: time(1), now: time(1))
            }
            #expect(try catalog.perform { try $0.expire([used, old, absent]) } == [old])
            try catalog.perform { try $0.noteUnreferenced(at: 9) }
            let found = try catalog.read { try $0.unreferenced(limit: 9) }
            #expect(found.map(\.extent) == [old] && found.map(\.since) == [1])
        }
    }
}

extension AppliedEffects {
    fileprivate static var none: AppliedEffects {
        var restoring = Restoring()
        return restoring.keep()
    }
}
