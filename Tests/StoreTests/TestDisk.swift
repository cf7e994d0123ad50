import Glibc
import SystemPackage
import Volume

@testable import Store

/// A directory to be a root, removed with all that is in it; on the disk of /tmp, or on a file
/// system made for the test and mounted from a sparse file.
final class TestDisk {
    enum Kind: String, CaseIterable, Sendable {
        case plain, ext4, xfs, tmpfs

        static let sharing: Set<Kind> = [.xfs]
    }

    struct Failure: Error { let command: String }

    let kind: Kind
    let directory: String
    private let isMounted: Bool
    var root: String { directory + "/root" }

    init(_ kind: Kind, megabytes: Int = 400) throws {
        var template = Array("/var/tmp/delugefs-store-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        let base = String(
            decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        directory = base + "/disk"
        self.kind = kind
        mkdir(directory, 0o700)
        switch kind {
        case .plain:
            isMounted = false
        case .tmpfs:
            try run("mount", "-t", "tmpfs", "-o", "size=\(megabytes)m", "none", directory)
            isMounted = true
        case .ext4, .xfs:
            let image = base + "/image"
            try run("truncate", "-s", "\(megabytes)M", image)
            try run("mkfs.\(kind.rawValue)", "-q", image)
            try run("mount", "-o", "loop", image, directory)
            isMounted = true
        }
        mkdir(root, 0o700)
    }

    deinit {
        if isMounted { try? run("umount", "-l", directory) }
        try? run("rm", "-rf", String(directory.dropLast(5)))
    }

    func store(extentBytesMax: UInt64 = Limits.extentBytesMax) throws -> Store {
        try Store(root: Array(root.utf8), extentBytesMax: extentBytesMax)
    }

    func exists(_ path: String) -> Bool { access("\(root)/\(path)", F_OK) == 0 }

    func mode(_ path: String) -> UInt32 {
        var status = stat()
        return stat("\(root)/\(path)", &status) == 0 ? status.st_mode & 0o7777 : 0
    }

    func inode(_ path: String) -> UInt64 {
        var status = stat()
        return stat("\(root)/\(path)", &status) == 0 ? UInt64(status.st_ino) : 0
    }

    func blocks(_ path: String) -> Int {
        var status = stat()
        return stat("\(root)/\(path)", &status) == 0 ? Int(status.st_blocks) : -1
    }

    func names(in path: String) -> [String] {
        guard let stream = opendir("\(root)/\(path)") else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names.sorted()
    }
}

/// Runs a program to its end.
func run(_ command: String...) throws {
    var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
    arguments.append(nil)
    defer { arguments.forEach { free($0) } }
    var pid = pid_t()
    let failure = TestDisk.Failure(command: command.joined(separator: " "))
    guard posix_spawnp(&pid, command[0], nil, nil, arguments, environ) == 0 else { throw failure }
    var status: CInt = 0
    while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
    guard status == 0 else { throw failure }
}

/// The bytes that the golden roots were computed for (by another program, with hashlib).
func pattern(_ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 * 7 + $0 / 251 + $0 / 65521) }
}

/// SplitMix64: the same bytes for the same seed.
struct SeededBytes {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ (word >> 30)) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ (word >> 27)) &* 0x94D0_49BB_1331_11EB
        return word ^ (word >> 31)
    }

    mutating func bytes(_ count: Int) -> [UInt8] {
        let words = (0..<(count + 7) / 8).map { _ in next() }
        return words.withUnsafeBytes { Array($0.prefix(count)) }
    }
}

extension Store {
    /// A staging file with these bytes, closed.
    func stage(_ name: StagingName, _ bytes: [UInt8]) throws {
        let file = try createStaging(name)
        defer { try? file.close() }
        try file.writeAll(bytes)
    }

    /// Hashes a staging file, and publishes it as a publisher does.
    @discardableResult
    func publish(_ name: StagingName) throws -> MerkleResult {
        let file = try openStaging(name, .read)
        defer { try? file.close() }
        let length = try file.seek(offset: 0, from: .end)
        let result = try hash(file, length: UInt64(length))
        if result.extents.count == 1 {
            try link(prepareObject(name, result.extents[0], synchronizing: true))
            try synchronizeNames(of: result.extents.map(\.extent.root))
        } else {
            try moveToObjects(Publication(staging: name, result: result))
        }
        try removeStaging(name)
        return result
    }

    func objectBytes(_ root: ContentRoot) throws -> [UInt8]? {
        guard let file = try openObject(root) else { return nil }
        defer { try? file.close() }
        return try contents(of: file)
    }
}

func contents(of file: FileDescriptor) throws -> [UInt8] {
    let length = Int(try file.seek(offset: 0, from: .end))
    var bytes = [UInt8](repeating: 0, count: length)
    var done = 0
    while done < length {
        let count = try bytes.withUnsafeMutableBytes {
            try file.read(
                fromAbsoluteOffset: Int64(done),
                into: UnsafeMutableRawBufferPointer(rebasing: $0[done...]))
        }
        guard count > 0 else { break }
        done += count
    }
    return bytes
}

extension StagingName {
    init(_ ino: UInt64, _ number: UInt64) {
        self.init(ino: InodeNumber(rawValue: ino), number: number)
    }
}
