import Catalog
import Foundation
import Logging
import Mesh
import SystemPackage
import Testing
import Volume

@testable import Node

@Suite("A node's own holder log")
struct HolderLogsTests {
    private let identity: NodeIdentity
    private let directory: URL

    init() throws {
        let key = try #require(VolumeKey(bytes: [UInt8](repeating: 7, count: 32)))
        identity = try .generate(authority: VolumeAuthority(key: key))
        directory = FileManager.default.temporaryDirectory
            .appendingPathComponent("logs-\(UInt64.random(in: .min ... .max))")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    }

    private func withCatalog(_ body: (Catalog) throws -> Void) throws {
        let catalog = try Catalog(
            path: FilePath(directory.path + "/catalog.sqlite"),
            options: Catalog.Options(node: identity.node))
        defer { catalog.close() }
        try body(catalog)
    }

    private func open(_ catalog: Catalog, capacity: UInt64 = 1 << 40) throws -> HolderLogs {
        try HolderLogs(
            catalog: catalog, identity: identity, capacity: capacity, logger: Logger(label: "test"))
    }

    private func extent(_ byte: UInt8) throws -> Extent {
        Extent(
            root: try #require(ContentRoot(bytes: [UInt8](repeating: byte, count: 32))),
            length: 70_000)
    }

    private func said(_ catalog: Catalog, _ extent: Extent) throws -> HolderState? {
        try catalog.read { try $0.holders(of: extent.root) }
            .first { $0.node == identity.node }?.state
    }

    private func head(_ catalog: Catalog) throws -> HolderLogHead {
        let last = try #require(try catalog.read { try $0.logHead(of: identity.node) })
        return HolderLogHead(
            node: identity.node, epoch: last.epoch, count: last.number, hash: last.chain)
    }

    @Test("What a crash kept out of the log is said at the next start")
    func catchesUp() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        let (stored, gone, begun) = (try extent(1), try extent(2), try extent(3))
        try withCatalog { catalog in
            let logs = try open(catalog)
            try logs.append([.stored(gone), .cloning(begun)])
            // The row became durable, the log's entry did not.
            try catalog.perform { try $0.setContentState(stored, .stored, at: 1) }
            #expect(try said(catalog, stored) == nil)
        }
        try withCatalog { catalog in
            _ = try open(catalog, capacity: 1 << 30)
            #expect(try said(catalog, stored) == .stored)
            #expect(try said(catalog, gone) == nil)
            #expect(try said(catalog, begun) == nil)
            #expect(try catalog.read { try $0.capacity(of: identity.node) } == 1 << 30)
            let count = try head(catalog).count
            _ = try open(catalog, capacity: 1 << 30)
            #expect(try head(catalog).count == count, "nothing is said twice")
        }
    }

    @Test("The last entry is what the state is, in whatever order threads note it")
    func notes() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try withCatalog { catalog in
            let logs = try open(catalog)
            let extent = try extent(1)
            try logs.note([extent], cloning: true)
            #expect(try said(catalog, extent) == .cloning)
            try catalog.perform { try $0.setContentState(extent, .stored, at: 1) }
            // One that gave up a clone comes late.
            try logs.note([extent])
            #expect(try said(catalog, extent) == .stored)
            try logs.note([extent], cloning: true)
            #expect(try said(catalog, extent) == .stored)
            let other = Extent(root: extent.root, length: extent.length + 1)
            try logs.note([other])
            #expect(try said(catalog, extent) == .stored)
            try catalog.perform { try $0.setContentState(extent, .absent, at: 1) }
            try logs.note([extent])
            #expect(try said(catalog, extent) == nil)
        }
    }

    @Test("A restored root that went on past what others know of it begins a new epoch")
    func forked() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try withCatalog { catalog in
            let logs = try open(catalog)
            try logs.append([.stored(try extent(1)), .lost(try extent(1))])
            let before = try head(catalog)
            try logs.append([.stored(try extent(2)), .lost(try extent(2))])
            let now = try head(catalog)
            // They are only behind.
            try logs.beginEpoch(overtakenBy: before) {}
            #expect(try head(catalog) == now)
            var other = before
            other.hash = [UInt8](repeating: 9, count: 32)
            try logs.beginEpoch(overtakenBy: other) {}
            #expect(try head(catalog).epoch > now.epoch)
        }
    }

    @Test("No number in a request for a log is too large")
    func numbers() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try withCatalog { catalog in
            let logs = try open(catalog)
            for number: UInt64 in [.max, .max - 1, 1 << 63] {
                let reply = try logs.answer(
                    PeerMessage.Holders(
                        node: "\(identity.node)", epoch: number, after: number))
                #expect([400, 404].contains(reply.status))
            }
        }
    }

    @Test("A long log is read in parts that end where it is signed")
    func parts() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        try withCatalog { catalog in
            let logs = try open(catalog)
            let extent = try extent(1)
            let count = HolderLogs.batchEntriesMax + 100
            try logs.append((0..<count).map { $0 % 2 == 0 ? .stored(extent) : .lost(extent) })
            try catalog.flush()
            let end = try head(catalog)
            var after: UInt64 = 0
            for _ in 0..<4 where after < end.count {
                let reply = try logs.answer(
                    PeerMessage.Holders(
                        node: "\(identity.node)", epoch: end.epoch, after: after))
                guard case .bytes(let bytes) = reply.body else { break }
                let part = try JSONDecoder().decode(
                    PeerMessage.HoldersReply.self, from: Data(bytes))
                #expect(!part.signature.isEmpty)
                after += UInt64(part.entries.count)
            }
            #expect(after == end.count)
        }
    }

    @Test("Clones that are under way are paid for")
    func room() throws {
        defer { try? FileManager.default.removeItem(at: directory) }
        let gigabyte: UInt64 = 1 << 30
        func room(
            free: UInt64, stored: UInt64 = 0, cached: UInt64 = 0, capacity: UInt64 = .max
        ) -> CloneRoom {
            CloneRoom(
                free: free, reserve: gigabyte / 4, stored: stored, cached: cached,
                capacity: capacity,
                clones: ContentExchange.Clones(
                    count: 1, bytes: 3 * gigabyte, missingBytes: 2 * gigabyte))
        }
        let root = try extent(1).root
        var large = room(free: 5 * gigabyte)
        #expect(large.answer(Extent(root: root, length: 2 * gigabyte)) == .accepted)
        #expect(large.answer(Extent(root: root, length: gigabyte)) == .full)
        var bounded = room(free: 99 * gigabyte, stored: gigabyte, capacity: 5 * gigabyte)
        #expect(bounded.answer(Extent(root: root, length: 2 * gigabyte)) == .full)
        #expect(bounded.answer(Extent(root: root, length: gigabyte)) == .accepted)
        // What is only cached makes room, which takes a moment.
        var cache = room(free: 2 * gigabyte, cached: 2 * gigabyte)
        #expect(cache.bytes == gigabyte * 7 / 4)
        #expect(cache.answer(Extent(root: root, length: gigabyte)) == .busy)
        #expect(cache.lackingBytes == gigabyte * 13 / 4)
        // Few of any size, many small ones.
        var many = CloneRoom(
            free: 99 * gigabyte, reserve: 0, stored: 0, cached: 0, capacity: .max,
            clones: ContentExchange.Clones())
        let small = Extent(root: root, length: 64 << 10)
        for _ in 0..<Replicator.clonesMax { #expect(many.answer(small) == .accepted) }
        #expect(many.answer(small) == .busy)
    }
}
