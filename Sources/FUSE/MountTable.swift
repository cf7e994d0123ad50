import Glibc
import SystemPackage

/// One line of `/proc/self/mountinfo`.
struct MountEntry: Equatable {
    var mountPoint: [UInt8]
    var type: [UInt8]
    var source: [UInt8]
}

/// The mounts of this process's namespace, read without touching any of them: a `stat` of a mount
/// whose server hangs would hang too.
enum MountTable {
    /// Bytes of mountinfo that are read: beyond any real table.
    static let sizeMax = 64 << 20

    static func current() throws(Errno) -> [MountEntry] {
        parse(try contents(of: "/proc/self/mountinfo"))
    }

    /// The topmost mount at exactly this path: later lines lie on earlier ones.
    static func topmost(at path: FilePath) throws(Errno) -> MountEntry? {
        let bytes = path.withCString { Array(UnsafeRawBufferPointer(start: $0, count: strlen($0))) }
        return try current().last { $0.mountPoint == bytes }
    }

    /// The mount that holds this path, and where it is mounted: of those at or above the path the
    /// deepest, and of several at one place the topmost.
    static func holding(_ path: FilePath) throws(Errno) -> (entry: MountEntry, point: FilePath)? {
        var deepest: (entry: MountEntry, point: FilePath)?
        for entry in try current() {
            let point = FilePath(
                platformString: entry.mountPoint.map { CChar(bitPattern: $0) } + [0])
            guard path.starts(with: point) else { continue }
            if let known = deepest, known.point.components.count > point.components.count {
                continue
            }
            deepest = (entry, point)
        }
        return deepest
    }

    /// `36 35 98:0 /root /point options [optional...] - type source options`.
    static func parse(_ table: [UInt8]) -> [MountEntry] {
        table.split(separator: UInt8(ascii: "\n")).compactMap { line in
            let fields = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
            guard fields.count > 6,
                let dash = fields[6...].firstIndex(where: { $0.elementsEqual("-".utf8) }),
                fields.count > dash + 2
            else { return nil }
            return MountEntry(
                mountPoint: unescape(fields[4]), type: unescape(fields[dash + 1]),
                source: unescape(fields[dash + 2]))
        }
    }

    /// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
    static func unescape(_ field: ArraySlice<UInt8>) -> [UInt8] {
        var result: [UInt8] = []
        var rest = field
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            let isOctal = digits.count == 3 && digits.allSatisfy { (48...55).contains($0) }
            if byte == UInt8(ascii: "\\"), isOctal {
                let value = digits.reduce(0) { $0 * 8 + Int($1 - 48) }
                result.append(UInt8(truncatingIfNeeded: value))
                rest = rest.dropFirst(3)
            } else {
                result.append(byte)
            }
        }
        return result
    }

    private static func contents(of path: String) throws(Errno) -> [UInt8] {
        let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC)
        if descriptor < 0 { throw Errno(rawValue: errno) }
        defer { close(descriptor) }
        var result: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 * 1024)
        while result.count < sizeMax {
            let count = read(descriptor, &chunk, chunk.count)
            if count == 0 { break }
            if count < 0 {
                if errno == EINTR { continue }
                throw Errno(rawValue: errno)
            }
            result.append(contentsOf: chunk[..<count])
        }
        return result
    }
}
