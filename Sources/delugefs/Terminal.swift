import FoundationEssentials
import Glibc

/// What reaches a person: plain output, escaping, colours.
enum Terminal {
    static let outputIsTerminal = isatty(STDOUT_FILENO) == 1
    static let errorIsTerminal = isatty(STDERR_FILENO) == 1

    /// Colours only on a terminal, and not where https://no-color.org says so.
    static let hasColour: Bool = {
        guard outputIsTerminal, SecretEnvironment.value("TERM") != "dumb" else { return false }
        return (SecretEnvironment.value("NO_COLOR") ?? "").isEmpty
    }()

    enum Style: String {
        case bold = "1", dim = "2", red = "31", green = "32", yellow = "33"
    }

    static func styled(_ text: String, _ style: Style) -> String {
        hasColour ? "\u{1B}[\(style.rawValue)m\(text)\u{1B}[0m" : text
    }

    /// A line on standard output.
    static func print(_ text: String) { write(Array((text + "\n").utf8), to: STDOUT_FILENO) }

    static func print(bytes: [UInt8]) { write(bytes, to: STDOUT_FILENO) }

    /// A line on standard error.
    static func complain(_ text: String) { write(Array((text + "\n").utf8), to: STDERR_FILENO) }

    /// Writes what can be written: a reader that went away is no failure of the command.
    static func write(_ bytes: [UInt8], to descriptor: CInt) {
        var done = 0
        while done < bytes.count {
            let step = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress.map { $0 + done }, $0.count - done)
            }
            if step < 0, errno == EINTR { continue }
            guard step > 0 else { return }
            done += step
        }
    }

    // MARK: Escaping

    /// The text without anything that a terminal would act on or that reorders what is read.
    static func visible(_ text: some StringProtocol) -> String {
        guard text.unicodeScalars.contains(where: isUnsafe) else { return String(text) }
        var result = ""
        for scalar in text.unicodeScalars {
            if isUnsafe(scalar) {
                result += "\\u{\(String(scalar.value, radix: 16))}"
            } else {
                result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    /// The same for a name's bytes; one that is no UTF-8 becomes `\xFF`.
    static func visible(name: [UInt8]) -> String {
        var result = ""
        var rest = name[...]
        while !rest.isEmpty {
            var parser = Unicode.UTF8.ForwardParser()
            var iterator = rest.makeIterator()
            switch parser.parseScalar(from: &iterator) {
            case .valid(let encoded):
                result += visible(String(Unicode.UTF8.decode(encoded)))
                rest.removeFirst(encoded.count)
            case .error(let length):
                for byte in rest.prefix(max(1, length)) {
                    result += "\\x\(String(byte, radix: 16, uppercase: true))"
                }
                rest.removeFirst(min(rest.count, max(1, length)))
            case .emptyInput: return result
            }
        }
        return result
    }

    /// One value, for programs and people alike.
    static func print(json value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(bytes: visible(json: Array(try encoder.encode(value)) + [0x0A]))
    }

    /// The same for JSON, whose strings allow escapes; the value stays what it was.
    static func visible(json: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(json.count)
        for scalar in String(decoding: json, as: UTF8.self).unicodeScalars {
            if isUnsafe(scalar), scalar != "\n", scalar != "\t" {
                for unit in String(scalar).utf16 {
                    let digits = String(unit, radix: 16)
                    result += "\\u".utf8
                    result += String(repeating: "0", count: 4 - digits.count).utf8
                    result += digits.utf8
                }
            } else {
                result += Array(UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
            }
        }
        return result
    }

    /// Controls (C0, DEL, C1), line separators, and the marks that turn the writing direction.
    private static func isUnsafe(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate: true
        default: false
        }
    }
}

/// Columns as wide as their widest cell; the last one is left ragged.
struct Table {
    private var rows: [[String]] = []
    private var styles: [Terminal.Style?] = []

    mutating func add(_ cells: [String], _ style: Terminal.Style? = nil) {
        rows.append(cells)
        styles.append(style)
    }

    var lines: [String] {
        let columns = rows.map(\.count).max() ?? 0
        let widths = (0..<columns).map { column in
            rows.map { $0.count > column ? $0[column].count : 0 }.max() ?? 0
        }
        return zip(rows, styles).map { cells, style in
            let padded = cells.enumerated().map { column, cell in
                column == cells.count - 1
                    ? cell : cell + String(repeating: " ", count: widths[column] - cell.count)
            }
            let line = "  " + padded.joined(separator: "  ")
            return style.map { Terminal.styled(line, $0) } ?? line
        }
    }
}
