import Glibc

/// Why a point in the past leads nowhere, in one sentence for a person.
public struct PastError: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

/// A point in the volume's past as a person writes it. What can be read as a time is one.
///
/// ```
/// 2026-11-26T14:03:05.25+01:00   ISO 8601; also with a space for T, without seconds, fraction or zone
/// 2026-11-26                     the beginning of that day
/// @1795701785                    seconds since 1970
/// 90s  10min  2h  3d  1w         so long ago; `ago` may follow
/// 8d3f…                          a commit, 4 to 40 hexadecimal digits
/// ```
///
/// Without a zone the time is local. A time without a fraction reaches to the end of its second.
public enum PastPoint: Hashable, Sendable {
    /// The digits that its id begins with.
    case commit(String)
    /// Milliseconds since 1970.
    case time(Int64)

    /// - Parameter now: milliseconds since 1970.
    public init(_ text: String, now: Int64) throws(PastError) {
        let bytes = Array(text.utf8)
        if let time = Self.relative(bytes, now) ?? Self.unix(bytes) ?? Self.calendar(bytes) {
            self = .time(time)
        } else if (4...40).contains(bytes.count), bytes.allSatisfy(Self.isHexadecimal) {
            self = .commit(text.lowercased())
        } else {
            throw PastError(
                "That is neither a commit nor a time; write 4 or more digits of a commit, 2026-11-26T14:03, 2026-11-26, @SECONDS, or 10min, 2h, 3d."
            )
        }
    }

    /// What reads as the same point on any machine, at any time.
    public var text: String {
        switch self {
        case .commit(let digits): digits
        case .time(let time):
            "@\(time / 1000)." + String(String(1000 + time % 1000).dropFirst())
        }
    }

    private static func isHexadecimal(_ byte: UInt8) -> Bool {
        isDigit(byte) || (0x61...0x66).contains(byte | 0x20)
    }

    private static func isDigit(_ byte: UInt8) -> Bool { (0x30...0x39).contains(byte) }

    // MARK: Times

    private static let units: [String: Int64] = [
        "s": 1, "min": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600,
    ]

    /// At most six digits, so that the twelve of a commit are never taken for one.
    private static func relative(_ bytes: [UInt8], _ now: Int64) -> Int64? {
        var scanner = Scanner(bytes)
        guard let count = scanner.number(1...6) else { return nil }
        scanner.skipSpaces()
        let word = scanner.word()
        guard let unit = units[word] else { return nil }
        scanner.skipSpaces()
        if !scanner.isAtEnd, scanner.word() != "ago" { return nil }
        return scanner.isAtEnd ? max(0, now - count * unit * 1000) : nil
    }

    private static func unix(_ bytes: [UInt8]) -> Int64? {
        var scanner = Scanner(bytes)
        guard scanner.take("@") != nil, let seconds = scanner.number(1...11) else { return nil }
        let milliseconds = scanner.fraction() ?? 999
        return scanner.isAtEnd ? seconds * 1000 + milliseconds : nil
    }

    private static func calendar(_ bytes: [UInt8]) -> Int64? {
        var scanner = Scanner(bytes)
        guard let year = scanner.number(4...4), scanner.take("-") != nil,
            let month = scanner.number(2...2), scanner.take("-") != nil,
            let day = scanner.number(2...2), (1...12).contains(month), day >= 1,
            day <= days(in: month, of: year)
        else { return nil }
        var time = Clock()
        var zone: Int64?
        if !scanner.isAtEnd {
            guard scanner.take("T") ?? scanner.take("t") ?? scanner.take(" ") != nil,
                let clock = scanner.clock()
            else { return nil }
            time = clock
            if !scanner.isAtEnd {
                guard let offset = scanner.zone(), scanner.isAtEnd else { return nil }
                zone = offset
            }
        }
        let seconds: Int64
        if let zone {
            let day = daysSince1970(year, month, day)
            seconds = day * 86_400 + time.hour * 3600 + time.minute * 60 + time.second - zone
        } else {
            var local = tm()
            local.tm_year = CInt(year - 1900)
            local.tm_mon = CInt(month - 1)
            local.tm_mday = CInt(day)
            local.tm_hour = CInt(time.hour)
            local.tm_min = CInt(time.minute)
            local.tm_sec = CInt(time.second)
            local.tm_isdst = -1
            seconds = Int64(mktime(&local))
        }
        return seconds >= 0 ? seconds * 1000 + time.milliseconds : nil
    }

