import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

/// Roots computed by an independent program (Python's hashlib).
private struct Golden: Sendable {
    let length: Int
    let root: String
    /// SHA-256 of the piece layer; empty when there is none.
    let layer: String
}

private let patterns = [
    Golden(
        length: 1, root: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        layer: ""),
    Golden(
        length: 16383, root: "50746bbdb527488824fc110794cab39be1e361d0ff108bb77fb3396a69acb34e",
        layer: ""),
    Golden(
        length: 16384, root: "15345b8bcf83c9acd70121ebacc0aae2b90b2995b90a5143382a4f29fd125083",
        layer: ""),
    Golden(
        length: 16385, root: "4f06ab5d81301a6be8740291d8491edb35843daecf491a50c4d22d92eaf9acbc",
        layer: ""),
    Golden(
        length: 65536, root: "50957df23a1dd977f56f2c8bc3ceffd7b9c4b838a2efd6d3d54b742019805970",
        layer: ""),
    Golden(
        length: 65537, root: "ad46ea01a51f82b5e008fa4f127af24e4f5d9a9fab22c2ec39dec857809702e9",
        layer: "ad46ea01a51f82b5e008fa4f127af24e4f5d9a9fab22c2ec39dec857809702e9"),
    Golden(
        length: 200_001, root: "6c550533a47aecf9f92f92c5481ad2b785f1a8caa935009b4d5eecebf3b5a7ba",
        layer: "b1183e9067a93f8f291eb198e94a2c5e8253f42bdba3d8c9a6a19dc1a5e18979"),
    Golden(
        length: 1_048_577, root: "4396d765e7e8b4239d86a2589f243d7fcc5b0706123e385f86db9813c537fe27",
        layer: "8135e44d7068f7aebe806411d8e545217cf831e5dd2e1f6e9e92a1b0bac2a735"),
    Golden(
        length: 4_264_304, root: "4343c6350e71b3ba377371a895e90e1b43327f8569bfb20f69b4e38aa0edc894",
        layer: "d552b3e6156c5d2869b4fe03699050cbf0cd473c48486f405488ae6d33db9c3f"),
]

private let zeros = [
    Golden(
        length: 16384, root: "4fe7b59af6de3b665b67788cc2f99892ab827efae3a467342b3bb4e3bc8e5bfe",
        layer: ""),
    Golden(
        length: 65536, root: "60aae9c7b428f87e0713e88229e18f0adf12cd7b22a0dd8a92bb2485eb7af242",
        layer: ""),
    Golden(
        length: 65537, root: "5237ab44f83ac2e214b8c1e1627f18e5d50caed1c8ead9b66770c15b7ee609c7",
        layer: "5237ab44f83ac2e214b8c1e1627f18e5d50caed1c8ead9b66770c15b7ee609c7"),
    Golden(
        length: 262_144, root: "0ee38dbbe040ef1d6f2435117c70f2579e768215c91a640e7d855a647084869c",
        layer: "b38dd29f2da968be019e42879bef1d952c0a6bd4e42ca90338fa49e605356868"),
    Golden(
        length: 1_048_581, root: "379acb181618d3920c6bff16363374085d3e30d9653579b18c4347abb6703863",
        layer: "65dbf089155d171c1bd133dd23dc56611793abb2707ff052c058a1537e59ec43"),
]

private func expect(
    _ hashed: HashedExtent, _ golden: Golden, sourceLocation: SourceLocation = #_sourceLocation
) {
    #expect("\(hashed.extent.root)" == golden.root, sourceLocation: sourceLocation)
    #expect(hashed.extent.length == UInt64(golden.length), sourceLocation: sourceLocation)
    let digest = hashed.layer.isEmpty ? "" : Hex.encode(Merkle.digest(hashed.layer))
    // Two pieces: the hash of their roots is the root itself.
    #expect(digest == golden.layer, sourceLocation: sourceLocation)
    #expect(Merkle.verify(hashed), sourceLocation: sourceLocation)
}

@Suite struct MerkleTests {
    @Test(arguments: patterns) fileprivate func bytesInMemoryHaveTheRootsOfBEP52(golden: Golden) {
        expect(Merkle.hash(pattern(golden.length)), golden)
    }

