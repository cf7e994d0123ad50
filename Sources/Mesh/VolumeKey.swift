import Crypto

/// The 32 secret bytes that make someone a member of a volume.
///
/// Never printed by accident: every description is redacted, it is not `Codable`, and the only way
/// to its text is `exportedText`.
public struct VolumeKey: Hashable, Sendable {
    let bytes: [UInt8]

    public static let byteCount = 32
    private static let prefix = "dfs1-"
    private static let digitCount = 52
    private static let checkDigitCount = 4
    /// Text longer than this is not searched for a key.
    public static let textBytesMax = 4096

    /// Nil unless exactly 32 bytes are given.
    public init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        self.bytes = bytes
    }

    /// A fresh key from the kernel's random numbers.
    public static func generate() -> VolumeKey {
        var source = SystemRandomNumberGenerator()
        var bytes: [UInt8] = []
        while bytes.count < byteCount { bytes.append(.random(in: .min ... .max, using: &source)) }
        return VolumeKey(unchecked: bytes)
    }

    private init(unchecked bytes: [UInt8]) { self.bytes = bytes }

    /// Reads `dfs1-` + 52 base32 characters + 4 check characters; ASCII white space is ignored.
    ///
    /// - Throws: `NotAKey` for anything else. The error does not repeat the text.
    public init(parsing text: some Collection<UInt8>) throws(NotAKey) {
        guard text.count <= Self.textBytesMax else { throw .length }
        let compact = text.filter { !($0 == 0x20 || (0x09...0x0D).contains($0)) }
        let prefix = Array(Self.prefix.utf8)
        guard compact.starts(with: prefix) else { throw .prefix }
        let digits = compact.dropFirst(prefix.count)
        guard digits.count == Self.digitCount + Self.checkDigitCount else { throw .length }
        var bytes: [UInt8] = []
        var accumulator = 0
        var bitCount = 0
        for digit in digits.prefix(Self.digitCount) {
            guard let value = Base32.value(of: digit) else { throw .alphabet }
            accumulator = (accumulator << 5 | value) & 0xFFF
            bitCount += 5
            if bitCount >= 8 {
                bitCount -= 8
                bytes.append(UInt8(truncatingIfNeeded: accumulator >> bitCount))
            }
        }
        // 52 digits are 260 bits: the last four must be zero, so that every key has one spelling.
        guard accumulator & 0xF == 0 else { throw .alphabet }
        guard Array(digits.suffix(Self.checkDigitCount)) == Self.checkDigits(of: bytes) else {
            throw .check
        }
        self.bytes = bytes
    }

    /// The key as one line without a newline. Only for the key file and `delugefs key`.
    public var exportedText: String {
        let digits = Base32.encode(bytes) + Self.checkDigits(of: bytes)
        return Self.prefix + String(decoding: digits, as: UTF8.self)
    }

    /// The first 20 bits of SHA-256(`delugefs key v1` ‖ key).
    private static func checkDigits(of bytes: [UInt8]) -> [UInt8] {
        let digest = SHA256.hash(data: Array("delugefs key v1".utf8) + bytes)
        return Array(Base32.encode(Array(digest.prefix(3))).prefix(checkDigitCount))
    }
}

extension VolumeKey: CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    public var description: String { "VolumeKey(redacted)" }
    public var debugDescription: String { description }
    public var customMirror: Mirror { Mirror(self, children: []) }
}

/// Why a text is not a volume key. Says nothing of the text itself: it may be a mistyped secret.
public enum NotAKey: Error, Hashable, CustomStringConvertible {
    case prefix, length, alphabet, check

    public var description: String {
        switch self {
        case .prefix: "not a key: it does not begin with dfs1-"
        case .length: "not a key: it must have 56 characters after dfs1-"
        case .alphabet: "not a key: it contains a character that keys do not have"
        case .check: "not a key: its check characters do not match; it is mistyped"
        }
    }
}

/// RFC 4648 base32 in lower case, without padding.
private enum Base32 {
    private static let digits = Array("abcdefghijklmnopqrstuvwxyz234567".utf8)

    static func value(of digit: UInt8) -> Int? {
        switch digit {
        case 0x61...0x7A: Int(digit) - 0x61
        case 0x32...0x37: Int(digit) - 0x32 + 26
        default: nil
        }
    }

    static func encode(_ bytes: [UInt8]) -> [UInt8] {
        var out: [UInt8] = []
        var accumulator = 0
        var bitCount = 0
        for byte in bytes {
            accumulator = (accumulator << 8 | Int(byte)) & 0xFFF
            bitCount += 8
            while bitCount >= 5 {
                bitCount -= 5
                out.append(digits[accumulator >> bitCount & 31])
            }
        }
        if bitCount > 0 { out.append(digits[accumulator << (5 - bitCount) & 31]) }
        return out
    }
}
