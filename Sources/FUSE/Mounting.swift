import CFUSE
import Glibc
import Synchronization
public import SystemPackage

/// What and how to mount.
public struct MountOptions: Hashable, Sendable {
    public enum Method: Hashable, Sendable {
        /// `direct` for root, else `helper`.
        case automatic
        /// `mount(2)`; needs `CAP_SYS_ADMIN`.
        case direct
        /// The set-user-id program `fusermount3`.
        case helper
    }

    /// Shown as the source of the mount.
    public var source: String
    /// The file system type is `fuse.SUBTYPE`.
    public var subtype: String
    public var method: Method = .automatic
    public var isReadOnly = false
    /// Other users than the one who mounts may use it. Without root this needs `user_allow_other`
    /// in /etc/fuse.conf.
    public var allowOther = true
    /// The kernel checks permissions by mode, owner and access control lists.
    public var defaultPermissions = true
    /// Set-user-id programs and device files work (root only): else `nosuid,nodev`.
    public var allowsPrivileged = false

    public init(source: String, subtype: String) {
        self.source = source
        self.subtype = subtype
    }
}

/// A mounted device that waits for its session.
public final class MountedChannel: Sendable {
    public let mountPoint: FilePath
    private let descriptor: Mutex<Int32?>

    /// Takes over a descriptor of /dev/fuse that has been mounted at `mountPoint`, however it was
    /// come by.
    public init(mountPoint: FilePath, descriptor: Int32) {
        self.mountPoint = mountPoint
        self.descriptor = Mutex(descriptor)
    }

    deinit {
        if let descriptor = descriptor.withLock({ $0 }) { close(descriptor) }
    }

    /// Hands over the descriptor, once.
    func takeDescriptor() -> Int32 {
        let taken = descriptor.withLock { descriptor in
            defer { descriptor = nil }
            return descriptor
        }
        guard let taken else { preconditionFailure("a mounted channel serves one session") }
        return taken
    }
}

/// Mounting and unmounting, as root by system call and without root by `fusermount3`.
///
/// Nothing here may be called by a thread that serves the mount, and nothing touches a mount that
/// might hang except `state`, which says so.
public enum Mounting {
    /// How long a mount may take to answer before it counts as hanging.
    static let probeTimeout: Duration = .seconds(2)

    /// Mounts on the directory `path`, which must be absolute. The first access waits for the
    /// session to start.
    public static func mount(
        at path: FilePath, options: MountOptions
    ) throws(MountError) -> MountedChannel {
        precondition(path.isAbsolute, "the mount table knows absolute paths")
        try checkMountPoint(path)
        let isDirect = options.method == .direct || (options.method == .automatic && geteuid() == 0)
        let descriptor =
            isDirect
            ? try mountDirectly(path, options)
            : try FusermountHelper.mount(path, helperOptions(options))
        return MountedChannel(mountPoint: path, descriptor: descriptor)
    }

    private static func checkMountPoint(_ path: FilePath) throws(MountError) {
        // First by the table: the kernel may answer for a dead mount from its caches.
        switch try state(at: path) {
        case .stale: throw MountError(.stale, path)
        case .live, .hanging: throw MountError(.alreadyMounted, path)
        case .notMounted, .foreign: break
        }
        let directory = path.withPlatformString {
            Glibc.open($0, CFUSE_O_PATH | O_DIRECTORY | O_CLOEXEC)
        }
        if directory >= 0 {
            close(directory)
            return
        }
        let error = Errno(rawValue: errno)
        throw MountError(error == .socketNotConnected ? .stale : .badMountPoint, path, errno: error)
    }

    private static func mountDirectly(
        _ path: FilePath, _ options: MountOptions
    ) throws(MountError) -> Int32 {
        let device = Glibc.open("/dev/fuse", O_RDWR | O_CLOEXEC)
        if device < 0 {
            let error = Errno(rawValue: errno)
            let isRefused = error == .permissionDenied || error == .notPermitted
            throw MountError(isRefused ? .notPermitted : .noDevice, path, errno: error)
        }
        var data = "fd=\(device),rootmode=40000,user_id=\(getuid()),group_id=\(getgid())"
        if options.defaultPermissions { data += ",default_permissions" }
        if options.allowOther { data += ",allow_other" }
        var flags: UInt = 0
        if !options.allowsPrivileged { flags |= UInt(MS_NOSUID) | UInt(MS_NODEV) }
        if options.isReadOnly { flags |= UInt(MS_RDONLY) }
        let result = path.withPlatformString { target in
            data.withCString {
                Glibc.mount(options.source, target, "fuse.\(options.subtype)", flags, $0)
            }
        }
        if result == 0 { return device }
        let error = Errno(rawValue: errno)
        close(device)
        switch error {
        case .notPermitted, .permissionDenied:
            throw MountError(.notPermitted, path, errno: error)
        case .operationNotSupportedByDevice:
            throw MountError(.noDevice, path, errno: error)
        default:
            throw MountError(.system, path, errno: error)
        }
    }

