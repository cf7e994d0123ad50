import Synchronization

/// What was done to each file, when, and from when on it had to survive a power cut.
final class PowerCutLedger: Sendable {
    typealias Instant = ContinuousClock.Instant

    /// The disk as it was at one moment between two.
    struct Cut: Sendable {
        let image: String
        let begin: Instant
        let end: Instant
    }

    private struct State {
        /// nil: no such file.
        let content: DrawnContent?
        let isInPlace: Bool
        let begun = ContinuousClock.now
        var acknowledged: Instant?
    }

    private struct Rename {
        let from: String
        let to: String
        let begun = ContinuousClock.now
    }

    let pool: BytePool
    private let files = Mutex<[String: [State]]>([:])
    private let renames = Mutex<[Rename]>([])
    private let over = Atomic<Bool>(false)

    init(_ pool: BytePool) { self.pool = pool }

    var isOver: Bool { over.load(ordering: .relaxed) }

    func end() { over.store(true, ordering: .relaxed) }

    var acknowledgedCount: Int {
        files.withLock { $0.values.reduce(0) { $0 + $1.count { $0.acknowledged != nil } } }
    }

    func begin(_ path: String, _ content: DrawnContent?, isInPlace: Bool = false) {
        files.withLock {
            $0[path, default: []].append(State(content: content, isInPlace: isInPlace))
        }
    }

    /// Of files that had been acknowledged, and that nothing else is done to from now on.
    func beginRename(_ from: String, _ to: String) {
        renames.withLock { $0.append(Rename(from: from, to: to)) }
        begin(to, content(from))
        begin(from, nil)
    }

    func acknowledge(_ paths: String...) { acknowledge(paths) }

    func acknowledge(_ paths: [String]) {
        files.withLock { files in
            for path in paths {
                guard let last = files[path]?.indices.last else { continue }
                if files[path]?[last].acknowledged == nil {
                    files[path]?[last].acknowledged = ContinuousClock.now
                }
            }
        }
    }

    /// The last one.
    func content(_ path: String) -> DrawnContent? {
        files.withLock { $0[path]?.last?.content }
    }

    func isAcknowledged(_ path: String) -> Bool {
        files.withLock { $0[path]?.last?.acknowledged != nil }
    }

    /// - Parameter read: what a file of the image holds, nil if there is none.
    /// - Returns: what is wrong, each in a sentence.
    func faults(_ cut: Cut, names: [String], read: (String) throws -> [UInt8]?) rethrows -> [String]
    {
        let files = files.withLock { $0 }
        var faults: [String] = []
        var isThere: [String: Bool] = [:]
        for (path, states) in files.sorted(by: { $0.key < $1.key }) {
            let bytes = try read(path)
            isThere[path] = bytes != nil
            if !isPossible(bytes, states, cut) {
                faults.append("\(path) has \(Self.story(bytes, states, cut, pool))")
            }
        }
        for rename in renames.withLock({ $0 }) where rename.begun < cut.end {
            let isBoth = isThere[rename.from] == true && isThere[rename.to] == true
            // The cut may have come before the file was made.
            let wasThere = files[rename.from]?.first?.acknowledged.map { $0 < cut.begin } ?? false
            let isNone = isThere[rename.from] == false && isThere[rename.to] == false
            if isBoth || isNone && wasThere {
                faults.append("\(rename.from) and \(rename.to): both or none of a rename")
            }
        }
        for name in names where files[name] == nil {
            // What was in a file before an edit that the disk may have spoiled.
            let parts = name.split(separator: " ", maxSplits: 1)
            let bytes = try read(name)
            let states = (files[String(parts[0])] ?? []).filter { $0.begun < cut.end }
            let isKnown = states.contains { state in
                bytes.map { state.content?.difference($0, pool) == nil } ?? false
            }
            if !name.contains("(conflict ") || !isKnown { faults.append("\(name) is unknown") }
        }
        return faults
    }

    private func isPossible(_ bytes: [UInt8]?, _ states: [State], _ cut: Cut) -> Bool {
        let certain = states.lastIndex { $0.acknowledged.map { $0 < cut.begin } ?? false }
        if certain == nil, bytes == nil { return true }
        for state in states[(certain ?? 0)...] where state.begun < cut.end {
            guard let bytes, let content = state.content else {
                if bytes == nil, state.content == nil { return true }
                continue
            }
            guard content.difference(bytes, pool) != nil else { return true }
            let isSafe = state.acknowledged.map { $0 < cut.begin } ?? false
            if state.isInPlace, !isSafe, isUnfinished(bytes, content) { return true }
        }
        return false
    }

    /// A part of it, and zeros where the disk knows the length already and not the bytes yet, as it
    /// may of any file that was not synced.
    private func isUnfinished(_ bytes: [UInt8], _ content: DrawnContent) -> Bool {
        bytes.count <= content.count
            && zip(bytes, content.bytes(pool)).allSatisfy { $0 == $1 || $0 == 0 }
    }

    private static func story(
        _ bytes: [UInt8]?, _ states: [State], _ cut: Cut, _ pool: BytePool
    ) -> String {
        let was = states.filter { $0.begun < cut.end }.suffix(8).map { state in
            let length = state.content.map { "\($0.count)" } ?? "-"
            let same = bytes.flatMap { state.content?.difference($0, pool) }
            let begun = "begun \(cut.begin - state.begun) before"
            let safe = state.acknowledged.map { ", safe \(cut.begin - $0) before" } ?? ""
            return "\(length) (\(begun)\(safe), same to \(same.map(String.init) ?? "-"))"
        }
        return "\(bytes.map { "\($0.count) bytes" } ?? "gone") of \(was.joined(separator: "; "))"
    }
}
