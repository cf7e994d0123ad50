import Synchronization

/// What may be in each file of one writer: all that was ever done to it, and what was answered.
/// Nobody else writes them.
final class ChaosModel: Sendable {
    struct Version: Sendable {
        /// nil: no such file.
        var content: DrawnContent?
        /// Written in place: if that was not answered, any part of it may have been done.
        var isInPlace = false
        var isAnswered = false
    }

    private struct File {
        var versions = [Version(content: nil, isAnswered: true)]
        /// The last one that was answered; of those after it any may be the present one.
        var certain = 0
        /// Closed before a `wait --replicated` that succeeded.
        var acknowledged: Int?
    }

    let directory: String
    let pool: BytePool
    private let files = Mutex<[String: File]>([:])

    init(_ directory: String, _ pool: BytePool) {
        self.directory = directory
        self.pool = pool
    }

    var names: [String] { files.withLock { $0.keys.sorted() } }

    /// Those that are there, or may be.
    var presentNames: [String] {
        files.withLock { files in
            files.filter { $0.value.versions[$0.value.certain...].contains { $0.content != nil } }
                .keys.sorted()
        }
    }

    /// How many files are there for sure, and of how many the present version was acknowledged.
    var counts: (files: Int, acknowledged: Int) {
        files.withLock { files in
            let present = files.values.filter { $0.versions[$0.certain].content != nil }
            return (present.count, present.count { $0.acknowledged == $0.versions.count - 1 })
        }
    }

    func begin(_ name: String, _ content: DrawnContent?, isInPlace: Bool = false) {
        files.withLock {
            $0[name, default: File()].versions.append(
                Version(content: content, isInPlace: isInPlace))
        }
    }

    /// A file brings along what it was: its new name may be known elsewhere before its last content.
    func beginRename(_ name: String, _ other: String) {
        files.withLock { files in
            guard let old = files[name]?.versions else { return }
            var file = files[other, default: File()]
            file.versions.insert(contentsOf: old, at: 0)
            file.certain += old.count
            file.acknowledged = file.acknowledged.map { $0 + old.count }
            files[other] = file
        }
        begin(other, content(name))
        begin(name, nil)
    }

    func answered(_ name: String) {
        files.withLock { files in
            guard var file = files[name] else { return }
            file.certain = file.versions.count - 1
            file.versions[file.certain].isAnswered = true
            files[name] = file
        }
    }

    func acknowledge() {
        files.withLock { files in
            for (name, file) in files where file.certain == file.versions.count - 1 {
                files[name]?.acknowledged = file.certain
            }
        }
    }

    func isCertain(_ name: String) -> Bool {
        files.withLock { files in
            files[name].map { $0.certain == $0.versions.count - 1 } ?? true
        }
    }

    /// What is there for sure, if `isCertain`.
    func content(_ name: String) -> DrawnContent? {
        files.withLock { files in files[name].flatMap { $0.versions[$0.certain].content } }
    }

    /// After an operation that was not answered: one of what is possible was read.
    func settle(_ name: String, _ content: DrawnContent?) {
        begin(name, content)
        answered(name)
    }

    enum Which { case ever, now }

    enum Match {
        case of(DrawnContent?)
        case wrong(String)
    }

    /// - Parameter read: nil: there was no such file.
    func match(_ name: String, _ read: [UInt8]?, _ which: Which) -> Match {
        let file = files.withLock { $0[name] ?? File() }
        let start = which == .ever ? 0 : file.certain
        let possible = file.versions[start...]
        guard let read else {
            if possible.contains(where: { $0.content == nil }) { return .of(nil) }
            return .wrong("\(directory)/\(name) is not there: \(Self.story(file))")
        }
        var before: DrawnContent?
        for version in file.versions[..<start].reversed() where version.content != nil {
            before = version.content
            break
        }
        var nearest = (version: -1, difference: -1)
        for (index, version) in zip(possible.indices, possible) {
            defer { before = version.content ?? before }
            guard let content = version.content else { continue }
            guard let difference = content.difference(read, pool) else { return .of(content) }
            if difference > nearest.difference { nearest = (index, difference) }
            guard version.isInPlace, !version.isAnswered else { continue }
            if difference == read.count { return .of(content.prefix(difference)) }
            // An edit that stopped half way.
            if let before {
                let mixed = content.prefix(difference, over: before)
                if mixed.difference(read, pool) == nil { return .of(mixed) }
            }
        }
        return .wrong(
            "\(directory)/\(name) has \(read.count) bytes of no version; most, \(nearest.difference), like \(nearest.version): \(Self.story(file))"
        )
    }

    private static func story(_ file: File) -> String {
        let versions = file.versions.enumerated().map { index, version in
            let length = version.content.map { "\($0.count)" } ?? "-"
            return
                "\(index):\(length)\(version.isInPlace ? "i" : "")\(version.isAnswered ? "" : "?")"
        }
        return
            "\(versions.suffix(20).joined(separator: " ")), certain \(file.certain), acknowledged \(file.acknowledged.map(String.init) ?? "never")"
    }
}
