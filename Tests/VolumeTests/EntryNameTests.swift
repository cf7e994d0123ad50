import Simulation
import Testing

@testable import Volume

@Suite("Entry names")
struct EntryNameTests {
    @Test(
        "Names that Git refuses are escaped, all others stand as they are",
        arguments: [
            ("a", "a"), (".gitignore", ".gitignore"), (".gi", ".gi"), ("git", "git"),
            ("x.git", "x.git"), (".gitx", ".gitx"), ("git~2x", "git~2x"),
            (".git", "%2Egit"), (".GiT", "%2EGiT"), (".git. .", "%2Egit. ."),
            (".git:x", "%2Egit:x"), ("git~1", "%67it~1"), ("GIT~1 ", "%47IT~1 "),
            ("a\\.git", "a\\%2Egit"), (".git\\.git", "%2Egit\\%2Egit"),
            (".g\u{200C}it", "%2Eg\u{200C}it"), ("\u{FEFF}.git", "%EF\u{FEFF}.git"),
            (".gitmodules", "%2Egitmodules"), (".gitattributes ", "%2Egitattributes "),
            ("gi7eba~1", "%67i7eba~1"), ("gitmod~4", "%67itmod~4"), ("~1234567", "%7E1234567"),
            ("%", "%%"), ("%dir", "%%dir"), ("%2E", "%%2E"), ("100%", "100%%"),
        ])
    func escapes(name: String, expected: String) throws {
        let name = try #require(FileName(name))
        var wanted = Array(expected.utf8)
        // The escaped first byte of U+FEFF leaves two that are no text.
        if expected.hasPrefix("%EF") { wanted.remove(at: 3) }
        #expect(name.escaped == wanted)
        #expect(FileName(escaped: name.escaped) == name)
    }

    @Test(
        "What escaping does not give is no entry name",
        arguments: [
            "", ".", "..", ".git", "%61", "%2e", "%2Ex", "%", "a%", "%%%", "a/b", "%00", "%2F",
        ])
    func refused(escaped: String) {
        #expect(FileName(escaped: Array(escaped.utf8)) == nil)
    }

    @Test("Names of any bytes survive, and none looks like ours", arguments: testSeeds(3))
    func roundTrip(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let parts = [
            ".git", "git~1", "%", ".", " ", "\\", "gitmod", "~1", "\u{200C}", "\u{E9}", "M", ":",
        ]
        for _ in 0..<300 {
            var bytes: [UInt8] = []
            for _ in 0..<random.number(1..<6) {
                bytes +=
                    random.once(in: 4) ? random.bytes(1) : Array(parts[random.number(0..<12)].utf8)
            }
            guard let name = FileName(bytes) else { continue }
            let escaped = name.escaped
            #expect(FileName(escaped: escaped) == name)
            #expect(escaped != DirectoryTree.ownName)
            if escaped.count == 3, escaped[0] == 0x25 { #expect(Hex.decode(escaped[1...]) == nil) }
        }
    }
}
