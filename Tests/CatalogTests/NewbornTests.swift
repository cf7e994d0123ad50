import Catalog
import Simulation
import SystemPackage
import Testing
import Volume

/// Files that were created open and are not published yet: commits leave them out.
struct NewbornTests {
    /// What another node sees, which applies each commit.
    private func pulled(
        _ a: Catalog, _ b: Catalog, _ objects: MemoryObjects, pinned: Set<InodeNumber> = []
    ) throws -> [String] {
        let tip = try commit(a, objects, hidingNewborn: true)
        _ = try pull(tip, into: b, objects, pinned: pinned)
        _ = try dump(b)
        return try b.names()
    }

    private func remove(_ text: String, _ catalog: Catalog) throws {
        let victim = try name(text)
        let gone = try catalog.perform { try $0.unlink(.root, victim, now: time(3)) }
        if gone.linkCount == 0 { try catalog.perform { _ = try $0.reap(gone.ino) } }
    }

    @Test func aFileThatIsOpenForTheFirstTimeAppearsWhenItIsPublished() throws {
        try withTwo { a, b, objects in
            let file = try a.makeOpen("f")
            let d = try a.make("d", .directory)
            let other = try name("other")
            _ = try a.perform { try $0.link(file.ino, d.ino, other, now: time(2)) }
            #expect(try pulled(a, b, objects) == ["d"])
            #expect(try b.names(in: b.find("d").ino).isEmpty)
            try a.move("f", to: "g")
            #expect(try pulled(a, b, objects) == ["d"])
            try a.publish(file.ino, 1)
            #expect(try pulled(a, b, objects) == ["d", "g"])
            try expectSame(a, b)
            #expect(try a.read { try $0.isDirty() } == false)
        }
    }

    @Test func whatIsReplacedStaysUntilTheNewFileIsPublishedAndThenGoesOnAsIt() throws {
        try withTwo { a, b, objects in
            let old = try a.make("doc")
            _ = try pulled(a, b, objects)
            try remove("doc", a)
            let new = try a.makeOpen("doc")
            #expect(try pulled(a, b, objects) == ["doc"])
            #expect(try b.find("doc").ino == old.ino)
            try a.publish(new.ino, 1)
            #expect(try pulled(a, b, objects) == ["doc"])
            #expect(try b.find("doc").ino == new.ino)
            #expect(try b.find("doc").id == old.id)
            try expectSame(a, b)
        }
    }

    @Test func whatIsReplacedHereAndChangedElsewhereIsSettledByAMerge() throws {
        try withTwo { a, b, objects in
            let old = try a.make("doc")
            _ = try pulled(a, b, objects)
            try remove("doc", a)
            try a.makeOpen("doc")
            _ = try pulled(a, b, objects)
            _ = try b.perform {
                try $0.setContent(old.ino, .inline([7]), modified: time(4), now: time(4))
            }
            let theirs = try commit(b, objects)
            #expect(throws: ApplyConflict.self) { try pull(theirs, into: a, objects) }
            #expect(try a.read { try $0.inode(id: old.id) } == nil)
        }
    }

    /// `mv log log.1`, and the program goes on with a new log.
    @Test func aFileThatWasMovedAwayIsNotAlsoWhereItWas() throws {
        try withTwo { a, b, objects in
            let log = try a.make("log")
            _ = try pulled(a, b, objects)
            try a.move("log", to: "log.1")
            let new = try a.makeOpen("log")
            #expect(try pulled(a, b, objects) == ["log.1"])
            #expect(try b.find("log.1").id == log.id)
            _ = try a.perform {
                try $0.setContent(log.ino, .inline([1]), modified: time(4), now: time(4))
            }
            #expect(try pulled(a, b, objects) == ["log.1"])
            try a.publish(new.ino, 2)
            #expect(try pulled(a, b, objects) == ["log", "log.1"])
            try expectSame(a, b)
        }
    }

    /// `cp -al`, then one of the names is replaced.
    @Test func aHardLinkThatIsReplacedLeavesTheOther() throws {
        try withTwo { a, b, objects in
            let file = try a.make("p")
            let other = try name("q")
            _ = try a.perform { try $0.link(file.ino, .root, other, now: time(2)) }
            _ = try pulled(a, b, objects)
            let new = try a.makeOpen("tmp")
            try a.move("tmp", to: "p")
            #expect(try pulled(a, b, objects) == ["q"])
            #expect(try b.find("q").linkCount == 1)
            try a.publish(new.ino, 1)
            #expect(try pulled(a, b, objects) == ["p", "q"])
            try expectSame(a, b)
        }
    }

