import Glibc

/// A place for a node's root: a directory, or a file system of its own.
final class Disk: Sendable {
    enum Kind: Sendable {
        case directory
        case tmpfs(megabytes: Int)
        case ext4(megabytes: Int)
        case xfs(megabytes: Int)
        case btrfs(megabytes: Int)
    }

    /// Where it is, or would be, mounted.
    let path: String
    private let kind: Kind
    let image: String

    /// - Parameter store: where its image is; nil: in the workshop.
    init(
        _ workshop: Workshop, _ name: String, _ kind: Kind = .directory, in store: Disk? = nil
    ) async throws {
        self.kind = kind
        path = try workshop.make("disk-\(name)")
        image = "\(store?.path ?? workshop.directory)/\(name).image"
        switch kind {
        case .directory: return
        case .tmpfs: break
        case .ext4(let size): try await format(size, ["mkfs.ext4", "-q", "-F"])
        case .xfs(let size): try await format(size, ["mkfs.xfs", "-q", "-f"])
        case .btrfs(let size): try await format(size, ["mkfs.btrfs", "-q", "-f"])
        }
        try await mount()
        workshop.onClose("disk \(name)") { [path] in
            // Lazily: a process that could not be killed must not keep the rest from going.
            _ = try await Shell.run(["umount", "-l", path])
        }
    }

    /// An ext4 that says what is right, mounted as a mount of ours is, which keeps access times that
    /// were set only.
    static func oracle(_ workshop: Workshop) async throws -> Disk {
        let disk = try await Disk(workshop, "oracle", .ext4(megabytes: 4096))
        try await Shell.run(["mount", "-o", "remount,noatime,nosuid,nodev", disk.path]).succeeded()
        return disk
    }

    private func format(_ megabytes: Int, _ command: [String]) async throws {
        try await Shell.run(["truncate", "-s", "\(megabytes)M", image]).succeeded()
        try await Shell.run(command + [image]).succeeded()
    }

    func mount() async throws {
        switch kind {
        case .directory: return
        case .tmpfs(let size):
            try await Shell.run(["mount", "-t", "tmpfs", "-o", "size=\(size)m", "e2e", path])
                .succeeded()
        default: try await Shell.run(["mount", "-o", "loop", image, path]).succeeded()
        }
    }

    /// Goes back to what had been written to the disk by this moment, as a power cut would.
    ///
    /// - Precondition: it has an image; the body ends whoever uses it.
    func losePower(_ end: () async throws -> Void) async throws {
        try await Shell.run(["cp", "--sparse=always", image, "\(image).cut"]).succeeded()
        try await end()
        try await Shell.run(["umount", "-l", path]).succeeded()
        try await Shell.run(["mv", "\(image).cut", image]).succeeded()
        try await mount()
    }

    /// An ext4 that went read-only after an error, as it is after a boot.
    func repair() async throws {
        try await unmount()
        let check = try await Shell.run(["e2fsck", "-fy", image])
        guard check.status <= 1 else { throw Failure(check.report) }
        try await mount()
    }

    func unmount() async throws { try await Shell.run(["umount", path]).succeeded() }
}
