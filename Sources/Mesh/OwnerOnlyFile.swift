import Glibc
public import SystemPackage
import Volume

/// Why a secret's file was refused.
public enum OwnerOnlyFileError: Error, Hashable, CustomStringConvertible {
    case missing(FilePath)
    case exists(FilePath)
    /// Group or others have a permission bit, or it is no plain file of ours.
    case exposed(FilePath)
    case tooLarge(FilePath)
    case failed(FilePath, Errno)

    public var description: String {
        switch self {
        case .missing(let path): "\(path) does not exist"
        case .exists(let path): "\(path) exists already"
        case .exposed(let path):
            "\(path) must be a plain file for its owner alone; run: chmod 600 \(path)"
        case .tooLarge(let path): "\(path) is too large"
        case .failed(let path, let error): "\(path): \(error)"
        }
    }
}

/// Files for their owner alone: written whole or not at all, never over another.
public enum OwnerOnlyFile {
    /// - Throws: `OwnerOnlyFileError`.
    public static func read(_ path: FilePath, bytesMax: Int) throws(OwnerOnlyFileError) -> [UInt8] {
        let descriptor = path.withPlatformString {
            open($0, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        }
        guard descriptor >= 0 else {
            let code = Errno(rawValue: errno)
            throw code == .noSuchFileOrDirectory ? .missing(path) : .failed(path, code)
        }
        defer { close(descriptor) }
        let status: Stat
        do { status = try FileDescriptor(rawValue: descriptor).stat() } catch {
            throw .failed(path, error)
        }
        // Root may read what belongs to the node's user; nobody else's files are believed.
        guard status.type == .regular, status.permissions.rawValue & 0o077 == 0,
            status.userID.rawValue == geteuid() || geteuid() == 0
        else { throw .exposed(path) }
        var bytes = [UInt8](repeating: 0, count: bytesMax + 1)
        var count = 0
        while count < bytes.count {
            let step = bytes.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress.map { $0 + count }, $0.count - count)
            }
            if step == 0 { break }
            if step < 0 {
                if errno == EINTR { continue }
                throw .failed(path, Errno(rawValue: errno))
            }
            count += step
        }
        guard count <= bytesMax else { throw .tooLarge(path) }
        return Array(bytes.prefix(count))
    }

    /// Durable when it returns. The name appears with the whole contents or not at all.
    ///
    /// - Throws: `OwnerOnlyFileError.exists` when the name is taken, which is left as it was.
    public static func create(_ path: FilePath, contents: [UInt8]) throws(OwnerOnlyFileError) {
        let temporary = path.appendingSuffix(
            ".\(getpid()).\(UInt32.random(in: .min ... .max)).new")
        let descriptor = temporary.withPlatformString {
            open($0, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        }
        guard descriptor >= 0 else { throw .failed(temporary, Errno(rawValue: errno)) }
        defer {
            close(descriptor)
            _ = temporary.withPlatformString { unlink($0) }
        }
        var written = 0
        while written < contents.count {
            let step = contents.withUnsafeBytes {
                write(descriptor, $0.baseAddress.map { $0 + written }, $0.count - written)
            }
            if step < 0 {
                if errno == EINTR { continue }
                throw .failed(temporary, Errno(rawValue: errno))
            }
            written += step
        }
        guard fsync(descriptor) == 0 else { throw .failed(temporary, Errno(rawValue: errno)) }
        // link, not rename: it refuses a name that exists.
        let linked = temporary.withPlatformString { from in
            path.withPlatformString { to in link(from, to) }
        }
        guard linked == 0 else {
            let code = Errno(rawValue: errno)
            throw code == .fileExists ? .exists(path) : .failed(path, code)
        }
        try synchronizeDirectory(of: path)
    }

    /// Gives a file another name, durably, unless that is taken. A crash may leave both names.
    static func rename(_ path: FilePath, to target: FilePath) throws(OwnerOnlyFileError) {
        // link and unlink, not rename: link refuses a name that exists.
        let linked = path.withPlatformString { from in
            target.withPlatformString { to in link(from, to) }
        }
        guard linked == 0 else {
            let code = Errno(rawValue: errno)
            throw code == .fileExists ? .exists(target) : .failed(path, code)
        }
        try synchronizeDirectory(of: target)
        guard path.withPlatformString({ unlink($0) }) == 0 else {
            throw .failed(path, Errno(rawValue: errno))
        }
    }

    private static func synchronizeDirectory(of path: FilePath) throws(OwnerOnlyFileError) {
        let parent = path.removingLastComponent()
        let directory = (parent.isEmpty ? FilePath(".") : parent).withPlatformString {
            open($0, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        }
        guard directory >= 0 else { throw .failed(parent, Errno(rawValue: errno)) }
        defer { close(directory) }
        guard fsync(directory) == 0 else { throw .failed(parent, Errno(rawValue: errno)) }
    }
}

extension FilePath {
    /// The path with ASCII text added to its last component; the bytes before stay as they are.
    func appendingSuffix(_ suffix: String) -> FilePath {
        guard let last = lastComponent else { return self }
        var name = last.withPlatformString {
            Array(UnsafeBufferPointer(start: $0, count: strlen($0)))
        }
        name += suffix.utf8.map { CChar(bitPattern: $0) }
        name.append(0)
        guard
            let component = name.withUnsafeBufferPointer({ buffer in
                buffer.baseAddress.flatMap { FilePath.Component(platformString: $0) }
            })
        else { return self }
        return removingLastComponent().appending(component)
    }
}
