public import SystemPackage

/// What the disk refused, and in which operation.
public struct StoreError: Error, Hashable, Sendable {
    /// For messages: the call and its subject, for example `rename staging/7.1`.
    public let operation: String
    public let errno: Errno
    public let reason: Reason

    public enum Reason: Hashable, Sendable {
        /// The operating system's answer; see `errno`.
        case system
        /// Another process holds the lock of this root. `errno` is EWOULDBLOCK.
        case rootInUse
        /// Group or others may enter the root. `errno` is EPERM.
        case rootTooWide
        /// A file is shorter or longer than its content. `errno` is EIO.
        case wrongLength
        /// Bytes or a piece layer do not belong to the root they were given for. `errno` is EBADMSG.
        case mismatch
        /// The caller's `Cancellation`. `errno` is ECANCELED.
        case canceled
    }

    init(_ operation: String, _ errno: Errno) {
        self.operation = operation
        self.errno = errno
        reason = .system
    }

    init(_ operation: String, _ reason: Reason) {
        self.operation = operation
        self.reason = reason
        errno =
            switch reason {
            case .system: .ioError
            case .rootInUse: .wouldBlock
            case .rootTooWide: .notPermitted
            case .wrongLength: .ioError
            case .mismatch: .badMessage
            case .canceled: .canceled
            }
    }
}

extension StoreError: CustomStringConvertible {
    public var description: String {
        switch reason {
        case .system: "\(operation): \(errno)"
        case .rootInUse: "\(operation): in use by another process"
        case .rootTooWide: "\(operation): group or others may enter it"
        case .wrongLength: "\(operation): not as long as its content"
        case .mismatch: "\(operation): bytes do not match the content root"
        case .canceled: "\(operation): canceled"
        }
    }
}
