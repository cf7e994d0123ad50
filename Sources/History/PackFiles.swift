import SystemPackage

/// A pack file, as a joiner copies it.
public struct PackFile: Hashable, Sendable {
    /// `pack-<40 hexadecimal digits>.pack`
    public let name: String
    public let bytes: Int

    /// Whether a name that a peer gave is that of a pack.
    public static func isName(_ name: String) -> Bool { PackFiles.isName(name) }
}

/// The packs in an `objects/pack` directory.
struct PackFiles: Sendable {
    let directory: FilePath

    static func isName(_ name: String) -> Bool {
        let digits = name.utf8.dropFirst(5).dropLast(5)
        return name.hasPrefix("pack-") && name.hasSuffix(".pack") && digits.count == 40
            && digits.allSatisfy { (0x30...0x39).contains($0) || (0x61...0x66).contains($0) }
    }

    func path(_ name: String) -> FilePath { directory.appending(name) }
    func indexPath(_ name: String) -> FilePath { directory.appending(name.dropLast(5) + ".idx") }

    /// Packs with their index, by name.
    func list() throws -> [PackFile] {
        let names = Set(try Files.names(in: directory))
        return names.sorted().compactMap { name in
            guard Self.isName(name), names.contains(name.dropLast(5) + ".idx") else { return nil }
            return Files.size(path(name)).map { PackFile(name: name, bytes: $0) }
        }
    }

    /// A pack's own checksum and the one that its index has for it; equal unless one of them was
    /// cut or mixed up.
    func checksums(_ name: String) throws -> (pack: [UInt8], index: [UInt8]) {
        (try tail(path(name), dropping: 0), try tail(indexPath(name), dropping: 20))
    }

    /// The 20 bytes before the last `dropping` ones.
    private func tail(_ path: FilePath, dropping: Int) throws -> [UInt8] {
        let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        let offset = try file.seek(offset: 0, from: .end) - 20 - Int64(dropping)
        guard offset > 0 else { return [] }
        return try [UInt8](unsafeUninitializedCapacity: 20) { buffer, count in
            count = try file.read(
                fromAbsoluteOffset: offset, into: UnsafeMutableRawBufferPointer(buffer))
        }
    }

    func count() throws -> Int {
        try Files.names(in: directory).count { $0.hasSuffix(".idx") }
    }

    /// Moves a pack and its index here, durably. The index goes last: libgit2 and Git see a pack
    /// by its index. Both are fsynced already.
    func takeOver(_ name: String, from source: PackFiles) throws {
        try Files.rename(source.path(name), to: path(name))
        try Files.rename(source.indexPath(name), to: indexPath(name))
        try Files.synchronize(directory)
    }

    /// Removes a pack. The pack goes first: a lone index is swept at the next open, whereas a lone
    /// pack would be indexed again.
    func remove(_ name: String) throws {
        try Files.remove(path(name))
        try Files.remove(indexPath(name))
        for side in [".rev", ".bitmap"] {
            try Files.remove(directory.appending(name.dropLast(5) + side))
        }
    }

    /// Removes what a crash left: temporary packs, indexes without pack. Packs without index, whole
    /// ones because they were fsynced first, get theirs back.
    func sweep(reindexIn quarantine: FilePath) throws {
        let names = Set(try Files.names(in: directory))
        for name in names.sorted() {
            if name.hasPrefix("pack_git2_") || name.hasPrefix("tmp_") || name.hasSuffix(".lock") {
                try Files.remove(directory.appending(name))
            } else if name.hasSuffix(".idx"), !names.contains(name.dropLast(4) + ".pack") {
                try Files.remove(directory.appending(name))
            } else if Self.isName(name), !names.contains(name.dropLast(5) + ".idx") {
                try restoreIndex(of: name, in: quarantine)
            }
        }
    }

    private func restoreIndex(of name: String, in quarantine: FilePath) throws {
        let target = PackFiles(directory: quarantine)
        do {
            let restored = try Indexer.index(path(name), into: quarantine)
            try takeOver(restored, from: target)
            if restored != name { try Files.remove(path(name)) }
        } catch let error as HistoryError where error.code != .noSpace && error.code != .system {
            // Perhaps it never became whole. Neither libgit2 nor Git sees it by this name.
            try Files.rename(path(name), to: directory.appending(name + ".unusable"))
        }
    }
}
