import Testing

@testable import Discovery

@Suite struct ServiceTextTests {
    private static let node = String(repeating: "a", count: 32)
    private static let good = ServiceText.pairs(
        volume: "bigstore", node: node, authority: "0123456789abcdef")

    private func fields(_ pairs: [String]) -> ServiceText.Fields? {
        ServiceText.Fields(pairs.map { Array($0.utf8) })
    }

    @Test func whatWeSayIsUnderstood() throws {
        #expect(Self.good == ["id=bigstore", "node=\(Self.node)", "ca=0123456789abcdef", "v=1"])
        let fields = try #require(self.fields(Self.good))
        #expect(fields.volume == "bigstore" && fields.node == Self.node)
        #expect(fields.authority == "0123456789abcdef")
        #expect(self.fields(Self.good.reversed() + ["more=1", "flag", "="]) == fields)
    }

    @Test(arguments: [
        "id=", "id=../x", "id=-x", "id=a b", "id=\u{e9}", "id=" + String(repeating: "x", count: 64),
        "node=", "node=" + String(repeating: "A", count: 32),
        "node=" + String(repeating: "a", count: 31), "ca=0123456789ABCDEF", "ca=", "v=2", "v=",
        "id", "ID=bigstore",
    ])
    func anythingElseIsIgnored(pair: String) {
        let key = pair.prefix { $0 != "=" }.lowercased()
        #expect(fields(Self.good.filter { !$0.hasPrefix("\(key)=") } + [pair]) == nil)
    }

    @Test func bytesThatAreNoTextAreIgnored() {
        let pairs = Self.good.map { Array($0.utf8) }
        #expect(ServiceText.Fields([[0xFF, 0x3D, 0xFE], [], [0x3D]] + pairs) != nil)
        #expect(ServiceText.Fields(pairs.dropFirst() + [Array("id=".utf8) + [0xC3]]) == nil)
        #expect(ServiceText.Fields([[UInt8]](repeating: [], count: 1000) + pairs) == nil)
    }

    @Test(arguments: [
        ("nas1", "nas1-aaaaaaaaaaaa"), ("My NAS (old).local", "My-NAS-old-local-aaaaaaaaaaaa"),
        ("---", "delugefs-aaaaaaaaaaaa"), ("", "delugefs-aaaaaaaaaaaa"),
        ("\u{e9}t\u{e9}", "t-aaaaaaaaaaaa"),
        (String(repeating: "x", count: 500), String(repeating: "x", count: 40) + "-aaaaaaaaaaaa"),
    ])
    func hostLabelsAreFitForDNS(machine: String, label: String) {
        #expect(ServiceText.hostLabel(machine: machine, node: Self.node) == label)
    }
}