    @Test(arguments: patterns) fileprivate func filesHaveTheRootsOfBEP52(golden: Golden) throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        try store.stage(StagingName(1, 1), pattern(golden.length))
        let file = try store.openStaging(StagingName(1, 1), .read)
        defer { try? file.close() }
        let result = try store.hash(file, length: UInt64(golden.length))
        #expect(result.extents.count == 1)
        expect(result.extents[0], golden)
    }

    @Test(arguments: zeros) fileprivate func holesHaveTheRootsOfZeroBytes(golden: Golden) throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let file = try store.createStaging(StagingName(1, 1))
        defer { try? file.close() }
        try file.resize(to: Int64(golden.length), retryOnInterrupt: true)
        let result = try store.hash(file, length: UInt64(golden.length))
        expect(result.extents[0], golden)
        expect(Merkle.hash([UInt8](repeating: 0, count: golden.length)), golden)
        let pieces = result.extents[0].extent.pieceCount
        #expect(Merkle.zeroPieces(of: result.extents[0]) == Array(0..<pieces))
    }

    @Test func twoThreadsAndHolesGiveTheRootOfTheBytes() throws {
        let seed: UInt64 = 0xD31
        print("seed \(seed)")
        var random = SeededBytes(seed: seed)
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let file = try store.createStaging(StagingName(1, 1))
        defer { try? file.close() }
        let length = 37_000_003
        var bytes = [UInt8](repeating: 0, count: length)
        for _ in 0..<9 {
            let island = random.bytes(Int(random.next() % 300_000) + 1)
            let offset = Int(random.next() % UInt64(length - island.count))
            bytes.replaceSubrange(offset..<offset + island.count, with: island)
            _ = try island.withUnsafeBytes {
                try file.writeAll(toAbsoluteOffset: Int64(offset), $0)
            }
        }
        try file.resize(to: Int64(length), retryOnInterrupt: true)
        let result = try store.hash(file, length: UInt64(length))
        #expect(result.extents == [Merkle.hash(bytes)])
        let zeroPieces = Merkle.zeroPieces(of: result.extents[0])
        let expected = (0..<result.extents[0].extent.pieceCount).filter { piece in
            bytes[piece * 65536..<min((piece + 1) * 65536, length)].allSatisfy { $0 == 0 }
        }
        #expect(zeroPieces == expected && !expected.isEmpty)
    }

    @Test func aFileOf33GiBWithoutDataIsTwoExtentsAtOnce() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let file = try store.createStaging(StagingName(1, 1))
        defer { try? file.close() }
        let length: UInt64 = 33 << 30
        try file.resize(to: Int64(length), retryOnInterrupt: true)
        let result = try store.hash(file, length: length)
        #expect(result.extents.map(\.extent.length) == [32 << 30, 1 << 30])
        #expect(result.extents.allSatisfy(Merkle.verify))
        #expect(result.length == length)
        #expect(Merkle.zeroPieces(of: result.extents[0]).count == 32768)
    }

    @Test func aLayerThatDoesNotBelongIsRefused() {
        let good = Merkle.hash(pattern(200_001))
        var layer = good.layer
        layer[40] ^= 1
        #expect(!Merkle.verify(HashedExtent(extent: good.extent, layer: layer)))
        #expect(!Merkle.verify(HashedExtent(extent: good.extent, layer: [])))
        #expect(!Merkle.verify(HashedExtent(extent: good.extent, layer: good.layer + layer)))
        let longer = Extent(root: good.extent.root, length: good.extent.length + 65536)
        #expect(!Merkle.verify(HashedExtent(extent: longer, layer: good.layer)))
        let single = Merkle.hash(pattern(100))
        #expect(!Merkle.verify(HashedExtent(extent: single.extent, layer: layer)))
    }

    @Test func hashingEndsWhenItIsCanceledOrTheFileIsShort() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let file = try store.createStaging(StagingName(1, 1))
        defer { try? file.close() }
        try file.writeAll(pattern(100_000))
        let short = #expect(throws: StoreError.self) { try store.hash(file, length: 100_001) }
        #expect(short?.reason == .wrongLength)
        let cancellation = Cancellation()
        cancellation.cancel()
        let canceled = #expect(throws: StoreError.self) {
            try store.hash(file, length: 100_000, cancellation: cancellation)
        }
        #expect(canceled?.reason == .canceled)
    }
}
