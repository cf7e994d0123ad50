import ArgumentParser
import Glibc
import SystemPackage

/// Which node a command is about: `--root`, or the mount in which a path lies.
struct NodeOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The node's root. Without it: the node in whose mount the path, or else the current directory, lies.",
            valueName: "dir"))
    var root: String?

    /// The root that is meant.
    func directory() throws -> FilePath {
        if let root {
            guard !root.isEmpty else { throw ValidationError("--root is empty") }
            return FilePath(root)
        }
        guard let mounted = try MountedPath(of: Array(".".utf8)) else {
            throw Failure(
                "The current directory is in no DelugeFS mount; go into one, or name the node with --root DIR."
            )
        }
        return mounted.root
    }

    /// Whose a path is, and what it is called in the volume. With --root a path outside of that
    /// node's mount is one in the volume.
    ///
    /// - Parameter orMissing: whether it need not exist any more.
    func place(
        _ path: [UInt8], orMissing: Bool = false
    ) throws -> (root: FilePath, path: [UInt8]) {
        func mounted() throws -> MountedPath? {
            try orMissing ? MountedPath(ofMissing: path) : MountedPath(of: path)
        }
        guard let root else {
            guard let mounted = try mounted() else {
                let name = Terminal.visible(name: path)
                throw Failure(
                    "\(name) is in no DelugeFS mount; name the node with --root DIR and give a path in the volume."
                )
            }
            return (mounted.root, mounted.path)
        }
        let directory = FilePath(root)
        if let mounted = try? mounted(), Self.isSame(mounted.root, directory) {
            return (directory, mounted.path)
        }
        return (directory, path.first == UInt8(ascii: "/") ? path : [UInt8(ascii: "/")] + path)
    }

    private static func isSame(_ one: FilePath, _ other: FilePath) -> Bool {
        guard let first = try? one.stat(), let second = try? other.stat() else { return false }
        return first.deviceID == second.deviceID && first.inode == second.inode
    }
}

/// A path inside a mount: whose it is, and what it is called in the volume.
struct MountedPath {
    private static let type = Array("fuse.delugefs".utf8)
    /// O_PATH, which Glibc's module hides behind _GNU_SOURCE.
    private static let openPath: CInt = 0o10_000_000
    private static let tableBytesMax = 64 << 20

    /// The node's root directory, which is the source of its mount.
    let root: FilePath
    /// Absolute in the volume: `/a/b`; bytes, as names are no text.
    let path: [UInt8]

    /// Nil when the path is in no DelugeFS mount. Symbolic links are followed, but for the last
    /// component.
    ///
    /// The kernel says in which mount a path lies and what it is called there, so a bind mount and
    /// a mount over another one come out right.
    init?(of path: [UInt8]) throws {
        let descriptor = (path + [0]).withUnsafeBufferPointer { buffer in
            buffer.withMemoryRebound(to: CChar.self) {
                // The buffer has at least its NUL.
                open($0.baseAddress!, Self.openPath | O_NOFOLLOW | O_CLOEXEC)
            }
        }
        guard descriptor >= 0 else { throw Self.failure(path, Errno(rawValue: errno)) }
        defer { close(descriptor) }
        guard let mount = try Self.mount(of: descriptor), mount.type == Self.type else {
            return nil
        }
        let absolute = try Self.target(of: descriptor)
        guard absolute.starts(with: mount.point) else { return nil }
        var rest = absolute[mount.point.count...]
        if rest.first == UInt8(ascii: "/") { rest.removeFirst() }
        root = mount.source.withUnsafeBytes {
            FilePath(platformString: Array($0.bindMemory(to: CChar.self)) + [0])
        }
        let top = mount.root == Array("/".utf8) ? [] : mount.root
        self.path = rest.isEmpty && !top.isEmpty ? top : top + [UInt8(ascii: "/")] + rest
    }

