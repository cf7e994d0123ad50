import CGit
import Synchronization
import SystemPackage
import Volume

/// The repository's references, through a handle of their own.
final class References: Sendable {
    /// `@unchecked Sendable`: a libgit2 handle may move between threads, and the mutex around it
    /// lets one at a time use it.
    private struct Handle: ~Copyable, @unchecked Sendable {
        let repository: OpaquePointer
        deinit { git_repository_free(repository) }
    }

    private let path: FilePath
    private let handle: Mutex<Handle>

    init(_ path: FilePath) throws {
        self.path = path
        handle = Mutex(try Self.openHandle(path))
    }

    /// Below `refs/`, as Git allows them; so a name never leaves the repository.
    private static func require(_ name: String) throws {
        var valid: CInt = 0
        try check(git_reference_name_is_valid(&valid, name), "reference name")
        guard valid == 1, name.hasPrefix("refs/"), name.utf8.allSatisfy({ $0 < 0x80 }) else {
            throw HistoryError(.malformed, "reference name", "not allowed")
        }
    }

    func get(_ name: String) throws -> ObjectID? {
        try Self.require(name)
        return try handle.withLock { handle in
            var oid = git_oid()
            let code = git_reference_name_to_id(&oid, handle.repository, name)
            if code == GIT_ENOTFOUND.rawValue { return nil }
            try check(code, "read \(name)")
            return ObjectID(oid)
        }
    }

    /// Atomic, and durable when it returns: libgit2 fsyncs the new file, renames it, fsyncs the
    /// directory.
    func set(_ name: String, to id: ObjectID) throws {
        try Self.require(name)
        try handle.withLock { handle in
            var created: OpaquePointer?
            var oid = id.oid
            let code = git_reference_create(&created, handle.repository, name, &oid, 1, nil)
            defer { git_reference_free(created) }
            try check(code, "set \(name)")
        }
    }

    /// Absence is success.
    func delete(_ name: String) throws {
        try Self.require(name)
        try handle.withLock { handle in
            let code = git_reference_remove(handle.repository, name)
            guard code != GIT_ENOTFOUND.rawValue else { return }
            try check(code, "delete \(name)")
            // libgit2 removes directories that are empty now; the nearest that is left holds the
            // change.
            var directory = path.appending(name)
            repeat { directory.removeLastComponent() } while !Files.isDirectory(directory)
            try Files.synchronize(directory)
        }
    }

    /// All references whose names start with `prefix`, which ends in `/`.
    func list(_ prefix: String) throws -> [String: ObjectID] {
        try handle.withLock { handle in
            var created: OpaquePointer?
            let code = git_reference_iterator_glob_new(&created, handle.repository, prefix + "*")
            defer { git_reference_iterator_free(created) }
            try check(code, "list references")
            var result: [String: ObjectID] = [:]
            while true {
                var name: UnsafePointer<CChar>?
                let code = git_reference_next_name(&name, created)
                if code == GIT_ITEROVER.rawValue { return result }
                try check(code, "list references")
                guard let name else { return result }
                var oid = git_oid()
                let found = git_reference_name_to_id(&oid, handle.repository, name)
                if found == GIT_ENOTFOUND.rawValue { continue }
                try check(found, "list references")
                result[String(cString: name)] = ObjectID(oid)
            }
        }
    }

    /// After packs were removed: libgit2 never lets go of a pack it has seen.
    func reopen() throws {
        try handle.withLock { $0 = try Self.openHandle(path) }
    }

    private static func openHandle(_ path: FilePath) throws -> Handle {
        try Library.require()
        var opened: OpaquePointer?
        try check(
            path.withPlatformString { git_repository_open_bare(&opened, $0) }, "open repository")
        guard let opened else { throw HistoryError(.library, "open repository", "no handle") }
        return Handle(repository: opened)
    }
}