    private static func helperOptions(_ options: MountOptions) -> String {
        // fusermount3 splits at commas and takes a backslash for an escape.
        func escaped(_ text: String) -> String {
            String(text.flatMap { $0 == "," || $0 == "\\" ? ["\\", $0] : [$0] })
        }
        var words = [options.isReadOnly ? "ro" : "rw"]
        words += options.allowsPrivileged ? ["suid", "dev"] : ["nosuid", "nodev"]
        words.append("fsname=\(escaped(options.source))")
        words.append("subtype=\(escaped(options.subtype))")
        if options.defaultPermissions { words.append("default_permissions") }
        if options.allowOther { words.append("allow_other") }
        return words.joined(separator: ",")
    }

    public enum Unmounting: Hashable, Sendable {
        /// Fails while something is open.
        case whenIdle
        /// Hides the mount now; the kernel removes it when the last user is gone.
        case lazily
    }

    /// Unmounts what lies on `path`; the session then ends by itself. Not if it has been done
    /// already: that could hit a mount below.
    public static func unmount(
        at path: FilePath, _ mode: Unmounting = .whenIdle
    ) throws(MountError) {
        guard try fuseMount(at: path) != nil else { throw MountError(.notMounted, path) }
        var flags = Int32(UMOUNT_NOFOLLOW)
        if mode == .lazily { flags |= Int32(MNT_DETACH) }
        let result = path.withPlatformString { umount2($0, flags) }
        if result == 0 { return }
        let error = Errno(rawValue: errno)
        switch error {
        case .notPermitted:
            try FusermountHelper.unmount(path, lazily: mode == .lazily)
        case .resourceBusy:
            throw MountError(.busy, path, errno: error)
        case .invalidArgument:
            throw MountError(.notMounted, path, errno: error)
        default:
            throw MountError(.system, path, errno: error)
        }
    }

    /// Unmounts; when the mount is in use, lazily.
    public static func unmountAtAnyRate(at path: FilePath) throws(MountError) {
        do throws(MountError) {
            try unmount(at: path)
        } catch {
            guard error.code == .busy || error.code == .helperFailed else { throw error }
            try unmount(at: path, .lazily)
        }
    }

    // MARK: - What a crash leaves behind

    public enum State: Hashable, Sendable {
        case notMounted
        /// A FUSE mount whose server is gone: every access fails with ENOTCONN.
        case stale
        /// A FUSE mount whose server answers.
        case live
        /// A FUSE mount whose server does not answer in time.
        case hanging
        /// A mount of another kind.
        case foreign
    }

    /// What lies on `path`, by the mount table; a FUSE mount is then asked for its statistics, on a
    /// thread that is left behind if the mount hangs.
    public static func state(at path: FilePath) throws(MountError) -> State {
        let entry = try mountEntry(at: path)
        guard let entry else { return .notMounted }
        guard isFUSE(entry) else { return .foreign }
        let answer = Monitor<Int32?>(nil)
        let prober: NamedThread
        do throws(Errno) {
            prober = try NamedThread(name: "fuse-probe") {
                // Never answered from a cache, unlike stat.
                var statistics = statvfs()
                let result = path.withPlatformString { statvfs($0, &statistics) }
                let code = result == 0 ? 0 : errno
                answer.update { $0 = code }
            }
        } catch {
            throw MountError(.system, path, errno: error)
        }
        prober.abandon()
        switch answer.wait(timeout: probeTimeout, { $0 }) {
        case nil: return .hanging
        case ENOTCONN, ECONNABORTED: return .stale
        default: return .live
        }
    }

    /// Whether a crashed server's mount lies on `path`.
    public static func detectStale(at path: FilePath) throws(MountError) -> Bool {
        try state(at: path) == .stale
    }

    /// Removes a dead mount from `path`, if there is one; true when there was. Live and foreign
    /// mounts are left alone.
    @discardableResult
    public static func recoverStale(at path: FilePath) throws(MountError) -> Bool {
        guard try detectStale(at: path) else { return false }
        try unmount(at: path, .lazily)
        return true
    }

    /// The mount point of the FUSE mount of this subtype that `path` lies in, by the mount table
    /// alone; nil when it lies on anything else.
    ///
    /// - Parameter path: absolute and without links.
    public static func mountPoint(
        holding path: FilePath, subtype: String
    ) throws(MountError) -> FilePath? {
        do throws(Errno) {
            guard let (entry, point) = try MountTable.holding(path),
                entry.type.elementsEqual("fuse.\(subtype)".utf8)
            else { return nil }
            return point
        } catch { throw MountError(.system, path, errno: error) }
    }

    private static func fuseMount(at path: FilePath) throws(MountError) -> MountEntry? {
        try mountEntry(at: path).flatMap { isFUSE($0) ? $0 : nil }
    }

    private static func mountEntry(at path: FilePath) throws(MountError) -> MountEntry? {
        do throws(Errno) {
            return try MountTable.topmost(at: path)
        } catch {
            throw MountError(.system, path, errno: error)
        }
    }

    private static func isFUSE(_ entry: MountEntry) -> Bool {
        entry.type.starts(with: "fuse".utf8) && !entry.type.elementsEqual("fusectl".utf8)
    }
}
