/// Writes `key value` lines, the form of everything that the volume keeps in Git blobs.
///
/// Bytes throughout: a text type would have to decide about encodings and equivalence.
struct LineWriter {
    private(set) var bytes: [UInt8] = []

    /// Begins a line. Fields follow; `end` finishes it.
    mutating func key(_ key: String) { bytes.append(contentsOf: key.utf8) }

    mutating func end() { bytes.append(0x0A) }

    mutating func raw(_ more: [UInt8]) { bytes.append(contentsOf: more) }

    mutating func word(_ text: String) {
        bytes.append(0x20)
        bytes.append(contentsOf: text.utf8)
    }

    mutating func decimal(_ number: some FixedWidthInteger) { word(String(number)) }

    mutating func octal(_ number: UInt16) { word(String(number, radix: 8)) }

    /// Sixteen digits.
    mutating func identity(_ number: UInt64) {
        bytes.append(0x20)
        hex(number, digits: 16)
    }

    mutating func stamp(_ stamp: Stamp) {
        bytes.append(0x20)
        hex(stamp.milliseconds, digits: Self.digits(stamp.milliseconds))
        bytes.append(0x2E)
        hex(UInt64(stamp.counter), digits: Self.digits(UInt64(stamp.counter)))
        bytes.append(0x2E)
        hex(stamp.node.high, digits: 16)
        hex(stamp.node.low, digits: 16)
    }

    mutating func time(_ time: Timestamp) {
        decimal(time.seconds)
        bytes.append(0x2E)
        var scale: UInt32 = 100_000_000
        while scale > 0 {
            bytes.append(0x30 + UInt8(time.nanoseconds / scale % 10))
            scale /= 10
        }
    }

    mutating func hexBytes(_ value: [UInt8], prefix: String = "") {
        bytes.append(0x20)
        bytes.append(contentsOf: prefix.utf8)
        for byte in value {
            bytes.append(Self.digit(byte >> 4))
            bytes.append(Self.digit(byte & 15))
        }
    }

    /// Printable ASCII without blank and `%` stands for itself, everything else as `%XX`.
    mutating func escaped(_ value: [UInt8]) {
        bytes.append(0x20)
        for byte in value {
            if byte > 0x20, byte < 0x7F, byte != 0x25 {
                bytes.append(byte)
            } else {
                PercentEscape.append(byte, to: &bytes)
            }
        }
    }

    private static func digits(_ number: UInt64) -> Int {
        max(1, (67 - number.leadingZeroBitCount) / 4)
    }

    private mutating func hex(_ number: UInt64, digits: Int) {
        var shift = 4 * (digits - 1)
        while shift >= 0 {
            bytes.append(Self.digit(UInt8(truncatingIfNeeded: number >> UInt64(shift)) & 15))
            shift -= 4
        }
    }

    private static func digit(_ value: UInt8) -> UInt8 { value < 10 ? 0x30 + value : 0x57 + value }
}

/// `%XX` with upper-case digits.
enum PercentEscape {
    static func append(_ byte: UInt8, to bytes: inout [UInt8]) {
        bytes.append(0x25)
        for half in [byte >> 4, byte & 15] { bytes.append(half < 10 ? 0x30 + half : 0x37 + half) }
    }

    /// The value of two upper-case digits.
    static func byte(_ high: UInt8, _ low: UInt8) -> UInt8? {
        guard let high = value(high), let low = value(low) else { return nil }
        return high << 4 | low
    }

    private static func value(_ digit: UInt8) -> UInt8? {
        switch digit {
        case 0x30...0x39: digit - 0x30
        case 0x41...0x46: digit - 0x37
        default: nil
        }
    }
}

/// Reads lines in the one order in which they may stand.
///
/// It need not be strict about spelling (leading zeros, repeated lines): every decoder encodes what
/// it understood again and compares.
struct LineReader {
    private let bytes: [UInt8]
    private var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The fields of the next line if it has this key; else nothing moves.
    mutating func optional(_ key: String) -> LineFields? {
        var i = at
        for character in key.utf8 {
            guard i < bytes.count, bytes[i] == character else { return nil }
            i += 1
        }
        guard i < bytes.count, bytes[i] == 0x20 else { return nil }
        guard let end = bytes[i...].firstIndex(of: 0x0A) else { return nil }
        at = end + 1
        return LineFields(bytes[(i + 1)..<end])
    }

    mutating func required(_ key: String) throws(InvalidTree) -> LineFields {
        guard let fields = optional(key) else { throw InvalidTree("no line '\(key)' where due") }
        return fields
    }