    @Test func anExchangeWithAPublishedFileMovesThatOne() throws {
        try withTwo { a, b, objects in
            let old = try a.make("old")
            _ = try pulled(a, b, objects)
            try a.makeOpen("new")
            try a.move("old", to: "new", .exchange)
            #expect(try pulled(a, b, objects) == ["new"])
            #expect(try b.find("new").id == old.id)
        }
    }

    @Test func aDirectoryThatMadeWayForAFileIsGone() throws {
        try withTwo { a, b, objects in
            let d = try a.make("d", .directory)
            try a.make("inside", in: d.ino)
            _ = try pulled(a, b, objects)
            try a.move("d", to: "e")
            try a.makeOpen("d")
            #expect(try pulled(a, b, objects) == ["e"])
            #expect(try b.names(in: d.ino) == ["inside"])
        }
    }

    @Test func whatACommitHasShownIsNotTakenBack() throws {
        try withTwo { a, b, objects in
            try a.makeOpen("f")
            _ = try pull(commit(a, objects), into: b, objects)
            #expect(try b.names() == ["f"])
            try a.move("f", to: "g")
            #expect(try pulled(a, b, objects) == ["g"])
            try expectSame(a, b)
        }
    }

    @Test func filesThatWaitForACommitAreCounted() throws {
        try withTwo { a, _, objects in
            try a.make("d", .directory)
            let file = try a.make("f")
            let open = try a.makeOpen("open")
            func count() throws -> Int { try a.read { try $0.uncommittedFiles() } }
            #expect(try count() == 1)
            _ = try commit(a, objects, hidingNewborn: true)
            #expect(try count() == 0)
            try a.publish(open.ino, 1)
            try a.publish(file.ino, 1)
            #expect(try count() == 2)
            try remove("f", a)
            #expect(try count() == 1)
            _ = try commit(a, objects, hidingNewborn: true)
            #expect(try count() == 0)
        }
    }

    @Test func randomChangesAroundOpenFilesGiveCommitsThatOthersApply() throws {
        let seed = newSeed()
        var generator = SeededGenerator(seed: seed)
        try withTwo { a, b, objects in
            for _ in 0..<60 {
                for _ in 0..<Int.random(in: 1..<8, using: &generator) {
                    try randomChange(a, &generator)
                    if Bool.random(using: &generator) {
                        try openOrPublish(a, &generator)
                    }
                }
                _ = try pulled(a, b, objects)
                for catalog in [a, b] { try reapAll(catalog) }
                let shown = try dump(b)
                let hidden = try a.read { try $0.newborn() }
                for (id, entry) in try dump(a) where hidden[id] == nil && !entry.record.isDirectory
                {
                    #expect(shown[id]?.record == entry.record)
                    #expect(shown[id]?.links == entry.links)
                }
            }
            for ino in try a.openFiles() { try a.publish(ino, 9) }
            _ = try pulled(a, b, objects)
            try expectSame(a, b)
        }
    }

    private func openOrPublish(
        _ catalog: Catalog, _ generator: inout SeededGenerator
    ) throws {
        let open = try catalog.openFiles()
        if let ino = open.randomElement(using: &generator), Bool.random(using: &generator) {
            return try catalog.publish(ino, UInt8.random(in: 0..<9, using: &generator))
        }
        let text = "n\(Int.random(in: 0..<5, using: &generator))"
        do { try catalog.makeOpen(text) } catch Errno.fileExists {}
    }
}

extension Catalog {
    /// As `open` with `O_CREAT` does.
    @discardableResult
    fileprivate func makeOpen(_ text: String) throws -> InodeRow {
        let name = try name(text)
        return try perform { tx in
            let inode = try tx.create(.root, name, .file, now: time(1))
            try tx.setStaging(
                Staging(ino: inode.ino, name: "s", base: inode.contentStamp, isNewborn: true))
            return inode
        }
    }

    fileprivate func publish(_ ino: InodeNumber, _ byte: UInt8) throws {
        try perform { tx in
            _ = try tx.setContent(ino, .inline([byte]), modified: time(6), now: time(6))
            try tx.clearStaging(ino)
        }
    }

    fileprivate func openFiles() throws -> [InodeNumber] {
        try read { reader in
            try reader.newborn().keys.sorted().compactMap { try reader.inode(id: $0)?.ino }
        }
    }
}
