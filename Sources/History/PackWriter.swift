import CGit
import Glibc
import SystemPackage
import Volume

/// Writes packs that hold exactly the objects on a list.
///
/// The list is always explicit: libgit2's own ways (`git_mempack_dump`,
/// `git_packbuilder_insert_walk`) walk whole trees and cost seconds in a large volume.
struct PackWriter: ~Copyable {
    private let repository: OpaquePointer
    private let builder: OpaquePointer

    /// A writer over the objects of a repository, with the memory bounds of its `config`.
    init(repository path: FilePath) throws {
        try Library.require()
        var opened: OpaquePointer?
        try check(
            path.withPlatformString { git_repository_open_bare(&opened, $0) }, "open repository")
        try self.init(owning: opened)
    }

    /// A writer over the given objects alone.
    init(objects: some Sequence<(ObjectKey, StagedObject)>) throws {
        try Library.require()
        var database: OpaquePointer?
        try check(git_odb_new(&database), "new database")
        defer { git_odb_free(database) }
        var backend: UnsafeMutablePointer<git_odb_backend>?
        try check(git_mempack_new(&backend), "new memory backend")
        guard let backend else { throw HistoryError(.library, "new memory backend", "none") }
        do {
            try check(git_odb_add_backend(database, backend, 1), "add memory backend")
        } catch {
            backend.pointee.free?(backend)
            throw error
        }
        for (key, object) in objects {
            var oid = key.oid
            // Straight into the backend: git_odb_write would hash once more.
            let code = object.bytes.withUnsafeBytes { bytes in
                backend.pointee.write?(
                    backend, &oid, bytes.baseAddress, bytes.count, object.kind.type)
            }
            try check(code ?? -1, "stage object")
        }
        var wrapped: OpaquePointer?
        try check(git_repository_wrap_odb(&wrapped, database), "wrap database")
        try self.init(owning: wrapped)
    }

    private init(owning repository: OpaquePointer?) throws {
        guard let repository else { throw HistoryError(.library, "open repository", "none") }
        var created: OpaquePointer?
        let code = git_packbuilder_new(&created, repository)
        guard code == 0, let created else {
            defer { git_repository_free(repository) }
            try check(code, "new pack")
            throw HistoryError(.library, "new pack", "none")
        }
        self.repository = repository
        builder = created
        _ = git_packbuilder_set_threads(builder, 1)
    }

    deinit {
        git_packbuilder_free(builder)
        git_repository_free(repository)
    }

    /// Adds an object; for the best deltas commits come first, then trees, then blobs.
    borrowing func insert(_ key: ObjectKey) throws {
        var oid = key.oid
        try check(git_packbuilder_insert(builder, &oid, nil), "add \(key) to pack")
    }

    /// Writes pack and index into a directory, both and the directory fsynced; the pack's name.
    borrowing func write(into directory: FilePath) throws -> String {
        let code = directory.withPlatformString {
            git_packbuilder_write(builder, $0, 0o444, nil, nil)
        }
        try check(code, "write pack")
        guard let name = git_packbuilder_name(builder) else {
            throw HistoryError(.library, "write pack", "no name")
        }
        return "pack-\(String(cString: name)).pack"
    }

    /// The pack's bytes, in portions.
    borrowing func stream(_ body: (UnsafeRawBufferPointer) throws -> Void) throws {
        try withoutActuallyEscaping(body) { body in
            var sink = Sink(body: body)
            let code = withUnsafeMutablePointer(to: &sink) { sink in
                git_packbuilder_foreach(
                    builder,
                    { bytes, count, payload in
                        let sink = payload?.assumingMemoryBound(to: Sink.self)
                        return sink?.pointee.take(bytes, count) ?? -1
                    }, sink)
            }
            if let error = sink.error { throw error }
            try check(code, "write pack")
        }
    }

    private struct Sink {
        let body: (UnsafeRawBufferPointer) throws -> Void
        var error: (any Error)?

        mutating func take(_ bytes: UnsafeMutableRawPointer?, _ count: Int) -> CInt {
            do {
                try body(UnsafeRawBufferPointer(start: bytes, count: count))
                return 0
            } catch {
                self.error = error
                return CInt(GIT_EUSER.rawValue)
            }
        }
    }
}

/// Builds the index of a pack that came from elsewhere.
enum Indexer {
    private static let portionBytes = 1 << 20

    /// Copies the pack into `directory` with an index, fsynced; the pack's name. The pack must be
    /// complete in itself: a delta against an object outside is an error.
    static func index(_ pack: FilePath, into directory: FilePath) throws -> String {
        try Library.require()
        guard let size = Files.size(pack) else { throw Files.failure("index pack", pack, ENOENT) }
        try Files.requireSpace(size + size / 2, at: directory)
        let file = try FileDescriptor.open(pack, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        var created: OpaquePointer?
        try check(
            directory.withPlatformString { git_indexer_new(&created, $0, 0o444, nil, nil) },
            "index pack")
        guard let indexer = created else { throw HistoryError(.library, "index pack", "none") }
        defer { git_indexer_free(indexer) }
        var progress = git_indexer_progress()
        try withUnsafeTemporaryAllocation(byteCount: portionBytes, alignment: 16) { buffer in
            while true {
                let count = try file.read(into: buffer)
                guard count > 0 else { break }
                try malformed(git_indexer_append(indexer, buffer.baseAddress, count, &progress))
            }
        }
        try malformed(git_indexer_commit(indexer, &progress))
        guard let name = git_indexer_name(indexer) else {
            throw HistoryError(.library, "index pack", "no name")
        }
        return "pack-\(String(cString: name)).pack"
    }

    /// What the indexer refuses is the pack's fault.
    private static func malformed(_ code: CInt) throws {
        do {
            try check(code, "index pack")
        } catch {
            throw HistoryError(
                .malformed, error.operation, error.message, libraryCode: error.libraryCode)
        }
    }
}
