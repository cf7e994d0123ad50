import CModel
import Glibc

/// One side of the comparison: does each operation in a directory of its own, and says in a few
/// words what came of it. What the two sides may differ in is left out of these words.
///
/// Of one thread, which it makes act as the actor of each operation.
final class ModelWorld {
    private static let none: Int32 = -1
    /// What a pipe takes at once.
    private static let mappedBytesMax = 32 << 10
    /// Times up to the end of 2019 are those that an operation set; others are those of the run.
    private static let ownTimesEnd = 1_577_836_800

    private struct Mapping {
        let address: UnsafeMutableRawPointer
        let count: Int
        let file: Int32
    }

    let directory: String
    private let ofOneNode: Bool
    private var files: [Int32]
    private var mappings: [Mapping?]
    private var ends: [Int32] = [none, none]
    private var buffer = [UInt8](repeating: 0, count: 4 << 20)

    /// - Parameters:
    ///   - isNew: it is made here, open to all actors.
    ///   - ofOneNode: with what each node has for itself.
    init(_ directory: String, isNew: Bool = true, ofOneNode: Bool = true) throws {
        self.directory = directory
        self.ofOneNode = ofOneNode
        files = .init(
            repeating: Self.none, count: ModelOperation.actors.count * ModelOperation.slots)
        mappings = .init(repeating: nil, count: ModelOperation.mappings)
        guard !isNew || (mkdir(directory, 0o777) == 0 && chmod(directory, 0o777) == 0),
            pipe(&ends) == 0
        else { throw Failure("\(directory) cannot be made: \(Self.name(errno))") }
        _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    }

    deinit {
        closeAll()
        for end in ends { Glibc.close(end) }
    }

    func perform(_ operation: ModelOperation) -> String {
        let account = ModelOperation.actors[operation.actor]
        cmodel_act_as(account.uid, account.gid)
        defer { cmodel_act_as(0, 0) }
        let base = operation.actor * ModelOperation.slots
        return onOpen(operation.call, base) ?? onMapping(operation.call, base)
            ?? onData(operation.call) ?? onNames(operation.call)
    }

    func closeAll() {
        for index in files.indices { close(index) }
        for index in mappings.indices { unmap(index) }
    }

    // MARK: Words

    static func name(_ error: Int32) -> String { String(cString: cmodel_error_name(error)) }

    /// Of a call of libc.
    private func said<Value: FixedWidthInteger>(_ result: Value) -> String {
        result < 0 ? Self.name(errno) : "\(result)"
    }

    /// Of a call of `CModel`.
    private func told(_ result: Int64) -> String {
        result < 0 ? Self.name(Int32(-result)) : "\(result)"
    }

    /// How many bytes, and which.
    private func bytes(_ count: Int) -> String {
        count < 0
            ? Self.name(errno)
            : "\(count) bytes \(String(cmodel_digest(buffer, UInt64(count)), radix: 16))"
    }

