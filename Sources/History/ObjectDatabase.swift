import CGit
import Synchronization
import SystemPackage
import Volume

/// One handle on a repository's objects. Used by one thread at a time.
struct ObjectDatabase: ~Copyable {
    let handle: OpaquePointer

    /// - Parameters:
    ///   - objects: an `objects` directory.
    ///   - also: further ones, searched after it.
    init(objects: FilePath, also: [FilePath] = []) throws {
        try Library.require()
        var opened: OpaquePointer?
        try check(objects.withPlatformString { git_odb_open(&opened, $0) }, "open objects")
        guard let opened else { throw HistoryError(.library, "open objects", "no handle") }
        do {
            for path in also {
                let code = path.withPlatformString { git_odb_add_disk_alternate(opened, $0) }
                try check(code, "add objects")
            }
        } catch {
            git_odb_free(opened)
            throw error
        }
        handle = opened
    }

    /// Has nothing.
    init() throws {
        try Library.require()
        var opened: OpaquePointer?
        try check(git_odb_new(&opened), "open objects")
        guard let opened else { throw HistoryError(.library, "open objects", "no handle") }
        handle = opened
    }

    deinit { git_odb_free(handle) }

    /// The object's kind and bytes; nil if it is not here. Hashed again on every read from disk.
    borrowing func read(_ key: ObjectID) throws -> (kind: ObjectKind, bytes: [UInt8])? {
        var object: OpaquePointer?
        var oid = key.oid
        let code = git_odb_read(&object, handle, &oid)
        if code == GIT_ENOTFOUND.rawValue { return nil }
        try check(code, "read \(key)")
        guard let object else { throw HistoryError(.library, "read \(key)", "no object") }
        defer { git_odb_object_free(object) }
        let size = git_odb_object_size(object)
        guard let kind = ObjectKind(git_odb_object_type(object)), size <= kind.bytesMax else {
            throw HistoryError(.malformed, "read \(key)", "kind or size is not allowed")
        }
        let bytes = UnsafeRawBufferPointer(start: git_odb_object_data(object), count: size)
        return (kind, Array(bytes))
    }

    /// Bytes of an object of the given kind. Throws `notFound` or `malformed`.
    borrowing func read(_ key: ObjectID, as kind: ObjectKind) throws -> [UInt8] {
        guard let object = try read(key) else {
            throw HistoryError(.notFound, "read", "\(kind) \(key) is missing")
        }
        guard object.kind == kind else {
            throw HistoryError(.malformed, "read", "\(key) is a \(object.kind), not a \(kind)")
        }
        return object.bytes
    }

    /// Kind and size without the bytes; nil if it is not here.
    borrowing func header(_ key: ObjectID) throws -> (kind: ObjectKind?, size: Int)? {
        var size = 0
        var type = GIT_OBJECT_INVALID
        var oid = key.oid
        let code = git_odb_read_header(&size, &type, handle, &oid)
        if code == GIT_ENOTFOUND.rawValue { return nil }
        try check(code, "read header of \(key)")
        return (ObjectKind(type), size)
    }

    /// Whether the packs known to this handle hold the object. A miss does not look for new packs:
    /// libgit2 would list the directory for every new object of a batch.
    borrowing func contains(_ key: ObjectID) -> Bool {
        var oid = key.oid
        return git_odb_exists_ext(handle, &oid, UInt32(GIT_ODB_LOOKUP_NO_REFRESH.rawValue)) == 1
    }

    /// Takes notice of packs added since.
    borrowing func refresh() throws { try check(git_odb_refresh(handle), "refresh") }

    /// Ids of all objects, in no order.
    borrowing func forEach(_ body: (ObjectID) throws -> Void) throws {
        try withoutActuallyEscaping(body) { body in
            var visit = Visit(body: body)
            let code = withUnsafeMutablePointer(to: &visit) { visit in
                git_odb_foreach(
                    handle,
                    { oid, payload in
                        guard let oid, let payload else { return -1 }
                        return payload.assumingMemoryBound(to: Visit.self).pointee.take(oid.pointee)
                    }, visit)
            }
            if let error = visit.error { throw error }
            try check(code, "list objects")
        }
    }

    private struct Visit {
        let body: (ObjectID) throws -> Void
        var error: (any Error)?

        mutating func take(_ oid: git_oid) -> CInt {
            do {
                try body(ObjectID(oid))
                return 0
            } catch {
                self.error = error
                return CInt(GIT_EUSER.rawValue)
            }
        }
    }
}

/// A few handles on the same objects, so that readers seldom wait for each other.
final class Readers: Sendable {
    private final class Slot: Sendable {
        /// `@unchecked Sendable`: a libgit2 handle may move between threads, and the mutex around
        /// it lets one at a time use it.
        struct Handle: ~Copyable, @unchecked Sendable { var database: ObjectDatabase }
        let handle: Mutex<Handle>

        init(_ objects: FilePath) throws {
            handle = Mutex(Handle(database: try ObjectDatabase(objects: objects)))
        }
    }

    private let objects: FilePath
    private let slots: [Slot]
    private let trees = Mutex(TreeCache())

    init(_ objects: FilePath) throws {
        self.objects = objects
        slots = try (0..<HistoryLimits.readersMax).map { _ in try Slot(objects) }
    }

    func with<T: Sendable>(_ body: (borrowing ObjectDatabase) throws -> T) throws -> T {
        for slot in slots.dropFirst() {
            if let result = try slot.handle.withLockIfAvailable({ try body($0.database) }) {
                return result
            }
        }
        return try slots[0].handle.withLock { try body($0.database) }
    }

    func tree(_ key: ObjectID) throws -> PackedTree {
        if let tree = trees.withLock({ $0.tree(key) }) { return tree }
        let tree = try PackedTree(parsing: with { try $0.read(key, as: .tree) })
        trees.withLock { $0.keep(tree, key) }
        return tree
    }

    /// Sees nothing but what the disk has. libgit2 shares open packs among handles, those too whose
    /// files are gone or replaced: all let go of them first, and meanwhile nothing is found.
    func startOver() throws {
        for slot in slots {
            try slot.handle.withLock { $0 = Slot.Handle(database: try ObjectDatabase()) }
        }
        trees.withLock { $0 = TreeCache() }
        try reopen()
    }

    /// After packs were added.
    func refresh() throws {
        for slot in slots { try slot.handle.withLock { try $0.database.refresh() } }
    }

    /// After packs were removed: libgit2 never lets go of a pack it has seen.
    func reopen() throws {
        for slot in slots {
            try slot.handle.withLock { handle in
                handle = Slot.Handle(database: try ObjectDatabase(objects: objects))
            }
        }
    }
}
