import CFUSE
import Glibc
import Synchronization
public import SystemPackage

/// The right to answer one request. Only the methods of `Answering` do something with it.
public struct Ticket: Sendable {
    let connection: Connection
    let unique: UInt64
    let opcode: Opcode
    /// nil once a request does not hold up invalidations any more.
    var epoch: UInt64?
    var isDetached = false

    /// Writes the answer and ends the request.
    func deliver(
        _ first: UnsafeRawBufferPointer? = nil, _ second: UnsafeRawBufferPointer? = nil
    ) -> Bool {
        connection.finish(self, error: 0, first, second)
    }

    /// Named apart: a buffer pointer is bitwise copyable as well.
    func deliver<Body: BitwiseCopyable>(
        structure: Body, _ second: UnsafeRawBufferPointer? = nil
    ) -> Bool {
        withUnsafeBytes(of: structure) { deliver($0, second) }
    }

    func fail(_ error: Errno) -> Bool {
        // The kernel takes -511 ... 0 and refuses the whole packet otherwise.
        let code = (1...511).contains(error.rawValue) ? error.rawValue : EIO
        return connection.finish(self, error: -code)
    }
}

/// Something that owes the kernel exactly one answer.
///
/// Every method answers and returns whether the kernel took the answer. `false` after `entry`,
/// `create` or `open` means that the caller was interrupted (or the mount is gone) and that the
/// kernel knows nothing of it: the lookup count, the open file or the directory page must be
/// undone as by FORGET and RELEASE, which will not come.
public protocol Answering: ~Copyable, Sendable {
    /// The right to answer; nil when it was used already.
    consuming func take() -> Ticket?
}

extension Answering where Self: ~Copyable {
    /// LOOKUP, MKNOD, MKDIR, SYMLINK, LINK: counts one lookup of the node.
    @discardableResult
    public consuming func entry(_ entry: EntryOut) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_entry_out(entry))
    }

    /// GETATTR, SETATTR.
    @discardableResult
    public consuming func attributes(_ attributes: Attributes, valid: Duration) -> Bool {
        guard let ticket = take() else { return false }
        let (seconds, nanoseconds) = valid.wire
        return ticket.deliver(
            structure: cfuse_attr_out(
                attr_valid: seconds, attr_valid_nsec: nanoseconds, dummy: 0,
                attr: cfuse_attr(attributes)))
    }

    /// OPEN, OPENDIR. With a backing id (OPEN only) the file is opened in passthrough mode.
    @discardableResult
    public consuming func open(_ handle: UInt64, flags: OpenFlags = [], backing: Int32 = 0) -> Bool
    {
        guard let ticket = take() else { return false }
        return ticket.deliver(
            structure: cfuse_open_out(handle: handle, flags: flags, backing: backing))
    }

    /// CREATE, TMPFILE: counts one lookup and opens.
    @discardableResult
    public consuming func create(
        _ entry: EntryOut, handle: UInt64, flags: OpenFlags = [], backing: Int32 = 0
    ) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(
            structure: cfuse_create_out(
                entry: cfuse_entry_out(entry),
                open: cfuse_open_out(handle: handle, flags: flags, backing: backing)))
    }

    /// READ, READLINK, LISTXATTR and others: bytes, at most as many as were asked for.
    @discardableResult
    public consuming func data(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(bytes)
    }

    @discardableResult
    public consuming func data(_ bytes: [UInt8]) -> Bool {
        guard let ticket = take() else { return false }
        return bytes.withUnsafeBytes { ticket.deliver($0) }
    }

    /// READ: up to `size` bytes of a file, by way of a pooled buffer.
    @discardableResult
    public consuming func data(ofFile descriptor: Int32, offset: UInt64, size: Int) -> Bool {
        guard let ticket = take() else { return false }
        guard let start = off_t(exactly: offset) else { return ticket.fail(.invalidArgument) }
        return ticket.connection.readBuffers.withBuffer { buffer in
            let buffer = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(size, buffer.count)])
            switch readFully(descriptor, start, into: buffer) {
            case .success(let count):
                return ticket.deliver(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            case .failure(let error):
                return ticket.fail(error)
            }
        }
    }

    /// WRITE, COPY_FILE_RANGE: bytes done.
    @discardableResult
    public consuming func written(_ count: Int) -> Bool {
        guard let ticket = take() else { return false }
        if ticket.opcode == .copyFileRange64 { return ticket.deliver(structure: UInt64(count)) }
        return ticket.deliver(structure: cfuse_write_out(size: UInt32(count), padding: 0))
    }

    @discardableResult
    public consuming func error(_ error: Errno) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.fail(error)
    }

    /// Success of everything that returns nothing.
    @discardableResult
    public consuming func empty() -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver()
    }

    @discardableResult
    public consuming func statfs(_ statistics: VolumeStatistics) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_kstatfs(statistics))
    }

    /// GETXATTR, LISTXATTR: the value, or its size when `capacity` is 0, or ERANGE when it does
    /// not fit.
    @discardableResult
    public consuming func xattr(_ value: [UInt8], capacity: Int) -> Bool {
        if capacity == 0 { return xattrSize(value.count) }
        if value.count > capacity { return error(.outOfRange) }
        return data(value)
    }

    @discardableResult
    public consuming func xattrSize(_ size: Int) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_getxattr_out(size: UInt32(size), padding: 0))
    }

    @discardableResult
    public consuming func lseek(_ offset: UInt64) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_lseek_out(offset: offset))
    }

    /// GETLK.
    @discardableResult
    public consuming func lock(_ lock: FileLock) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(
            structure: cfuse_file_lock(
                start: lock.start, end: lock.end, type: lock.type, pid: lock.pid))
    }

    /// BMAP.
    @discardableResult
    public consuming func block(_ number: UInt64) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_bmap_out(block: number))
    }

    /// POLL.
    @discardableResult
    public consuming func poll(_ events: UInt32) -> Bool {
        guard let ticket = take() else { return false }
        return ticket.deliver(structure: cfuse_poll_out(revents: events, padding: 0))
    }

    @discardableResult
    public consuming func ioctl(result: Int32, output: [UInt8] = []) -> Bool {
        guard let ticket = take() else { return false }
        let body = cfuse_ioctl_out(result: result, flags: 0, in_iovs: 0, out_iovs: 0)
        return output.withUnsafeBytes { ticket.deliver(structure: body, $0) }
    }

    /// READDIR, READDIRPLUS. An empty buffer is the end of the directory.
    @discardableResult
    public consuming func directory(_ buffer: DirectoryBuffer) -> Bool {
        guard let ticket = take() else { return false }
        return buffer.bytes.withUnsafeBytes { ticket.deliver($0) }
    }
}