    /// The same few contents again and again: files with equal bytes share objects.
    private static func filled(_ count: Int, _ fill: UInt8) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count) { bytes, initialized in
            if let start = bytes.baseAddress { cmodel_fill(start, UInt64(count), fill) }
            initialized = count
        }
    }

    private func path(_ path: String) -> String { "\(directory)/\(path)" }

    // MARK: Open files

    private func close(_ index: Int) {
        if files[index] != Self.none { Glibc.close(files[index]) }
        files[index] = Self.none
    }

    private static func duplicate(_ file: Int32) -> Int32 { fcntl(file, F_DUPFD_CLOEXEC, 0) }

    private func onOpen(_ call: ModelOperation.Call, _ base: Int) -> String? {
        switch call {
        case .open(let slot, let path, let flags, let mode):
            close(base + slot)
            // Pipes must not make it wait.
            let file = open(
                self.path(path), flags.rawValue | O_NONBLOCK | O_CLOEXEC, mode.rawValue)
            files[base + slot] = file
            return file < 0 ? Self.name(errno) : "open"
        case .close(let slot):
            let file = files[base + slot]
            files[base + slot] = Self.none
            return said(Glibc.close(file))
        case .synchronize(let slot, let dataOnly):
            return said(dataOnly ? fdatasync(files[base + slot]) : fsync(files[base + slot]))
        case .statusOpen(let slot):
            var status = stat()
            return fstat(files[base + slot], &status) < 0
                ? Self.name(errno) : words(status)
        case .changeModeOpen(let slot, let mode):
            return said(fchmod(files[base + slot], mode.rawValue))
        case .truncateOpen(let slot, let size):
            return said(ftruncate(files[base + slot], size))
        case .listOpen(let slot):
            return listed(Self.duplicate(files[base + slot]))
        case .linkOpen(let slot, let path):
            return told(cmodel_link_open(files[base + slot], self.path(path)))
        default: return onBytes(call, base)
        }
    }

    private func onBytes(_ call: ModelOperation.Call, _ base: Int) -> String? {
        switch call {
        case .read(let slot, let count):
            if Self.isDirectory(files[base + slot]) { return "directory" }
            return bytes(Glibc.read(files[base + slot], &buffer, count))
        case .write(let slot, let count, let fill):
            return said(Glibc.write(files[base + slot], Self.filled(count, fill), count))
        case .readAt(let slot, let offset, let count):
            return bytes(pread(files[base + slot], &buffer, count, offset))
        case .writeAt(let slot, let offset, let count, let fill):
            return said(pwrite(files[base + slot], Self.filled(count, fill), count, offset))
        case .seek(let slot, let offset, let whence):
            if Self.isDirectory(files[base + slot]) { return "directory" }
            return said(lseek(files[base + slot], offset, whence))
        case .seekHole(let slot, let offset, let isHole):
            return seekHole(files[base + slot], offset, isHole)
        case .allocate(let slot, let mode, let offset, let length):
            return told(cmodel_allocate(files[base + slot], mode, Int64(offset), Int64(length)))
        case .copy(let from, let at, let to, let target, let count):
            return told(
                cmodel_copy(
                    files[base + from], Int64(at), files[base + to], Int64(target),
                    UInt64(count)))
        case .transfer(let from, let to): return transfer(files[base + from], files[base + to])
        default: return nil
        }
    }

    /// What a directory's offsets mean is a file system's own matter, and some make even a read
    /// fail otherwise.
    private static func isDirectory(_ file: Int32) -> Bool {
        var status = stat()
        return fstat(file, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }

    private func seekHole(_ file: Int32, _ offset: Int, _ isHole: Bool) -> String {
        var status = stat()
        guard fstat(file, &status) == 0 else { return Self.name(errno) }
        guard status.st_mode & S_IFMT == S_IFREG else { return "no file" }
        let here = lseek(file, 0, SEEK_CUR)
        let found = cmodel_seek(file, Int64(offset), isHole ? 1 : 0)
        // The sides may stand elsewhere now.
        lseek(file, here, SEEK_SET)
        if found < 0 {
            // Only holes may follow, and not every side knows.
            let isFine = offset < status.st_size && !isHole && found == -Int64(ENXIO)
            return isFine ? "found" : told(found)
        }
        return (offset...status.st_size).contains(Int(found)) ? "found" : "found at \(found)"
    }

    private func transfer(_ from: Int32, _ to: Int32) -> String {
        if Self.isDirectory(from) { return "directory" }
        var total = 0
        while total < buffer.count {
            let count = Glibc.read(from, &buffer, 100_000)
            guard count > 0 else { return "\(total) then \(said(count))" }
            let written = Glibc.write(to, buffer, count)
            guard written > 0 else { return "\(total) written then \(said(written))" }
            total += written
        }
        return "\(total)"
    }

    // MARK: Mappings

    private func unmap(_ index: Int) {
        guard let mapping = mappings[index] else { return }
        munmap(mapping.address, mapping.count)
        Glibc.close(mapping.file)
        mappings[index] = nil
    }

    private func onMapping(_ call: ModelOperation.Call, _ base: Int) -> String? {
        switch call {
        case .map(let slot, let index, let count):
            unmap(index)
            let file = files[base + slot]
            let address = mmap(nil, count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            guard let address, address != MAP_FAILED else { return Self.name(errno) }
            mappings[index] = Mapping(address: address, count: count, file: Self.duplicate(file))
            return "mapped"
        case .store(let index, let offset, let count, let fill):
            return withMapped(index, offset, count) { address, count in
                let bytes = Self.filled(count, fill)
                let stored = cmodel_store(ends[1], ends[0], address, bytes, UInt64(count))
                let into = Int(bitPattern: address) % Int(getpagesize())
                return told(stored) + " " + said(msync(address - into, count + into, MS_SYNC))
            }
        case .load(let index, let offset, let count):
            return withMapped(index, offset, count) { address, count in
                let loaded = cmodel_load(ends[1], ends[0], address, &buffer, UInt64(count))
                return loaded < 0 ? told(loaded) : bytes(Int(loaded))
            }
        case .unmap(let index):
            unmap(index)
            return "unmapped"
        default: return nil
        }
    }

    /// The part of a range that lies in the mapping and in the file.
    private func withMapped(
        _ index: Int, _ offset: Int, _ count: Int, _ body: (UnsafeMutableRawPointer, Int) -> String
    ) -> String {
        guard let mapping = mappings[index] else { return "no mapping" }
        var status = stat()
        guard fstat(mapping.file, &status) == 0 else { return Self.name(errno) }
        let end = min(mapping.count, Int(status.st_size), offset + min(count, Self.mappedBytesMax))
        guard offset < end else { return "beyond the end" }
        return body(mapping.address + offset, end - offset)
    }

    // MARK: Names

    private func onData(_ call: ModelOperation.Call) -> String? {
        switch call {
        case .truncate(let path, let size): return said(Glibc.truncate(self.path(path), size))
        case .setXattr(let path, let name, let count, let fill, let flags):
            return told(
                cmodel_set_xattr(
                    self.path(path), name, Self.filled(count, fill), UInt64(count), flags))
        case .getXattr(let path, let name):
            let count = cmodel_get_xattr(
                self.path(path), name, &buffer, UInt64(buffer.count))
            return count < 0 ? told(count) : bytes(Int(count))
        case .removeXattr(let path, let name):
            return told(cmodel_remove_xattr(self.path(path), name))
        case .status(let path, let followsLinks):
            var status = stat()
            let flags = followsLinks ? 0 : AT_SYMLINK_NOFOLLOW
            return fstatat(AT_FDCWD, self.path(path), &status, flags) < 0
                ? Self.name(errno) : words(status)
        case .list(let path):
            return listed(open(self.path(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC))
        case .readFile(let path): return content(self.path(path))
        case .pause: return "paused"
        default: return nil
        }
    }

    private func onNames(_ call: ModelOperation.Call) -> String {
        switch call {
        case .makeDirectory(let path, let mode):
            return said(mkdir(self.path(path), mode.rawValue))
        case .removeDirectory(let path): return said(rmdir(self.path(path)))
        case .unlink(let path): return said(Glibc.unlink(self.path(path)))
        case .rename(let path, let to, let flags):
            return told(cmodel_rename(self.path(path), self.path(to), flags))
        case .link(let path, let to): return said(Glibc.link(self.path(path), self.path(to)))
        case .symlink(let path, let target):
            return said(Glibc.symlink(target, self.path(path)))
        case .readLink(let path): return link(self.path(path))
        case .makeNode(let path, let mode):
            let null = 1 << 8 | 3
            return said(mknod(self.path(path), mode.rawValue, dev_t(null)))
        case .changeMode(let path, let mode):
            return said(chmod(self.path(path), mode.rawValue))
        case .changeOwner(let path, let uid, let gid):
            return said(lchown(self.path(path), uid, gid))
        case .setTimes(let path, let accessed, let modified):
            return told(
                cmodel_set_times(
                    self.path(path), accessed * 1_000_000_007, modified * 1_000_000_007))
        default: preconditionFailure("\(call) belongs to another group")
        }
    }

    /// The names in a directory, with their types; closes it.
    private func listed(_ file: Int32) -> String {
        guard file >= 0, let stream = fdopendir(file) else {
            let error = errno
            Glibc.close(file)
            return Self.name(error)
        }
        defer { closedir(stream) }
        // The descriptor may be one that was read before.
        rewinddir(stream)
        return Self.entries(stream).map { "\($0.name):\($0.type)" }.joined(separator: " ")
    }

    static func entries(_ stream: OpaquePointer) -> [(name: String, type: UInt8)] {
        var names: [(name: String, type: UInt8)] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: Int(NAME_MAX) + 1) {
                    String(cString: $0)
                }
            }
            names.append((name, entry.pointee.d_type))
        }
        return names.sorted { $0.name < $1.name }
    }

    private func link(_ path: String) -> String {
        let count = readlink(path, &buffer, buffer.count)
        return count < 0
            ? Self.name(errno) : String(decoding: buffer[..<count], as: UTF8.self)
    }

    /// The whole of a file, from a descriptor of its own.
    private func content(_ path: String) -> String {
        let file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard file >= 0 else { return Self.name(errno) }
        defer { Glibc.close(file) }
        return bytes(Glibc.read(file, &buffer, buffer.count))
    }

    /// A descriptor of an earlier version of its file: its name leads to a later one.
    var holdsSuperseded: Bool {
        let mapped = mappings.compactMap { $0?.file }
        return (files + mapped).contains { file in
            guard file >= 0 else { return false }
            let again = open("/proc/self/fd/\(file)", O_RDONLY | O_NONBLOCK | O_CLOEXEC)
            guard again < 0 else {
                Glibc.close(again)
                return false
            }
            return errno == ESTALE
        }
    }

    // MARK: State

    private func words(_ status: stat) -> String {
        let type = status.st_mode & S_IFMT
        // Of a directory's size each file system has its own idea.
        let size = type == S_IFDIR ? "-" : "\(status.st_size)"
        let device = type == S_IFCHR ? " device \(status.st_rdev)" : ""
        // A pipe's time of writing is not passed on by the kernel.
        let modified = type == S_IFIFO ? "-" : Self.time(status.st_mtim)
        let times = modified + (ofOneNode ? " accessed \(Self.time(status.st_atim))" : "")
        return
            "\(Octal(status.st_mode)) \(status.st_uid):\(status.st_gid) \(status.st_nlink) links "
            + "size \(size)\(device) \(times)"
    }

    private static func time(_ time: timespec) -> String {
        time.tv_sec < ownTimesEnd ? "\(time.tv_sec).\(time.tv_nsec)" : "now"
    }

    /// Everything below the directory, sorted, and what open files have, also those without a name.
    func state() -> [String] {
        var lines: [String] = []
        var inodes: [UInt64: String] = [:]
        append(&lines, "", &inodes)
        for (index, file) in files.enumerated() where file >= 0 {
            var status = stat()
            fstat(file, &status)
            var line = "slot \(index): \(words(status))"
            if status.st_mode & S_IFMT == S_IFREG { line += " \(content("/proc/self/fd/\(file)"))" }
            lines.append(line)
        }
        return lines
    }

    private func append(
        _ lines: inout [String], _ prefix: String, _ inodes: inout [UInt64: String]
    ) {
        guard let stream = opendir(path(prefix)) else {
            lines.append("\(prefix): \(Self.name(errno))")
            return
        }
        let entries = Self.entries(stream)
        closedir(stream)
        for entry in entries where entry.name != "." && entry.name != ".." {
            let name = prefix + entry.name
            var status = stat()
            guard lstat(path(name), &status) == 0 else {
                lines.append("\(name): \(Self.name(errno))")
                continue
            }
            var line = "\(name): \(words(status))"
            if let other = inodes[UInt64(status.st_ino)] { line += " is \(other)" }
            inodes[UInt64(status.st_ino)] = name
            switch status.st_mode & S_IFMT {
            case S_IFREG: line += " \(content(path(name)))"
            case S_IFLNK: line += " -> \(link(path(name)))"
            default: break
            }
            lines.append(line + xattrs(path(name)))
            if status.st_mode & S_IFMT == S_IFDIR { append(&lines, name + "/", &inodes) }
        }
    }

    private func xattrs(_ path: String) -> String {
        var names = [CChar](repeating: 0, count: 4096)
        let count = cmodel_list_xattrs(path, &names, UInt64(names.count))
        guard count >= 0 else { return " xattrs: \(told(count))" }
        let list = names[..<Int(count)].split(separator: 0).map {
            String(decoding: $0.map(UInt8.init(bitPattern:)), as: UTF8.self)
        }
        return list.sorted().map { name in
            let count = cmodel_get_xattr(path, name, &buffer, UInt64(buffer.count))
            return " \(name)=\(count < 0 ? told(count) : bytes(Int(count)))"
        }.joined()
    }
}
