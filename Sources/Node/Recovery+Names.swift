import Glibc
import History
import Store
import SystemPackage
import Volume

/// What became of one name.
enum Recovered {
    case made
    case lost(RecoveryLoss.Kind, String)
    /// Without `--privileged`.
    case leftOut

    var isMade: Bool { if case .made = self { true } else { false } }
}

/// A file with several names.
struct SharedFile {
    let first: [FileName]
    let recovered: Recovered
    var namesLeft: Int
}

/// A file some bytes of which may lie in `staging/`.
struct WrittenFile {
    let path: [FileName]
    let record: Record
    /// Of the directory, whose attributes a new name in it would change; nil where they are unknown.
    let parent: FileAttributes?
    /// Has the bytes of its record.
    var isRecovered: Bool
}

// From top to bottom, one part of each directory of the path in memory.
extension Recovery {
    private static let partMax = 1024
    /// Copied between two looks at the progress.
    private static let stepBytes: UInt64 = 64 << 20
    private static let damagedRecord = "what the history says of it is damaged"

    private struct Level {
        let path: [FileName]
        let tree: DirectoryTree
        /// nil: unknown.
        let attributes: FileAttributes?
        var part: ArraySlice<(cookie: UInt64, name: FileName, child: TreeChild)> = []
        /// Everything up to it was listed; nil: all was.
        var cookie: UInt64? = 0
        var isDamaged = false
    }

    func recoverNames() throws {
        var levels: [Level] = []
        if let level = try open(volume.root, at: []) { levels.append(level) }
        top = levels.first?.attributes
        while var level = levels.popLast() {
            guard let entry = try next(&level) else {
                try finish(level)
                continue
            }
            levels.append(level)
            let path = level.path + [entry.name]
            switch entry.child {
            case .blob(let id): try recoverFile(.blob(id), at: path, in: level)
            case .directory(let id):
                guard path.count <= Limits.directoryDepthMax else {
                    lose(.record, path, "it lies deeper than a volume may be")
                    continue
                }
                if let below = try open(id, at: path) { levels.append(below) }
            }
        }
    }

    // MARK: Directories

    /// Makes a directory; nil when it, and so all that is in it, cannot be had.
    private func open(_ id: ObjectID, at path: [FileName]) throws -> Level? {
        guard let tree = try readable({ try DirectoryTree(reading: id, from: history) }) else {
            lose(.record, path, "what the history says of it and of all that was in it is damaged")
            return nil
        }
        let record = try readable { try tree.record(from: history).record }
        if record == nil { lose(.attributes, path, Self.damagedRecord) }
        if !path.isEmpty {
            let recovered = try attempt(path) { () throws(StoreError) in
                try self.tree.makeDirectory(at: path)
                return nil
            }
            if case .lost(let kind, let reason) = recovered {
                lose(kind, path, "\(reason); nor can what was in it")
                return nil
            }
            report.directories += 1
        }
        return Level(path: path, tree: tree, attributes: record.map(attributes))
    }

    /// The top comes last of all: `OutputTree.finish`.
    private func finish(_ level: Level) throws {
        guard let attributes = level.attributes, !level.path.isEmpty else { return }
        let recovered = try attempt(level.path) {
            try tree.finishDirectory(at: level.path, attributes)
        }
        if case .lost(_, let reason) = recovered { lose(.attributes, level.path, reason) }
    }

    private func next(
        _ level: inout Level
    ) throws -> (cookie: UInt64, name: FileName, child: TreeChild)? {
        while level.part.isEmpty, let cookie = level.cookie {
            try list(&level, after: cookie)
        }
        return level.part.popFirst()
    }

    /// A part of a directory. Cookies are hashes of names, by whose first byte a large directory is
    /// split: of what is damaged such a piece is passed over.
    private func list(_ level: inout Level, after cookie: UInt64) throws {
        // The smaller ones end before what is damaged.
        for limit in [Self.partMax, 64, 1] {
            let part = try readable {
                try level.tree.children(after: cookie, limit: limit, from: history)
            }
            guard let part else { continue }
            level.part = part[...]
            level.cookie = part.last?.cookie
            return
        }
        if !level.isDamaged {
            lose(.record, level.path, "some of its names are lost: the history is damaged")
        }
        level.isDamaged = true
        let piece: UInt64 = 1 << 55
        let end = (cookie + 1) | (piece - 1)
        level.cookie = end < 256 * piece - 1 ? end : nil
    }

    // MARK: Files

    private func recoverFile(_ child: TreeChild, at path: [FileName], in level: Level) throws {
        let found = try readable { try volume.item(child, from: history) }
        guard case .other(let record, let links) = found else {
            return lose(.record, path, Self.damagedRecord)
        }
        if var known = shared[record.id] {
            known.namesLeft -= 1
            shared[record.id] = known.namesLeft > 0 ? known : nil
            guard known.recovered.isMade else { return settle(known.recovered, path) }
            settle(
                try attempt(path) { () throws(StoreError) in
                    try tree.link(known.first, at: path)
                    return nil
                }, path)
            return
        }
        let recovered = try make(record, at: path)
        settle(recovered, path)
        if links > 1 {
            shared[record.id] = SharedFile(
                first: path, recovered: recovered, namesLeft: links - 1)
        }
        if staged.contains(record.ino), case .file = record.content.value.body {
            written[record.ino] = WrittenFile(
                path: path, record: record, parent: level.attributes,
                isRecovered: recovered.isMade)
        }
    }