    /// What follows a blank line; empty when there is none. Throws if other lines are left.
    mutating func body() throws(InvalidTree) -> [UInt8] {
        if at == bytes.count { return [] }
        guard bytes[at] == 0x0A else { throw InvalidTree("a line that does not belong") }
        return Array(bytes[(at + 1)...])
    }
}

/// The fields of one line, each after one blank.
struct LineFields {
    private var rest: ArraySlice<UInt8>
    private var ended = false

    init(_ line: ArraySlice<UInt8>) { rest = line }

    private mutating func next() -> ArraySlice<UInt8>? {
        if ended { return nil }
        guard let blank = rest.firstIndex(of: 0x20) else {
            ended = true
            return rest
        }
        defer { rest = rest[(blank + 1)...] }
        return rest[..<blank]
    }

    mutating func word() throws(InvalidTree) -> ArraySlice<UInt8> {
        guard let word = next() else { throw InvalidTree("a field is missing") }
        return word
    }

    mutating func decimal<Number: FixedWidthInteger>(
        _: Number.Type = Number.self
    ) throws(InvalidTree) -> Number {
        try Self.number(try word(), radix: 10)
    }

    mutating func octal() throws(InvalidTree) -> UInt16 { try Self.number(try word(), radix: 8) }

    /// 1 ..< 2^63
    mutating func identity() throws(InvalidTree) -> UInt64 {
        let number: UInt64 = try Self.number(try word(), radix: 16)
        guard number > 0, number < 1 << 63 else { throw InvalidTree("an id of more than 63 bits") }
        return number
    }

    /// A stamp, or when the line ends before it, the default.
    mutating func stamp(default other: Stamp) throws(InvalidTree) -> Stamp {
        ended ? other : try stamp()
    }

    mutating func stamp() throws(InvalidTree) -> Stamp {
        let parts = try word().split(separator: 0x2E, omittingEmptySubsequences: false)
        guard parts.count == 3, parts[2].count == 32, let node = Hex.decode(parts[2]),
            let node = NodeID(bytes: node)
        else { throw InvalidTree("a stamp that is none") }
        return Stamp(
            milliseconds: try Self.number(parts[0], radix: 16),
            counter: try Self.number(parts[1], radix: 16), node: node)
    }

    mutating func time() throws(InvalidTree) -> Timestamp {
        let parts = try word().split(separator: 0x2E, omittingEmptySubsequences: false)
        guard parts.count == 2, parts[1].count == 9 else { throw InvalidTree("a time is none") }
        return Timestamp(
            seconds: try Self.number(parts[0], radix: 10),
            nanoseconds: try Self.number(parts[1], radix: 10))
    }

    mutating func hexBytes(prefix: String = "") throws(InvalidTree) -> [UInt8] {
        let field = try word()
        guard field.starts(with: prefix.utf8),
            let value = Hex.decode(field.dropFirst(prefix.utf8.count))
        else { throw InvalidTree("a value that is not hexadecimal") }
        return value
    }

    mutating func escaped() throws(InvalidTree) -> [UInt8] {
        let field = Array(try word())
        var out: [UInt8] = []
        var i = 0
        while i < field.count {
            if field[i] == 0x25 {
                guard i + 2 < field.count,
                    let byte = PercentEscape.byte(field[i + 1], field[i + 2])
                else { throw InvalidTree("an escape that is none") }
                out.append(byte)
                i += 3
            } else {
                out.append(field[i])
                i += 1
            }
        }
        return out
    }

    /// Digits only, a minus where the type has one; nothing that overflows.
    private static func number<Number: FixedWidthInteger>(
        _ text: ArraySlice<UInt8>, radix: Number
    ) throws(InvalidTree) -> Number {
        let negative = Number.isSigned && text.first == 0x2D
        let digits = negative ? text.dropFirst() : text
        guard !digits.isEmpty else { throw InvalidTree("an empty number") }
        var value: Number = 0
        for character in digits {
            let digit: Number
            switch character {
            case 0x30...0x39: digit = Number(character - 0x30)
            case 0x61...0x66: digit = Number(character - 0x57)
            default: throw InvalidTree("a number that is none")
            }
            guard digit < radix else { throw InvalidTree("a digit that is none") }
            let (shifted, overflow) = value.multipliedReportingOverflow(by: radix)
            let (sum, carry) =
                negative
                ? shifted.subtractingReportingOverflow(digit)
                : shifted.addingReportingOverflow(digit)
            guard !overflow, !carry else { throw InvalidTree("a number that is too large") }
            value = sum
        }
        return value
    }
}
