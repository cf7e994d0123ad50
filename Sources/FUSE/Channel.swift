import CFUSE
import Glibc
import SystemPackage

/// The open FUSE device: packets in, packets out. Knows nothing of their meaning.
///
/// Sendable without a lock: the descriptor never changes, and the kernel serialises packets.
final class Channel: Sendable {
    let descriptor: Int32

    /// Takes over the descriptor, which becomes non-blocking and is closed with the channel.
    init(takingOver descriptor: Int32) {
        precondition(descriptor >= 0, "a channel needs an open descriptor")
        self.descriptor = descriptor
        let flags = fcntl(descriptor, F_GETFL)
        _ = fcntl(descriptor, F_SETFL, flags | O_NONBLOCK)
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    }

    deinit {
        close(descriptor)
    }

    enum Arrival: Equatable {
        case packet(Int)
        /// Nothing there now.
        case nothing
        /// The file system was unmounted or the connection aborted.
        case ended
        case failed(Errno)
    }

    func receive(into buffer: UnsafeMutableRawBufferPointer) -> Arrival {
        let count = Glibc.read(descriptor, buffer.baseAddress, buffer.count)
        if count > 0 { return .packet(count) }
        // Nothing read is what the null device put in place by `shutDown` says.
        if count == 0 { return .ended }
        let code = errno
        switch code {
        // ENOENT: the request was interrupted while the kernel copied it.
        case EAGAIN, EINTR, ENOENT: return .nothing
        case ENODEV, ECONNABORTED: return .ended
        default: return .failed(Errno(rawValue: code))
        }
    }

    enum Delivery: Equatable {
        case delivered
        /// The kernel no longer waits for this answer: the caller was interrupted.
        case abandoned
        case failed(Errno)
    }

    /// Writes one packet. `error` is a negative errno, or the code of a notification.
    func send(
        unique: UInt64, error: Int32, _ first: UnsafeRawBufferPointer? = nil,
        _ second: UnsafeRawBufferPointer? = nil
    ) -> Delivery {
        let headerSize = MemoryLayout<cfuse_out_header>.size
        let total = headerSize + (first?.count ?? 0) + (second?.count ?? 0)
        var header = cfuse_out_header(len: UInt32(total), error: error, unique: unique)
        // writev only reads through these pointers.
        func vector(_ bytes: UnsafeRawBufferPointer?) -> iovec {
            iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes?.baseAddress),
                iov_len: bytes?.count ?? 0)
        }
        return withUnsafeBytes(of: &header) { head in
            withUnsafeTemporaryAllocation(of: iovec.self, capacity: 3) { vectors in
                vectors.initializeElement(at: 0, to: vector(head))
                vectors.initializeElement(at: 1, to: vector(first))
                vectors.initializeElement(at: 2, to: vector(second))
                while writev(descriptor, vectors.baseAddress, 3) < 0 {
                    let code = errno
                    if code == EINTR { continue }
                    return code == ENOENT ? .abandoned : .failed(Errno(rawValue: code))
                }
                return .delivered
            }
        }
    }

    /// Registers a file for passthrough. The corresponding C function is `ioctl`.
    func openBacking(_ file: Int32) throws(Errno) -> Int32 {
        var map = cfuse_backing_map(fd: file, flags: 0, padding: 0)
        let id = ioctl(descriptor, UInt(CFUSE_IOCTL_BACKING_OPEN), &map)
        if id < 1 { throw id < 0 ? Errno(rawValue: errno) : .ioError }
        return id
    }

    func closeBacking(_ id: Int32) throws(Errno) {
        var id = UInt32(bitPattern: id)
        if ioctl(descriptor, UInt(CFUSE_IOCTL_BACKING_CLOSE), &id) < 0 {
            throw Errno(rawValue: errno)
        }
    }

    /// Lets go of the device while other threads may still hold the channel: the descriptor's
    /// number stays taken, by the null device, until the last of them is done, so that a late
    /// reply can never reach an unrelated file. The kernel aborts the connection once the last
    /// call in progress has returned.
    func shutDown() {
        let null = Glibc.open("/dev/null", O_RDONLY | O_CLOEXEC)
        guard null >= 0 else { return }
        _ = dup3(null, descriptor, O_CLOEXEC)
        close(null)
    }
}