    private func make(_ record: Record, at path: [FileName]) throws -> Recovered {
        let attributes = attributes(record)
        func special(_ type: mode_t, _ major: UInt32 = 0, _ minor: UInt32 = 0) throws -> Recovered {
            try attempt(path) {
                try tree.makeSpecial(
                    at: path, type: UInt32(type), major: major, minor: minor, attributes)
            }
        }
        switch record.content.value.body {
        case .file(let content): return try makeFile(content, at: path, attributes)
        case .symlink(let target):
            return try attempt(path) {
                try tree.makeSymbolicLink(at: path, to: target, attributes)
            }
        case .fifo: return try special(S_IFIFO)
        case .socket: return try special(S_IFSOCK)
        case .characterDevice(let major, let minor) where isPrivileged:
            return try special(S_IFCHR, major, minor)
        case .blockDevice(let major, let minor) where isPrivileged:
            return try special(S_IFBLK, major, minor)
        case .characterDevice, .blockDevice: return .leftOut
        case .directory: return .lost(.record, Self.damagedRecord)
        }
    }

    private func makeFile(
        _ content: Content, at path: [FileName], _ attributes: FileAttributes
    ) throws -> Recovered {
        let recovered = try attempt(path) {
            try tree.makeFile(at: path, attributes) { file in
                if case .inline(let bytes) = content { try write(bytes, to: file) }
                var offset: UInt64 = 0
                for extent in content.extents {
                    try copy(extent, to: file, at: offset)
                    offset += extent.length
                }
            }
        }
        if recovered.isMade { report.bytes += content.length }
        return recovered
    }

    private func write(_ bytes: [UInt8], to file: FileDescriptor) throws {
        let count = try bytes.withUnsafeBytes { try Store.writeSome($0, to: file, at: 0) }
        guard count == bytes.count else { throw TargetFailure.full }
        progress.add(bytes: UInt64(count))
    }

    private func copy(_ extent: Extent, to file: FileDescriptor, at offset: UInt64) throws {
        guard let object = try object(extent.root) else {
            throw Unrecoverable(reason: "its content is not on this disk")
        }
        try object.closeAfter {
            guard try store.facts(of: object).size == extent.length else {
                throw Unrecoverable(reason: "its content on this disk is damaged")
            }
            try copy(0..<extent.length, of: object, to: file, at: offset)
            guard try Merkle.matches(file, at: offset, extent) else {
                throw Unrecoverable(reason: "its content on this disk is damaged")
            }
        }
    }

    private func object(_ root: ContentRoot) throws -> FileDescriptor? {
        do throws(StoreError) { return try store.openObject(root) } catch {
            guard error.errno == .noSuchFileOrDirectory else {
                throw Unrecoverable(reason: "its content cannot be read: \(error)")
            }
            return nil
        }
    }

    /// In steps, for the progress.
    func copy(
        _ range: Range<UInt64>, of source: FileDescriptor, to file: FileDescriptor,
        at offset: UInt64
    ) throws {
        var start = range.lowerBound
        while start < range.upperBound {
            let end = min(start + Self.stepBytes, range.upperBound)
            try store.clone(from: source, to: file, range: start..<end, at: offset + start)
            progress.add(bytes: end - start)
            start = end
        }
    }

    /// The group's bits of a mode with an access control list are the list's mask: without the list
    /// they would give its owning group what the list gave to others.
    func attributes(_ record: Record) -> FileAttributes {
        let modified = record.content.value.modified
        let xattrs = record.xattrs.mapValues(\.value)
        if isPrivileged {
            return FileAttributes(
                mode: record.mode.value, owner: record.owner.value, xattrs: xattrs,
                modified: modified)
        }
        var mode = record.mode.value & 0o1777
        if xattrs[AccessControlList.accessName] != nil { mode &= ~0o070 }
        return FileAttributes(
            mode: mode, xattrs: xattrs.filter { $0.key.starts(with: "user.".utf8) },
            modified: modified)
    }
}

// MARK: - Losses

/// Why a file is not made.
private struct Unrecoverable: Error {
    let reason: String
}

extension Recovery {
    func lose(_ kind: RecoveryLoss.Kind, _ path: [FileName], _ reason: String) {
        report.lost[kind, default: 0] += 1
        tell(RecoveryLoss(kind: kind, path: Self.bytes(of: path), reason: reason))
    }

    /// Nil when the history is damaged there.
    private func readable<T>(_ body: () throws -> T) throws -> T? {
        do { return try body() } catch let error as HistoryError where error.isDamage {
            return nil
        } catch is InvalidTree { return nil }
    }

    /// - Parameter make: returns what kept attributes from being set, which is told.
    func attempt(
        _ path: [FileName], _ make: () throws -> StoreError?
    ) throws -> Recovered {
        do {
            noteAttributes(try make(), path)
            return .made
        } catch let error as Unrecoverable {
            return .lost(.content, error.reason)
        } catch let error as StoreError {
            if let failure = TargetFailure(error) { throw failure }
            return error.errno == .ioError
                ? .lost(.content, "its content cannot be read: \(error)")
                : .lost(.refused, "it cannot be made: \(error)")
        }
    }

    func noteAttributes(_ failure: StoreError?, _ path: [FileName]) {
        guard let failure else { return }
        lose(.attributes, path, "not all of its attributes could be set: \(failure)")
    }

    func settle(_ recovered: Recovered, _ path: [FileName]) {
        switch recovered {
        case .made:
            report.files += 1
            progress.add(files: 1)
        case .lost(let kind, let reason): lose(kind, path, reason)
        case .leftOut: report.devicesLeftOut += 1
        }
    }

    static func bytes(of path: [FileName]) -> [UInt8] {
        path.isEmpty ? [0x2F] : path.flatMap { [0x2F] + $0.bytes }
    }
}
