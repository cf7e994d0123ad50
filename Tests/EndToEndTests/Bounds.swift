import Glibc

/// Every wait of these tests ends after one of these. A debug build on two busy processors has to
/// meet them, so they are wide; what was measured is printed where the issue names a number.
enum Bounds {
    /// One ordinary command.
    static let command = Duration.seconds(30)
    /// A command that moves a lot of data, or copies a tree.
    static let transfer = Duration.seconds(isLong ? 1800 : 120)
    /// From the start of a node until it is mounted and listens.
    static let ready = Duration.seconds(30)
    /// A refusal; joining alone waits 10 s for a peer.
    static let refusal = Duration.seconds(25)
    /// From `stop` to the end of the process.
    static let stop = Duration.seconds(40)
    /// Nodes see each other (acceptance: 10 s).
    static let online = Duration.seconds(10)
    /// A closed file is visible on another mount.
    static let visible = Duration.seconds(10)
    /// Copies of a new file are complete.
    static let replicated = Duration.seconds(isLong ? 900 : 60)
    /// A cut or stopped node is seen as offline.
    static let offline = Duration.seconds(30)
    /// A read without any source ends in EIO.
    static let starvedRead = Duration.seconds(90)
    /// Between two looks at something.
    static let poll = Duration.milliseconds(50)
    /// A child that was killed is gone.
    static let reaped = Duration.seconds(10)

    /// Full sizes instead of short ones.
    static let isLong = environment("DELUGEFS_TEST_LONG") != nil
}

func environment(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

/// Why a test could not go on; the sentence is all that a reader of the log gets.
struct Failure: Error, CustomStringConvertible {
    let description: String

    init(_ sentence: String) { description = sentence }
}

/// Looks again and again until something is there.
/// - Throws: `Failure` naming what was waited for, with the last thing that was seen.
@discardableResult
func eventually<Value>(
    _ what: String, within bound: Duration, _ look: () async throws -> Value?
) async throws -> Value {
    let start = ContinuousClock.now
    var last: (any Error)?
    repeat {
        do {
            if let value = try await look() { return value }
            last = nil
        } catch let failure as Failure { last = failure }
        try await Task.sleep(for: Bounds.poll)
    } while ContinuousClock.now - start < bound
    let seen = last.map { " Last: \($0)" } ?? ""
    throw Failure("Not within \(bound): \(what).\(seen)")
}

/// The same for a condition.
func eventually(
    _ what: String, within bound: Duration, _ isTrue: () async throws -> Bool
) async throws {
    _ = try await eventually(what, within: bound) { try await isTrue() ? true : nil }
}
