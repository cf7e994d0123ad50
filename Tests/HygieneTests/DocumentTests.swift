import Testing

@Suite("Documents are true to the tree")
struct DocumentTests {
    private static let documents = SourceTree.files(endingWith: ".md")

    private struct Link {
        let target: String
        let line: Int
    }

    @Test("links lead somewhere")
    func links() {
        for document in Self.documents {
            for link in Self.links(in: document) {
                if link.target.contains("://") || link.target.hasPrefix("mailto:") { continue }
                let parts = link.target.split(
                    separator: "#", maxSplits: 1, omittingEmptySubsequences: false)
                let path =
                    parts[0].isEmpty
                    ? document.path : Self.resolve(String(parts[0]), from: document.path)
                let place = "\(document.path):\(link.line)"
                guard let path, SourceTree.exists(path) else {
                    Issue.record("\(place): there is no \(link.target)")
                    continue
                }
                guard parts.count > 1, let other = Self.documents.first(where: { $0.path == path })
                else { continue }
                #expect(
                    Self.anchors(in: other).contains(String(parts[1])),
                    "\(place): \(path) has no heading #\(parts[1])")
            }
        }
    }

    /// Paths in running text, such as `Sources/Mount/Publisher.swift`, age like links.
    @Test("files that are named exist")
    func namedFiles() {
        for document in Self.documents where document.path != "CHANGELOG.md" {
            for (number, line) in document.lines.enumerated() {
                for part in line.split(separator: "`").enumerated() where part.offset % 2 == 1 {
                    let name = String(part.element)
                    let tops = ["Sources/", "Tests/", "docs/", "scripts/", "Benchmarks/", ".ci/"]
                    guard tops.contains(where: { name.hasPrefix($0) }),
                        name.allSatisfy({ $0.isLetter || $0.isNumber || "/+-_.".contains($0) })
                    else { continue }
                    #expect(
                        SourceTree.exists(name),
                        "\(document.path):\(number + 1): there is no \(name)")
                }
            }
        }
    }

    @Test("decisions are numbered without gaps and listed")
    func decisions() {
        let records = Self.documents.map(\.path).filter {
            $0.hasPrefix("docs/decisions/") && $0 != "docs/decisions/README.md"
        }.sorted()
        let index = Self.documents.first { $0.path == "docs/decisions/README.md" }?.text ?? ""
        for (offset, path) in records.enumerated() {
            let name = path.dropFirst("docs/decisions/".count)
            #expect(Int(name.prefix(4)) == offset + 1, "\(path) is not number \(offset + 1)")
            #expect(index.contains("(\(name))"), "docs/decisions/README.md does not list \(name)")
        }
    }

    /// The project explains itself: its texts are about the project, not about how they were made,
    /// and refer to nothing outside it.
    @Test("texts are about the project")
    func texts() {
        // In two parts, so that this file holds none of them.
        let words: Set<String> = [
            "A" + "I", "LL" + "M", "Cla" + "ude", "Anth" + "ropic", "Chat" + "GPT",
        ]
        let phrases = [
            "language mo" + "del", "ag" + "ent ", "ag" + "ents", "help" + "er session",
            "sha" + "red/design", "sha" + "red/contract", "sha" + "red/merge",
            "sha" + "red/reference",
            "/wo" + "rk/", "generated b" + "y",
        ]
        for file in SourceTree.files {
            for (number, line) in file.lines.enumerated() {
                for word in line.split(whereSeparator: { !($0.isLetter || $0.isNumber) })
                where words.contains(String(word)) {
                    Issue.record("\(file.path):\(number + 1): \(word)")
                }
                let line = line.lowercased()
                for phrase in phrases where line.contains(phrase) {
                    Issue.record("\(file.path):\(number + 1): \(phrase)")
                }
            }
        }
    }

    // MARK: Markdown, as far as needed

    private static func links(in document: SourceTree.File) -> [Link] {
        var isCode = false
        return document.lines.enumerated().flatMap { number, line -> [Link] in
            if line.hasPrefix("```") { isCode.toggle() }
            guard !isCode else { return [] }
            // Code spans hold no links.
            let text = line.split(separator: "`", omittingEmptySubsequences: false).enumerated()
                .map { $0.offset % 2 == 0 ? String($0.element) : "" }.joined()
            return text.split(separator: "](", omittingEmptySubsequences: false).dropFirst()
                .compactMap { rest in
                    rest.firstIndex(of: ")").map {
                        Link(target: String(rest[..<$0]), line: number + 1)
                    }
                }
        }
    }

    private static func anchors(in document: SourceTree.File) -> Set<String> {
        var isCode = false
        return Set(
            document.lines.compactMap { line in
                if line.hasPrefix("```") { isCode.toggle() }
                guard !isCode, line.hasPrefix("#") else { return nil }
                let title = line.drop { $0 == "#" }.drop { $0 == " " }.lowercased()
                return String(
                    title.compactMap { character in
                        if character == " " { return "-" }
                        let isKept =
                            character.isLetter || character.isNumber || character == "-"
                            || character == "_"
                        return isKept ? character : nil
                    })
            })
    }

    /// Nil for a path that leaves the checkout.
    private static func resolve(_ link: String, from document: String) -> String? {
        var parts = document.split(separator: "/").dropLast().map(String.init)
        for part in link.split(separator: "/").map(String.init) {
            switch part {
            case ".": break
            case "..":
                guard !parts.isEmpty else { return nil }
                parts.removeLast()
            default: parts.append(part)
            }
        }
        return parts.joined(separator: "/")
    }
}
