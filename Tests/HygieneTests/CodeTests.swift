import Testing

@Suite("Code keeps the house style")
struct CodeTests {
    private static let fileLinesMax = 800
    private static let functionLinesMax = 70

    /// What stands in code, where it may not, and what to use there. A comment beside it that proves
    /// why it is right excuses it, where it can be right.
    private struct Ban {
        let words: [String]
        let use: String
        var canBeExcused = true
        var isAllowed: @Sendable (String) -> Bool = { _ in false }
    }

    private static func isTest(_ path: String) -> Bool { path.hasPrefix("Tests/") }

    private static let bans = [
        Ban(
            words: ["try", "!"], use: "a thrown error, or a comment that proves that none can come"),
        Ban(words: ["as", "!"], use: "a conditional cast"),
        Ban(
            words: ["print", "("], use: "a logger; the executable alone talks to a person",
            canBeExcused: false,
            isAllowed: { isTest($0) || $0.hasPrefix("Sources/delugefs/") }),
        Ban(
            words: ["DispatchSemaphore"],
            use: "a continuation; on a thread of ours, a comment that says so"),
        Ban(words: ["Task", ".", "detached"], use: "a task that somebody owns"),
    ]

    /// What the pure core must be given from outside.
    private static let impure = [
        ["Date", "("], ["ContinuousClock"], ["SuspendingClock"], ["SystemRandomNumberGenerator"],
        ["Thread"], ["getenv"], ["async"],
    ]

    @Test("nothing banned stands in the code")
    func bans() {
        for (file, text) in SourceTree.swift {
            let tokens = text.tokens
            for ban in Self.bans where !ban.isAllowed(file.path) {
                for line in Self.places(of: ban.words, in: tokens) {
                    if ban.canBeExcused, text.hasComment(beside: line) { continue }
                    Issue.record("\(file.path):\(line + 1): \(ban.words.joined()): use \(ban.use)")
                }
            }
            if file.target == "Volume" {
                for words in Self.impure {
                    for line in Self.places(of: words, in: tokens) {
                        Issue.record("\(file.path):\(line + 1): \(words.joined()) in the pure core")
                    }
                }
            }
        }
    }

    private static func places(of words: [String], in tokens: [SwiftText.Token]) -> [Int] {
        guard tokens.count >= words.count, let first = words.first else { return [] }
        return (0...(tokens.count - words.count)).compactMap { start in
            guard tokens[start].text == first else { return nil }
            for (offset, word) in words.enumerated() {
                let token = tokens[start + offset]
                guard token.text == word, offset == 0 || token.isAdjacent else { return nil }
            }
            // A member or a function of that name is something else.
            if start > 0, [".", "func"].contains(tokens[start - 1].text) { return nil }
            return tokens[start].line
        }
    }

    @Test("what the compiler is told to believe has its reason beside it")
    func uncheckedClaimsAreJustified() {
        for (file, text) in SourceTree.swift {
            for (line, code) in text.code.enumerated() {
                let code = String(decoding: code, as: UTF8.self)
                guard code.contains("@unchecked Sendable") || code.contains("nonisolated(unsafe)")
                else { continue }
                if !text.hasComment(beside: line) {
                    Issue.record("\(file.path):\(line + 1): no comment says why this is safe")
                }
            }
        }
    }

    @Test("files and functions can be held in the head")
    func lengths() {
        for (file, text) in SourceTree.swift {
            for function in text.functions where function.length > Self.functionLinesMax {
                Issue.record(
                    "\(file.path):\(function.first + 1): \(function.name) has \(function.length) lines"
                )
            }
        }
        let code = SourceTree.files(endingWith: ".swift", ".c", ".cpp", ".hpp", ".h")
        for file in code where file.lines.count - 1 > Self.fileLinesMax {
            Issue.record("\(file.path) has \(file.lines.count - 1) lines")
        }
    }

    @Test("no work is left in comments")
    func noLeftovers() {
        // In two parts, so that this file holds none of them.
        let marks = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
        for file in SourceTree.files {
            for (number, line) in file.lines.enumerated() {
                for word in line.split(whereSeparator: {
                    !($0.isLetter || $0.isNumber || $0 == "_")
                })
                where marks.contains(String(word)) {
                    Issue.record("\(file.path):\(number + 1): \(word)")
                }
            }
        }
    }
}
