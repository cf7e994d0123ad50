import CStore
import Glibc
import Synchronization
public import SystemPackage
import Volume

/// What the disk under a root is and has.
public struct DiskFacts: Hashable, Sendable {
    public let capacityBytes: UInt64
    /// What this process may still use.
    public let freeBytes: UInt64
    /// 0 where the file system does not count inodes.
    public let inodes: UInt64
    public let inodesFree: UInt64
    /// `ext4`, `xfs`, `btrfs`, `tmpfs` …, or the magic number in hexadecimal.
    public let fileSystem: String
    /// Of the file system, in the usual spelling; nil where it has none.
    public let uuid: String?
    /// Copies can share blocks.
    public let supportsReflink: Bool
    /// `hasWriters` works: without it there are no passthrough writes.
    public let supportsLeases: Bool
    /// What was written can be told from what was not, zeros too (`Overlay`).
    public let supportsOverlays: Bool
}

/// Tried once: they cost a few files.
struct DiskAbilities {
    let supportsReflink: Bool
    let supportsLeases: Bool
    let supportsOverlays: Bool
}

extension Store {
    /// - Throws: `StoreError`; ENOSPC when a full disk leaves no room to try its abilities, which
    ///   happens at the first call only.
    public func diskFacts() throws(StoreError) -> DiskFacts {
        let space = try fileSystemStatus()
        let abilities = try abilities()
        return DiskFacts(
            capacityBytes: space.blocks * space.block_bytes,
            freeBytes: space.blocks_available * space.block_bytes, inodes: space.files,
            inodesFree: space.files_free, fileSystem: Self.fileSystemName(space.type),
            uuid: try uuid(), supportsReflink: abilities.supportsReflink,
            supportsLeases: abilities.supportsLeases,
            supportsOverlays: abilities.supportsOverlays)
    }

    /// Bytes that this process may still use; one system call.
    public func freeBytes() throws(StoreError) -> UInt64 {
        let space = try fileSystemStatus()
        return space.blocks_available * space.block_bytes
    }

    private func fileSystemStatus() throws(StoreError) -> cstore_filesystem {
        var status = cstore_filesystem()
        try system("statfs root") { cstore_fstatfs(root.raw, &status) }
        return status
    }

    func abilities() throws(StoreError) -> DiskAbilities {
        if let known = state.withLock({ $0.facts }) { return known }
        let found = try tryAbilities()
        state.withLock { $0.facts = found }
        return found
    }

    private func tryAbilities() throws(StoreError) -> DiskAbilities {
        let source = try temporary()
        defer { _ = try? temporaries.remove(source.name) }
        let target = try temporary()
        defer { _ = try? temporaries.remove(target.name) }
        let (from, to) = (source.file.raw, target.file.raw)
        // Larger than any block size in use: a smaller length would be refused for its alignment.
        let block = [UInt8](repeating: 1, count: 64 << 10)
        try write(block, to: from, "reflink probe")
        let reflink = cstore_clone_range(from, 0, UInt64(block.count), to, 0) == 0
        let reader = try temporaries.open(source.name, O_RDONLY)
        // `source` is open for writing: leases must say so, and must say the opposite for a
        // file without writers. Some file systems take leases and see no writers.
        var leases = false
        do throws(StoreError) {
            leases = try hasWriters(reader.descriptor)
            if leases { leases = try !leaseSeesWriterWhereNoneIs() }
        } catch { leases = false }
        return DiskAbilities(
            supportsReflink: reflink, supportsLeases: leases,
            supportsOverlays: try tellsZerosFromHoles())
    }

    /// Some compress zeros away once they are on the disk, some have no holes.
    private func tellsZerosFromHoles() throws(StoreError) -> Bool {
        let probe = try temporary()
        defer { _ = try? temporaries.remove(probe.name) }
        let file = probe.file.raw
        let block = 16 * Overlay.blockBytes..<17 * Overlay.blockBytes
        try system("ftruncate") { cstore_ftruncate(file, 64 * Overlay.blockBytes) }
        try write(
            [UInt8](repeating: 0, count: block.count), to: file, at: block.lowerBound,
            "overlay probe")
        try synchronize(file, "overlay probe")
        let data = try nextData(in: file, from: 0)
        let hole = try nextHole(in: file, from: block.lowerBound, end: .max)
        let rest = try nextData(in: file, from: block.upperBound)
        return data == block.lowerBound && hole == block.upperBound && rest == .max
    }

    private func leaseSeesWriterWhereNoneIs() throws(StoreError) -> Bool {
        let name = try closedTemporary()
        defer { _ = try? temporaries.remove(name) }
        let reader = try temporaries.open(name, O_RDONLY)
        return try hasWriters(reader.descriptor)
    }

    private func closedTemporary() throws(StoreError) -> String { try temporary().name }

