/// The texts of the service, ours and those of others: everything from the network is checked here.
enum ServiceText {
    static let type = "_delugefs._tcp"
    static let version = "1"

    static func isVolume(_ text: String) -> Bool {
        let bytes = Array(text.utf8)
        guard (1...63).contains(bytes.count), isAlphanumeric(bytes[0]) else { return false }
        return bytes.allSatisfy { isAlphanumeric($0) || ".-_".utf8.contains($0) }
    }

    static func isNode(_ text: String) -> Bool { isHexadecimal(text, count: 32) }
    static func isAuthority(_ text: String) -> Bool { isHexadecimal(text, count: 16) }

    private static func isAlphanumeric(_ byte: UInt8) -> Bool {
        (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
    }

    private static func isHexadecimal(_ text: String, count: Int) -> Bool {
        text.utf8.count == count
            && text.utf8.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x66).contains($0) }
    }

    /// A label for the machine's node: readable, and unlike any other's on this network.
    static func hostLabel(machine: String, node: String) -> String {
        var label: [UInt8] = []
        for byte in machine.utf8.prefix(machineBytesMax) {
            if isAlphanumeric(byte) {
                label.append(byte)
            } else if label.last != UInt8(ascii: "-"), !label.isEmpty {
                label.append(UInt8(ascii: "-"))
            }
        }
        while label.last == UInt8(ascii: "-") { label.removeLast() }
        if label.isEmpty { label = Array("delugefs".utf8) }
        return String(decoding: label, as: UTF8.self) + "-" + node.prefix(12)
    }

    /// With a dash, 12 digits and an alternative's suffix far below DNS's 63.
    private static let machineBytesMax = 40

    /// What the TXT record of a service must say. A pair that comes twice, or is not wanted, is
    /// ignored.
    struct Fields: Equatable {
        let volume: String
        let node: String
        let authority: String

        init?(_ pairs: some Sequence<[UInt8]>) {
            var values: [String: String] = [:]
            for pair in pairs.prefix(pairsMax) {
                guard let equals = pair.firstIndex(of: UInt8(ascii: "=")),
                    let key = String(validating: pair[..<equals], as: UTF8.self),
                    let value = String(validating: pair[(equals + 1)...], as: UTF8.self),
                    values[key] == nil
                else { continue }
                values[key] = value
            }
            guard values["v"] == version, let volume = values["id"], isVolume(volume),
                let node = values["node"], isNode(node),
                let authority = values["ca"], isAuthority(authority)
            else { return nil }
            self.volume = volume
            self.node = node
            self.authority = authority
        }
    }

    private static let pairsMax = 32

    static func pairs(volume: String, node: String, authority: String) -> [String] {
        ["id=\(volume)", "node=\(node)", "ca=\(authority)", "v=\(version)"]
    }
}
