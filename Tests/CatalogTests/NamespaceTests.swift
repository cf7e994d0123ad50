import Catalog
import SystemPackage
import Testing
import Volume

struct NamespaceTests {
    @Test func aNewFileIsFoundUnderItsNameWithWhatItWasGiven() throws {
        try withCatalog { catalog in
            let made = try catalog.make("a", .file, at: 7)
            #expect(try catalog.find("a") == made)
            #expect(made.linkCount == 1)
            #expect(made.fullMode == 0o100644)
            #expect(made.modified == time(7))
            #expect(made.id.rawValue == made.ino.rawValue)
            #expect(throws: Errno.noSuchFileOrDirectory) { try catalog.find("b") }
            #expect(throws: Errno.fileExists) { try catalog.make("a") }
            #expect(throws: Errno.notDirectory) { try catalog.make("b", in: made.ino) }
        }
    }

    @Test func creatingChangesTheDirectorysTimesAndStamp() throws {
        try withCatalog { catalog in
            let before = try catalog.get(.root)
            try catalog.make("a", at: 9)
            let after = try catalog.get(.root)
            #expect(after.modified == time(9))
            #expect(after.changed == time(9))
            #expect(after.contentStamp > before.contentStamp)
            #expect(after.modeStamp == before.modeStamp)
        }
    }

    @Test func aSetGroupIdDirectoryHandsDownItsGroupAndToDirectoriesItsBit() throws {
        try withCatalog { catalog in
            let shared = try catalog.make(
                "d", NewInode(body: .directory, mode: 0o2775, owner: Owner(uid: 1, gid: 50)))
            let inner = try catalog.make("e", in: shared.ino, .directory)
            #expect(inner.mode == 0o2755)
            #expect(inner.owner.gid == 50)
            #expect(try catalog.make("f", in: shared.ino).mode == 0o644)
            let unlinked = try catalog.perform {
                try $0.createUnlinked(in: shared.ino, .file, now: time(1))
            }
            #expect(unlinked.owner.gid == 50)
            #expect(unlinked.linkCount == 0)
        }
    }

