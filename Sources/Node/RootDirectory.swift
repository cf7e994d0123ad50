import FUSE
import Foundation
import Glibc
import Mesh
import Store
import SystemPackage
import Volume

/// The checks on a root and a mount point that come before anything is written.
struct RootDirectory {
    enum Content {
        case empty
        case node(VolumeFile)
    }

    static let mountSubtype = "delugefs"

    let path: FilePath
    let content: Content
    /// This very directory was started from here before: it is no copy.
    let isKnown: Bool

    /// - Throws: `NodeError`, one sentence for each refusal.
    init(_ configuration: Configuration, known: KnownRoots) throws {
        let path = try Self.absolute(configuration.root)
        self.path = path
        let mount = try Mounting.mountPoint(holding: path, subtype: Self.mountSubtype)
        // A node that waits for a mount of its own kind may wait for itself.
        if let mount {
            throw NodeError(
                "The root \(path) lies inside the mount \(mount) of a node. Give a directory on a disk of this machine."
            )
        }
        let recorded = try known.record(root: path.string)
        let place = Self.place(path)
        isKnown = place != nil && recorded?.place == place
        guard Self.isDirectory(path) else {
            if let recorded, !configuration.newNode { throw Self.notMounted(recorded, path) }
            guard Self.isDirectory(path.removingLastComponent()) else {
                throw NodeError(
                    "\(path) does not exist, and neither does the directory above it. Create that, or give another --root."
                )
            }
            content = .empty
            return
        }
        try Self.checkPermissions(path)
        if let file = try VolumeFile.load(root: path.string) {
            if configuration.create {
                throw NodeError(
                    "\(path) is a node of volume \(file.volume) already; leave out --create to start it, or give an empty --root."
                )
            }
            guard file.volume == configuration.volume else {
                throw NodeError(
                    "\(path) is a node of volume \(file.volume), not of \(configuration.volume). Give --id \(file.volume) or another --root."
                )
            }
            if let original = try known.running(node: file.node, besides: path.string) {
                throw NodeError(
                    "\(path) is a copy of \(original), whose node is running. Start a node of its own in an empty root instead."
                )
            }
            // Before peers are greeted in the name of a node that is running.
            guard !Self.isLocked(path) else {
                throw NodeError(
                    "\(path) is in use by another delugefs process. Stop that one first: delugefs stop --root \(path)"
                )
            }
            content = .node(file)
            return
        }
        let names = try Self.names(path)
        guard names.isEmpty else {
            throw NodeError(
                "\(path) is not empty and is no node of a volume. Give an empty directory as --root."
            )
        }
        if let recorded, !configuration.newNode { throw Self.notMounted(recorded, path) }
        content = .empty
    }

    /// Tells the root from every copy of it.
    static func place(_ root: FilePath) -> String? {
        FileStatus(root.appending("volume.json")).map { "\($0.inode).\($0.changed)" }
    }

