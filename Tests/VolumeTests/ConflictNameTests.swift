import Testing

@testable import Volume

@Suite("Conflict names")
struct ConflictNameTests {
    private let stamp = Stamp(
        milliseconds: 1_769_850_300_999, counter: 0, node: NodeID(high: 0, low: 1))

    private func name(
        _ original: String, node: String = "disk1", taken: Set<String> = []
    ) throws -> String {
        let name = try #require(FileName(original))
        return conflictName(
            original: name, node: node, stamp: stamp,
            id: LineageID(rawValue: 0x1234_5678_9ABC_DEF0),
            taken: { taken.contains($0.description) }
        ).description
    }

    @Test(
        "Stem, node, time in UTC, extension",
        arguments: [
            ("report.pdf", "report (conflict disk1 2026-01-31 09.05.00).pdf"),
            ("Makefile", "Makefile (conflict disk1 2026-01-31 09.05.00)"),
            (".bashrc", ".bashrc (conflict disk1 2026-01-31 09.05.00)"),
            ("a.tar.gz", "a.tar (conflict disk1 2026-01-31 09.05.00).gz"),
            // An earlier conflict's suffix is replaced, with its digits.
            (
                "a (conflict x.y 2020-02-29 23.59.59).txt",
                "a (conflict disk1 2026-01-31 09.05.00).txt"
            ),
            (
                "a (conflict x 2020-02-29 23.59.59)~9abcdef0",
                "a (conflict disk1 2026-01-31 09.05.00)"
            ),
            ("a (conflict x)", "a (conflict x) (conflict disk1 2026-01-31 09.05.00)"),
        ])
    func forms(original: String, expected: String) throws {
        #expect(try name(original) == expected)
    }

    @Test("A taken name gets digits of the id")
    func taken() throws {
        let first = "a (conflict disk1 2026-01-31 09.05.00).txt"
        let second = "a (conflict disk1 2026-01-31 09.05.00)~9abcdef0.txt"
        let third = "a (conflict disk1 2026-01-31 09.05.00)~123456789abcdef0.txt"
        #expect(try name("a.txt", taken: [first]) == second)
        #expect(try name("a.txt", taken: [first, second]) == third)
        let fourth = try name("a.txt", taken: [first, second, third])
        #expect(Set([first, second, third]).contains(fourth) == false)
    }

    @Test("Long stems and node names are cut, characters whole")
    func long() throws {
        let long = String(repeating: "\u{E9}", count: 120) + ".txt"
        let found = try name(long, node: String(repeating: "n", count: 63))
        #expect(found.utf8.count <= 255)
        #expect(found.utf8.count > 250)
        #expect(found.hasSuffix(".txt"))
        #expect(found.contains("\(String(repeating: "n", count: 32)) "))
        #expect(!found.contains("\u{FFFD}"))
        let bytes = try #require(FileName([UInt8](repeating: 0x80, count: 255)))
        let cut = conflictName(
            original: bytes, node: "n", stamp: stamp, id: .root, taken: { _ in false })
        #expect(cut.bytes.count == 255)
    }

    @Test(
        "Days are those of the calendar",
        arguments: [
            (0, "1970-01-01 00.00.00"), (951_782_400, "2000-02-29 00.00.00"),
            (951_868_799, "2000-02-29 23.59.59"), (4_107_542_400, "2100-03-01 00.00.00"),
            (7_258_118_399, "2199-12-31 23.59.59"), (1_735_689_600, "2025-01-01 00.00.00"),
        ])
    func calendar(seconds: UInt64, text: String) {
        #expect(CivilTime(milliseconds: seconds * 1000).text == text)
    }
}
