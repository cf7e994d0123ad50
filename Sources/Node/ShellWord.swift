/// Words of a command that a person may copy from a log.
enum ShellWord {
    /// The bytes as a word of bash: as they are where nothing in them means anything.
    static func quoted(_ bytes: [UInt8]) -> String {
        func isPlain(_ byte: UInt8) -> Bool {
            switch byte {
            case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
            default: "/._-+,:@=".utf8.contains(byte)
            }
        }
        if !bytes.isEmpty, bytes.allSatisfy(isPlain) {
            return String(decoding: bytes, as: UTF8.self)
        }
        if bytes.allSatisfy({ (0x20...0x7E).contains($0) && $0 != 0x27 }) {
            return "'\(String(decoding: bytes, as: UTF8.self))'"
        }
        let escaped = bytes.map { byte in
            isPlain(byte) || byte == 0x20
                ? String(UnicodeScalar(byte))
                : "\\x" + String(0x100 + Int(byte), radix: 16).dropFirst()
        }
        return "$'\(escaped.joined())'"
    }
}