/// Reads until the buffer is full or the file ends: the kernel takes a short answer to READ for the
/// end of the file.
private func readFully(
    _ descriptor: Int32, _ offset: off_t, into buffer: UnsafeMutableRawBufferPointer
) -> Result<Int, Errno> {
    var filled = 0
    while filled < buffer.count {
        let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[filled...])
        let count = pread(descriptor, rest.baseAddress, rest.count, offset + off_t(filled))
        if count == 0 { break }
        if count < 0 {
            let code = errno
            if code == EINTR { continue }
            return .failure(Errno(rawValue: code))
        }
        filled += count
    }
    return .success(filled)
}

/// The answer that a handler owes, to be given before it returns or moved to whoever waits by
/// `detach`. Dropping it answers EIO: no process ever hangs because of a forgotten reply.
public struct Reply: ~Copyable, Answering {
    private let ticket: Ticket
    private var isAnswered = false

    init(_ ticket: Ticket) {
        self.ticket = ticket
    }

    deinit {
        if isAnswered { return }
        ticket.connection.report("a \(ticket.opcode) request was dropped without an answer")
        _ = ticket.fail(.ioError)
    }

    public consuming func take() -> Ticket? {
        isAnswered = true
        return ticket
    }

    /// Moves the answer off the reader thread. At the bound of `RequestTable.detachedMax` the
    /// request is answered ENOMEM and the result ignores what it is told.
    ///
    /// A detached request whose answer the kernel does not keep (`Opcode.isAnswerKept`), for example
    /// READ, OPEN and FSYNC, no longer holds up `Session.afterCurrentRequests`. SETATTR neither: give
    /// its answer no validity.
    public consuming func detach() -> PendingReply {
        isAnswered = true
        return PendingReply.detach(ticket, isKept: ticket.opcode.isAnswerKept)
    }

