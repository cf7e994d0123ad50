import Foundation
import Glibc
import SystemPackage
import Volume

/// `ROOT/volume.json`: what this disk is, written once at creation or joining.
struct VolumeFile: Codable, Sendable {
    static let formatVersion = 1

    var format = Self.formatVersion
    var volume: String
    var node: String
    var name: String
    var machine: String

    static func load(root: String) throws -> VolumeFile? {
        let path = root + "/volume.json"
        guard let data = FileManager.default.contents(atPath: path) else { return nil }
        guard let file = try? JSONDecoder().decode(VolumeFile.self, from: data) else {
            throw NodeError(
                "\(path) cannot be read as a volume description. Restore it from a backup, or start a new node at another root."
            )
        }
        guard file.format == formatVersion else {
            throw NodeError(
                "\(root) has format \(file.format); this delugefs knows format \(formatVersion). Upgrade delugefs."
            )
        }
        return file
    }

    func save(root: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try DurableFile.write(encoder.encode(self), to: root + "/volume.json")
    }
}

/// Small files that must be there whole or not at all.
enum DurableFile {
    /// Writes under a temporary name, syncs, renames, syncs the directory. Mode 0600.
    static func write(_ data: Data, to path: String) throws {
        let temporary = path + ".new"
        let file = try FileDescriptor.open(
            FilePath(temporary), .writeOnly, options: [.create, .truncate, .closeOnExec],
            permissions: [.ownerRead, .ownerWrite])
        try file.closeAfter {
            _ = try file.writeAll(data)
            guard fsync(file.rawValue) == 0 else { throw Errno(rawValue: errno) }
        }
        guard rename(temporary, path) == 0 else { throw Errno(rawValue: errno) }
        try synchronizeDirectory(FilePath(path).removingLastComponent())
    }

    static func synchronizeDirectory(_ path: FilePath) throws {
        let directory = try FileDescriptor.open(
            path, .readOnly, options: [.directory, .closeOnExec])
        try directory.closeAfter {
            guard fsync(directory.rawValue) == 0 else { throw Errno(rawValue: errno) }
        }
    }
}
