import Catalog
import Simulation
import SystemPackage
import Testing
import Volume

struct LoadingTests {
    private let description = NodeDescription(name: "b", machine: "n")

    @Test func loadingACommitMakesTheRowsThatApplyingItMakes() throws {
        try withTwo { a, b, objects in
            try fill(a)
            let head = try commit(a, objects)
            _ = try pull(head, into: b, objects)
            try withDirectory { directory in
                let c = try openCatalog(directory, options(node: 3))
                defer { c.close() }
                try load(head, into: c, objects)
                try expectSame(b, c)
                #expect(try c.read { try $0.applied() } == head)
                #expect(try c.read { try $0.settings() } == settings)
                #expect(c.counts == b.counts)
                #expect(try c.read { try $0.nodeDescriptions() }.count == 2)
                // What it is itself the volume hears by its first commit, and nothing else.
                let own = try commit(c, objects)
                let change = try difference(from: head, to: own, source: objects)
                #expect(change.records.isEmpty && change.places.isEmpty)
                #expect(change.nodes.count == 1)
            }
        }
    }

    @Test func whatAnInterruptedLoadLeftIsNoHindrance() throws {
        try withTwo { a, b, objects in
            try fill(a)
            let head = try commit(a, objects)
            _ = try pull(head, into: b, objects)
            try withDirectory { directory in
                let c = try openCatalog(directory, options(node: 3))
                defer { c.close() }
                let broken = Broken(objects: objects, left: 9)
                #expect(throws: Broken.Failure.self) { try load(head, into: c, broken) }
                try makeRoot(c)
                _ = try c.make("rest")
                try load(head, into: c, objects)
                try expectSame(b, c)
                #expect(throws: Errno.fileExists) { try load(head, into: c, objects) }
            }
        }
    }

    private func fill(_ a: Catalog) throws {
        let directory = try a.make("d", .directory)
        let inner = try a.make("inner", in: directory.ino, .directory)
        let file = try a.make("f", in: directory.ino)
        for number in 0..<1500 { _ = try a.make("file-\(number)", in: inner.ino) }
        let g = try name("g")
        try a.perform {
            _ = try $0.link(file.ino, .root, g, now: time(2))
            _ = try $0.setContent(
                file.ino, .extents([extent(4)]), modified: time(3), now: time(3))
            _ = try $0.setXattr(file.ino, Array("user.x".utf8), [1], now: time(3))
            try $0.setSettings(settings)
            try $0.setNode($0.node, NodeDescription(name: "a", machine: "m"))
        }
    }

    private func load(
        _ head: ObjectID, into catalog: Catalog, _ source: some TreeSource
    ) throws {
        let tree = try VolumeTree(reading: head, from: source)
        try catalog.load(tree, commit: head, from: source)
        try catalog.perform {
            try $0.setSettings(tree.settings)
            try $0.describe(NodeID(high: 0, low: 3), as: description)
        }
    }

    /// Objects of which some cannot be read.
    private final class Broken: TreeSource {
        struct Failure: Error {}
        let objects: MemoryObjects
        var left: Int

        init(objects: MemoryObjects, left: Int) {
            self.objects = objects
            self.left = left
        }

        func tree(_ id: ObjectID) throws -> [TreeEntry] { try objects.tree(id) }
        func blob(_ id: ObjectID) throws -> [UInt8] {
            left -= 1
            guard left > 0 else { throw Failure() }
            return try objects.blob(id)
        }
    }
}
