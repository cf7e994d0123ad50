import Glibc
import SystemPackage

/// Looks at what a node needs of its machine. Changes nothing.
enum Machine {
    /// CAP_SYS_ADMIN, by its bit in /proc/self/status.
    private static let administration: UInt64 = 1 << 21
    /// FUSE passthrough came with 6.9; writes through it were mended in 6.12.
    private static let passthroughKernel = (major: 6, minor: 12)
    private static let descriptorsWanted: UInt64 = 65_536
    private static let mdnsPort: UInt16 = 5353

    static func findings(root: String?) -> [Finding] {
        var result = [kernel, device, mounting]
        if geteuid() != 0 { result.append(allowOther) }
        result += [passthrough, discovery, clock, descriptors]
        if let root { result.append(disk(FilePath(root))) }
        return result
    }

    // MARK: Mounting

    private static var release: (text: String, major: Int, minor: Int) {
        var names = utsname()
        uname(&names)
        let text = withUnsafeBytes(of: names.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let numbers = text.split { !$0.isNumber }.prefix(2).map { Int($0) ?? 0 }
        return (text, numbers.first ?? 0, numbers.dropFirst().first ?? 0)
    }

    private static var kernel: Finding {
        Finding(check: "kernel", verdict: .good, text: "Linux \(release.text).")
    }

    private static var device: Finding {
        let check = "/dev/fuse"
        var status = stat()
        guard stat(check, &status) == 0 else {
            return Finding(
                check: check, verdict: .fails, text: "It does not exist.",
                advice:
                    "Run `modprobe fuse` as root; a container needs it passed in (--device /dev/fuse)."
            )
        }
        let descriptor = open(check, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else {
            let error = Errno(rawValue: errno)
            let mode = String(status.st_mode & 0o777, radix: 8)
            let isModeAtFault = error == .permissionDenied && status.st_mode & 0o006 != 0o006
            return Finding(
                check: check, verdict: .fails,
                text: "It cannot be opened: \(error) (mode \(mode), owner \(status.st_uid)).",
                advice: isModeAtFault
                    ? "Run as root: chmod 666 /dev/fuse"
                    : "Load the module (`modprobe fuse`), or let the container use the device.")
        }
        close(descriptor)
        return Finding(check: check, verdict: .good, text: "It can be opened.")
    }

    private static var canAdminister: Bool {
        let line = (contents("/proc/self/status") ?? "").split(separator: "\n")
            .first { $0.hasPrefix("CapEff:") }
        let digits = line?.split(whereSeparator: \.isWhitespace).last ?? ""
        return (UInt64(digits, radix: 16) ?? 0) & administration != 0
    }

    /// The places where a node looks for it.
    private static let helperPaths = ["/usr/bin", "/bin", "/usr/local/bin"].map {
        $0 + "/fusermount3"
    }

    private static var mounting: Finding {
        let check = "mounting"
        if geteuid() == 0 {
            return canAdminister
                ? Finding(
                    check: check, verdict: .good, text: "This is root, which mounts by itself.")
                : Finding(
                    check: check, verdict: .fails,
                    text: "This is root without CAP_SYS_ADMIN, as in a container.",
                    advice: "Give the container that capability (--cap-add SYS_ADMIN).")
        }
        var status = stat()
        guard let path = helperPaths.first(where: { stat($0, &status) == 0 }) else {
            return Finding(
                check: check, verdict: .fails,
                text: "Mounting without root needs fusermount3, which is not installed.",
                advice: "Run as root: apt install fuse3")
        }
        guard status.st_uid == 0, status.st_mode & S_ISUID != 0 else {
            return Finding(
                check: check, verdict: .fails, text: "\(path) is not set-user-id root.",
                advice: "Run as root: chown root \(path) && chmod 4755 \(path)")
        }
        return Finding(check: check, verdict: .good, text: "Without root, by \(path).")
    }

    /// What fusermount3 demands before it takes `allow_other` from a user.
    static var letsUsersAllowOthers: Bool {
        (contents("/etc/fuse.conf") ?? "").split(separator: "\n").contains {
            $0.split(whereSeparator: \.isWhitespace).first == "user_allow_other"
        }
    }

    private static var allowOther: Finding {
        let check = "--allow-other"
        return letsUsersAllowOthers
            ? Finding(check: check, verdict: .good, text: "/etc/fuse.conf has user_allow_other.")
            : Finding(
                check: check, verdict: .limited,
                text: "Only this user can enter a mount made by it.",
                advice: "For --allow-other add the line user_allow_other to /etc/fuse.conf.")
    }

    private static var passthrough: Finding {
        let check = "passthrough"
        let kernel = release
        guard (kernel.major, kernel.minor) >= passthroughKernel else {
            return Finding(
                check: check, verdict: .limited,
                text:
                    "Files are read and written through the node: this kernel is older than \(passthroughKernel.major).\(passthroughKernel.minor).",
                advice:
                    "Works all the same; a newer kernel (Debian: bookworm-backports) makes it as fast as the disk."
            )
        }
        guard canAdminister else {
            return Finding(
                check: check, verdict: .limited,
                text: "Files are read and written through the node: passthrough needs root.",
                advice: "Works all the same; run the node as root to make it as fast as the disk.")
        }
        return Finding(
            check: check, verdict: .good, text: "The kernel reads and writes local files directly.")
    }

    // MARK: Network, clock, limits

    private static var discovery: Finding {
        let check = "discovery"
        let instead = "Name peers with --peer HOST:PORT and use --no-discovery."
        if let error = bindError() {
            return Finding(
                check: check, verdict: .limited,
                text: "UDP port \(mdnsPort), for mDNS, cannot be used: \(error).",
                advice:
                    "Find who holds it (`ss -ulpn sport = :\(mdnsPort)`) and let that share the port. \(instead)"
            )
        }
        guard hasMulticast() else {
            return Finding(
                check: check, verdict: .limited,
                text: "No network interface is up that has multicast, which mDNS needs.",
                advice: "Connect the machine to a network. \(instead)")
        }
        return Finding(
            check: check, verdict: .good, text: "UDP port \(mdnsPort), for mDNS, can be shared.")
    }

    /// Bound as a node binds it: shared with a daemon that does the same.
    private static func bindError() -> Errno? {
        let descriptor = socket(
            AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return Errno(rawValue: errno) }
        defer { close(descriptor) }
        var yes: CInt = 1
        for option in [SO_REUSEADDR, SO_REUSEPORT] {
            setsockopt(descriptor, SOL_SOCKET, option, &yes, socklen_t(MemoryLayout<CInt>.size))
        }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = mdnsPort.bigEndian
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        return result == 0 ? nil : Errno(rawValue: errno)
    }

    private static func hasMulticast() -> Bool {
        var first: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&first) == 0 else { return false }
        defer { freeifaddrs(first) }
        let wanted = UInt32(IFF_UP) | UInt32(IFF_MULTICAST)
        var next = first
        while let interface = next?.pointee {
            let flags = interface.ifa_flags
            if flags & wanted == wanted, flags & UInt32(IFF_LOOPBACK) == 0 { return true }
            next = interface.ifa_next
        }
        return false
    }

    private static var clock: Finding {
        let check = "clock"
        var now = time(nil)
        var parts = tm()
        gmtime_r(&now, &parts)
        let year = Int(parts.tm_year) + 1900
        guard (2025..<2100).contains(year) else {
            return Finding(
                check: check, verdict: .limited, text: "It is set to the year \(year).",
                advice:
                    "Set it, and keep it right (apt install systemd-timesyncd): peers refuse certificates and stamps that lie far off."
            )
        }
        let synchronised = access("/run/systemd/timesync/synchronized", F_OK) == 0
        return Finding(
            check: check, verdict: .good,
            text: "It is set to the year \(year)"
                + (synchronised
                    ? ", and kept right by systemd-timesyncd."
                    : "; whether something keeps it right is not known."))
    }

    private static var descriptors: Finding {
        let check = "open files"
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let most = UInt64(limit.rlim_max)
        return most >= descriptorsWanted
            ? Finding(
                check: check, verdict: .good, text: "At most \(most); a node takes them by itself.")
            : Finding(
                check: check, verdict: .limited,
                text: "At most \(most), which many open files use up.",
                advice:
                    "Raise the hard limit to \(descriptorsWanted) (ulimit -Hn, LimitNOFILE= of systemd)."
            )
    }

    // MARK: The disk

    private static func disk(_ root: FilePath) -> Finding {
        let check = "root"
        var status = stat()
        var space = statvfs()
        let exists = stat(root.string, &status) == 0
        let path = exists ? root : parent(of: root)
        guard statvfs(path.string, &space) == 0 else {
            return Finding(
                check: check, verdict: .limited,
                text: "\(root) does not exist, and neither does the directory above it.",
                advice: "Create that, or choose another root.")
        }
        let free = Quantity.bytes(UInt64(space.f_bavail) * UInt64(space.f_frsize))
        if exists, status.st_uid != geteuid() || status.st_mode & 0o077 != 0 {
            return Finding(
                check: check, verdict: .limited,
                text: "\(root) must be this user's, and closed to others.",
                advice: "Run: chmod 700 \(root)")
        }
        if access(path.string, W_OK) != 0 {
            return Finding(
                check: check, verdict: .limited,
                text: "\(path) cannot be written: \(Errno(rawValue: errno)).",
                advice: "Run as its owner, or choose another root.")
        }
        return Finding(
            check: check, verdict: .good,
            text: "\(free) free at \(root)\(exists ? "" : ", which will be made").")
    }

    private static func parent(of path: FilePath) -> FilePath {
        let parent = path.removingLastComponent()
        return parent.isEmpty ? "." : parent
    }

    private static func contents(_ path: String) -> String? {
        guard let file = try? FileDescriptor.open(path, .readOnly, options: .closeOnExec) else {
            return nil
        }
        return try? file.closeAfter {
            var result: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 16_384)
            while result.count < 1 << 20 {
                let count = try buffer.withUnsafeMutableBytes { try file.read(into: $0) }
                if count == 0 { break }
                result += buffer.prefix(count)
            }
            return String(decoding: result, as: UTF8.self)
        }
    }
}
