import Glibc
import SystemPackage

/// A file system: one method per request of the kernel.
///
/// Methods are called on the session's reader threads, concurrently, and the order between
/// requests is the kernel's: it holds its directory and inode locks while it waits, nothing more.
/// A method answers before it returns, or detaches the reply and returns at once: what blocks a
/// reader thread blocks other processes. It must not touch the mount that it serves.
///
/// `request.nodeid` is the node in question, for requests with a name the directory. Every answer
/// with an entry counts a lookup; `forget` takes counts back, and a node must be kept while its
/// count is above zero or it is open.
///
/// Defaults: reads find nothing, changes are refused, and where ENOSYS makes the kernel do without
/// the request for good and that is right for a file system without the feature, ENOSYS. OPEN and
/// OPENDIR must never be answered ENOSYS (a kernel bug, CVE-2025-68821).
public protocol FileSystem: AnyObject, Sendable {
    /// The connection is settled. Called once, before every other method.
    func initialized(_ features: Features)
    /// No request will come any more. Called once, after every other method has returned.
    func ended()

    /// Whose methods are called for requests on this node, `forget` among them: a file system may
    /// consist of parts, each with nodeids of its own. Always the same one for a nodeid.
    func part(of nodeid: UInt64) -> any FileSystem

    func lookup(_ request: RequestHeader, name: [UInt8], reply: consuming Reply)
    func forget(nodeid: UInt64, count: UInt64)

    /// `handle` is only given when the kernel has one at hand: nodes that were unlinked while open
    /// must be found by their id.
    func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply)
    /// The server keeps mtime and ctime: the kernel does not send them with a change of size.
    func setattr(_ request: RequestHeader, _ changes: SetAttributes, reply: consuming Reply)
    /// Only asked for when `statx(2)` wants the birth time. ENOSYS unless overridden: there is no
    /// answer for it yet.
    func statx(
        _ request: RequestHeader, handle: UInt64?, flags: UInt32, mask: UInt32,
        reply: consuming Reply)
    func access(_ request: RequestHeader, mask: Int32, reply: consuming Reply)
    func readlink(_ request: RequestHeader, reply: consuming Reply)

    func symlink(
        _ request: RequestHeader, name: [UInt8], target: [UInt8], reply: consuming Reply)
    func mknod(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32, device: UInt32,
        reply: consuming Reply)
    func mkdir(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32,
        reply: consuming Reply)
    func unlink(_ request: RequestHeader, name: [UInt8], reply: consuming Reply)
    func rmdir(_ request: RequestHeader, name: [UInt8], reply: consuming Reply)
    func rename(
        _ request: RequestHeader, name: [UInt8], newParent: UInt64, newName: [UInt8],
        flags: RenameFlags, reply: consuming Reply)
    /// A further name, in the directory `request.nodeid`, for the node `target`.
    func link(_ request: RequestHeader, target: UInt64, name: [UInt8], reply: consuming Reply)

    /// `flags` are those of `open(2)`, without `O_CREAT`, `O_EXCL` and `O_NOCTTY`. With `O_TRUNC`
    /// the open truncates, and `killPrivileges` asks it to drop suid and sgid.
    func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply)
    /// LOOKUP, MKNOD and OPEN in one. The kernel may also use these three.
    func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply)
    /// A file without a name, in the directory `request.nodeid`; LINK may name it later.
    func tmpfile(
        _ request: RequestHeader, flags: Int32, mode: UInt32, umask: UInt32,
        reply: consuming Reply)
    func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply)
    /// `data` begins at a page boundary and is gone when the method returns.
    func write(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer,
        flags: WriteFlags, reply: consuming Reply)
    /// Once for every `close` of a descriptor of the open file.
    func flush(
        _ request: RequestHeader, handle: UInt64, lockOwner: UInt64, reply: consuming Reply)
    /// Once, after the last `close`; nobody waits for it.
    func release(
        _ request: RequestHeader, handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags,
        lockOwner: UInt64, reply: consuming Reply)
    func fsync(_ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply)
    func fallocate(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, length: UInt64, mode: Int32,
        reply: consuming Reply)
    func lseek(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, whence: Int32,
        reply: consuming Reply)
    func copyFileRange(_ request: RequestHeader, _ copy: CopyRequest, reply: consuming Reply)

    func opendir(_ request: RequestHeader, flags: Int32, reply: consuming Reply)
    /// `offset` is 0 or a cookie of an earlier answer; `size` bounds the `DirectoryBuffer`.
    func readdir(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply)
    func readdirplus(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply)
    func releasedir(_ request: RequestHeader, handle: UInt64, reply: consuming Reply)
    func fsyncdir(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply)

    /// `value` is gone when the method returns.
    func setxattr(
        _ request: RequestHeader, name: [UInt8], value: UnsafeRawBufferPointer,
        flags: SetXattrFlags, reply: consuming Reply)
    /// Answer with `reply.xattr(_:capacity:)`, which knows the conventions; ENODATA when there is
    /// none. ENOSYS would turn off all attributes for good.
    func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply)
    /// Answer with `reply.xattr(_:capacity:)`: the names, each with a NUL behind it.
    func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply)
    func removexattr(_ request: RequestHeader, name: [UInt8], reply: consuming Reply)

    func statfs(_ request: RequestHeader, reply: consuming Reply)
    func syncfs(_ request: RequestHeader, reply: consuming Reply)
    func lock(_ request: RequestHeader, _ lock: LockRequest, reply: consuming Reply)
    func bmap(_ request: RequestHeader, block: UInt64, blockSize: UInt32, reply: consuming Reply)
    func ioctl(_ request: RequestHeader, _ ioctl: IoctlRequest, reply: consuming Reply)
    func poll(_ request: RequestHeader, handle: UInt64, events: UInt32, reply: consuming Reply)
}

