import Testing
import Volume

@Test("SHA-256 gives the digests of FIPS 180-2")
func sha256Vectors() {
    func hex(_ text: String) -> String { Hex.encode(PureSHA256.digest(Array(text.utf8))) }
    #expect(hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    #expect(hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    #expect(
        hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")
            == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
    #expect(
        Hex.encode(PureSHA256.digest([UInt8](repeating: 0x61, count: 100_000)))
            == "6d1cf22d7cc09b085dfc25ee1a1f3ae0265804c607bc2074ad253bcc82fd81ee")
}

@Test("SHA-256 does not depend on how the input is cut")
func sha256Pieces() {
    let bytes = (0..<300).map { UInt8(truncatingIfNeeded: $0 &* 7) }
    let whole = PureSHA256.digest(bytes)
    for step in [1, 3, 55, 56, 63, 64, 65, 128, 299] {
        var hash = PureSHA256()
        var at = 0
        while at < bytes.count {
            hash.update(Array(bytes[at..<min(at + step, bytes.count)]))
            at += step
        }
        #expect(hash.finish() == whole)
    }
}
