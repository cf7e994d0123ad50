/// The number an inode shows as `st_ino`, the same on every node: 62 bits, given at creation.
public struct InodeNumber: RawRepresentable, Hashable, Sendable, Comparable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    /// The top directory of every volume.
    public static let root = InodeNumber(rawValue: 1)
    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// What merges compare: a file's identity through renames and through editors' save-by-replace.
/// 63 bits. At creation it equals the inode number.
public struct LineageID: RawRepresentable, Hashable, Sendable, Comparable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let root = LineageID(rawValue: 1)
    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// The identity of one directory entry: a rename moves it, link adds one, unlink removes one. 63 bits.
public struct LinkID: RawRepresentable, Hashable, Sendable, Comparable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A node, that is a disk: the first 16 bytes of SHA-256 of its certificate's public key.
public struct NodeID: Hashable, Sendable, Comparable {
    public let high: UInt64
    public let low: UInt64

    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// 16 bytes, most significant first.
    public init?(bytes: some Collection<UInt8>) {
        guard bytes.count == 16 else { return nil }
        high = bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
        low = bytes.dropFirst(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// 32 lower-case hexadecimal digits.
    public init?(hex: some StringProtocol) {
        guard let bytes = Hex.decode(hex.utf8) else { return nil }
        self.init(bytes: bytes)
    }

    public var bytes: [UInt8] {
        [high, low].flatMap { word in
            (0..<8).map { UInt8(truncatingIfNeeded: word >> (56 - 8 * $0)) }
        }
    }

    public static func < (a: Self, b: Self) -> Bool { (a.high, a.low) < (b.high, b.low) }
}

extension NodeID: CustomStringConvertible {
    public var description: String { Hex.encode(bytes) }
}

/// A Git object's id: SHA-1, 20 bytes. Without allocation, for trees and tables hold them by the
/// million.
public struct ObjectID: Hashable, Sendable, Comparable {
    // Big-endian.
    private let high: UInt64
    private let middle: UInt64
    private let low: UInt32

    /// - Precondition: `bytes` has at least 20 bytes.
    public init(_ bytes: UnsafeRawBufferPointer) {
        high = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt64.self))
        middle = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        low = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self))
    }

    public init?(bytes: [UInt8]) {
        guard bytes.count == 20 else { return nil }
        self = bytes.withUnsafeBytes { ObjectID($0) }
    }

    public init?(hex: some StringProtocol) {
        guard let bytes = Hex.decode(hex.utf8) else { return nil }
        self.init(bytes: bytes)
    }

    public var bytes: [UInt8] {
        Array(unsafeUninitializedCapacity: 20) { buffer, count in
            store(to: UnsafeMutableRawBufferPointer(buffer))
            count = 20
        }
    }

    /// - Precondition: `target` has at least 20 bytes.
    public func store(to target: UnsafeMutableRawBufferPointer) {
        target.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
        target.storeBytes(of: middle.bigEndian, toByteOffset: 8, as: UInt64.self)
        target.storeBytes(of: low.bigEndian, toByteOffset: 16, as: UInt32.self)
    }

    /// An id is a hash already, and Swift keys its own; eight bytes of it spread as well as twenty.
    public func hash(into hasher: inout Hasher) { hasher.combine(high) }

    /// Unkeyed, for tables that grow only by accepted commits.
    package var slot: UInt64 { high }

    public static func < (a: Self, b: Self) -> Bool {
        (a.high, a.middle, a.low) < (b.high, b.middle, b.low)
    }
}

extension ObjectID: CustomStringConvertible {
    public var description: String { Hex.encode(bytes) }
}

/// A content address: the BitTorrent v2 pieces root (BEP 52), 32 bytes.
public struct ContentRoot: Hashable, Sendable, Comparable {
    public let bytes: [UInt8]

    public init?(bytes: [UInt8]) {
        guard bytes.count == 32 else { return nil }
        self.bytes = bytes
    }

    public init?(hex: some StringProtocol) {
        guard let bytes = Hex.decode(hex.utf8) else { return nil }
        self.init(bytes: bytes)
    }

    public static func < (a: Self, b: Self) -> Bool { a.bytes.lexicographicallyPrecedes(b.bytes) }
}

extension ContentRoot: CustomStringConvertible {
    public var description: String { Hex.encode(bytes) }
}

public enum Hex {
    private static let digits = Array("0123456789abcdef".utf8)

    public static func encode(_ bytes: some Sequence<UInt8>) -> String {
        var out: [UInt8] = []
        for byte in bytes {
            out.append(digits[Int(byte >> 4)])
            out.append(digits[Int(byte & 15)])
        }
        return String(decoding: out, as: UTF8.self)
    }

    /// Lower-case digits only, so that every value has one spelling; nil for anything else.
    public static func decode(_ text: some Collection<UInt8>) -> [UInt8]? {
        guard text.count.isMultiple(of: 2) else { return nil }
        var out: [UInt8] = []
        out.reserveCapacity(text.count / 2)
        var high: UInt8?
        for character in text {
            let value: UInt8
            switch character {
            case 0x30...0x39: value = character - 0x30
            case 0x61...0x66: value = character - 0x61 + 10
            default: return nil
            }
            if let upper = high {
                out.append(upper << 4 | value)
                high = nil
            } else {
                high = value
            }
        }
        return out
    }
}
