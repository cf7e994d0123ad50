/// The name of what loses a name or a content conflict: `report (conflict NODE 2026-01-31 09.05.00).pdf`.
///
/// A pure function, so that every node that makes the same merge gives the same name.
/// - Parameters:
///   - original: the contested name. A conflict suffix that it already has is replaced.
///   - node: name of the node that wrote the losing version; cut to 32 bytes.
///   - stamp: of the losing write; shown in UTC.
///   - id: of the record that gets the name; tells apart what would otherwise be the same.
///   - taken: whether the directory already holds a name.
public func conflictName(
    original: FileName, node: String, stamp: Stamp, id: LineageID,
    taken: (FileName) throws -> Bool
) rethrows -> FileName {
    let (stem, ext) = ConflictName.split(original.bytes)
    let label = ConflictName.label(node: node, stamp: stamp)
    let digits = Array(
        Hex.encode((0..<8).map { UInt8(truncatingIfNeeded: id.rawValue >> (56 - 8 * $0)) }).utf8)
    // 16 digits name the id itself; beyond, numbers, so that this ends whatever is taken.
    for attempt in 0... {
        var suffix = Array(label.utf8)
        switch attempt {
        case 0: break
        case 1: suffix += [0x7E] + digits.suffix(8)
        case 2: suffix += [0x7E] + digits
        default: suffix += [0x7E] + digits + [0x7E] + Array(String(attempt).utf8)
        }
        suffix += ext
        let room = Limits.nameBytesMax - suffix.count
        // The parts hold neither NUL nor slash, and the suffix begins with a blank.
        guard let name = FileName(ConflictName.cut(stem, to: room) + suffix) else {
            preconditionFailure("a conflict name is a valid name")
        }
        if try !taken(name) { return name }
    }
    preconditionFailure("a directory holds fewer names than there are numbers")
}

enum ConflictName {
    /// An extension longer than this counts as part of the stem.
    private static let extensionBytesMax = 64
    static let nodeBytesMax = 32

    static func label(node: String, stamp: Stamp) -> String {
        let safe = node.utf8.map { $0 == 0x2F || $0 == 0 ? 0x5F : $0 }
        let name = Text.lossy(cut(safe, to: nodeBytesMax))
        return " (conflict \(name) \(CivilTime(milliseconds: stamp.milliseconds).text))"
    }

    /// Stem and extension, the extension with its dot, a conflict suffix taken out of the stem.
    static func split(_ name: [UInt8]) -> (stem: [UInt8], ext: [UInt8]) {
        var stem = name
        var ext: [UInt8] = []
        // A leading dot is no extension: `.bashrc` is all stem.
        if let dot = name.lastIndex(of: 0x2E), dot > 0, name.count - dot <= extensionBytesMax,
            !name[dot...].contains(0x29)
        {
            stem = Array(name[..<dot])
            ext = Array(name[dot...])
        }
        return (withoutSuffix(stem), ext)
    }

    /// Without ` (conflict NODE YYYY-MM-DD HH.MM.SS)` and an optional `~` with digits at its end.
    private static func withoutSuffix(_ stem: [UInt8]) -> [UInt8] {
        var end = stem.count
        while let tilde = stem[..<end].lastIndex(of: 0x7E), tilde + 1 < end,
            stem[(tilde + 1)..<end].allSatisfy({ isHexDigit($0) })
        { end = tilde }
        let mark = Array(" (conflict ".utf8)
        let tail = 21  // " YYYY-MM-DD HH.MM.SS)"
        guard end >= mark.count + tail, stem[end - 1] == 0x29,
            isDate(stem[(end - tail)..<(end - 1)])
        else { return stem }
        var start = end - tail - mark.count
        let lowest = max(0, start - nodeBytesMax)
        while start >= lowest {
            if stem[start..<(start + mark.count)].elementsEqual(mark) {
                // Nothing but a suffix: keep it, a name must not become empty.
                return start == 0 ? stem : Array(stem[..<start])
            }
            start -= 1
        }
        return stem
    }

    private static func isHexDigit(_ byte: UInt8) -> Bool {
        (0x30...0x39).contains(byte) || (0x61...0x66).contains(byte)
    }

    private static func isDate(_ bytes: ArraySlice<UInt8>) -> Bool {
        let pattern = " dddd-dd-dd dd.dd.dd".utf8
        return bytes.count == pattern.count
            && zip(bytes, pattern).allSatisfy { byte, wanted in
                wanted == 0x64 ? (0x30...0x39).contains(byte) : byte == wanted
            }
    }

    /// At most so many bytes, cut where a UTF-8 character begins if the bytes there are UTF-8.
    static func cut(_ bytes: [UInt8], to room: Int) -> [UInt8] {
        guard bytes.count > room else { return bytes }
        var end = room
        while end > 0, room - end < 4, bytes[end] & 0xC0 == 0x80 { end -= 1 }
        // Four continuation bytes in a row are no UTF-8: cut where it must be.
        if bytes[end] & 0xC0 == 0x80 { end = room }
        return Array(bytes[..<end])
    }
}

enum Text {
    /// For names that people read and for messages, never for comparing.
    static func lossy(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }
}

/// A UTC date and time of day, without a calendar library.
struct CivilTime: Hashable, Sendable {
    let year, month, day, hour, minute, second: Int

    /// Milliseconds since 1970, as stamps have them.
    init(milliseconds: UInt64) {
        let seconds = Int(milliseconds / 1000)
        let ofDay = seconds % 86400
        (hour, minute, second) = (ofDay / 3600, ofDay / 60 % 60, ofDay % 60)
        // Days to civil: Howard Hinnant, https://howardhinnant.github.io/date_algorithms.html; years
        // begin in March, so that the leap day is the last; days count from 0000-03-01.
        let days = seconds / 86400 + 719_468
        let era = days / 146_097
        let ofEra = days % 146_097
        let yearOfEra = (ofEra - ofEra / 1460 + ofEra / 36524 - ofEra / 146_096) / 365
        let ofYear = ofEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * ofYear + 2) / 153
        day = ofYear - (153 * shifted + 2) / 5 + 1
        month = shifted < 10 ? shifted + 3 : shifted - 9
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
    }

    /// `YYYY-MM-DD HH.MM.SS`: no colon, which other systems refuse in names.
    var text: String {
        func padded(_ number: Int, _ digits: Int) -> String {
            let text = String(number)
            return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
        }
        let date = [padded(year, 4), padded(month, 2), padded(day, 2)].joined(separator: "-")
        let time = [hour, minute, second].map { padded($0, 2) }.joined(separator: ".")
        return date + " " + time
    }
}
