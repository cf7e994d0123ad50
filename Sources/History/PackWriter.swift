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

    /// A writer over the objects of a repository.
    ///
    /// - Parameter settings: of Git's form; those of the repository if there are none.
    init(repository path: FilePath, settings: FilePath? = nil) throws {
        try Library.require()
        var opened: OpaquePointer?
        try check(
            path.withPlatformString { git_repository_open_bare(&opened, $0) }, "open repository")
        try self.init(owning: opened, settings)
    }

    /// A writer over the given objects alone.
    init(objects: some Sequence<(ObjectID, StagedObject)>, settings: FilePath) throws {
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
        try self.init(owning: wrapped, settings)
    }

    private init(owning repository: OpaquePointer?, _ settings: FilePath?) throws {
        guard let repository else { throw HistoryError(.library, "open repository", "none") }
        let builder: OpaquePointer
        do {
            if let settings { try Self.apply(settings, to: repository) }
            builder = try Self.newBuilder(repository)
        } catch {
            git_repository_free(repository)
            throw error
        }
        self.repository = repository
        self.builder = builder
        _ = git_packbuilder_set_threads(builder, 1)
    }

    private static func newBuilder(_ repository: OpaquePointer) throws -> OpaquePointer {
        var created: OpaquePointer?
        try check(git_packbuilder_new(&created, repository), "new pack")
        guard let created else { throw HistoryError(.library, "new pack", "none") }
        return created
    }

    private static func apply(_ settings: FilePath, to repository: OpaquePointer) throws {
        var opened: OpaquePointer?
        defer { git_config_free(opened) }
        let code = settings.withPlatformString { git_config_open_ondisk(&opened, $0) }
        try check(code, "open \(settings)")
        try check(git_repository_set_config(repository, opened), "use \(settings)")
    }

    deinit {
        git_packbuilder_free(builder)
        git_repository_free(repository)
    }

    /// Adds an object; for the best deltas commits come first, then trees, then blobs.
    borrowing func insert(_ key: ObjectID) throws {
        var oid = key.oid
        try check(git_packbuilder_insert(builder, &oid, nil), "add \(key) to pack")
    }

    /// Writes pack and index into a directory, both and the directory fsynced; the pack's name.
    ///
    /// `git_packbuilder_write` would hand every object to the indexer by itself, which maps and
    /// unmaps the file each time: with several threads, an interrupt of every processor.
    borrowing func write(into directory: FilePath) throws -> String {
        var indexer = try Indexer(directory)
        var portion: [UInt8] = []
        portion.reserveCapacity(Indexer.portionBytes)
        try stream { bytes in
            if portion.count + bytes.count > Indexer.portionBytes {
                try portion.withUnsafeBytes { try indexer.append($0) }
                portion.removeAll(keepingCapacity: true)
            }
            portion.append(contentsOf: bytes)
        }
        try portion.withUnsafeBytes { try indexer.append($0) }
        return try indexer.finish()
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

/// Takes a pack's bytes and builds its index.
struct Indexer: ~Copyable {
    static let portionBytes = 1 << 20

    private let indexer: OpaquePointer
    /// libgit2 continues from it.
    private var progress = git_indexer_progress()

    init(_ directory: FilePath) throws {
        try Library.require()
        var created: OpaquePointer?
        try check(
            directory.withPlatformString { git_indexer_new(&created, $0, 0o444, nil, nil) },
            "index pack")
        guard let created else { throw HistoryError(.library, "index pack", "none") }
        indexer = created
    }

    deinit { git_indexer_free(indexer) }

    mutating func append(_ bytes: UnsafeRawBufferPointer) throws {
        try check(
            git_indexer_append(indexer, bytes.baseAddress, bytes.count, &progress), "index pack")
    }

    /// Pack, index and directory are fsynced; the pack's name.
    mutating func finish() throws -> String {
        try check(git_indexer_commit(indexer, &progress), "index pack")
        guard let name = git_indexer_name(indexer) else {
            throw HistoryError(.library, "index pack", "no name")
        }
        return "pack-\(String(cString: name)).pack"
    }

    /// Copies a pack that came from elsewhere into `directory` with an index, fsynced; the pack's
    /// name. The pack must be complete in itself: a delta against an object outside is an error.
    static func index(_ pack: FilePath, into directory: FilePath) throws -> String {
        guard let size = Files.size(pack) else { throw Files.failure("index pack", pack, ENOENT) }
        try Files.requireSpace(size + size / 2, at: directory)
        let file = try FileDescriptor.open(pack, .readOnly, options: .closeOnExec)
        defer { try? file.close() }
        var indexer = try Indexer(directory)
        return try withUnsafeTemporaryAllocation(byteCount: portionBytes, alignment: 16) { buffer in
            while true {
                let count = try file.read(into: buffer)
                guard count > 0 else { break }
                let read = UnsafeRawBufferPointer(rebasing: buffer[..<count])
                try malformed { try indexer.append(read) }
            }
            return try malformed { try indexer.finish() }
        }
    }

    /// What the indexer refuses is the pack's fault.
    private static func malformed<T>(_ body: () throws -> T) throws -> T {
        do {
            return try body()
        } catch let error as HistoryError {
            throw HistoryError(
                .malformed, error.operation, error.message, libraryCode: error.libraryCode)
        }
    }
}
