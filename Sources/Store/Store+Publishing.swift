import CStore
import Glibc
import Synchronization
import SystemPackage
public import Volume

/// A staging file and what hashing it gave.
public struct Publication: Hashable, Sendable {
    public let staging: StagingName
    public let result: MerkleResult

    public init(staging: StagingName, result: MerkleResult) {
        self.staging = staging
        self.result = result
    }
}

public enum PublishOutcome: Hashable, Sendable {
    /// The staging file's inode is the object now: readers and backing ids stay valid.
    case renamed
    /// The object was here already; the staging file is unlinked, its readers keep their inode.
    case alreadyHere
    /// Split into several objects; the staging file is gone.
    case split
}

/// What makes bytes durable before they get a name.
enum LayerWriting {
    case synchronize
    /// The caller syncs the whole disk once.
    case leaveToCaller
}

extension Store {
    /// A batch of at least so many files costs less as two `syncfs` than as an `fsync` per file.
    static let wholeDiskSyncFilesMin = 8

    /// Turns a staging file into an object, durably: object and layer are on the disk when this
    /// returns, under their names.
    ///
    /// - Precondition: nobody writes to the file (`hasWriters`), and for more than one extent
    ///   nobody reads it either: the source is punched out behind the copy.
    /// - Throws: `StoreError`: `.wrongLength` when the file is not as long as what was hashed,
    ///   ENOENT, ENOSPC, `.canceled`; the staging file is then still there.
    @discardableResult
    public func publish(
        _ publication: Publication, cancellation: Cancellation? = nil
    ) throws(StoreError) -> PublishOutcome {
        precondition(!publication.result.extents.isEmpty)
        if publication.result.extents.count > 1 {
            return try publishSplit(publication, cancellation)
        }
        return try publishBatch([publication])[0].get()
    }

    /// Publishes many files of one extent each with few waits for the disk. Every file has its own
    /// result, in the order given: one that fails does not hold up the others.
    ///
    /// - Throws: `StoreError` when the disk could not be synced: then nothing may be assumed about
    ///   any of them, and publishing again is harmless.
    public func publishBatch(
        _ publications: [Publication]
    ) throws(StoreError) -> [Result<PublishOutcome, StoreError>] {
        try installBatch(publications, prepare)
    }

    /// Stores small contents that arrived whole, in open replies for example, with few waits for the
    /// disk. Every one has its own result, in the order given: `.mismatch` when the bytes are not
    /// what the extent says.
    ///
    /// - Throws: as `publishBatch`.
    public func storeObjects(
        _ contents: [(extent: Extent, bytes: [UInt8])]
    ) throws(StoreError) -> [Result<PublishOutcome, StoreError>] {
        try installBatch(contents) { (content, syncsWholeDisk) throws(StoreError) in
            guard UInt64(content.bytes.count) == content.extent.length, !content.bytes.isEmpty
            else { throw StoreError("store object", .mismatch) }
            let hashed = Merkle.hash(content.bytes)
            guard hashed.extent == content.extent else {
                throw StoreError("store object", .mismatch)
            }
            let new = try temporary()
            do throws(StoreError) {
                try write(content.bytes, to: new.file.raw, "object")
                return try prepare(
                    hashed, file: new.file.raw, new.name, in: temporaries, syncsWholeDisk)
            } catch {
                _ = try? temporaries.remove(new.name)
                throw error
            }
        }
    }

    private func installBatch<Item>(
        _ items: [Item], _ prepare: (Item, Bool) throws(StoreError) -> Prepared
    ) throws(StoreError) -> [Result<PublishOutcome, StoreError>] {
        let syncsWholeDisk = items.count >= Self.wholeDiskSyncFilesMin
        var prepared: [Result<Prepared, StoreError>] = []
        for item in items {
            do throws(StoreError) {
                prepared.append(.success(try prepare(item, syncsWholeDisk)))
            } catch { prepared.append(.failure(error)) }
        }
        // What is still in `tmp/` at the end, whatever the reason, is of no use to anybody.
        defer {
            for case .success(let item) in prepared {
                if let layer = item.layer { _ = try? temporaries.remove(layer) }
                if item.directory === temporaries { _ = try? temporaries.remove(item.name) }
            }
        }
        if syncsWholeDisk { try system("syncfs") { cstore_syncfs(root.raw) } }
        var touched: Set<UInt8> = []
        var outcomes: [Result<PublishOutcome, StoreError>] = []
        for item in prepared {
            do throws(StoreError) {
                let prepared = try item.get()
                outcomes.append(.success(try finish(prepared)))
                touched.insert(prepared.hashed.extent.root.bytes[0])
            } catch { outcomes.append(.failure(error)) }
        }
        if touched.count >= Self.wholeDiskSyncFilesMin {
            try system("syncfs") { cstore_syncfs(root.raw) }
        } else {
            for directory in state.withLock({ state in touched.map { state.fanOut[$0] } }) {
                try directory?.synchronize()
            }
            if !touched.isEmpty { try staging.synchronize() }
        }
        return outcomes
    }