    /// The kernel's answer (6.9), else the link in `/dev/disk/by-uuid` to the root's device.
    private func uuid() throws(StoreError) -> String? {
        var bytes = [UInt8](repeating: 0, count: 16)
        if cstore_filesystem_uuid(root.raw, &bytes) == 0, bytes.contains(where: { $0 != 0 }) {
            let hex = Array(Hex.encode(bytes))
            return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32]
                .map { String(hex[$0]) }.joined(separator: "-")
        }
        let device = try FileStatus(of: root.raw).device
        let path = "/dev/disk/by-uuid"
        guard let links = try? Directory(path: Array(path.utf8), label: path) else { return nil }
        var found: String?
        try links.forEachName { (name) throws(StoreError) in
            var number: UInt64 = 0
            if cstore_device_number("\(path)/\(name)", &number) == 0, number == device {
                found = name
            }
            return found == nil
        }
        return found
    }

    private static func fileSystemName(_ magic: UInt64) -> String {
        switch magic {
        case 0xEF53: "ext4"
        case 0x5846_5342: "xfs"
        case 0x9123_683E: "btrfs"
        case 0x0102_1994: "tmpfs"
        case 0xF2F5_2010: "f2fs"
        case 0x2FC1_2FC1: "zfs"
        case 0x794C_7630: "overlay"
        case 0x2011_BAB0: "exfat"
        case 0x5346_544E, 0x7366_746E: "ntfs"
        case 0x4D44: "vfat"
        case 0x6969: "nfs"
        case 0x6573_5546: "fuse"
        case 0xCA45_1A4E: "bcachefs"
        default: "0x" + String(magic, radix: 16)
        }
    }

    /// Bytes held back so that a catalog on a full disk can still finish a transaction: in files that are
    /// given up one by one, for somebody else may take all that becomes free at once.
    public static let reserveBytes: UInt64 = 64 << 20
    /// Of eight: the catalog's alone, without which nothing can be removed.
    public static let catalogReserveFiles = 4
    private static let reserveFiles = ["reserve"] + (1..<8).map { "reserve.\($0)" }
    private static let reserveFileBytes = reserveBytes / UInt64(reserveFiles.count)

    /// Gives a file the blocks of its first bytes, also those behind its end, and keeps its size.
    ///
    /// - Returns: false when the disk has no room, or cannot do this.
    public static func own(_ bytes: UInt64, of file: FileDescriptor) -> Bool {
        cstore_own(file.rawValue, bytes) == 0
    }

    public func hasReserve() throws(StoreError) -> Bool {
        for name in Self.reserveFiles where try !hasReserve(name) { return false }
        return true
    }

    private func hasReserve(_ name: String) throws(StoreError) -> Bool {
        try root.status(name)?.size ?? 0 >= Self.reserveFileBytes
    }

    /// Makes the files of the reserve that are missing or short.
    ///
    /// - Returns: false when the disk has no room for them.
    public func createReserve() throws(StoreError) -> Bool {
        var made: [String] = []
        do throws(StoreError) {
            for name in Self.reserveFiles where try !hasReserve(name) {
                try createReserve(name)
                made.append(name)
            }
            if !made.isEmpty { try root.synchronize() }
            return true
        } catch {
            for name in made { try root.remove(name) }
            guard error.errno == .noSpace || error.errno == Errno(rawValue: EDQUOT) else {
                throw error
            }
            return false
        }
    }

    private func createReserve(_ name: String) throws(StoreError) {
        let file = try root.open(name, O_RDWR | O_CREAT)
        do throws(StoreError) {
            let result = cstore_allocate(file.raw, Self.reserveFileBytes)
            if result < 0 {
                guard Errno(rawValue: -result) == .notSupported else {
                    throw StoreError("allocate \(name)", Errno(rawValue: -result))
                }
                let zeros = [UInt8](repeating: 0, count: 1 << 20)
                for step in 0..<Self.reserveFileBytes >> 20 {
                    try write(zeros, to: file.raw, at: step << 20, name)
                }
            }
            try synchronize(file.raw, name)
        } catch {
            try root.remove(name)
            throw error
        }
    }

    /// Gives the disk one file of the reserve.
    ///
    /// - Parameter kept: so many of them are for others.
    /// - Returns: false when there was none.
    public func shrinkReserve(leaving kept: Int = 0) throws(StoreError) -> Bool {
        for name in Self.reserveFiles.dropFirst(kept).reversed() where try root.remove(name) {
            return true
        }
        return false
    }

    /// Gives the held-back bytes to the disk.
    ///
    /// - Returns: false when there was no reserve.
    @discardableResult
    public func releaseReserve() throws(StoreError) -> Bool {
        guard try shrinkReserve() else { return false }
        while try shrinkReserve() {}
        return true
    }
}
