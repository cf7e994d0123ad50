import FoundationEssentials
import Glibc

/// The files of the project as they lie in the checkout, by their paths from its top.
enum SourceTree {
    struct File {
        /// From the top of the checkout: `Sources/Volume/Tree.swift`.
        let path: String
        let text: String

        var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }
        var name: String {
            String(path[(path.lastIndex(of: "/").map(path.index(after:)) ?? path.startIndex)...])
        }

        /// `Volume` for `Sources/Volume/Tree.swift`; nil for what is no source of a target.
        var target: String? {
            let parts = path.split(separator: "/")
            return parts.count > 2 && parts[0] == "Sources" ? String(parts[1]) : nil
        }
    }

    /// What a build leaves, and what belongs to Git.
    private static let skipped: Set<String> = [".build", ".git", ".swiftpm", "Package.resolved"]

    static let top: String = {
        // Symbolic links on the way here do not count.
        var path =
            realpath(#filePath, nil).map { text in
                defer { free(text) }
                return String(cString: text)
            } ?? #filePath
        for _ in 0..<3 { path = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)]) }
        return path
    }()

    static let files: [File] = {
        var files: [File] = []
        collect("", into: &files)
        return files.sorted { $0.path < $1.path }
    }()

    /// All Swift files of targets and tests, taken apart once.
    static let swift: [(file: File, text: SwiftText)] =
        files(endingWith: ".swift")
        .filter { $0.path.hasPrefix("Sources/") || $0.path.hasPrefix("Tests/") }
        .map { ($0, SwiftText($0.text)) }

    static func files(endingWith suffixes: String...) -> [File] {
        files.filter { file in suffixes.contains { file.path.hasSuffix($0) } }
    }

    static func exists(_ path: String) -> Bool {
        FileManager.default.fileExists(atPath: top + "/" + path)
    }

    private static func collect(_ directory: String, into files: inout [File]) {
        let names =
            (try? FileManager.default.contentsOfDirectory(atPath: top + "/" + directory)) ?? []
        for name in names where !skipped.contains(name) {
            let path = directory.isEmpty ? name : directory + "/" + name
            var isDirectory = false
            guard
                FileManager.default.fileExists(atPath: top + "/" + path, isDirectory: &isDirectory)
            else { continue }
            if isDirectory {
                collect(path, into: &files)
            } else if let data = FileManager.default.contents(atPath: top + "/" + path),
                let text = String(bytes: data, encoding: .utf8)
            {
                files.append(File(path: path, text: text))
            }
        }
    }
}
