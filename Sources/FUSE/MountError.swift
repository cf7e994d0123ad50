public import SystemPackage

/// Why a file system could not be mounted or unmounted. The description says what to do about it.
public struct MountError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Code: Hashable, Sendable {
        /// `/dev/fuse` does not exist: the kernel module is not loaded, or a container hides it.
        case noDevice
        /// `/dev/fuse` may not be opened, or mounting is not allowed.
        case notPermitted
        /// `fusermount3` is not installed.
        case noHelper
        /// `fusermount3` refused.
        case helperFailed
        /// The mount point does not exist or is not a directory.
        case badMountPoint
        /// Something live is mounted there already.
        case alreadyMounted
        /// The mount point holds a mount whose server is gone: `Mounting.recoverStale` removes it.
        case stale
        /// Nothing of ours is mounted there.
        case notMounted
        /// Files of the mount are open, or a process has its directory there.
        case busy
        case system
    }

    public let code: Code
    public let path: FilePath
    /// The cause, where it was a system call.
    public let errno: Errno?
    /// What the helper program said.
    public let detail: String

    init(_ code: Code, _ path: FilePath, errno: Errno? = nil, detail: String = "") {
        self.code = code
        self.path = path
        self.errno = errno
        self.detail = detail
    }

    public var description: String {
        let cause = errno.map { " (\($0))" } ?? ""
        return switch code {
        case .noDevice:
            "there is no /dev/fuse\(cause): load the module with `modprobe fuse`, or give the "
                + "container the device"
        case .notPermitted:
            "mounting on \(path) is not permitted\(cause): run as root, or make /dev/fuse "
                + "accessible to this user"
        case .noHelper:
            "mounting without root needs the program fusermount3: install the package fuse3"
        case .helperFailed:
            "fusermount3 failed for \(path): \(detail)"
        case .badMountPoint:
            "\(path) cannot be mounted on\(cause): it must be an existing directory"
        case .alreadyMounted:
            "something is mounted on \(path) already: unmount it first"
        case .stale:
            "\(path) holds a dead mount\(cause): remove it with `umount -l \(path)`"
        case .notMounted:
            "nothing is mounted on \(path)"
        case .busy:
            "\(path) is in use\(cause): close what is open there, or unmount lazily"
        case .system:
            "mounting on \(path) failed\(cause)"
        }
    }
}