    /// As `init(of:)` for a path whose last names may be gone: those are taken as they stand.
    init?(ofMissing path: [UInt8]) throws {
        var existing = path
        var gone: [[UInt8]] = []
        var information = stat()
        while Self.lstat(existing, &information) != 0, errno == ENOENT || errno == ENOTDIR {
            while existing.last == UInt8(ascii: "/") { existing.removeLast() }
            let slash = existing.lastIndex(of: UInt8(ascii: "/"))
            let name = Array(existing[(slash.map { $0 + 1 } ?? 0)...])
            guard name != Array("..".utf8), !name.isEmpty else {
                throw Self.failure(path, .noSuchFileOrDirectory)
            }
            if name != [UInt8(ascii: ".")] { gone.insert(name, at: 0) }
            existing = slash.map { Array(existing[...$0]) } ?? Array(".".utf8)
        }
        guard let mounted = try MountedPath(of: existing) else { return nil }
        root = mounted.root
        let top = mounted.path == [UInt8(ascii: "/")] ? [] : mounted.path
        self.path =
            gone.isEmpty ? mounted.path : gone.reduce(top) { $0 + [UInt8(ascii: "/")] + $1 }
    }

    private static func lstat(_ path: [UInt8], _ information: inout stat) -> CInt {
        (path + [0]).withUnsafeBytes {
            // The buffer has at least its NUL.
            Glibc.lstat($0.bindMemory(to: CChar.self).baseAddress!, &information)
        }
    }

    private static func failure(_ path: [UInt8], _ error: Errno) -> Failure {
        let name = Terminal.visible(name: path)
        return switch error {
        case .noSuchFileOrDirectory, .notDirectory: Failure("There is no \(name).")
        case .socketNotConnected:
            Failure("The node that had \(name) mounted is gone; start it again as before.")
        case .permissionDenied:
            Failure("\(name) may not be entered by this user; ask as its owner.")
        default: Failure("\(name) cannot be opened: \(error).")
        }
    }

    private struct Mount {
        var root, point, type, source: [UInt8]
    }

    private static func mount(of descriptor: CInt) throws -> Mount? {
        let information = try contents("/proc/self/fdinfo/\(descriptor)")
        let label = Array("mnt_id:".utf8)
        guard let line = information.split(separator: 0x0A).first(where: { $0.starts(with: label) })
        else { return nil }
        let id = Array(line.dropFirst(label.count).filter { (0x30...0x39).contains($0) })
        for line in try contents("/proc/self/mountinfo").split(separator: 0x0A) {
            // `36 35 98:0 /root /point options [optional...] - type source options`
            let fields = line.split(separator: 0x20, omittingEmptySubsequences: false)
            guard fields.count > 6, fields[0].elementsEqual(id),
                let dash = fields[6...].firstIndex(where: { $0.elementsEqual("-".utf8) }),
                fields.count > dash + 2
            else { continue }
            return Mount(
                root: unescaped(fields[3]), point: unescaped(fields[4]),
                type: unescaped(fields[dash + 1]), source: unescaped(fields[dash + 2]))
        }
        return nil
    }

    /// The kernel writes white space and some other bytes as a backslash and three octal digits.
    private static func unescaped(_ field: ArraySlice<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        var rest = field
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            guard byte == UInt8(ascii: "\\"), digits.count == 3,
                digits.allSatisfy({ (0x30...0x37).contains($0) })
            else {
                result.append(byte)
                continue
            }
            result.append(digits.reduce(0) { $0 &* 8 &+ ($1 - 0x30) })
            rest.removeFirst(3)
        }
        return result
    }

    private static func target(of descriptor: CInt) throws -> [UInt8] {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let count = readlink("/proc/self/fd/\(descriptor)", &buffer, buffer.count)
        guard count >= 0 else {
            throw Failure(
                "/proc cannot be read (\(Errno(rawValue: errno))); name the node with --root DIR.")
        }
        return buffer.prefix(count).map { UInt8(bitPattern: $0) }
    }

    private static func contents(_ path: String) throws -> [UInt8] {
        do {
            let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            return try file.closeAfter {
                var result: [UInt8] = []
                var buffer = [UInt8](repeating: 0, count: 65_536)
                while result.count < tableBytesMax {
                    let count = try buffer.withUnsafeMutableBytes { try file.read(into: $0) }
                    if count == 0 { break }
                    result += buffer.prefix(count)
                }
                return result
            }
        } catch {
            throw Failure("\(path) cannot be read (\(error)); name the node with --root DIR.")
        }
    }
}
