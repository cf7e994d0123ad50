import Foundation
import Glibc
import Volume

@testable import Swarm

/// A directory that goes away with its owner.
final class Scratch: Sendable {
    let path: String

    init() throws {
        var template = Array("/tmp/swarm-tests.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw POSIXError(.EIO) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String) -> String { path + "/" + name }

    func write(_ bytes: [UInt8], to name: String) throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: file(name)))
        return file(name)
    }
}

/// Runs a program and gives its standard output; throws when it fails.
@discardableResult
func run(_ program: String, _ arguments: [String]) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [program] + arguments
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw POSIXError(.EIO) }
    return String(decoding: data, as: UTF8.self)
}

/// A volume's certificate authority, made with the openssl program.
struct Authority: Sendable {
    let caPEM: String
    private let scratch: Scratch

    static let volume = Result { try Authority() }
    static let stranger = Result { try Authority() }

    private init() throws {
        scratch = try Scratch()
        try run("openssl", ["genpkey", "-algorithm", "ed25519", "-out", scratch.file("ca.key")])
        try run(
            "openssl",
            [
                "req", "-x509", "-new", "-key", scratch.file("ca.key"), "-days", "3650", "-subj",
                "/CN=DelugeFS volume authority", "-out", scratch.file("ca.pem"),
            ])
        caPEM = try String(contentsOfFile: scratch.file("ca.pem"), encoding: .utf8)
    }

    /// A fresh certificate as the nodes have: P-256, SAN `DNS:*`.
    func leaf() throws -> (certificatePEM: String, keyPEM: String) {
        let own = try Scratch()
        try run(
            "openssl",
            [
                "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-subj", "/CN=00112233445566778899aabbccddeeff", "-keyout", own.file("key"),
                "-out", own.file("request"),
            ])
        let extensions = try own.write(
            Array("subjectAltName=DNS:*\nextendedKeyUsage=serverAuth,clientAuth\n".utf8),
            to: "extensions")
        try run(
            "openssl",
            [
                "x509", "-req", "-in", own.file("request"), "-CA", scratch.file("ca.pem"),
                "-CAkey", scratch.file("ca.key"), "-set_serial", "1", "-days", "3650",
                "-extfile", extensions, "-out", own.file("certificate"),
            ])
        return (
            try String(contentsOfFile: own.file("certificate"), encoding: .utf8),
            try String(contentsOfFile: own.file("key"), encoding: .utf8)
        )
    }
}

enum Mode: String, Sendable, CaseIterable {
    case plain
    case tls

    func transport() throws -> SwarmConfiguration.Transport {
        switch self {
        case .plain: return .plain
        case .tls:
            let authority = try Authority.volume.get()
            let leaf = try authority.leaf()
            return .tls(
                caPEM: authority.caPEM, certificatePEM: leaf.certificatePEM, keyPEM: leaf.keyPEM)
        }
    }
}

let testSalt = [UInt8](repeating: 0x5A, count: 32)

/// A session on the loopback interface and a directory for its files.
struct Peer: Sendable {
    let swarm: Swarm
    let scratch: Scratch

    init(_ transport: SwarmConfiguration.Transport, maxLoadedSeeds: Int = 100) throws {
        scratch = try Scratch()
        swarm = try Swarm(
            SwarmConfiguration(
                listenAddress: "127.0.0.1", transport: transport, infoSalt: testSalt,
                maxLoadedSeeds: maxLoadedSeeds))
    }

    init(_ mode: Mode) throws { try self.init(mode.transport()) }

    var endpoint: SwarmEndpoint { SwarmEndpoint(address: "127.0.0.1", port: swarm.port) }

    /// Writes the content to a file of its own and serves it.
    func seed(_ sample: Sample) async throws {
        let path = try scratch.write(sample.bytes, to: "object")
        try await swarm.seed(sample.extent, path: path, layer: sample.layer, lease: .seconds(60))
    }