extension FileSystem {
    public func initialized(_ features: Features) {}
    public func ended() {}
    public func part(of nodeid: UInt64) -> any FileSystem { self }
    public func forget(nodeid: UInt64, count: UInt64) {}

    public func lookup(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        reply.error(.noSuchFileOrDirectory)
    }

    public func getattr(_ request: RequestHeader, handle: UInt64?, reply: consuming Reply) {
        reply.error(.noSuchFileOrDirectory)
    }

    public func setattr(
        _ request: RequestHeader, _ changes: SetAttributes, reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func statx(
        _ request: RequestHeader, handle: UInt64?, flags: UInt32, mask: UInt32,
        reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    /// Right with `default_permissions`: the kernel checks and never asks again.
    public func access(_ request: RequestHeader, mask: Int32, reply: consuming Reply) {
        reply.error(.noFunction)
    }

    public func readlink(_ request: RequestHeader, reply: consuming Reply) {
        reply.error(.invalidArgument)
    }

    public func symlink(
        _ request: RequestHeader, name: [UInt8], target: [UInt8], reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func mknod(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32, device: UInt32,
        reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func mkdir(
        _ request: RequestHeader, name: [UInt8], mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func unlink(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        reply.error(.readOnlyFileSystem)
    }

    public func rmdir(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        reply.error(.readOnlyFileSystem)
    }

    public func rename(
        _ request: RequestHeader, name: [UInt8], newParent: UInt64, newName: [UInt8],
        flags: RenameFlags, reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func link(
        _ request: RequestHeader, target: UInt64, name: [UInt8], reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func open(
        _ request: RequestHeader, flags: Int32, killPrivileges: Bool, reply: consuming Reply
    ) {
        reply.open(0)
    }

    /// The kernel then uses MKNOD and OPEN.
    public func create(
        _ request: RequestHeader, name: [UInt8], flags: Int32, mode: UInt32, umask: UInt32,
        killPrivileges: Bool, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func tmpfile(
        _ request: RequestHeader, flags: Int32, mode: UInt32, umask: UInt32,
        reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func read(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        reply.error(.ioError)
    }

    public func write(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, data: UnsafeRawBufferPointer,
        flags: WriteFlags, reply: consuming Reply
    ) {
        reply.error(.readOnlyFileSystem)
    }

    public func flush(
        _ request: RequestHeader, handle: UInt64, lockOwner: UInt64, reply: consuming Reply
    ) {
        reply.empty()
    }

    public func release(
        _ request: RequestHeader, handle: UInt64, flags: Int32, releaseFlags: ReleaseFlags,
        lockOwner: UInt64, reply: consuming Reply
    ) {
        reply.empty()
    }

    public func fsync(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) {
        reply.empty()
    }

    public func fallocate(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, length: UInt64, mode: Int32,
        reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func lseek(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, whence: Int32,
        reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    /// The kernel then copies by reading and writing.
    public func copyFileRange(
        _ request: RequestHeader, _ copy: CopyRequest, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func opendir(_ request: RequestHeader, flags: Int32, reply: consuming Reply) {
        reply.open(0)
    }

    public func readdir(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        reply.empty()
    }

    public func readdirplus(
        _ request: RequestHeader, handle: UInt64, offset: UInt64, size: Int,
        reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func releasedir(_ request: RequestHeader, handle: UInt64, reply: consuming Reply) {
        reply.empty()
    }

    public func fsyncdir(
        _ request: RequestHeader, handle: UInt64, dataOnly: Bool, reply: consuming Reply
    ) {
        reply.empty()
    }

    public func setxattr(
        _ request: RequestHeader, name: [UInt8], value: UnsafeRawBufferPointer,
        flags: SetXattrFlags, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply) {
        reply.error(.noFunction)
    }

    public func removexattr(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        reply.error(.noFunction)
    }

    public func statfs(_ request: RequestHeader, reply: consuming Reply) {
        reply.statfs(VolumeStatistics())
    }

    public func syncfs(_ request: RequestHeader, reply: consuming Reply) {
        reply.empty()
    }

    public func lock(_ request: RequestHeader, _ lock: LockRequest, reply: consuming Reply) {
        reply.error(.noFunction)
    }

    public func bmap(
        _ request: RequestHeader, block: UInt64, blockSize: UInt32, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }

    public func ioctl(_ request: RequestHeader, _ ioctl: IoctlRequest, reply: consuming Reply) {
        reply.error(Errno(rawValue: ENOTTY))
    }

    /// The kernel then takes every file for always ready, and never asks again.
    public func poll(
        _ request: RequestHeader, handle: UInt64, events: UInt32, reply: consuming Reply
    ) {
        reply.error(.noFunction)
    }
}