    /// A file whose bytes, and whose layer in `tmp/`, only lack their names.
    private struct Prepared {
        let directory: Directory
        let name: String
        let hashed: HashedExtent
        let layer: String?
    }

    private func prepare(
        _ publication: Publication, _ syncsWholeDisk: Bool
    ) throws(StoreError) -> Prepared {
        precondition(publication.result.extents.count == 1, "a batch takes files of one extent")
        let hashed = publication.result.extents[0]
        let name = publication.staging.description
        let file = try staging.open(name, O_RDONLY)
        guard try FileStatus(of: file.raw).size == hashed.extent.length else {
            throw StoreError("publish \(name)", .wrongLength)
        }
        return try prepare(hashed, file: file.raw, name, in: staging, syncsWholeDisk)
    }

    private func prepare(
        _ hashed: HashedExtent, file: CInt, _ name: String, in directory: Directory,
        _ syncsWholeDisk: Bool
    ) throws(StoreError) -> Prepared {
        var layer: String?
        if syncsWholeDisk {
            // Not an error if it fails: syncfs waits for everything anyway.
            _ = cstore_start_writing(file)
            if !hashed.layer.isEmpty { layer = try writeLayer(hashed, then: .leaveToCaller) }
        } else {
            try synchronize(file, "\(directory.label)/\(name)")
            if !hashed.layer.isEmpty { layer = try writeLayer(hashed, then: .synchronize) }
        }
        return Prepared(directory: directory, name: name, hashed: hashed, layer: layer)
    }

    private func finish(_ prepared: Prepared) throws(StoreError) -> PublishOutcome {
        let root = prepared.hashed.extent.root
        if let layer = prepared.layer {
            try temporaries.rename(layer, to: try fanOut(root), layerName(root))
        }
        let file = try prepared.directory.open(prepared.name, O_RDONLY)
        return try name(
            prepared.hashed.extent, file: file.raw, prepared.name, in: prepared.directory)
    }

    /// Writes a layer into `tmp/`; its name there.
    func writeLayer(_ hashed: HashedExtent, then: LayerWriting) throws(StoreError) -> String {
        let new = try temporary()
        do throws(StoreError) {
            let file = new.file.raw
            try write(hashed.layer, to: file, "layer")
            try system("chmod layer") { cstore_fchmod(file, 0o400) }
            if then == .synchronize { try synchronize(file, "layer") }
        } catch {
            _ = try? temporaries.remove(new.name)
            throw error
        }
        return new.name
    }

    /// Gives synced bytes, and their layer, their names in `objects/`. The directory remains to be
    /// synced.
    @discardableResult
    func install(
        _ hashed: HashedExtent, file: CInt, name: String, in directory: Directory
    ) throws(StoreError) -> PublishOutcome {
        let root = hashed.extent.root
        if !hashed.layer.isEmpty {
            let layer = try writeLayer(hashed, then: .synchronize)
            try temporaries.rename(layer, to: try fanOut(root), layerName(root))
        }
        return try self.name(hashed.extent, file: file, name, in: directory)
    }

    /// Moves a synced file to its name in `objects/`, unless a complete object has it.
    private func name(
        _ extent: Extent, file: CInt, _ name: String, in directory: Directory
    ) throws(StoreError) -> PublishOutcome {
        let target = try fanOut(extent.root)
        let object = "\(extent.root)"
        try system("chmod object") { cstore_fchmod(file, 0o400) }
        let result = cstore_rename_new(directory.raw, name, target.raw, object)
        if result == 0 { return .renamed }
        let errno = Errno(rawValue: -result)
        guard errno == .fileExists || errno == .invalidArgument else {
            throw StoreError("rename \(name) to \(object)", errno)
        }
        // EINVAL: a disk that cannot tell; two publishers of one root are then both right.
        if try target.status(object)?.size == extent.length {
            try directory.remove(name)
            return .alreadyHere
        }
        // Damaged from outside: an object is never shorter than its content.
        try directory.rename(name, to: target, object)
        return .renamed
    }
}
