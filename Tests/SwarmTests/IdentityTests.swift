import Testing
import Volume

@testable import Swarm

@Suite struct IdentityTests {
    let extent = Extent(root: ContentRoot(bytes: Array(0..<32))!, length: 200_001)

    @Test("The info-hash of an extent never changes: it is what nodes meet by")
    func goldenInfoHash() {
        let plain = InfoDictionary(authorityPEM: nil, salt: testSalt).encode(extent)
        #expect(
            Hex.encode(Sample.hash(plain))
                == "e42a45716cd84d50c0d357ac73e079f06426cd35e625a8d2c64c8fb5a0b1ad9e")
        let authority = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        let tls = InfoDictionary(authorityPEM: authority, salt: testSalt).encode(extent)
        #expect(
            Hex.encode(Sample.hash(tls))
                == "4355e7f7ab1d314ea9b6a16c77c29a282c59a27f1902672368d12394564989aa")
    }

    @Test("A piece layer is accepted only if it folds to the root", arguments: [2, 3, 4, 5, 7, 8])
    func layer(pieces: Int) {
        let sample = Sample(count: pieces * 65536 - 5, seed: UInt64(pieces))
        #expect(PieceLayer.verify(sample.layer, for: sample.extent))
        for index in sample.layer.indices where index % 31 == 0 {
            var wrong = sample.layer
            wrong[index] ^= 1
            #expect(!PieceLayer.verify(wrong, for: sample.extent))
        }
        #expect(!PieceLayer.verify(sample.layer + sample.layer.suffix(32), for: sample.extent))
        #expect(!PieceLayer.verify(sample.layer.dropLast(32), for: sample.extent))
        #expect(!PieceLayer.verify([], for: sample.extent))
    }

    @Test("Content of one piece has no layer")
    func onePiece() {
        let sample = Sample(count: 65536, seed: 1)
        #expect(PieceLayer.verify([], for: sample.extent))
        #expect(!PieceLayer.verify(sample.extent.root.bytes, for: sample.extent))
    }

    @Test("A bitfield is read back only if it fits")
    func bitfield() throws {
        var field = Bitfield(count: 11)
        #expect(field.missing(in: 0..<11) == 11)
        let isNew = [field.insert(0), field.insert(10), field.insert(10)]
        #expect(isNew == [true, true, false])
        #expect(field.bytes == [0x80, 0x20])
        #expect(field.setCount == 2 && field[10] && !field[9])
        #expect(try #require(Bitfield(count: 11, bytes: field.bytes)) == field)
        #expect(Bitfield(count: 11, bytes: [0x80, 0x10]) == nil)
        #expect(Bitfield(count: 11, bytes: [0x80]) == nil)
        #expect(Bitfield(count: 16, bytes: [0xFF, 0xFF])?.isComplete == true)
        #expect(Bitfield(count: 0, bytes: [])?.isComplete == true)
    }

    @Test("Wants only rise, read-ahead falls off with distance, and waits keep what they wait for")
    func wants() {
        let extent = Extent(root: extent.root, length: 20 * 65536)
        var state = DownloadState(
            extent: extent, verified: Bitfield(count: 20), now: .now)
        #expect(state.pieces(covering: 65535..<65537) == 0..<2)
        #expect(state.pieces(covering: 0..<(1 << 40)) == 0..<20)
        #expect(state.pieces(covering: (1 << 40)..<(1 << 41)) == 0..<0)
        #expect(state.want(0..<10, .readAhead).priorities == [6, 6, 5, 5, 4, 4, 3, 3, 2, 2])
        #expect(state.want(4..<6, .demand).pieces == [4, 5])
        #expect(state.want(0..<10, .background).pieces.isEmpty)
        #expect(state.wantedMissing == 10)
        _ = state.addWaiter(4..<5, timeout: nil, now: .now) { _ in }
        #expect(state.unwant(0..<20).pieces == [0, 1, 2, 3, 5, 6, 7, 8, 9])
        #expect(state.wantedMissing == 1)
        #expect(state.verify(4, now: .now).count == 1)
        #expect(state.verify(4, now: .now).isEmpty)
        #expect(state.wantedMissing == 0)
        #expect(state.verify(99, now: .now).isEmpty)
    }

    @Test("Bytes for others extend a wait's patience, but not for ever")
    func patience() {
        let start = ContinuousClock.now
        var state = DownloadState(extent: extent, verified: Bitfield(count: 4), now: start)
        _ = state.addWaiter(0..<1, timeout: .seconds(10), now: start) { _ in }
        #expect(state.removeImpatient(now: start + .seconds(10)).isEmpty)
        state.lastProgress = start + .seconds(9)
        #expect(state.removeImpatient(now: start + .seconds(18)).isEmpty)
        state.lastProgress = start + .seconds(60)
        #expect(state.removeImpatient(now: start + .seconds(60)).isEmpty)
        #expect(state.removeImpatient(now: start + .seconds(61)).count == 1)
        #expect(state.removeImpatient(now: start + .seconds(61)).isEmpty)
    }
}
