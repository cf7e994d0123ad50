import Glibc
import History
import SystemPackage
import Testing
import Volume

/// Packs that were spoiled at random, with a checksum that is right.
@Suite struct PackFuzzTests {
    private static let rounds = getenv("DELUGEFS_TEST_LONG") == nil ? 120 : 25_000
    private static let growthBytesMax = 256 << 20

    private struct Valid: Error {}

    @Test func aSpoiledPackIsRefusedOrHoldsJustWhatWasAskedFor() throws {
        let scratch = try Scratch()
        let history = try scratch.repository()
        let base = try history.commit(Files(["a": "1", "d/b": "2"]))
        let peer = try scratch.repository("peer.git")
        try peer.receive(pack: #require(try history.pack(wanted: [base], have: [])), heads: [base])
        let text = (0..<300).map { "line \($0)\n" }.joined()
        let middle = try peer.commit(Files(["a": text, "d/b": "3"]), on: [base])
        let head = try peer.commit(
            Files(["a": text + "more\n", "d/b": "3", "d/e/f": text]), on: [middle])
        let pack = try #require(try peer.pack(wanted: [head], have: [base]))

        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let before = shell("cd '\(history.path)' && find objects refs | sort").output
        let peak = Self.peakBytes
        var valid = 0
        for round in 0..<Self.rounds {
            let spoiled = signed(Self.spoil(pack, &random))
            do {
                try history.receive(pack: spoiled, heads: [head]) { commit, _ in
                    // Ids are hashes: what gets so far is what was asked for.
                    #expect([middle, head].contains(commit.id))
                    if commit.id == head { throw Valid() }
                }
                Issue.record("seed \(seed), round \(round): taken in without a look")
            } catch is Valid {
                valid += 1
            } catch let error as HistoryError {
                let codes: [HistoryError.Code] = [
                    .malformed, .tooLarge, .incomplete, .unrelated, .library,
                ]
                #expect(codes.contains(error.code), "seed \(seed), round \(round): \(error)")
            }
        }
        print("\(valid) of \(Self.rounds) spoiled packs hold what was asked for")
        #expect(Self.peakBytes - peak < Self.growthBytesMax)
        #expect(shell("cd '\(history.path)' && find objects refs | sort").output == before)
        try history.receive(pack: pack, heads: [head])
    }

    private static var peakBytes: Int {
        var usage = rusage()
        getrusage(RUSAGE_SELF.rawValue, &usage)
        return usage.ru_maxrss << 10
    }

    /// Without the checksum.
    private static func spoil(_ pack: [UInt8], _ random: inout SeededRandom) -> [UInt8] {
        var bytes = Array(pack.dropLast(20))
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let at = Int.random(in: 0..<bytes.count, using: &random)
            let length = min(Int.random(in: 1...40, using: &random), bytes.count - at)
            switch Int.random(in: 0..<7, using: &random) {
            case 0: bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 1: bytes[at] = [0, 0x7F, 0x80, 0xFF].randomElement(using: &random) ?? 0
            case 2: if bytes.count > length + 1 { bytes.removeSubrange(at..<(at + length)) }
            case 3: bytes.insert(contentsOf: bytes[at..<(at + length)], at: at)
            case 4:
                let from = Int.random(in: 0...(bytes.count - length), using: &random)
                bytes.replaceSubrange(at..<(at + length), with: bytes[from..<(from + length)])
            case 5: bytes[8 + at % 4] = UInt8.random(in: 0...9, using: &random)
            default: bytes.removeSubrange(max(1, at)...)
            }
        }
        return bytes
    }

    private func signed(_ bytes: [UInt8]) -> [UInt8] { bytes + SHA1.digest(bytes) }
}

/// The checksum of packs.
private enum SHA1 {
    static func digest(_ bytes: [UInt8]) -> [UInt8] {
        var state: [UInt32] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0]
        var message = bytes + [0x80]
        message += [UInt8](repeating: 0, count: (120 - message.count % 64) % 64)
        message += (0..<8).map { UInt8(truncatingIfNeeded: bytes.count * 8 >> (56 - 8 * $0)) }
        var words = [UInt32](repeating: 0, count: 80)
        for start in stride(from: 0, to: message.count, by: 64) {
            for index in 0..<16 {
                words[index] = message[(start + 4 * index)...].prefix(4).reduce(0) {
                    $0 << 8 | UInt32($1)
                }
            }
            for index in 16..<80 {
                let mixed =
                    words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16]
                words[index] = mixed << 1 | mixed >> 31
            }
            var (a, b, c, d, e) = (state[0], state[1], state[2], state[3], state[4])
            for index in 0..<80 {
                let (f, k): (UInt32, UInt32) =
                    switch index / 20 {
                    case 0: (b & c | ~b & d, 0x5A82_7999)
                    case 1: (b ^ c ^ d, 0x6ED9_EBA1)
                    case 2: (b & c | b & d | c & d, 0x8F1B_BCDC)
                    default: (b ^ c ^ d, 0xCA62_C1D6)
                    }
                let next = (a << 5 | a >> 27) &+ f &+ e &+ k &+ words[index]
                (a, b, c, d, e) = (next, a, b << 30 | b >> 2, c, d)
            }
            for (index, value) in [a, b, c, d, e].enumerated() { state[index] &+= value }
        }
        return state.flatMap { word in
            [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: word >> $0) }
        }
    }
}
