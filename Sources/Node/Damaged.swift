import Foundation
import Glibc
import Mount
import SystemPackage

/// What was damaged is never removed: it goes to a directory beside, for who knows how to read it.
enum Damaged {
    /// Kept in a root; older ones go.
    static let keptMax = 8
    static let directory = "damaged"

    /// Moves files or directories of the root, durably.
    /// - Returns: where to; nil when none of them was there.
    static func setAside(_ names: [String], of root: FilePath) throws -> FilePath? {
        let present = names.filter { access(root.pushing(FilePath($0)).string, F_OK) == 0 }
        guard let first = present.first else { return nil }
        let all = root.appending(directory)
        try makeDirectory(all)
        let target = all.appending(
            "\(Monotonic.wallMilliseconds)-\(first.replacing("/", with: "-"))")
        try makeDirectory(target)
        for name in present {
            let plain = name.replacing("/", with: "-")
            guard rename(root.pushing(FilePath(name)).string, target.appending(plain).string) == 0
            else { throw Errno(rawValue: errno) }
        }
        for path in [target, all, root] { try DurableFile.synchronizeDirectory(path) }
        removeOldest(in: all)
        return target
    }

    private static func makeDirectory(_ path: FilePath) throws {
        guard mkdir(path.string, 0o700) == 0 || errno == EEXIST else {
            throw Errno(rawValue: errno)
        }
    }

    private static func removeOldest(in directory: FilePath) {
        // They begin with the time, of as many digits for some centuries.
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: directory.string)) ?? [])
            .sorted()
        for name in names.dropLast(keptMax) {
            try? FileManager.default.removeItem(atPath: directory.appending(name).string)
        }
    }
}
