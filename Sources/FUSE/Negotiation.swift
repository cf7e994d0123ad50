import CFUSE

/// How a session shall behave. Everything has a default that suits a caching file system which
/// knows all changes to its files and invalidates explicitly.
public struct SessionOptions: Sendable {
    /// The largest WRITE and READ, bytes: a multiple of 4096, at most 1 MiB.
    public var writeSizeMax = 1 << 20
    /// Bytes that the kernel may read ahead; it takes the least of this and its own limit.
    public var readaheadMax: UInt32 = 1 << 20
    /// Read-ahead and other background requests in flight.
    public var backgroundMax: UInt16 = 128
    /// Access control lists: the server stores `system.posix_acl_*` and keeps the mode in step,
    /// and applies the umask itself (`dontMask` comes with it).
    public var posixACL = false
    /// The umask comes with MKNOD, MKDIR and CREATE instead of having been applied.
    public var dontMask = false
    /// `fcntl` and `flock` locks come to the server. Off: the kernel keeps them, for this machine.
    public var forwardsLocks = false
    public var readdirplus = true
    /// Opens may be answered with a backing file, where the kernel and our privileges allow it.
    public var passthrough = true
    /// How many file systems may lie on one another between us and the disk: 1 for backing files
    /// on an ordinary file system, 2 when they are on overlayfs.
    public var stackDepthMax: UInt32 = 1
    /// How long a reader thread looks for the next request before it sleeps. Waking an idle
    /// processor takes longer than most requests.
    public var spin: Duration = .microseconds(100)
    /// Told about what is wrong but not fatal, one sentence each; may come from any thread.
    public var report: @Sendable (String) -> Void = { _ in }

    public init() {}
}

/// What the kernel and the session settled on.
public struct Features: Hashable, Sendable {
    public enum Passthrough: Hashable, Sendable {
        case none
        /// Linux 6.9 to 6.11 lose the size of files that grow through passthrough.
        case readOnly
        case readWrite
    }

    /// The minor number of the protocol that the kernel speaks, and the one in use.
    public var kernelMinor: UInt32
    public var protocolMinor: UInt32
    public var writeSizeMax: Int
    public var passthrough: Passthrough
    public var posixACL: Bool
    public var dontMask: Bool
    /// Clearing suid and sgid on writes, truncation and chown is the server's duty.
    public var killPrivileges: Bool
    public var readdirplus: Bool
    public var forwardsLocks: Bool
    /// `Notifier.expireEntry` differs from `invalidateEntry`.
    public var expiresEntries: Bool
}

/// The answer to INIT, worked out from the kernel's offer and the options. Pure.
enum Negotiation {
    static let major: UInt32 = 7
    /// Linux 5.4; earlier answers have other sizes.
    static let minorMin: UInt32 = 31
    /// The newest protocol whose structures are written down in CFUSE.
    static let minorMax: UInt32 = 45
    /// Linux 6.12.
    static let minorWithSafePassthroughWrites: UInt32 = 41

    enum Outcome {
        case accept(cfuse_init_out, Features, Dialect)
        /// The kernel's major number is higher: it repeats INIT with ours.
        case repeated(cfuse_init_out)
        case refuse
    }

    static func answer(_ request: InitRequest, _ options: SessionOptions) -> Outcome {
        var reply = cfuse_init_out()
        reply.major = major
        reply.minor = min(minorMax, request.minor)
        if request.major > major {
            reply.minor = minorMax
            return .repeated(reply)
        }
        guard request.major == major, request.minor >= minorMin else { return .refuse }

        let taken = wanted(options).intersection(request.flags)
        let isExtended = taken.contains(.extendedInit)
        let hasPassthrough = isExtended && taken.contains(.passthrough)
        reply.max_readahead = min(request.maxReadahead, options.readaheadMax)
        reply.flags = UInt32(truncatingIfNeeded: taken.rawValue)
        reply.flags2 = isExtended ? UInt32(truncatingIfNeeded: taken.rawValue >> 32) : 0
        reply.max_background = options.backgroundMax
        reply.congestion_threshold = UInt16(UInt32(options.backgroundMax) * 3 / 4)
        reply.max_write = UInt32(options.writeSizeMax)
        reply.time_gran = 1
        reply.max_pages = UInt16(options.writeSizeMax / PageBuffer.pageSize)
        reply.max_stack_depth = hasPassthrough ? options.stackDepthMax : 0

        let isWriteSafe = request.minor >= minorWithSafePassthroughWrites
        let features = Features(
            kernelMinor: request.minor, protocolMinor: reply.minor,
            writeSizeMax: options.writeSizeMax,
            passthrough: !hasPassthrough ? .none : isWriteSafe ? .readWrite : .readOnly,
            posixACL: taken.contains(.posixACL), dontMask: taken.contains(.dontMask),
            killPrivileges: taken.contains(.handleKillPrivilegesV2),
            readdirplus: taken.contains(.readdirplus),
            forwardsLocks: taken.contains(.posixLocks),
            expiresEntries: isExtended && taken.contains(.expireOnly))
        return .accept(
            reply, features, Dialect(extendedSetxattr: taken.contains(.extendedSetxattr)))
    }

    /// Left out on purpose: AUTO_INVAL_DATA (would win over explicit invalidation), the automatic
    /// choice of READDIRPLUS (a LOOKUP per entry of a large directory, measured), the write-back
    /// cache (excludes passthrough), EXPORT_SUPPORT (needs LOOKUP of `.` and `..`).
    private static func wanted(_ options: SessionOptions) -> InitFlags {
        var flags: InitFlags = [
            .asyncRead, .atomicTruncate, .bigWrites, .asyncDirectIO,
            .parallelDirectoryOperations, .abortError, .maxPages, .cacheSymlinks,
            .explicitInvalidateData, .handleKillPrivilegesV2, .extendedSetxattr, .extendedInit,
            .expireOnly, .directIOAllowsMmap,
        ]
        if options.readdirplus { flags.insert(.readdirplus) }
        if options.posixACL { flags.formUnion([.posixACL, .dontMask]) }
        if options.dontMask { flags.insert(.dontMask) }
        if options.forwardsLocks { flags.formUnion([.posixLocks, .flockLocks]) }
        if options.passthrough { flags.insert(.passthrough) }
        return flags
    }
}
