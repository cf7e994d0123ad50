import Catalog
import Foundation
import Glibc
import History
import Logging
import Mount
import Synchronization
import SystemPackage
import Testing
import Volume

@testable import Node

/// A directory that is gone when the body has ended.
func withDirectory<T>(_ body: (String) throws -> T) throws -> T {
    var template = Array((NSTemporaryDirectory() + "/node.XXXXXX").utf8CString)
    guard let made = mkdtemp(&template) else { throw Errno(rawValue: errno) }
    let path = String(cString: made)
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
}

/// Calls until true; fails after ten seconds.
func eventually(_ what: String, _ condition: () throws -> Bool) throws {
    let deadline = Date(timeIntervalSinceNow: 10)
    while Date() < deadline {
        if try condition() { return }
        usleep(2000)
    }
    Issue.record("did not come true: \(what)")
}

/// Catalog, history and timeline of one node, without anything around them.
final class Disk: Sendable {
    let path: String
    let node: NodeID
    let catalog: Catalog
    let history: History
    let timeline: Timeline

    init(_ path: String, node: UInt64, opens: Bool = false) throws {
        self.path = path
        self.node = NodeID(high: 0, low: node)
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true)
        catalog = try Catalog(
            path: FilePath(path + "/catalog.sqlite"), options: .init(node: self.node))
        let repository = FilePath(path + "/history.git")
        history = try opens ? History.open(repository) : History.create(repository)
        var logger = Logger(label: "timeline")
        logger.logLevel = .critical
        timeline = try Timeline(
            catalog: catalog, history: history, node: self.node, logger: logger)
    }

    /// The first node of a volume.
    static func create(_ path: String, node: UInt64) throws -> Disk {
        let disk = try Disk(path, node: node)
        try disk.catalog.perform { tx in
            _ = try tx.createRoot(mode: 0o755, owner: Owner(uid: 0, gid: 0), now: .now)
            try tx.setSettings(
                VolumeSettings(
                    volume: "test", copies: 2, transport: .tls, owner: Owner(uid: 0, gid: 0)))
        }
        disk.timeline.start()
        try disk.commit()
        return disk
    }

    /// A node that starts from another's commit.
    static func join(_ other: Disk, _ path: String, node: UInt64) throws -> Disk {
        do {
            let disk = try Disk(path, node: node)
            let head = try #require(other.timeline.applied)
            try disk.fetch(head, from: other)
            let change = try difference(
                from: nil, to: disk.history.graph.tree(of: head), source: disk.history)
            _ = try disk.catalog.apply(change, commit: head, isPinned: { _ in false })
            try disk.catalog.flush()
            try disk.history.setHead(head)
            disk.catalog.close()
        }
        let disk = try Disk(path, node: node, opens: true)
        disk.timeline.start()
        return disk
    }

    /// The same disk at the next start.
    func reopened() throws -> Disk {
        timeline.stop()
        catalog.close()
        let disk = try Disk(path, node: node.low, opens: true)
        disk.timeline.start()
        return disk
    }

    func close() {
        timeline.stop()
        catalog.close()
    }

    func make(_ text: String) throws {
        let name = try #require(FileName(text))
        try catalog.perform { tx in
            _ = try tx.create(
                .root, name,
                NewInode(body: .file(.empty), mode: 0o644, owner: Owner(uid: 0, gid: 0)),
                now: .now)
        }
        timeline.changed()
    }

    @discardableResult
    func commit() throws -> ObjectID {
        #expect(timeline.commitNow(until: .now + .seconds(10)))
        return try #require(timeline.applied)
    }

    func has(_ text: String) throws -> Bool {
        let name = try #require(FileName(text))
        return try catalog.read { (try? $0.lookup(.root, name)) != nil }
    }

    /// Takes a commit in, as gossip does, but does not tell the timeline.
    func fetch(_ head: ObjectID, from other: Disk) throws {
        let have = try history.references().values
        let pack = try #require(try other.history.pack(wanted: [head], have: Array(have)))
        try history.receive(pack: pack, heads: [head], validate: Gossip.validate)
        try history.setReference("refs/peers/\(other.node)", to: head)
    }

    /// A commit of ours whose tree has a file that is no record.
    func commitRubbish(on parent: ObjectID) throws -> ObjectID {
        let stamp = try CommitMessage(
            decoding: #require(try history.commit(parent)).message
        ).newestStamp
        return try history.write { batch in
            let tree = try history.graph.tree(of: parent)
            var top = try batch.tree(tree)
            let index = try #require(top.firstIndex { $0.name == Array("tree".utf8) })
            let rubbish = TreeEntry(
                name: Array("rubbish".utf8), kind: .blob, id: try batch.write(blob: [1, 2, 3]))
            top[index] = TreeEntry(
                name: top[index].name, kind: .tree,
                id: try batch.write(tree: batch.tree(top[index].id) + [rubbish]))
            let commit = try Commit(
                tree: batch.write(tree: top), parents: [parent], seconds: 0,
                message: CommitMessage(kind: .change(node), newestStamp: stamp).encoded)
            return try batch.write(commit: commit)
        }
    }
}
