import Catalog
import SystemPackage
import Testing
import Volume

/// POSIX's rules once more, on objects in memory.
private final class ModelNode {
    let ino: InodeNumber
    let isDirectory: Bool
    var children: [String: ModelNode] = [:]
    var links: UInt32 = 0

    init(_ ino: InodeNumber, isDirectory: Bool) {
        self.ino = ino
        self.isDirectory = isDirectory
    }

    func holds(_ other: ModelNode) -> Bool {
        self === other || children.values.contains { $0.isDirectory && $0.holds(other) }
    }

    var linkCount: UInt32 {
        isDirectory ? 2 + UInt32(children.values.count { $0.isDirectory }) : links
    }

    func create(_ name: String, _ ino: InodeNumber, isDirectory: Bool) throws(Errno) {
        guard children[name] == nil else { throw .fileExists }
        let node = ModelNode(ino, isDirectory: isDirectory)
        node.links = 1
        children[name] = node
    }

    func link(_ node: ModelNode, _ name: String) throws(Errno) {
        guard !node.isDirectory else { throw .notPermitted }
        guard children[name] == nil else { throw .fileExists }
        children[name] = node
        node.links += 1
    }

    func unlink(_ name: String) throws(Errno) {
        guard let node = children[name] else { throw .noSuchFileOrDirectory }
        guard !node.isDirectory else { throw .isDirectory }
        node.links -= 1
        children[name] = nil
    }

    func rmdir(_ name: String) throws(Errno) {
        guard let node = children[name] else { throw .noSuchFileOrDirectory }
        guard node.isDirectory else { throw .notDirectory }
        guard node.children.isEmpty else { throw .directoryNotEmpty }
        children[name] = nil
    }

    func rename(
        _ name: String, to target: ModelNode, _ newName: String, _ mode: RenameMode
    ) throws(Errno) {
        guard let node = children[name] else { throw .noSuchFileOrDirectory }
        let existing = target.children[newName]
        if mode == .keepExisting, existing != nil { throw .fileExists }
        if mode == .exchange, existing == nil { throw .noSuchFileOrDirectory }
        if existing === node { return }
        if node.isDirectory, node.holds(target) { throw .invalidArgument }
        guard let existing else {
            children[name] = nil
            target.children[newName] = node
            return
        }
        if mode == .exchange {
            if existing.isDirectory, existing.holds(self) { throw .invalidArgument }
            children[name] = existing
            target.children[newName] = node
            return
        }
        if node.isDirectory, !existing.isDirectory { throw .notDirectory }
        if !node.isDirectory, existing.isDirectory { throw .isDirectory }
        guard existing.children.isEmpty else { throw .directoryNotEmpty }
        existing.links -= 1
        children[name] = nil
        target.children[newName] = node
    }
}

struct ModelTests {
    private let names = (0..<6).map { "n\($0)" }

    private func outcome(_ body: () throws -> Void) throws -> Errno? {
        do {
            try body()
            return nil
        } catch let error as Errno {
            return error
        }
    }

    private func directories(_ top: ModelNode) -> [ModelNode] {
        [top]
            + top.children.sorted { $0.key < $1.key }.map(\.value).filter(\.isDirectory)
            .flatMap(directories)
    }

    private func step(
        _ catalog: Catalog, _ top: ModelNode, _ generator: inout SeededGenerator
    ) throws {
        let all = directories(top)
        // Bound by the array: it holds at least the top.
        let parent = all.randomElement(using: &generator) ?? top
        let other = all.randomElement(using: &generator) ?? top
        let text = names.randomElement(using: &generator) ?? ""
        let newText = names.randomElement(using: &generator) ?? ""
        let (one, two) = (try name(text), try name(newText))
        switch Int.random(in: 0..<12, using: &generator) {
        case 0..<4:
            let isDirectory = Bool.random(using: &generator)
            let new = isDirectory ? NewInode.directory : .file
            var made: InodeNumber?
            let real = try outcome { made = try catalog.make(text, in: parent.ino, new).ino }
            let model = try outcome {
                try parent.create(text, made ?? .root, isDirectory: isDirectory)
            }
            #expect(real == model)
        case 4:
            guard let node = parent.children[text] else { return }
            let real = try outcome {
                _ = try catalog.perform { try $0.link(node.ino, other.ino, two, now: time(1)) }
            }
            #expect(real == (try outcome { try other.link(node, newText) }))
        case 5, 6:
            let real = try outcome {
                try catalog.perform {
                    let inode = try $0.unlink(parent.ino, one, now: time(1))
                    try $0.reap(inode.ino)
                }
            }
            #expect(real == (try outcome { try parent.unlink(text) }))
        case 7:
            let real = try outcome {
                try catalog.perform {
                    let inode = try $0.rmdir(parent.ino, one, now: time(1))
                    try $0.reap(inode.ino)
                }
            }
            #expect(real == (try outcome { try parent.rmdir(text) }))
        default:
            let modes = [RenameMode.replace, .replace, .keepExisting, .exchange]
            let mode = modes.randomElement(using: &generator) ?? .replace
            let real = try outcome {
                let outcome = try catalog.move(
                    text, in: parent.ino, to: newText, into: other.ino, mode)
                if mode == .replace, let gone = outcome.displaced {
                    try catalog.perform { _ = try $0.reap(gone.ino) }
                }
            }
            #expect(
                real == (try outcome { try parent.rename(text, to: other, newText, mode) }))
        }
    }

    private func compare(_ catalog: Catalog, _ top: ModelNode) throws {
        for directory in directories(top) {
            let entries = try catalog.read {
                try $0.listInodes(directory.ino, after: 0, limit: .max)
            }
            #expect(entries.map(\.name.description).sorted() == directory.children.keys.sorted())
            for entry in entries {
                let node = directory.children[entry.name.description]
                #expect(entry.target.ino == node?.ino)
                #expect(entry.target.linkCount == node?.linkCount)
                if entry.target.isDirectory { #expect(entry.target.parent == directory.ino) }
            }
        }
    }

    @Test func randomOperationsAgreeWithAModel() throws {
        let seed = newSeed()
        var generator = SeededGenerator(seed: seed)
        try withDirectory { directory in
            var catalog = try openCatalog(directory)
            try makeRoot(catalog)
            let top = ModelNode(.root, isDirectory: true)
            for round in 0..<8 {
                for _ in 0..<250 { try step(catalog, top, &generator) }
                try compare(catalog, top)
                _ = try dump(catalog)
                guard round == 4 else { continue }
                catalog.close()
                catalog = try openCatalog(directory)
                try compare(catalog, top)
            }
            #expect(try catalog.read { try $0.orphans(limit: 10) }.isEmpty)
            catalog.close()
        }
    }
}