    private static func days(in month: Int64, of year: Int64) -> Int64 {
        let isLeap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
        return [31, isLeap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][Int(month - 1)]
    }

    private static func daysSince1970(_ year: Int64, _ month: Int64, _ day: Int64) -> Int64 {
        let before = year - 1
        let leapDays = before / 4 - before / 100 + before / 400 - 477
        let months = (1..<month).reduce(0) { $0 + days(in: $1, of: year) }
        return (year - 1970) * 365 + leapDays + months + day - 1
    }
}

/// The time of a day; milliseconds as they count.
private struct Clock {
    var hour: Int64 = 0
    var minute: Int64 = 0
    var second: Int64 = 0
    var milliseconds: Int64 = 999
}

private struct Scanner {
    private var rest: ArraySlice<UInt8>

    init(_ bytes: [UInt8]) { rest = bytes[...] }

    var isAtEnd: Bool { rest.isEmpty }

    mutating func take(_ character: Unicode.Scalar) -> Unicode.Scalar? {
        guard let byte = rest.first, UInt32(byte) == character.value else { return nil }
        rest.removeFirst()
        return character
    }

    /// All digits that follow, if there are so many.
    mutating func number(_ count: ClosedRange<Int>) -> Int64? {
        let digits = rest.prefix { (0x30...0x39).contains($0) }
        guard count.contains(digits.count) else { return nil }
        rest.removeFirst(digits.count)
        return digits.reduce(0) { $0 * 10 + Int64($1 - 0x30) }
    }

    mutating func word() -> String {
        let letters = rest.prefix { (0x61...0x7A).contains($0 | 0x20) }
        rest.removeFirst(letters.count)
        return String(decoding: letters, as: UTF8.self).lowercased()
    }

    mutating func skipSpaces() { rest = rest.drop { $0 == 0x20 } }

    /// Milliseconds; nil if there is none.
    mutating func fraction() -> Int64? {
        var after = self
        guard after.take(".") ?? after.take(",") != nil else { return nil }
        let digits = after.rest.prefix { (0x30...0x39).contains($0) }
        guard (1...9).contains(digits.count) else { return nil }
        after.rest.removeFirst(digits.count)
        self = after
        return (Array(digits) + [0x30, 0x30]).prefix(3).reduce(0) { $0 * 10 + Int64($1 - 0x30) }
    }

    /// `14:03`, `14:03:05`, `14:03:05.25`
    mutating func clock() -> Clock? {
        var clock = Clock()
        guard let hour = number(2...2), take(":") != nil, let minute = number(2...2), hour < 24,
            minute < 60
        else { return nil }
        clock.hour = hour
        clock.minute = minute
        guard take(":") != nil else { return clock }
        guard let second = number(2...2), second <= 60 else { return nil }
        clock.second = second
        clock.milliseconds = fraction() ?? 999
        return clock
    }

    /// `Z`, `+01`, `+01:00`, `+0100`; seconds east of Greenwich.
    mutating func zone() -> Int64? {
        skipSpaces()
        if take("Z") ?? take("z") != nil { return 0 }
        let sign: Int64 = take("+") != nil ? 1 : take("-") != nil ? -1 : 0
        guard sign != 0 else { return nil }
        if let both = number(4...4) {
            guard both / 100 < 24, both % 100 < 60 else { return nil }
            return sign * (both / 100 * 3600 + both % 100 * 60)
        }
        guard let hours = number(2...2), hours < 24 else { return nil }
        guard take(":") != nil else { return sign * hours * 3600 }
        guard let minutes = number(2...2), minutes < 60 else { return nil }
        return sign * (hours * 3600 + minutes * 60)
    }
}