    /// As `detach`, for an answer about what never changes: no invalidation waits for it.
    public consuming func detachUnordered() -> PendingReply {
        isAnswered = true
        return PendingReply.detach(ticket, isKept: false)
    }

    /// READ of a file that perhaps cannot be read: then nothing is answered yet.
    public consuming func data(
        ofFile descriptor: Int32, offset: UInt64, size: Int,
        otherwise: (PendingReply, Errno) -> Void
    ) {
        isAnswered = true
        let ticket = ticket
        let failure = readAndDeliver(descriptor, offset, size, ticket.connection) { ticket }
        if let failure {
            otherwise(
                PendingReply.detach(ticket, isKept: ticket.opcode.isAnswerKept), failure)
        }
    }
}

/// - Parameter take: called once the bytes are there.
/// - Returns: why they are not.
private func readAndDeliver(
    _ descriptor: Int32, _ offset: UInt64, _ size: Int, _ connection: Connection,
    _ take: () -> Ticket?
) -> Errno? {
    guard let start = off_t(exactly: offset) else { return .invalidArgument }
    return connection.readBuffers.withBuffer { buffer in
        let buffer = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(size, buffer.count)])
        switch readFully(descriptor, start, into: buffer) {
        case .success(let count):
            _ = take()?.deliver(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            return nil
        case .failure(let error): return error
        }
    }
}

/// An answer owed by somebody other than a reader thread. The first answer counts, later ones are
/// ignored; dropping it unanswered answers EIO.
public final class PendingReply: Answering, Sendable {
    private struct State {
        var ticket: Ticket?
        var isInterrupted = false
        var onInterrupt: (@Sendable () -> Void)?
    }

    private let state: Mutex<State>

    private init(_ ticket: Ticket) {
        state = Mutex(State(ticket: ticket))
    }

    deinit {
        guard let ticket = take() else { return }
        ticket.connection.report("a waiting \(ticket.opcode) request was dropped unanswered")
        _ = ticket.fail(.ioError)
    }

    /// - Parameter isKept: the kernel may keep the answer, so that invalidations are to come after it.
    static func detach(_ ticket: Ticket, isKept: Bool) -> PendingReply {
        let connection = ticket.connection
        var detached = ticket
        detached.isDetached = true
        if !isKept { detached.epoch = nil }
        let reply = PendingReply(detached)
        switch connection.requests.detach(ticket.unique, reply) {
        case .registered: break
        case .alreadyInterrupted: reply.interrupt()
        case .refused: reply.error(.noMemory)
        }
        if detached.epoch == nil, let epoch = ticket.epoch { connection.leave(epoch) }
        return reply
    }

    public func take() -> Ticket? {
        // The handler may hold the reply: dropping it here breaks the cycle, outside the lock.
        let (ticket, _) = state.withLock { state in
            defer {
                state.ticket = nil
                state.onInterrupt = nil
            }
            return (state.ticket, state.onInterrupt)
        }
        return ticket
    }

    /// READ: up to `size` bytes of a file.
    ///
    /// - Returns: why it cannot be read; nothing is answered then.
    public func tryData(ofFile descriptor: Int32, offset: UInt64, size: Int) -> Errno? {
        guard let connection = state.withLock({ $0.ticket?.connection }) else { return nil }
        return readAndDeliver(descriptor, offset, size, connection) { take() }
    }

    /// The caller got a signal: it waits on until it is answered.
    public var isInterrupted: Bool {
        state.withLock { $0.isInterrupted }
    }

    /// Nobody waits for the answer any more.
    public var isAnswered: Bool {
        state.withLock { $0.ticket == nil }
    }

    /// Runs `handler` once when the caller is interrupted, at once if it was already: on a reader
    /// thread, so it must not block. The usual handler stops the wait and answers EINTR.
    public func onInterrupt(_ handler: @escaping @Sendable () -> Void) {
        let runNow = state.withLock { state in
            if state.ticket == nil { return false }
            if state.isInterrupted { return true }
            state.onInterrupt = handler
            return false
        }
        if runNow { handler() }
    }

    func interrupt() {
        let handler = state.withLock { state in
            state.isInterrupted = true
            defer { state.onInterrupt = nil }
            return state.onInterrupt
        }
        handler?()
    }
}
