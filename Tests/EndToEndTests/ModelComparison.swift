import Foundation
import Glibc
import Synchronization

/// Runs sequences of operations on both sides, each time in new directories.
final class ModelComparison: Sendable {
    /// What is tried to shrink one failing sequence.
    private static let shrinkingRunsMax = 400

    /// Small files are published in less after their first close.
    private static let publishingMicroseconds: UInt32 = 30_000

    private let oracle: String
    private let subject: String
    private let runs = Atomic<Int>(0)
    private let superseded = Atomic<Int>(0)
    private let kept = Mutex<[String]>([])

    init(oracle: String, subject: String) {
        self.oracle = oracle
        self.subject = subject
    }

    /// Sequences that ended early: a reader kept the version from before a writer's open, because
    /// another file with the same content was in use (docs/posix.md).
    var supersededCount: Int { superseded.load(ordering: .relaxed) }

    struct Difference: CustomStringConvertible {
        /// How many operations were done.
        let done: Int
        let what: String
        let expected: String
        let seen: String

        var description: String { "\(what)\nexpected: \(expected)\n    seen: \(seen)" }
    }

    /// - Parameter keeps: the trees stay, for `keptDifference`.
    func difference(_ operations: [ModelOperation], keeps: Bool = false) throws -> Difference? {
        let name = "run-\(runs.wrappingAdd(1, ordering: .relaxed).newValue)"
        for side in [oracle, subject] {
            guard mkdir("\(side)/\(name)", 0o755) == 0 else {
                throw Failure("\(side)/\(name) cannot be made: \(ModelWorld.name(errno))")
            }
        }
        var isSame = false
        defer {
            if keeps, isSame {
                kept.withLock { $0.append(name) }
            } else {
                for side in [oracle, subject] {
                    try? FileManager.default.removeItem(atPath: "\(side)/\(name)")
                }
            }
        }
        let expected = try ModelWorld("\(oracle)/\(name)/top")
        let seen = try ModelWorld("\(subject)/\(name)/top")
        for (index, operation) in operations.enumerated() {
            if case .pause(let milliseconds) = operation.call { usleep(milliseconds * 1000) }
            let words = (expected.perform(operation), seen.perform(operation))
            guard words.0 == words.1 else {
                if endsSuperseded(seen) { return nil }
                return Difference(
                    done: index + 1, what: "\(operation)", expected: words.0, seen: words.1)
            }
        }
        if let found = difference(expected, seen, operations.count, "the end") {
            return endsSuperseded(seen) ? nil : found
        }
        expected.closeAll()
        seen.closeAll()
        if let found = difference(expected, seen, operations.count, "the end, all closed") {
            return found
        }
        usleep(Self.publishingMicroseconds)
        let found = difference(expected, seen, operations.count, "the end, published")
        isSame = found == nil
        return found
    }

    private func endsSuperseded(_ seen: ModelWorld) -> Bool {
        guard seen.holdsSuperseded else { return false }
        superseded.add(1, ordering: .relaxed)
        return true
    }

    /// Looks at the kept trees again.
    func keptDifference(_ what: String) throws -> Difference? {
        for name in kept.withLock({ $0 }) {
            let expected = try ModelWorld("\(oracle)/\(name)/top", isNew: false)
            let seen = try ModelWorld("\(subject)/\(name)/top", isNew: false)
            if let found = difference(expected, seen, 0, "\(name), \(what)") { return found }
        }
        return nil
    }

    private func difference(
        _ expected: ModelWorld, _ seen: ModelWorld, _ done: Int, _ what: String
    ) -> Difference? {
        let (old, new) = (expected.state(), seen.state())
        guard old != new else { return nil }
        return Difference(
            done: done, what: "The state at \(what)",
            expected: old.filter { !new.contains($0) }.joined(separator: "\n          "),
            seen: new.filter { !old.contains($0) }.joined(separator: "\n          "))
    }

    /// Leaves out what the failure does not need: halves, quarters, … single operations.
    ///
    /// What depends on the moment may fail another time only, so each part is tried twice.
    func shrunk(
        _ operations: [ModelOperation], _ difference: Difference
    ) throws -> ([ModelOperation], Difference) {
        var (rest, last) = (Array(operations.prefix(difference.done)), difference)
        var left = Self.shrinkingRunsMax
        func fails(_ part: [ModelOperation]) throws -> Difference? {
            left -= 1
            return try self.difference(part) ?? self.difference(part)
        }
        guard let again = try fails(rest) else { return (rest, last) }
        last = again
        var size = max(1, rest.count / 2)
        while left > 0 {
            var start = 0
            let before = rest.count
            while start < rest.count, left > 0 {
                var part = rest
                part.removeSubrange(start..<min(start + size, rest.count))
                if let found = try fails(part) {
                    (rest, last) = (Array(part.prefix(found.done)), found)
                } else {
                    start += size
                }
            }
            if size == 1, rest.count == before { break }
            size = max(1, size / 2)
        }
        return (rest, last)
    }
}
