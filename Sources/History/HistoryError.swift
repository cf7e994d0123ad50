import CGit

/// Why an operation on the history failed.
///
/// `message` is libgit2's own where it gave one; `libraryCode` is its raw return value, 0 where the
/// finding is ours.
public struct HistoryError: Error, Sendable, Hashable {
    public enum Code: Sendable, Hashable {
        /// No such object, reference or pack.
        case notFound
        /// Bytes that are not what they must be: damaged, not canonical, of the wrong kind.
        case malformed
        /// A named limit would be exceeded.
        case tooLarge
        /// An object that a commit needs is neither here nor in what was received.
        case incomplete
        /// The pack holds objects that none of the expected commits needs.
        case unrelated
        /// Too little free space on the disk.
        case noSpace
        /// A system call failed; `libraryCode` is its errno.
        case system
        /// Any other failure inside libgit2.
        case library
    }

    public let code: Code
    public let operation: String
    public let message: String
    public let libraryCode: Int32

    init(_ code: Code, _ operation: String, _ message: String, libraryCode: Int32 = 0) {
        self.code = code
        self.operation = operation
        self.message = message
        self.libraryCode = libraryCode
    }
}

extension HistoryError: CustomStringConvertible {
    public var description: String { "history: \(operation): \(message) (\(code), \(libraryCode))" }
}

/// Turns a libgit2 return value into a thrown error.
///
/// Must be given the value in the statement after the call: the message is thread-local and the
/// next call into libgit2 on this thread replaces it. libgit2 1.5 may have none.
@discardableResult
func check(_ code: CInt, _ operation: @autoclosure () -> String) throws(HistoryError) -> CInt {
    guard code < 0 else { return code }
    let message = git_error_last().flatMap { error in
        error.pointee.message.map { String(cString: $0) }
    }
    let kind: HistoryError.Code =
        switch code {
        case GIT_ENOTFOUND.rawValue: .notFound
        case GIT_EMISMATCH.rawValue: .malformed
        default: .library
        }
    throw HistoryError(kind, operation(), message ?? "no message", libraryCode: code)
}