    static func isLocked(_ root: FilePath) -> Bool {
        let lock = open(root.string + "/lock", O_RDONLY | O_CLOEXEC)
        guard lock >= 0 else { return false }
        defer { close(lock) }
        return flock(lock, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }

    private static func notMounted(_ record: KnownRoots.Record, _ path: FilePath) -> NodeError {
        NodeError(
            "disk of node \(record.name) is not mounted at \(path); to start a new node there use --new-node"
        )
    }

    /// Makes the directory where only the last component is missing; an empty one that is there
    /// is closed to others.
    func make() throws {
        if let status = FileStatus(path) {
            guard status.mode & 0o077 == 0 || chmod(path.string, 0o700) == 0 else {
                throw Self.tooWide(path)
            }
            return
        }
        guard mkdir(path.string, 0o700) == 0 else {
            throw NodeError("\(path) cannot be created: \(Errno(rawValue: errno)).")
        }
    }

    private static func checkPermissions(_ path: FilePath) throws {
        guard let status = FileStatus(path) else {
            throw NodeError("\(path) cannot be read: \(Errno(rawValue: errno)).")
        }
        guard status.uid == geteuid() || geteuid() == 0 else {
            throw NodeError("\(path) belongs to another user; run as its owner.")
        }
        // Anything else that is not empty is refused for that, and stays as it is.
        let isNode = FileStatus(path.appending("volume.json")) != nil
        guard status.mode & 0o077 == 0 || !isNode else { throw tooWide(path) }
    }

    private static func tooWide(_ path: FilePath) -> NodeError {
        NodeError("\(path) can be entered by other users. Run: chmod 700 \(path)")
    }

    private static func names(_ path: FilePath) throws -> [String] {
        do {
            return try FileManager.default.contentsOfDirectory(atPath: path.string)
                .filter { $0 != "lost+found" }
        } catch { throw NodeError("\(path) cannot be listed: \(error)") }
    }

    static func isDirectory(_ path: FilePath) -> Bool {
        FileStatus(path)?.isDirectory == true
    }

    static func absolute(_ path: String) throws -> FilePath {
        var result = FilePath(path)
        if result.isRelative {
            result = FilePath(FileManager.default.currentDirectoryPath).pushing(result)
        }
        result.lexicallyNormalize()
        // Resolve what exists, so that a symbolic link cannot hide that one lies in the other.
        var rest: [FilePath.Component] = []
        var existing = result
        while let last = existing.lastComponent {
            if let real = realpath(existing.string, nil) {
                defer { free(real) }
                var resolved = FilePath(String(cString: real))
                for component in rest.reversed() { resolved.append(component) }
                return resolved
            }
            rest.append(last)
            existing.removeLastComponent()
        }
        return result
    }

    /// The bulk port is opened late; a taken one is noticed before anything is written.
    static func checkPorts(_ configuration: Configuration) throws {
        guard configuration.port != 0 else { return }
        guard let port = UInt16(exactly: configuration.port + 1), FreePort.isFree(port) else {
            throw NodeError(
                "Port \(configuration.port + 1), for content, is taken. Choose another with --port: it and the one after it are used."
            )
        }
    }

    // MARK: Mount point

    /// - Returns: the mount point, and whether it has to be made.
    static func mountPoint(
        _ configuration: Configuration, root: FilePath
    ) throws -> (FilePath, isMissing: Bool)? {
        guard let given = configuration.mountPoint else { return nil }
        let path = try recovered(given)
        guard access("/dev/fuse", R_OK | W_OK) == 0 || errno == ENOENT else {
            throw NodeError(
                "/dev/fuse cannot be opened by this user. Run as root, or once: sudo chmod 666 /dev/fuse"
            )
        }
        guard access("/dev/fuse", F_OK) == 0 else {
            throw NodeError(
                "/dev/fuse is missing: this kernel has no FUSE. Load it with `modprobe fuse`, or start without --mount."
            )
        }
        guard !root.starts(with: path) else {
            throw NodeError(
                "The root \(root) would lie inside the mount \(path). Mount somewhere else.")
        }
        guard !path.starts(with: root) else {
            throw NodeError(
                "The mount point \(path) lies inside the root \(root). Mount somewhere else.")
        }
        if FileStatus(path, followingLinks: false) == nil {
            guard isDirectory(path.removingLastComponent()) else {
                throw NodeError(
                    "The mount point \(path) does not exist, and neither does the directory above it. Create it first."
                )
            }
            return (path, true)
        }
        guard isDirectory(path) else {
            throw NodeError("The mount point \(path) is not a directory.")
        }
        guard try names(path).isEmpty else {
            throw NodeError("The mount point \(path) is not empty. Mount on an empty directory.")
        }
        return (path, false)
    }

    /// Removes what a crashed node left mounted there.
    private static func recovered(_ given: String) throws -> FilePath {
        var literal = FilePath(given)
        if literal.isRelative {
            literal = FilePath(FileManager.default.currentDirectoryPath).pushing(literal)
        }
        literal.lexicallyNormalize()
        do {
            try Mounting.recoverStale(at: literal)
        } catch { throw NodeError("\(error)") }
        let path = try absolute(given)
        do {
            switch try Mounting.state(at: path) {
            case .notMounted: break
            case .stale: try Mounting.recoverStale(at: path)
            case .live:
                throw NodeError(
                    "Something is mounted at \(path) already. Unmount it or choose another mount point."
                )
            default: break
            }
        } catch let error as MountError { throw NodeError("\(error)") }
        return path
    }
}

/// Where nodes of this user were on this machine: refuses to start a new, empty node where a disk
/// is only not mounted.
struct KnownRoots {
    struct Record: Codable {
        var root: String
        var volume: String
        var node: String
        var name: String
        var fileSystem: String?
        /// Of `volume.json`: which file it is, and since when.
        var place: String?

        init(root: FilePath, _ file: VolumeFile, fileSystem: String?) {
            self.root = root.string
            volume = file.volume
            node = file.node
            name = file.name
            self.fileSystem = fileSystem
            place = RootDirectory.place(root)
        }
    }

    let path: String

    init(directory: String) { path = directory + "/roots.json" }

    private func load() throws -> [Record] {
        guard let data = FileManager.default.contents(atPath: path) else { return [] }
        // A damaged file only takes the protection away; it must not keep nodes from starting.
        return (try? JSONDecoder().decode([Record].self, from: data)) ?? []
    }

    func record(root: String) throws -> Record? { try load().first { $0.root == root } }

    /// Another root where the same node runs at this moment: that one's lock is held.
    func running(node: String, besides root: String) throws -> String? {
        try load().first { record in
            guard record.node == node, record.root != root else { return false }
            return RootDirectory.isLocked(FilePath(record.root))
        }?.root
    }

    func keep(_ record: Record) throws {
        var records = try load().filter { $0.root != record.root }
        records.append(record)
        let directory = FilePath(path).removingLastComponent().string
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true,
            attributes: [.posixPermissions: 0o700])
        try DurableFile.write(try JSONEncoder().encode(records), to: path)
    }
}
