import Catalog
import Foundation
import History
import Mesh
import Synchronization
import SystemPackage
import Testing
import Volume

@testable import Node

struct JoiningTests {
    @Test func aCopyThatWasCutOffGoesOnWhereItWas() async throws {
        try await withTwo { a, b in
            let head = try #require(a.timeline.applied)
            let offsets = Mutex<[Int64]>([])
            let parts: Parts = { part, file, most in
                let isFirst = offsets.withLock { offsets in
                    offsets.append(part.from)
                    return offsets.count == 1
                }
                let bytes = try read(part, of: a)
                guard isFirst else { return try write(bytes, file, at: part.from) }
                _ = try write(bytes.prefix(bytes.count / 2), file, at: part.from)
                throw PeerError.timeout
            }
            await #expect(throws: PeerError.timeout) {
                _ = try await joining(b, a, parts).fetch()
            }
            #expect(try await joining(b, a, parts).fetch() == head)
            #expect(offsets.withLock { $0.count { $0 > 0 } } == 1)
            #expect(b.history.graph.contains(head))
            #expect(b.history.graph.count == a.history.graph.count)
            #expect(!exists(b, "joining"))
        }
    }

    @Test func damagedPacksAreRefusedAndCopiedAnew() async throws {
        try await withTwo { a, b in
            let head = try #require(a.timeline.applied)
            let damaged: Parts = { part, file, most in
                var bytes = try read(part, of: a)
                bytes[bytes.count / 2] ^= 1
                return try write(bytes, file, at: part.from)
            }
            await #expect(throws: HistoryError.self) {
                _ = try await joining(b, a, damaged).fetch()
            }
            #expect(b.history.graph.count == 0)
            #expect(try b.history.joinPacks().isEmpty)
            #expect(try await joining(b, a, whole(a)).fetch() == head)
        }
    }

    @Test func listsThatNameNoPacksAreRefused() async throws {
        try await withTwo { a, b in
            let good = try #require(
                try Joining.packs(of: a.history, head: a.timeline.applied))
            let name = "../../pack-" + String(repeating: "0", count: 40) + ".pack"
            let bad: [PeerMessage.PacksReply] = [
                .init(head: "head", packs: good.packs),
                .init(head: good.head, packs: []),
                .init(head: good.head, packs: good.packs + good.packs),
                .init(head: good.head, packs: [.init(name: name, bytes: 5)]),
                .init(head: good.head, packs: [.init(name: good.packs[0].name, bytes: 1 << 50)]),
                .init(head: good.head, packs: [.init(name: good.packs[0].name, bytes: -1)]),
            ]
            for list in bad {
                let joining = Joining(b.history, from: a.node, list: { list }, part: whole(a))
                await #expect(throws: NodeError.self) { _ = try await joining.fetch() }
            }
            // A head that is in none of the packs.
            let missing = PeerMessage.PacksReply(
                head: String(repeating: "5", count: 40), packs: good.packs)
            let joining = Joining(b.history, from: a.node, list: { missing }, part: whole(a))
            await #expect(throws: HistoryError.self) { _ = try await joining.fetch() }
        }
    }

    @Test func noMoreThanAPackIsServed() throws {
        try withDirectory { path in
            let a = try Disk.create(path + "/a", node: 1)
            defer { a.close() }
            let pack = try #require(
                try Joining.packs(of: a.history, head: a.timeline.applied)?.packs.first)
            func status(_ name: String, _ from: Int64) throws -> Int {
                try Joining.part(.init(name: name, from: from), of: a.history).status
            }
            #expect(try status(pack.name, 0) == 200)
            #expect(try status(pack.name, -1) == 400)
            #expect(try status(pack.name, pack.bytes) == 400)
            #expect(try status("../../config", 0) == 404)
            #expect(try status("pack-" + String(repeating: "0", count: 40) + ".pack", 0) == 404)
        }
    }

    // MARK: -

    private typealias Parts =
        @Sendable (PeerMessage.PackPart, FileDescriptor, Int64) async throws -> Int64

    /// A node with some commits, and one with none.
    private func withTwo(_ body: (Disk, Disk) async throws -> Void) async throws {
        let path = NSTemporaryDirectory() + "/joining-\(UInt64.random(in: .min ... .max))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let a = try Disk.create(path + "/a", node: 1)
        defer { a.close() }
        for text in ["one", "two", "three"] {
            try a.make(text)
            try a.commit()
        }
        let b = try Disk(path + "/b", node: 2)
        defer { b.catalog.close() }
        try await body(a, b)
    }

    private func joining(_ b: Disk, _ a: Disk, _ parts: @escaping Parts) -> Joining {
        Joining(
            b.history, from: a.node,
            list: { try #require(try Joining.packs(of: a.history, head: a.timeline.applied)) },
            part: parts)
    }

    private func whole(_ a: Disk) -> Parts {
        { part, file, _ in try write(read(part, of: a), file, at: part.from) }
    }

    private func exists(_ disk: Disk, _ name: String) -> Bool {
        FileManager.default.fileExists(atPath: disk.history.path.appending(name).string)
    }
}

/// What a peer answers, from its own files.
private func read(_ part: PeerMessage.PackPart, of disk: Disk) throws -> [UInt8] {
    guard case .file(let region) = try Joining.part(part, of: disk.history).body else {
        throw PeerError.status(404, "")
    }
    let file = FileDescriptor(rawValue: region.descriptor)
    return try [UInt8](unsafeUninitializedCapacity: Int(region.length)) { buffer, count in
        count = try file.read(
            fromAbsoluteOffset: region.offset, into: UnsafeMutableRawBufferPointer(buffer))
    }
}

private func write(_ bytes: some Sequence<UInt8>, _ file: FileDescriptor, at offset: Int64)
    throws -> Int64
{
    Int64(try file.writeAll(toAbsoluteOffset: offset, bytes))
}
