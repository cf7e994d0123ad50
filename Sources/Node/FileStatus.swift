import Glibc
import SystemPackage

/// What `stat` says of a path; nil when there is nothing.
struct FileStatus {
    let mode: UInt32
    let uid: UInt32
    let device: UInt64

    init?(_ path: FilePath, followingLinks: Bool = true) {
        var status = stat()
        let result =
            followingLinks ? stat(path.string, &status) : lstat(path.string, &status)
        guard result == 0 else { return nil }
        mode = status.st_mode
        uid = status.st_uid
        device = UInt64(status.st_dev)
    }

    var isDirectory: Bool { mode & S_IFMT == S_IFDIR }
}