    @Test func symlinksAndDevicesKeepWhatTheyAre() throws {
        try withCatalog { catalog in
            let target = Array("x/y".utf8)
            let link = try catalog.make(
                "l", NewInode(body: .symlink(target), mode: 0o777, owner: .user))
            #expect(link.size == 3)
            #expect(try catalog.read { try $0.target(of: link.ino) } == target)
            #expect(throws: Errno.invalidArgument) {
                try catalog.read { try $0.target(of: .root) }
            }
            let body = Body.characterDevice(major: 5, minor: 1 << 20)
            let device = try catalog.make("c", NewInode(body: body, mode: 0o600, owner: .root))
            #expect(device.fullMode == 0o020600)
            let found = try catalog.find("c")
            #expect((found.major, found.minor) == (5, 1 << 20))
        }
    }

    @Test func linksAddNamesToOneInodeAndUnlinkTakesThemAway() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            let (a, b) = (try name("a"), try name("b"))
            let linked = try catalog.perform { try $0.link(file.ino, .root, b, now: time(2)) }
            #expect(linked.linkCount == 2)
            #expect(linked.changed == time(2))
            #expect(throws: Errno.fileExists) {
                try catalog.perform { try $0.link(file.ino, .root, b, now: time(2)) }
            }
            #expect(try catalog.perform { try $0.unlink(.root, a, now: time(3)) }.linkCount == 1)
            #expect(try catalog.perform { try $0.reap(file.ino) } == false)
            #expect(try catalog.perform { try $0.unlink(.root, b, now: time(4)) }.linkCount == 0)
            // Open files live on without a name.
            #expect(try catalog.get(file.ino).linkCount == 0)
            #expect(try catalog.read { try $0.orphans(limit: 10) } == [file.ino])
            #expect(try catalog.perform { try $0.reap(file.ino) })
            #expect(try catalog.read { try $0.inode(file.ino) } == nil)
            #expect(throws: Errno.noSuchFileOrDirectory) {
                try catalog.perform { try $0.unlink(.root, b, now: time(4)) }
            }
        }
    }

    @Test func directoriesAreNeitherLinkedNorUnlinked() throws {
        try withCatalog { catalog in
            let directory = try catalog.make("d", .directory)
            let (d, e) = (try name("d"), try name("e"))
            #expect(throws: Errno.notPermitted) {
                try catalog.perform { try $0.link(directory.ino, .root, e, now: time(1)) }
            }
            #expect(throws: Errno.isDirectory) {
                try catalog.perform { try $0.unlink(.root, d, now: time(1)) }
            }
        }
    }

    @Test func aTemporaryFileGetsItsNameByLink() throws {
        try withCatalog { catalog in
            let file = try catalog.perform {
                try $0.createUnlinked(in: .root, .file, now: time(1))
            }
            let a = try name("a")
            _ = try catalog.perform { try $0.link(file.ino, .root, a, now: time(2)) }
            #expect(try catalog.find("a").linkCount == 1)
        }
    }

    @Test func rmdirWantsAnEmptyDirectory() throws {
        try withCatalog { catalog in
            let directory = try catalog.make("d", .directory)
            try catalog.make("f")
            try catalog.make("g", in: directory.ino)
            func rmdir(_ text: String) throws -> InodeRow {
                let name = try name(text)
                return try catalog.perform { try $0.rmdir(.root, name, now: time(1)) }
            }
            #expect(throws: Errno.directoryNotEmpty) { try rmdir("d") }
            #expect(throws: Errno.notDirectory) { try rmdir("f") }
            #expect(throws: Errno.noSuchFileOrDirectory) { try rmdir("x") }
            let g = try name("g")
            _ = try catalog.perform { try $0.unlink(directory.ino, g, now: time(1)) }
            #expect(try rmdir("d").linkCount == 0)
            // A process may still stand in it.
            #expect(throws: Errno.noSuchFileOrDirectory) {
                try catalog.make("x", in: directory.ino)
            }
            #expect(try catalog.perform { try $0.reap(directory.ino) })
        }
    }

    @Test func aDirectorysLinkCountFollowsItsSubdirectories() throws {
        try withCatalog { catalog in
            let a = try catalog.make("a", .directory)
            let b = try catalog.make("b", .directory)
            #expect(try catalog.get(.root).linkCount == 4)
            try catalog.move("a", to: "a", into: b.ino)
            #expect(try catalog.get(.root).linkCount == 3)
            #expect(try catalog.get(b.ino).linkCount == 3)
            #expect(try catalog.read { try $0.parent(of: a.ino) } == b.ino)
            #expect(try catalog.read { try $0.path(of: a.ino) }.map(\.description) == ["b", "a"])
            #expect(try catalog.read { try $0.parent(of: .root) } == .root)
            #expect(try catalog.read { try $0.path(of: .root) }.isEmpty)
        }
    }

    @Test func countsFollowWhatIsLinked() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            _ = try catalog.perform {
                try $0.setContent(file.ino, .inline([1, 2, 3]), modified: time(2), now: time(2))
            }
            #expect(
                try catalog.perform { $0.counts } == Counts(inodes: 2, files: 1, bytes: 3))
            struct Undo: Error {}
            #expect(throws: Undo.self) {
                try catalog.perform {
                    _ = try $0.create(.root, try name("b"), .file, now: time(1))
                    throw Undo()
                }
            }
            let a = try name("a")
            _ = try catalog.perform { try $0.unlink(.root, a, now: time(3)) }
            #expect(try catalog.perform { $0.counts } == Counts(inodes: 1, files: 0, bytes: 0))
        }
    }

    @Test func aListingUnderWayShowsEveryLastingEntryOnce() throws {
        let seed = newSeed()
        var generator = SeededGenerator(seed: seed)
        try withCatalog { catalog in
            for index in 0..<200 { try catalog.make("f\(index)") }
            var seen: [String] = []
            var cookie: UInt64 = 0
            var removed: Set<Int> = []
            while true {
                let page = try catalog.read { try $0.listInodes(.root, after: cookie, limit: 7) }
                guard let last = page.last else { break }
                cookie = last.cookie
                seen += page.map(\.name.description)
                let victim = Int.random(in: 0..<100, using: &generator)
                if removed.insert(victim).inserted {
                    let victim = try name("f\(victim)")
                    _ = try catalog.perform { try $0.unlink(.root, victim, now: time(2)) }
                }
                // Saved as an editor does: the name exists throughout.
                let saved = "f\(Int.random(in: 100..<200, using: &generator))"
                if seen.count < 150 { try catalog.make("tmp") }
                if seen.count < 150 { try catalog.move("tmp", to: saved) }
            }
            for index in 100..<200 { #expect(seen.count { $0 == "f\(index)" } == 1) }
            #expect(Set(seen).count == seen.count)
        }
    }

    @Test func cookiesAreNeverGivenTwiceAcrossRestarts() throws {
        try withDirectory { directory in
            var highest: UInt64 = 15
            for round in 0..<3 {
                let catalog = try openCatalog(directory)
                defer { catalog.close() }
                if round == 0 { try makeRoot(catalog) }
                try catalog.make("f\(round)")
                let entries = try catalog.read { try $0.list(.root, after: highest, limit: 10) }
                #expect(entries.map(\.name.description) == ["f\(round)"])
                highest = try #require(entries.last).cookie
                let made = try name("f\(round)")
                _ = try catalog.perform { try $0.unlink(.root, made, now: time(1)) }
            }
        }
    }

    @Test func directoriesAreNotMadeDeeperThanCommitsAllow() throws {
        try withCatalog { catalog in
            var parent = InodeNumber.root
            for _ in 0..<Limits.directoryDepthMax {
                parent = try catalog.make("d", in: parent, .directory).ino
            }
            #expect(throws: Errno.fileNameTooLong) { try catalog.make("d", in: parent, .directory) }
            try catalog.make("f", in: parent)
            let side = try catalog.make("s", .directory)
            try catalog.make("t", in: side.ino, .directory)
            let last = try catalog.read { try $0.parent(of: parent) }
            #expect(throws: Errno.fileNameTooLong) {
                try catalog.move("s", to: "s", into: last)
            }
            try catalog.move("t", in: side.ino, to: "t", into: last)
        }
    }
}
