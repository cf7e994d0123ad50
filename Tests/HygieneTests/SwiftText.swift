/// Swift source taken apart as far as the rules need it: what is code, and which lines hold a
/// comment. Not a parser: regular expression literals are taken for operators.
struct SwiftText {
    /// The source with comments and the insides of strings blanked; lines and columns stay.
    let code: [[UInt8]]
    /// Lines, from 0, on which a comment stands.
    let commented: Set<Int>

    init(_ source: String) {
        var scanner = Scanner(source)
        scanner.scan(until: nil)
        code = scanner.out.split(separator: 0x0A, omittingEmptySubsequences: false).map(Array.init)
        commented = scanner.commented
    }

    /// On the line itself, the one before or the one after.
    func hasComment(beside line: Int) -> Bool {
        (line - 1...line + 1).contains { commented.contains($0) }
    }

    private struct Scanner {
        let source: [UInt8]
        var position = 0
        var line = 0
        var out: [UInt8] = []
        var commented: Set<Int> = []

        init(_ text: String) {
            source = Array(text.utf8)
            out.reserveCapacity(source.count)
        }

        func starts(_ text: String) -> Bool {
            var at = position
            for character in text.utf8 {
                guard at < source.count, source[at] == character else { return false }
                at += 1
            }
            return true
        }

        mutating func take(_ count: Int, visibly: Bool) {
            for _ in 0..<count where position < source.count {
                let character = source[position]
                out.append(visibly || character == 0x0A ? character : 0x20)
                if character == 0x0A { line += 1 }
                position += 1
            }
        }

        /// Code, up to the parenthesis that ends an interpolation, or to the end.
        mutating func scan(until end: UInt8?) {
            var depth = 0
            while position < source.count {
                if starts("//") {
                    lineComment()
                } else if starts("/*") {
                    blockComment()
                } else if [UInt8(ascii: "\""), UInt8(ascii: "#")].contains(source[position]),
                    let hashes = string()
                {
                    literal(hashes)
                } else {
                    let character = source[position]
                    if end != nil, character == UInt8(ascii: "(") { depth += 1 }
                    if end != nil, character == UInt8(ascii: ")") {
                        if depth == 0 { return }
                        depth -= 1
                    }
                    take(1, visibly: end == nil)
                }
            }
        }

        private mutating func lineComment() {
            commented.insert(line)
            while position < source.count, source[position] != 0x0A { take(1, visibly: false) }
        }

        private mutating func blockComment() {
            var depth = 0
            repeat {
                commented.insert(line)
                if starts("/*") {
                    depth += 1
                    take(2, visibly: false)
                } else if starts("*/") {
                    depth -= 1
                    take(2, visibly: false)
                } else {
                    take(1, visibly: false)
                }
            } while depth > 0 && position < source.count
        }

        /// The number of `#` before the quotation mark of a string that begins here.
        private func string() -> Int? {
            var at = position
            while at < source.count, source[at] == UInt8(ascii: "#") { at += 1 }
            return at < source.count && source[at] == UInt8(ascii: "\"") ? at - position : nil
        }

        private mutating func literal(_ hashes: Int) {
            take(hashes, visibly: true)
            let quotes = starts("\"\"\"") ? "\"\"\"" : "\""
            let marks = String(repeating: "#", count: hashes)
            take(quotes.count, visibly: true)
            while position < source.count, !starts(quotes + marks) {
                if starts("\\" + marks + "(") {
                    take(hashes + 2, visibly: false)
                    scan(until: UInt8(ascii: ")"))
                    take(1, visibly: false)
                } else if starts("\\" + marks) {
                    take(hashes + 2, visibly: false)
                } else {
                    take(1, visibly: false)
                }
            }
            take(quotes.count + hashes, visibly: true)
        }
    }
}

extension SwiftText {
    struct Function {
        let name: String
        /// Lines from 0, both counted.
        let first, last: Int
        var length: Int { last - first + 1 }
    }

    /// Functions, initialisers and subscripts that have a body, nested ones too.
    var functions: [Function] {
        let tokens = tokens
        return tokens.indices.compactMap { index in
            guard ["func", "init", "deinit", "subscript"].contains(tokens[index].text),
                index == 0 || ![".", "?"].contains(tokens[index - 1].text)
            else { return nil }
            let name = index + 1 < tokens.count ? tokens[index + 1].text : ""
            guard let open = body(after: index, tokens), let close = partner(of: open, tokens)
            else { return nil }
            return Function(
                name: tokens[index].text == "func" ? name : tokens[index].text,
                first: tokens[index].line, last: tokens[close].line)
        }
    }

    /// Where the body opens; nil for a requirement of a protocol.
    private func body(after index: Int, _ tokens: [Token]) -> Int? {
        var depth = 0
        for at in (index + 1)..<tokens.count {
            switch tokens[at].text {
            case "(", "[": depth += 1
            case ")", "]": depth -= 1
            case "{" where depth == 0: return at
            case "}" where depth == 0: return nil
            case "func", "init", "deinit", "subscript", "var", "let", "case", "static",
                "associatedtype":
                if depth == 0 { return nil }
            default: break
            }
            if depth < 0 { return nil }
        }
        return nil
    }

    private func partner(of open: Int, _ tokens: [Token]) -> Int? {
        var depth = 0
        for at in open..<tokens.count {
            if tokens[at].text == "{" { depth += 1 }
            if tokens[at].text == "}" {
                depth -= 1
                if depth == 0 { return at }
            }
        }
        return nil
    }

    struct Token {
        let text: String
        let line: Int
        /// Follows the token before it without a space.
        let isAdjacent: Bool
    }

    /// Words and single other characters.
    var tokens: [Token] {
        var tokens: [Token] = []
        for (number, line) in code.enumerated() {
            var at = 0
            var isAdjacent = false
            while at < line.count {
                var end = at
                while end < line.count, Self.isWord(line[end]) { end += 1 }
                if end == at { end += 1 }
                if line[at] == 0x20 {
                    isAdjacent = false
                } else {
                    tokens.append(
                        Token(
                            text: String(decoding: line[at..<end], as: UTF8.self), line: number,
                            isAdjacent: isAdjacent))
                    isAdjacent = true
                }
                at = end
            }
        }
        return tokens
    }

    private static func isWord(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, 0x5F, 0x40, 0x80...: true
        default: false
        }
    }

    /// Names of modules that are imported.
    var imports: [(module: String, line: Int)] {
        var found: [(String, Int)] = []
        for (number, line) in code.enumerated() where line.count < 200 {
            var words = String(decoding: line, as: UTF8.self).split(separator: " ").map(String.init)
            while let first = words.first,
                first.hasPrefix("@")
                    || ["public", "package", "internal", "private", "fileprivate"].contains(first)
            { words.removeFirst() }
            guard words.count >= 2, words[0] == "import" else { continue }
            let kinds = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"]
            let module = kinds.contains(words[1]) && words.count > 2 ? words[2] : words[1]
            found.append((String(module.prefix { $0 != "." }), number))
        }
        return found
    }
}