    func fetch(
        _ sample: Sample, from sources: [Peer], verified: Bitfield? = nil
    ) throws -> Download {
        try swarm.fetch(
            sample.extent, path: scratch.file("partial"), layer: sample.layer, verified: verified,
            sources: sources.map(\.endpoint))
    }
}

/// Runs a body with sessions that are stopped afterwards, whatever happens.
func withPeers(
    _ count: Int, _ mode: Mode, _ body: ([Peer]) async throws -> Void
) async throws {
    try await withPeers(try (0..<count).map { _ in try Peer(mode) }, body)
}

func withPeers(_ peers: [Peer], _ body: ([Peer]) async throws -> Void) async throws {
    let outcome: Result<Void, any Error>
    do { outcome = .success(try await body(peers)) } catch { outcome = .failure(error) }
    for peer in peers { await peer.swarm.stop() }
    try outcome.get()
}

/// SplitMix64: the same bytes for the same seed.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// Content with its address, hashed here by the plain definition of BEP 52.
struct Sample: Sendable {
    let bytes: [UInt8]
    let extent: Extent
    let layer: [UInt8]

    /// A random MiB over and over, each block of it numbered: quick to make without optimisation.
    init(count: Int, seed: UInt64) {
        var generator = SeededGenerator(state: seed)
        let base = (0..<min(count, 1 << 20)).map { _ in
            UInt8(truncatingIfNeeded: generator.next())
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count + base.count)
        while bytes.count < count { bytes += base }
        bytes.removeLast(bytes.count - count)
        for block in stride(from: 0, to: count - 4, by: 16384) {
            for byte in 0..<4 { bytes[block + byte] = UInt8((block >> (14 + 8 * byte)) & 0xFF) }
        }
        self.init(bytes)
    }

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        let length = UInt64(bytes.count)
        let unknown = Extent(
            root: ContentRoot(bytes: [UInt8](repeating: 0, count: 32))!, length: length)
        let piece = Int(unknown.pieceBytes)
        let blocks = Self.leaves(bytes[...])
        guard bytes.count > piece else {
            layer = []
            extent = Extent(root: ContentRoot(bytes: Self.root(blocks, width: 1))!, length: length)
            return
        }
        let hashes = stride(from: 0, to: bytes.count, by: piece).map {
            Self.root(
                Self.leaves(bytes[$0..<min($0 + piece, bytes.count)]), width: piece / 16384)
        }
        layer = hashes.flatMap { $0 }
        let padding = Self.root([], width: piece / 16384)
        extent = Extent(
            root: ContentRoot(bytes: Self.root(hashes, width: 1, padding: padding))!,
            length: length)
    }

    static func hash(_ bytes: [UInt8]) -> [UInt8] { PieceLayer.sha256(bytes, stride: bytes.count) }

    static func leaves(_ bytes: ArraySlice<UInt8>) -> [[UInt8]] {
        stride(from: bytes.startIndex, to: bytes.endIndex, by: 16384).map {
            hash(Array(bytes[$0..<min($0 + 16384, bytes.endIndex)]))
        }
    }

    /// The root over the nodes, padded to a power of two that is at least `width`.
    static func root(
        _ nodes: [[UInt8]], width: Int, padding: [UInt8] = [UInt8](repeating: 0, count: 32)
    ) -> [UInt8] {
        var size = max(width, 1)
        while size < nodes.count { size *= 2 }
        var level = nodes + Array(repeating: padding, count: size - nodes.count)
        while level.count > 1 {
            level = stride(from: 0, to: level.count, by: 2).map { hash(level[$0] + level[$0 + 1]) }
        }
        return level[0]
    }
}

/// Reads with a descriptor of its own, as a reader of the mount would.
func pread(_ path: String, _ range: Range<Int>) throws -> [UInt8] {
    let descriptor = open(path, O_RDONLY)
    guard descriptor >= 0 else { throw POSIXError(.EIO) }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: range.count)
    let count = pread(descriptor, &bytes, range.count, off_t(range.lowerBound))
    guard count >= 0 else { throw POSIXError(.EIO) }
    return Array(bytes.prefix(count))
}
