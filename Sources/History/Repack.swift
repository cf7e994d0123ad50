import Synchronization
import SystemPackage
import Volume

/// Keeping the number of packs small.
extension History {
    public func packCount() throws -> Int { try packs.count() }

    /// Combines small packs into one once there are more than `HistoryLimits.packsMax`; whether it
    /// did. Takes seconds at most; meant for a background thread. A second caller meanwhile returns
    /// at once.
    @discardableResult
    public func repackIfNeeded() throws -> Bool {
        guard try packCount() > HistoryLimits.packsMax else { return false }
        return try repacking.withLockIfAvailable { _ in try repack() } ?? false
    }

    /// The new pack is durable before an old one goes; a crash between leaves objects twice, and a
    /// pack removed by half is swept at the next open.
    private func repack() throws -> Bool {
        let chosen = try choosePacks()
        guard chosen.count > 1 else { return false }
        try Files.requireSpace(chosen.reduce(0) { $0 + $1.bytes } * 2, at: packs.directory)
        let written = try combine(chosen)
        try readers.refresh()
        // Stock Git's index over several packs would name the old ones.
        try Files.remove(packs.directory.appending("multi-pack-index"))
        for pack in chosen where pack.name != written { try packs.remove(pack.name) }
        try Files.synchronize(packs.directory)
        try readers.reopen()
        try references.reopen()
        return true
    }

    /// The smallest packs; a larger one only if those before it make up half of it, so that each
    /// object is rewritten a logarithmic number of times.
    private func choosePacks() throws -> [PackFile] {
        let names = Set(try Files.names(in: packs.directory))
        let candidates = try packs.list()
            .filter { !names.contains($0.name.dropLast(5) + ".keep") }
            .sorted { ($0.bytes, $0.name) < ($1.bytes, $1.name) }
        var chosen: [PackFile] = []
        var bytes = 0
        var objects = 0
        for pack in candidates {
            let left = candidates.count - chosen.count
            let isWorthwhile = bytes >= pack.bytes / 2 || left > HistoryLimits.packsMax / 2
            objects += try PackIndex.count(packs.indexPath(pack.name))
            guard chosen.count < 2 || isWorthwhile, objects <= HistoryLimits.repackObjectsMax else {
                break
            }
            chosen.append(pack)
            bytes += pack.bytes
        }
        return chosen
    }

    private func combine(_ chosen: [PackFile]) throws -> String {
        var byKind: [ObjectKind: [ObjectID]] = [:]
        do {
            let database = try ObjectDatabase(objects: path.appending("objects"))
            for pack in chosen {
                for key in try PackIndex.keys(packs.indexPath(pack.name)) {
                    guard let kind = try database.header(key)?.kind else {
                        throw HistoryError(.malformed, "repack", "\(key) in \(pack.name)")
                    }
                    byKind[kind, default: []].append(key)
                }
            }
        }
        let writer = try PackWriter(repository: path)
        for kind in [ObjectKind.commit, .tree, .blob] {
            for key in byKind[kind] ?? [] { try writer.insert(key) }
        }
        return try writer.write(into: packs.directory)
    }
}

/// The list of objects in a pack, from its index: version 2, as libgit2 and Git write it.
enum PackIndex {
    private static let magic: [UInt8] = [0xFF, 0x74, 0x4F, 0x63, 0, 0, 0, 2]
    private static let idsOffset = 8 + 256 * 4

    static func count(_ path: FilePath) throws -> Int {
        let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        return try count(file, path)
    }

    private static func count(_ file: FileDescriptor, _ path: FilePath) throws -> Int {
        let header = try read(file, path, at: 0, count: idsOffset)
        guard header.starts(with: magic) else {
            throw HistoryError(.malformed, "read index", "\(path) is not of version 2")
        }
        return header.suffix(4).reduce(0) { $0 << 8 | Int($1) }
    }

    static func keys(_ path: FilePath) throws -> [ObjectID] {
        let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        let count = try count(file, path)
        let ids = try read(file, path, at: idsOffset, count: count * 20)
        return ids.withUnsafeBytes { ids in
            (0..<count).map { ObjectID(UnsafeRawBufferPointer(rebasing: ids[($0 * 20)...])) }
        }
    }

    private static func read(
        _ file: FileDescriptor, _ path: FilePath, at offset: Int, count: Int
    ) throws -> [UInt8] {
        try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            while filled < count {
                let portion = try file.read(
                    fromAbsoluteOffset: Int64(offset + filled),
                    into: UnsafeMutableRawBufferPointer(rebasing: raw[filled...]))
                guard portion > 0 else {
                    throw HistoryError(.malformed, "read index", "\(path) is cut short")
                }
                filled += portion
            }
        }
    }
}
