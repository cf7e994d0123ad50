import ArgumentParser
import Node
import Volume

/// Values on the command line: each parser throws `ValidationError`, which is a usage error.
enum Arguments {
    /// ID, NAME, MACHINE: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    static func identifier(_ text: String) throws -> String {
        let isPlain = text.utf8.allSatisfy {
            isAlphanumeric($0) || $0 == UInt8(ascii: ".") || $0 == UInt8(ascii: "_")
                || $0 == UInt8(ascii: "-")
        }
        guard isPlain, (1...63).contains(text.utf8.count),
            let first = text.utf8.first, isAlphanumeric(first)
        else {
            throw ValidationError(
                "'\(Terminal.visible(text))' must be 1 to 63 letters, digits, '.', '_' or '-', and begin with a letter or digit"
            )
        }
        return text
    }

    private static func isAlphanumeric(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
        default: false
        }
    }

    static func directory(_ text: String) throws -> String {
        guard !text.isEmpty else { throw ValidationError("a directory's name is empty") }
        return text
    }

    static func size(_ text: String) throws -> UInt64 {
        guard let bytes = Quantity.parse(text) else {
            throw ValidationError(
                "'\(Terminal.visible(text))' is no size; write bytes, or a number with K, M, G, T or P, such as 500M or 2T"
            )
        }
        return bytes
    }

    static func number(_ text: String, in range: ClosedRange<Int>) throws -> Int {
        guard let number = Int(text), range.contains(number) else {
            throw ValidationError(
                "'\(Terminal.visible(text))' must be a number from \(range.lowerBound) to \(range.upperBound)"
            )
        }
        return number
    }

    /// `HOST:PORT`; an IPv6 address stands in brackets.
    static func peer(_ text: String) throws -> PeerAddress {
        let failure = ValidationError(
            "'\(Terminal.visible(text))' is no peer; write HOST:PORT, or [ADDRESS]:PORT for IPv6")
        guard let colon = text.lastIndex(of: ":"),
            let port = Int(text[text.index(after: colon)...]), (1...65_535).contains(port)
        else { throw failure }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
            guard host.contains(":") else { throw failure }
        } else if host.contains(":") {
            throw failure
        }
        guard !host.isEmpty, !host.contains(where: { $0.isWhitespace || "[]/".contains($0) }) else {
            throw failure
        }
        return PeerAddress(host: String(host), port: port)
    }

    static func owner(_ text: String) throws -> Owner {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        // The highest id means "no change" to the kernel.
        guard parts.count == 2, let uid = UInt32(parts[0]), let gid = UInt32(parts[1]),
            uid != .max, gid != .max
        else {
            throw ValidationError(
                "'\(Terminal.visible(text))' is no owner; write UID:GID, both numbers")
        }
        return Owner(uid: uid, gid: gid)
    }

    static func transport(_ text: String) throws -> Configuration.Transport {
        guard let transport = Configuration.Transport(rawValue: text) else {
            throw ValidationError("'\(Terminal.visible(text))' must be tls or plain")
        }
        return transport
    }

    /// `none`, or some of them with commas between.
    static func ways(_ text: String) throws -> Set<Configuration.Way> {
        if text == "none" { return [] }
        return Set(
            try text.split(separator: ",", omittingEmptySubsequences: false).map { name in
                guard let way = Configuration.Way(rawValue: String(name)) else {
                    throw ValidationError(
                        "'\(Terminal.visible(text))' must be logs, ask, dht or none")
                }
                return way
            })
    }

    static func seconds(_ text: String) throws -> Double {
        guard let seconds = Double(text), seconds >= 0, seconds <= 1e9 else {
            throw ValidationError("'\(Terminal.visible(text))' is no number of seconds")
        }
        return seconds
    }
}

struct PeerAddress: Equatable {
    var host: String
    var port: Int
}
