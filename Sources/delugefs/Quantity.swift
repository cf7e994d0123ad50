import FoundationEssentials

/// Sizes, rates and times as people read them.
enum Quantity {
    private static let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]

    static func bytes(_ count: UInt64) -> String {
        var value = Double(count)
        var unit = 0
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        // 1023.95 KiB would read "1024.0 KiB".
        if unit > 0, unit < units.count - 1, value >= 1023.95 { (value, unit) = (1, unit + 1) }
        guard unit > 0 else { return "\(count) B" }
        return value < 100
            ? "\(Int(value * 10 + 0.5) / 10).\(Int(value * 10 + 0.5) % 10) \(units[unit])"
            : "\(Int(value + 0.5)) \(units[unit])"
    }

    static func count(_ number: Int, _ noun: String) -> String {
        "\(number) \(noun)\(number == 1 ? "" : "s")"
    }

    static func duration(seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e10 else { return "a long time" }
        let whole = Int(max(0, seconds).rounded(.up))
        switch whole {
        case ..<60: return "\(whole) s"
        case ..<3600: return "\(whole / 60) min \(whole % 60) s"
        case ..<86_400: return "\(whole / 3600) h \(whole % 3600 / 60) min"
        default: return "\(whole / 86_400) d \(whole % 86_400 / 3600) h"
        }
    }

    /// How long ago an ISO 8601 time was; nil for none and for what cannot be read.
    static func age(since text: String) -> String? {
        guard let date = try? Date(text, strategy: .iso8601), date.timeIntervalSince1970 > 0
        else { return nil }
        return duration(seconds: max(0, Date().timeIntervalSince(date)))
    }

    /// `500M`, `2T`, `0`: K, M, G, T, P are powers of 1024, as are KiB and so on; KB, MB, ... powers
    /// of 1000. Nil for anything else.
    static func parse(_ text: String) -> UInt64? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        guard let number = UInt64(digits) else { return nil }
        let suffix = text.dropFirst(digits.count).uppercased()
        guard let letter = suffix.first else { return number }
        guard let power = Array("KMGTP").firstIndex(of: letter) else { return nil }
        let base: UInt64
        switch suffix.dropFirst() {
        case "", "IB": base = 1024
        case "B": base = 1000
        default: return nil
        }
        var result = number
        for _ in 0...power {
            let (product, overflows) = result.multipliedReportingOverflow(by: base)
            if overflows { return nil }
            result = product
        }
        return result
    }
}
