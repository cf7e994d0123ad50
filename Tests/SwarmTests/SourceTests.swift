import Glibc
import Synchronization
import Testing
import Volume

@testable import Swarm

@Suite(.serialized, .timeLimit(.minutes(3)))
struct SourceTests {
    @Test("Two sources that hold one half each give the whole", arguments: Mode.allCases)
    func halves(mode: Mode) async throws {
        try await withPeers(3, mode) { peers in
            let sample = Sample(count: 4 << 20, seed: 11)
            for (peer, half) in zip(peers, [0..<32, 32..<64]) {
                var held = Bitfield(count: 64)
                for piece in half { held.insert(piece) }
                _ = try peer.scratch.write(sample.bytes, to: "partial")
                try peer.fetch(sample, from: [], verified: held).serve()
            }
            let download = try peers[2].fetch(sample, from: [peers[0], peers[1]])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }

    @Test("A resumed download transfers the missing pieces and no others", arguments: Mode.allCases)
    func resume(mode: Mode) async throws {
        try await withPeers(2, mode) { peers in
            let sample = Sample(count: 4 << 20, seed: 12)
            try await peers[0].seed(sample)
            var held = Bitfield(count: 64)
            var start = sample.bytes
            for piece in 0..<64 {
                if piece % 16 == 3 {
                    start.replaceSubrange(
                        (piece << 16)..<((piece + 1) << 16), with: repeatElement(1, count: 65536))
                } else {
                    held.insert(piece)
                }
            }
            _ = try peers[1].scratch.write(start, to: "partial")
            let download = try peers[1].fetch(sample, from: [peers[0]], verified: held)
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
            #expect(download.progress.downloadedBytes == 4 * 65536)
            #expect(peers[0].swarm.statistics.uploadedBytes == 4 * 65536)
        }
    }

    @Test("What a cancelled download verified is not fetched again")
    func cancelAndResume() async throws {
        try await withPeers(2, .tls) { peers in
            let sample = Sample(count: 4 << 20, seed: 13)
            try await peers[0].seed(sample)
            let first = try peers[1].fetch(sample, from: [peers[0]])
            first.want(0..<1_000_000, priority: .demand)
            try await first.wait(for: 0..<1_000_000, timeoutWithoutProgress: .seconds(20))
            await first.cancel(keepFile: true)
            let held = first.verifiedPieces
            #expect(held.setCount == 16)
            let second = try peers[1].fetch(sample, from: [peers[0]], verified: held)
            try await second.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(second.path, 0..<sample.bytes.count) == sample.bytes)
            #expect(second.progress.downloadedBytes == 48 * 65536)
            #expect(peers[0].swarm.statistics.uploadedBytes == 4 << 20)
            await second.cancel(keepFile: false)
            #expect(access(second.path, F_OK) != 0)
        }
    }

    @Test("When a source dies in the middle another takes over", arguments: Mode.allCases)
    func takeover(mode: Mode) async throws {
        try await withPeers(3, mode) { peers in
            let sample = Sample(count: 32 << 20, seed: 14)
            try await peers[0].seed(sample)
            let download = try peers[2].fetch(sample, from: [peers[0]])
            download.fetchAll()
            try await withCheckedThrowingContinuation { continuation in
                download.whenVerified(0..<65536, timeoutWithoutProgress: .seconds(20)) {
                    continuation.resume(with: $0)
                }
            }
            await peers[0].swarm.stop()
            let early = download.verifiedPieces.setCount
            try await peers[1].seed(sample)
            download.addSources([peers[1].endpoint])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(early > 0)
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }

    @Test("A source that comes back is found again")
    func comesBack() async throws {
        let transport = try Mode.tls.transport()
        let fetcher = try Peer(.tls)
        let first = try Peer(transport)
        let port = first.swarm.port
        let sample = Sample(count: 4 << 20, seed: 15)
        try await withPeers([fetcher]) { _ in
            try await first.seed(sample)
            let download = try fetcher.fetch(sample, from: [first])
            download.want(0..<65536, priority: .demand)
            try await download.wait(for: 0..<65536, timeoutWithoutProgress: .seconds(20))
            await first.swarm.stop()
            download.fetchAll()
            let again = try Swarm(
                SwarmConfiguration(
                    listenAddress: "127.0.0.1", port: port, transport: transport,
                    infoSalt: testSalt))
            try await again.seed(
                sample.extent, path: first.scratch.file("object"), layer: sample.layer,
                lease: .seconds(60))
            try await download.finish(timeoutWithoutProgress: .seconds(30))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
            await again.stop()
        }
    }

    @Test("The far end of a sparse file beyond 4 GiB is read without its holes")
    func sparse() async throws {
        try await withPeers(2, .tls) { peers in
            let length: UInt64 = 5 << 30 | 12345
            let (extent, layer, tail) = SparseSample.make(length: length)
            let path = peers[0].scratch.file("object")
            let descriptor = open(path, O_RDWR | O_CREAT, 0o600)
            #expect(ftruncate(descriptor, off_t(length)) == 0)
            let offset = Int(length) - tail.count
            #expect(pwrite(descriptor, tail, tail.count, off_t(offset)) == tail.count)
            close(descriptor)
            try await peers[0].swarm.seed(extent, path: path, layer: layer, lease: .seconds(60))
            let download = try peers[1].swarm.fetch(
                extent, path: peers[1].scratch.file("partial"), layer: layer,
                sources: [peers[0].endpoint])
            #expect(download.isVerified(0..<(4 << 30)))
            let end = UInt64(offset)..<length
            #expect(!download.isVerified(end))
            download.want(end, priority: .demand)
            try await download.wait(for: end, timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, offset..<Int(length)) == tail)
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            // libtorrent pads the last block.
            #expect(peers[1].swarm.statistics.downloadedBytes < Int64(tail.count + 16384))
        }
    }
}

/// A file that is one hole but for its last bytes, hashed without reading the hole.
enum SparseSample {
    static func make(length: UInt64) -> (extent: Extent, layer: [UInt8], tail: [UInt8]) {
        let root = ContentRoot(bytes: [UInt8](repeating: 0, count: 32))!
        let shape = Extent(root: root, length: length)
        let piece = Int(shape.pieceBytes)
        let lastPiece = Int(length) - (shape.pieceCount - 1) * piece
        let tail = Sample(count: lastPiece + piece, seed: 16).bytes
        let zero = PieceLayer.zeroPieceHash(of: shape)
        var hashes = [[UInt8]](repeating: zero, count: shape.pieceCount)
        for (index, bytes) in [tail[..<piece], tail[piece...]].enumerated() {
            hashes[shape.pieceCount - 2 + index] = Sample.root(
                Sample.leaves(bytes), width: piece / 16384)
        }
        let folded = Sample.root(
            hashes, width: 1, padding: Sample.root([], width: piece / 16384))
        return (
            Extent(root: ContentRoot(bytes: folded)!, length: length), hashes.flatMap { $0 }, tail
        )
    }
}
