import Catalog
import SystemPackage
import Testing
import Volume

struct RenameTests {
    @Test func aRenameKeepsInodeAndLinkAndChangesBothDirectories() throws {
        try withCatalog { catalog in
            let directory = try catalog.make("d", .directory)
            let file = try catalog.make("a")
            let link = try catalog.read { try $0.links(of: file.ino) }[0].link
            let outcome = try catalog.move("a", to: "b", into: directory.ino, at: 8)
            #expect(outcome.moved?.ino == file.ino)
            #expect(outcome.displaced == nil)
            #expect(try catalog.read { try $0.links(of: file.ino) }.map(\.link) == [link])
            #expect(try catalog.get(.root).modified == time(8))
            #expect(try catalog.get(directory.ino).modified == time(8))
            let after = try catalog.get(file.ino)
            #expect(after.changed == time(8))
            #expect(after.modified == file.modified)
            #expect(after.contentStamp == file.contentStamp)
            #expect(throws: Errno.noSuchFileOrDirectory) { try catalog.move("a", to: "c") }
        }
    }

    @Test func aReplacedFileLosesItsLink() throws {
        try withCatalog { catalog in
            let old = try catalog.make("old")
            let new = try catalog.make("new")
            let outcome = try catalog.move("new", to: "old")
            #expect(outcome.displaced?.ino == old.ino)
            #expect(outcome.displaced?.linkCount == 0)
            #expect(try catalog.find("old").ino == new.ino)
            #expect(try catalog.names() == ["old"])
        }
    }

    @Test func renamingOneLinkOverAnotherOfTheSameInodeDoesNothing() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            let b = try name("b")
            _ = try catalog.perform { try $0.link(file.ino, .root, b, now: time(2)) }
            let before = try catalog.get(.root)
            #expect(try catalog.move("a", to: "b").moved == nil)
            #expect(try catalog.names() == ["a", "b"])
            #expect(try catalog.get(.root) == before)
        }
    }

    @Test func kindsMustMatchWhenReplacing() throws {
        try withCatalog { catalog in
            let empty = try catalog.make("empty", .directory)
            let full = try catalog.make("full", .directory)
            try catalog.make("x", in: full.ino)
            let moved = try catalog.make("moved", .directory)
            try catalog.make("file")
            #expect(throws: Errno.isDirectory) { try catalog.move("file", to: "empty") }
            #expect(throws: Errno.notDirectory) { try catalog.move("moved", to: "file") }
            #expect(throws: Errno.directoryNotEmpty) { try catalog.move("moved", to: "full") }
            let outcome = try catalog.move("moved", to: "empty")
            #expect(outcome.displaced?.ino == empty.ino)
            #expect(outcome.displaced?.linkCount == 0)
            #expect(try catalog.find("empty").ino == moved.ino)
            #expect(try catalog.get(.root).linkCount == 4)
        }
    }

    @Test func aDirectoryDoesNotMoveIntoItself() throws {
        try withCatalog { catalog in
            let a = try catalog.make("a", .directory)
            let b = try catalog.make("b", in: a.ino, .directory)
            let c = try catalog.make("c", in: b.ino, .directory)
            #expect(throws: Errno.invalidArgument) { try catalog.move("a", to: "x", into: a.ino) }
            #expect(throws: Errno.invalidArgument) { try catalog.move("a", to: "x", into: c.ino) }
            #expect(throws: Errno.invalidArgument) {
                try catalog.move("a", to: "c", into: b.ino, .exchange)
            }
            #expect(throws: Errno.invalidArgument) {
                try catalog.move("c", in: b.ino, to: "a", .exchange)
            }
            #expect(throws: Errno.directoryNotEmpty) { try catalog.move("c", in: b.ino, to: "a") }
        }
    }

    @Test func noReplaceAndExchangeWantWhatTheySay() throws {
        try withCatalog { catalog in
            let a = try catalog.make("a")
            let d = try catalog.make("d", .directory)
            let e = try catalog.make("e", in: d.ino, .directory)
            #expect(throws: Errno.fileExists) { try catalog.move("a", to: "d", .keepExisting) }
            #expect(throws: Errno.noSuchFileOrDirectory) {
                try catalog.move("a", to: "x", .exchange)
            }
            let outcome = try catalog.move("a", to: "e", into: d.ino, .exchange)
            #expect(outcome.moved?.ino == a.ino)
            #expect(outcome.displaced?.parent == .root)
            #expect(try catalog.find("a").ino == e.ino)
            #expect(try catalog.find("e", in: d.ino).ino == a.ino)
            #expect(try catalog.get(.root).linkCount == 4)
            #expect(try catalog.get(d.ino).linkCount == 2)
            try catalog.move("a", to: "free", .keepExisting)
            #expect(try catalog.names() == ["d", "free"])
        }
    }

    @Test func aReplacedNameAndAnExchangedNameKeepTheirPlaceInListings() throws {
        try withCatalog { catalog in
            for text in ["a", "b", "c"] { try catalog.make(text) }
            let before = try catalog.read { try $0.list(.root, after: 0, limit: 9) }
            try catalog.move("c", to: "a")
            let after = try catalog.read { try $0.list(.root, after: 0, limit: 9) }
            #expect(after.map(\.cookie) == before.dropLast().map(\.cookie))
            try catalog.move("a", to: "b", .exchange)
            let exchanged = try catalog.read { try $0.list(.root, after: 0, limit: 9) }
            #expect(exchanged.map(\.name) == after.map(\.name))
            #expect(exchanged.map(\.cookie) == after.map(\.cookie))
        }
    }
}
