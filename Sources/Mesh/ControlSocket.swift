import Glibc
import SystemPackage

/// The address of `ROOT/control.sock`, whatever ROOT's length.
///
/// A socket's name holds at most 107 bytes, so the way leads through the open directory:
/// `/proc/self/fd/N/control.sock`.
struct ControlSocketAddress: ~Copyable {
    static let name = "control.sock"
    /// O_PATH, which Glibc's module hides behind _GNU_SOURCE.
    private static let openPath: CInt = 0o10_000_000

    let directory: CInt
    /// Who owns ROOT.
    let owner: uid_t

    init(root: FilePath) throws(Errno) {
        directory = root.withPlatformString { open($0, Self.openPath | O_DIRECTORY | O_CLOEXEC) }
        guard directory >= 0 else { throw Errno(rawValue: errno) }
        do throws(Errno) {
            owner = try FileDescriptor(rawValue: directory).stat().userID.rawValue
        } catch {
            close(directory)
            throw error
        }
    }

    deinit { close(directory) }

    /// Calls `bind` or `connect` with the address.
    func use(_ call: (UnsafePointer<sockaddr>, socklen_t) -> CInt) throws(Errno) {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let path = Array("/proc/self/fd/\(directory)/\(Self.name)".utf8)
        // At most 40 bytes; sun_path holds 108 and is zeroed.
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                call($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else { throw Errno(rawValue: errno) }
    }

    func unlinkName() { unlinkat(directory, Self.name, 0) }
}

/// `struct ucred`, which Glibc's module hides behind _GNU_SOURCE: who is at the other end.
struct SocketCredentials: Sendable {
    var pid: pid_t
    var uid: uid_t
    var gid: gid_t
}
