/// The head of a request, handed to every call.
public struct RequestHeader: Hashable, Sendable {
    /// Identifies the request during its life.
    public let unique: UInt64
    /// The node that the request is about; for requests that carry a name, the directory.
    public let nodeid: UInt64
    /// Who asks. All zero for requests that the kernel makes on its own behalf.
    public let uid: UInt32
    public let gid: UInt32
    public let pid: UInt32

    public init(unique: UInt64, nodeid: UInt64, uid: UInt32, gid: UInt32, pid: UInt32) {
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid
    }
}

/// A request, decoded and checked. Buffers point into the reader's own memory and live only until
/// the request has been dispatched.
enum Operation {
    case lookup(name: [UInt8])
    case forget(count: UInt64)
    case batchForget(UnsafeRawBufferPointer)
    case getattr(handle: UInt64?)
    case setattr(SetAttributes)
    case readlink
    case symlink(name: [UInt8], target: [UInt8])
    case mknod(name: [UInt8], mode: UInt32, umask: UInt32, device: UInt32)
    case mkdir(name: [UInt8], mode: UInt32, umask: UInt32)
    case unlink(name: [UInt8])
    case rmdir(name: [UInt8])
    case rename(name: [UInt8], newParent: UInt64, newName: [UInt8], flags: RenameFlags)
    case link(target: UInt64, name: [UInt8])
    case open(flags: Int32, killPrivileges: Bool)
    case create(name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32, killPrivileges: Bool)
    case tmpfile(flags: Int32, mode: UInt32, umask: UInt32)
    case read(handle: UInt64, offset: UInt64, size: Int)
    case write(handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer, flags: WriteFlags)
    case statfs
    case release(handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags, lockOwner: UInt64)
    case flush(handle: UInt64, lockOwner: UInt64)
    case fsync(handle: UInt64, dataOnly: Bool)
    case syncfs
    case setxattr(name: [UInt8], value: UnsafeRawBufferPointer, flags: SetXattrFlags)
    case getxattr(name: [UInt8], capacity: Int)
    case listxattr(capacity: Int)
    case removexattr(name: [UInt8])
    case opendir(flags: Int32)
    case readdir(handle: UInt64, offset: UInt64, size: Int)
    case readdirplus(handle: UInt64, offset: UInt64, size: Int)
    case releasedir(handle: UInt64)
    case fsyncdir(handle: UInt64, dataOnly: Bool)
    case lock(LockRequest)
    case access(mask: Int32)
    case bmap(block: UInt64, blockSize: UInt32)
    case ioctl(IoctlRequest)
    case poll(handle: UInt64, events: UInt32)
    case fallocate(handle: UInt64, offset: UInt64, length: UInt64, mode: Int32)
    case lseek(handle: UInt64, offset: UInt64, whence: Int32)
    case copyFileRange(CopyRequest)
    case statx(handle: UInt64?, flags: UInt32, mask: UInt32)
    case interrupt(unique: UInt64)
    case initialize(InitRequest)
    case destroy
    case notifyReply
}

/// A GETLK, SETLK or SETLKW; only sent when locks were negotiated.
public struct LockRequest: Hashable, Sendable {
    public enum Action: Hashable, Sendable { case query, set, setAndWait }
    public let action: Action
    public let handle: UInt64
    public let owner: UInt64
    public let lock: FileLock
    /// An `flock(2)` rather than an `fcntl(2)` lock.
    public let isFlock: Bool
}

/// An ioctl on an open file or directory of the mount.
public struct IoctlRequest: Hashable, Sendable {
    public let handle: UInt64
    public let flags: UInt32
    public let command: UInt32
    public let argument: UInt64
    public let input: [UInt8]
    public let outputSize: UInt32
}

/// A `copy_file_range(2)` between two open files of the mount.
public struct CopyRequest: Hashable, Sendable {
    public let handle: UInt64
    public let offset: UInt64
    public let targetNode: UInt64
    public let targetHandle: UInt64
    public let targetOffset: UInt64
    /// Bytes; at most what the reply can express.
    public let length: UInt64
    public let flags: UInt64
}

/// What the kernel offers.
struct InitRequest: Hashable, Sendable {
    var major: UInt32
    var minor: UInt32
    var maxReadahead: UInt32
    var flags: InitFlags
}
