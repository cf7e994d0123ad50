/// One bit per piece, the first piece in the most significant bit of the first byte, as in the
/// BitTorrent protocol and as kept in the catalog.
public struct Bitfield: Hashable, Sendable {
    public let count: Int
    /// `(count + 7) / 8` bytes; the unused bits of the last one are zero.
    public private(set) var bytes: [UInt8]
    /// The number of bits that are set.
    public private(set) var setCount: Int

    /// All bits clear.
    public init(count: Int) {
        precondition(count >= 0)
        self.count = count
        bytes = [UInt8](repeating: 0, count: (count + 7) / 8)
        setCount = 0
    }

    /// Nil when the bytes have the wrong length or an unused bit is set.
    public init?(count: Int, bytes: [UInt8]) {
        guard count >= 0, bytes.count == (count + 7) / 8 else { return nil }
        let unused = bytes.count * 8 - count
        if let last = bytes.last, last & (UInt8(truncatingIfNeeded: 1 << unused) &- 1) != 0 {
            return nil
        }
        self.count = count
        self.bytes = bytes
        setCount = bytes.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    public var isComplete: Bool { setCount == count }

    public subscript(index: Int) -> Bool {
        precondition(index >= 0 && index < count)
        return bytes[index >> 3] & (0x80 >> UInt8(index & 7)) != 0
    }

    /// Sets one bit; false when it was set already.
    @discardableResult
    public mutating func insert(_ index: Int) -> Bool {
        guard !self[index] else { return false }
        bytes[index >> 3] |= 0x80 >> UInt8(index & 7)
        setCount += 1
        return true
    }

    /// How many of the given bits are clear.
    public func missing(in range: Range<Int>) -> Int {
        range.reduce(0) { self[$1] ? $0 : $0 + 1 }
    }
}
