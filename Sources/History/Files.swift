import Glibc
import SystemPackage

/// The few system calls that the repository's directory needs beside libgit2.
enum Files {
    static func failure(_ operation: String, _ path: FilePath, _ code: Int32 = errno)
        -> HistoryError
    {
        let reason = Errno(rawValue: code)
        return HistoryError(
            code == ENOENT ? .notFound : code == ENOSPC ? .noSpace : .system, operation,
            "\(path): \(reason)", libraryCode: code)
    }

    /// Names in a directory; none if it does not exist. ASCII by construction: what is not ours
    /// and not ASCII is left out.
    static func names(in directory: FilePath) throws -> [String] {
        guard let stream = directory.withPlatformString({ opendir($0) }) else {
            if errno == ENOENT { return [] }
            throw failure("list", directory)
        }
        defer { closedir(stream) }
        var names: [String] = []
        errno = 0
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
            if name != [0x2E], name != [0x2E, 0x2E], name.allSatisfy({ $0 < 0x80 }) {
                names.append(String(decoding: name, as: UTF8.self))
            }
            errno = 0
        }
        guard errno == 0 else { throw failure("list", directory) }
        return names.sorted()
    }

    /// The path with something more at its end, whatever bytes it has.
    static func sibling(_ path: FilePath, _ suffix: String) -> FilePath {
        path.withPlatformString { text in
            let bytes = Array(UnsafeBufferPointer(start: text, count: strlen(text)))
            return FilePath(platformString: bytes + suffix.utf8CString)
        }
    }

    /// A whole file; nil if it does not exist.
    static func read(_ path: FilePath) throws -> [UInt8]? {
        let file: FileDescriptor
        do {
            file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        } catch Errno.noSuchFileOrDirectory {
            return nil
        }
        defer { try? file.close() }
        let size = Int(try file.seek(offset: 0, from: .end))
        return try [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            while count < size {
                let portion = try file.read(
                    fromAbsoluteOffset: Int64(count),
                    into: UnsafeMutableRawBufferPointer(rebasing: raw[count...]))
                guard portion > 0 else { break }
                count += portion
            }
        }
    }

    /// Puts a file in place of another, or none, atomically and durably.
    static func replace(_ path: FilePath, with bytes: [UInt8]) throws {
        let temporary = sibling(path, ".lock")
        let file = try FileDescriptor.open(
            temporary, .writeOnly, options: [.create, .truncate, .closeOnExec],
            permissions: [.ownerReadWrite, .groupRead, .otherRead])
        do {
            defer { try? file.close() }
            try file.writeAll(bytes)
            guard fsync(file.rawValue) == 0 else { throw failure("fsync", temporary) }
        }
        try rename(temporary, to: path)
        try synchronize(path.removingLastComponent())
    }

    /// Bytes; nil if there is no such file.
    static func size(_ path: FilePath) -> Int? {
        var status = stat()
        guard path.withPlatformString({ stat($0, &status) }) == 0 else { return nil }
        return Int(status.st_size)
    }

    static func isDirectory(_ path: FilePath) -> Bool {
        var status = stat()
        guard path.withPlatformString({ lstat($0, &status) }) == 0 else { return false }
        return status.st_mode & S_IFMT == S_IFDIR
    }

    static func makeDirectory(_ path: FilePath) throws {
        guard path.withPlatformString({ mkdir($0, 0o777) }) == 0 || errno == EEXIST else {
            throw failure("make directory", path)
        }
    }

    static func rename(_ from: FilePath, to: FilePath) throws {
        let code = from.withPlatformString { from in
            to.withPlatformString { to in Glibc.rename(from, to) }
        }
        guard code == 0 else { throw failure("rename", from) }
    }

    /// Absence is success.
    static func remove(_ path: FilePath) throws {
        guard path.withPlatformString({ unlink($0) }) == 0 || errno == ENOENT else {
            throw failure("remove", path)
        }
    }

    /// Removes a directory of ours with all below it. Never follows a symbolic link.
    static func removeTree(_ path: FilePath) throws {
        guard isDirectory(path) else { return try remove(path) }
        for name in try names(in: path) { try removeTree(path.appending(name)) }
        guard path.withPlatformString({ rmdir($0) }) == 0 || errno == ENOENT else {
            throw failure("remove directory", path)
        }
    }

    /// Makes the names in a directory, or a file's bytes, survive a power cut.
    static func synchronize(_ path: FilePath) throws {
        let descriptor = path.withPlatformString { open($0, O_RDONLY | O_CLOEXEC) }
        guard descriptor >= 0 else { throw failure("open", path) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw failure("fsync", path) }
    }

    /// Throws `noSpace` unless `bytes` and `HistoryLimits.freeBytesMin` more are free.
    ///
    /// libgit2 writes packs through a mapping of a sparse file: on a full disk that is SIGBUS, not
    /// an error. Hence the look ahead.
    static func requireSpace(_ bytes: Int, at path: FilePath) throws {
        var status = statvfs()
        guard path.withPlatformString({ statvfs($0, &status) }) == 0 else {
            throw failure("statvfs", path)
        }
        let free = UInt64(status.f_bavail) * UInt64(status.f_frsize)
        guard free >= UInt64(bytes) + HistoryLimits.freeBytesMin else {
            throw HistoryError(.noSpace, "write pack", "\(path): \(free) bytes free")
        }
    }
}
