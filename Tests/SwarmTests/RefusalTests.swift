import Foundation
import Glibc
import Testing
import Volume

@testable import Swarm

@Suite(.serialized, .timeLimit(.minutes(3)))
struct RefusalTests {
    @Test("A layer that does not belong to the root is refused on both sides")
    func wrongLayer() async throws {
        try await withPeers(1, .plain) { peers in
            let sample = Sample(count: 300_000, seed: 21)
            var wrong = sample.layer
            wrong[40] ^= 1
            #expect(throws: SwarmError.invalidLayer) {
                try peers[0].swarm.fetch(
                    sample.extent, path: peers[0].scratch.file("partial"), layer: wrong,
                    sources: [])
            }
            await #expect(throws: SwarmError.invalidLayer) {
                try await peers[0].swarm.seed(
                    sample.extent, path: "/dev/null", layer: wrong, lease: .seconds(1))
            }
        }
    }

    @Test("Wrong bytes from a source are never taken for the content")
    func wrongBytes() async throws {
        try await withPeers(3, .tls) { peers in
            let sample = Sample(count: 1 << 20, seed: 22)
            let forged = try peers[0].scratch.write(
                [UInt8](repeating: 9, count: 1 << 20), to: "object")
            try await peers[0].swarm.seed(
                sample.extent, path: forged, layer: sample.layer, lease: .seconds(60))
            let download = try peers[2].fetch(sample, from: [peers[0]])
            download.fetchAll()
            await #expect(throws: SwarmError.noProgress) {
                try await download.wait(
                    for: 0..<sample.extent.length, timeoutWithoutProgress: .seconds(2))
            }
            #expect(download.verifiedPieces.setCount == 0)
            try await peers[1].seed(sample)
            download.addSources([peers[1].endpoint])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }

    @Test("A seed whose file cannot be read is unloaded, so that the next load is an honest one")
    func missingFile() async throws {
        try await withPeers(2, .tls) { peers in
            let sample = Sample(count: 200_000, seed: 27)
            try await peers[0].swarm.seed(
                sample.extent, path: peers[0].scratch.file("object"), layer: sample.layer,
                lease: .seconds(60))
            let download = try peers[1].fetch(sample, from: [peers[0]])
            download.fetchAll()
            try await eventually { peers[0].swarm.statistics.torrents.isEmpty }
            try await peers[0].seed(sample)
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }

    @Test("A certificate that cannot be used is an error of the load")
    func badCertificate() async throws {
        let authority = try Authority.volume.get()
        let peer = try Peer(
            .tls(caPEM: authority.caPEM, certificatePEM: "no certificate", keyPEM: "no key"))
        try await withPeers([peer]) { peers in
            await #expect(throws: SwarmError.self) {
                try await peers[0].seed(Sample(count: 20000, seed: 28))
            }
        }
    }

    @Test("A peer with another volume's certificate gets nothing, as dialler or as source")
    func foreignCertificate() async throws {
        let authority = try Authority.volume.get()
        let foreign = try Authority.stranger.get().leaf()
        let stranger = try Peer(
            .tls(
                caPEM: authority.caPEM, certificatePEM: foreign.certificatePEM,
                keyPEM: foreign.keyPEM))
        let sample = Sample(count: 200_000, seed: 23)
        try await withPeers([stranger, try Peer(.tls)]) { peers in
            try await peers[1].seed(sample)
            let stolen = try stranger.fetch(sample, from: [peers[1]])
            stolen.fetchAll()
            await #expect(throws: SwarmError.noProgress) {
                try await stolen.wait(for: 0..<1, timeoutWithoutProgress: .seconds(2))
            }
            #expect(stolen.verifiedPieces.setCount == 0)
        }
        let trap = try Peer(
            .tls(
                caPEM: authority.caPEM, certificatePEM: foreign.certificatePEM,
                keyPEM: foreign.keyPEM))
        try await withPeers([trap, try Peer(.tls)]) { peers in
            try await trap.seed(sample)
            let download = try peers[1].fetch(sample, from: [trap])
            download.fetchAll()
            await #expect(throws: SwarmError.noProgress) {
                try await download.wait(for: 0..<1, timeoutWithoutProgress: .seconds(2))
            }
            #expect(download.verifiedPieces.setCount == 0)
        }
    }

    @Test("A plaintext handshake on the TLS port is answered with no byte of the protocol")
    func plaintext() async throws {
        try await withPeers(1, .tls) { peers in
            let sample = Sample(count: 200_000, seed: 24)
            try await peers[0].seed(sample)
            let info = peers[0].swarm.infoDictionary(for: sample.extent)
            let handshake =
                [19] + Array("BitTorrent protocol".utf8) + [UInt8](repeating: 0, count: 8)
                + Sample.hash(info).prefix(20) + [UInt8](repeating: 0x41, count: 20)
            let answer = try await withCheckedThrowingContinuation { continuation in
                let port = peers[0].swarm.port
                Thread.detachNewThread {
                    continuation.resume(with: Result { try Wire.exchange(handshake, port: port) })
                }
            }
            #expect(answer.count < 20)
            #expect(!answer.starts(with: [19]))
        }
    }

    @Test(
        "Without sources a wait ends with an error after the given time", arguments: Mode.allCases)
    func noSource(mode: Mode) async throws {
        try await withPeers(1, mode) { peers in
            let sample = Sample(count: 200_000, seed: 25)
            let nobody = SwarmEndpoint(address: "127.0.0.1", port: 1)
            let download = try peers[0].swarm.fetch(
                sample.extent, path: peers[0].scratch.file("partial"), layer: sample.layer,
                sources: [nobody])
            download.want(0..<1, priority: .demand)
            await #expect(throws: SwarmError.noProgress) {
                try await download.wait(for: 0..<1, timeoutWithoutProgress: .milliseconds(500))
            }
        }
    }

    @Test(
        "A full disk is reported, and the download goes on when there is space again",
        .enabled(if: geteuid() == 0, "needs to mount a small tmpfs"), arguments: Mode.allCases)
    func fullDisk(mode: Mode) async throws {
        let disk = try Scratch()
        try run("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.path])
        defer { _ = umount2(disk.path, CInt(MNT_DETACH)) }
        try await withPeers(2, mode) { peers in
            let sample = Sample(count: 8 << 20, seed: 26)
            try await peers[0].seed(sample)
            let download = try peers[1].swarm.fetch(
                sample.extent, path: disk.file("partial"), layer: sample.layer,
                sources: [peers[0].endpoint])
            await #expect(throws: SwarmError.noSpace) {
                try await download.finish(timeoutWithoutProgress: .seconds(20))
            }
            await #expect(throws: SwarmError.noSpace) {
                try await download.wait(
                    for: 0..<sample.extent.length, timeoutWithoutProgress: .seconds(20))
            }
            try run("mount", ["-o", "remount,size=32m", disk.path])
            download.resume()
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }
}

/// One exchange over a plain socket. Blocks.
enum Wire {
    static func exchange(_ bytes: [UInt8], port: UInt16) throws -> [UInt8] {
        let descriptor = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { throw POSIXError(.EIO) }
        defer { close(descriptor) }
        var timeout = timeval(tv_sec: 3, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0, write(descriptor, bytes, bytes.count) == bytes.count else {
            throw POSIXError(.EIO)
        }
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while case let count = read(descriptor, &buffer, buffer.count), count > 0 {
            answer += buffer.prefix(count)
        }
        return answer
    }
}
