import SystemPackage
import Testing
import Volume

@testable import Catalog

@Suite("How many copies directories ask for")
struct PolicyTests {
    private let nodes = (1...3).map { NodeID(high: 7, low: UInt64($0)) }

    private func set(_ catalog: Catalog, _ directory: InodeNumber, _ value: String) throws {
        _ = try catalog.perform {
            try $0.setXattr(directory, CopiesPolicy.name, Array(value.utf8), now: time(1))
        }
    }

    private func copies(_ catalog: Catalog, of extent: Extent) throws -> Int? {
        try catalog.read { try $0.holding(of: extent.root, copies: 2)?.copies }
    }

    @Test("A directory's number counts below it, the nearest one first, and the most of all names")
    func inherited() throws {
        try withCatalog { catalog in
            let content = try extent(1)
            let outer = try catalog.make("outer", .directory)
            let inner = try catalog.make("inner", in: outer.ino, .directory)
            let file = try catalog.make("file", in: inner.ino)
            _ = try catalog.perform {
                try $0.setContent(
                    file.ino, .extents([content]), modified: time(1), now: time(1))
            }
            #expect(try copies(catalog, of: content) == 2)
            try set(catalog, outer.ino, "3")
            #expect(try copies(catalog, of: content) == 3)
            try set(catalog, inner.ino, "1")
            #expect(try copies(catalog, of: content) == 1)
            // What is no number of copies says nothing.
            try set(catalog, inner.ino, "0")
            #expect(try copies(catalog, of: content) == 3)
            try set(catalog, inner.ino, "1")
            #expect(try catalog.read { try $0.copies(in: inner.ino, otherwise: 2) } == 1)
            #expect(try catalog.read { try $0.copies(in: .root, otherwise: 2) } == 2)
            _ = try catalog.perform {
                try $0.link(file.ino, .root, try name("other"), now: time(2))
            }
            #expect(try copies(catalog, of: content) == 2)
            try set(catalog, .root, "5")
            #expect(try copies(catalog, of: content) == 5)
        }
    }

    @Test("The survey goes by each content's own number, and a move makes it look again")
    func surveyed() throws {
        try withCatalog { catalog in
            let (one, other) = (try extent(1), try extent(2))
            let careful = try catalog.make("careful", .directory)
            let files = [try catalog.make("a", in: careful.ino), try catalog.make("b")]
            _ = try catalog.perform { tx in
                for (file, extent) in zip(files, [one, other]) {
                    _ = try tx.setContent(
                        file.ino, .extents([extent]), modified: time(1), now: time(1))
                    for node in nodes[..<2] {
                        try tx.setHolder(of: extent, node, .stored, since: 1)
                    }
                }
            }
            var rule = CopyRule(places: [:], copies: 2, own: nodes[0])
            for node in nodes[..<3] {
                rule.places[node] = CopyRule.Place(machine: "\(node)", isOnline: true)
            }
            func deviating() throws -> [Extent] {
                try catalog.read { reader in
                    try reader.deviating(from: rule, after: 0, limit: 9).found.compactMap {
                        try reader.holding($0, copies: 2)?.extent
                    }
                }
            }
            #expect(try deviating().isEmpty)
            try set(catalog, careful.ino, "3")
            #expect(try deviating() == [one])
            #expect(catalog.takeContentChanges() == .all)
            try set(catalog, careful.ino, "1")
            // One too many, and one of them is here.
            #expect(try deviating() == [one])
            _ = catalog.takeContentChanges()
            _ = try catalog.perform {
                try $0.rename(
                    .root, try name("b"), to: careful.ino,
                    try name("b"), now: time(2))
            }
            let moved = try catalog.read { try $0.holding(of: other.root, copies: 2)?.number }
            #expect(catalog.takeContentChanges() == .these(Set([moved].compactMap(\.self))))
            #expect(try deviating() == [one, other])
        }
    }
}
