import Glibc
import SystemPackage

/// What `stat` says of a path; nil when there is nothing.
struct FileStatus {
    let mode: UInt32
    let uid: UInt32
    let device: UInt64
    let inode: UInt64
    /// Nanoseconds since 1970; a copy's is its own, whatever else it keeps.
    let changed: Int64

    init?(_ path: FilePath, followingLinks: Bool = true) {
        var status = stat()
        let result =
            followingLinks ? stat(path.string, &status) : lstat(path.string, &status)
        guard result == 0 else { return nil }
        mode = status.st_mode
        uid = status.st_uid
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
        changed = Int64(status.st_ctim.tv_sec) * 1_000_000_000 + Int64(status.st_ctim.tv_nsec)
    }

    var isDirectory: Bool { mode & S_IFMT == S_IFDIR }
}
