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

extension Store {
    /// A batch of at least so many files costs less as two `syncfs` than as an `fsync` per file.
    static let wholeDiskSyncFilesMin = 8

    /// Stores small contents that arrived whole, in open replies for example, with few waits for the
    /// disk. Every one has its own result, in the order given, and one that fails does not hold up
    /// the others: `.mismatch` when the bytes are not what the extent says.
    ///
    /// - Throws: `StoreError` when the disk could not be synced: then nothing may be assumed about
    ///   any of them, and storing again is harmless.
    public func storeObjects(
        _ contents: [(extent: Extent, bytes: [UInt8])]
    ) throws(StoreError) -> [Result<Void, StoreError>] {
        let syncsWholeDisk = contents.count >= Self.wholeDiskSyncFilesMin
        var prepared: [Result<Prepared, StoreError>] = []
        for (extent, bytes) in contents {
            do throws(StoreError) {
                prepared.append(.success(try prepare(extent, bytes, syncsWholeDisk)))
            } catch { prepared.append(.failure(error)) }
        }
        // What is still in `tmp/` at the end, whatever the reason, is of no use to anybody.
        defer {
            for case .success(let item) in prepared {
                if let layer = item.layer { _ = try? temporaries.remove(layer) }
                _ = try? temporaries.remove(item.name)
            }
        }
        if syncsWholeDisk { try synchronizeDisk() }
        var named: [ContentRoot] = []
        var outcomes: [Result<Void, StoreError>] = []
        for item in prepared {
            do throws(StoreError) {
                let item = try item.get()
                try nameLayer(item.layer, of: item.root)
                try temporaries.rename(item.name, to: fanOut(item.root), "\(item.root)")
                outcomes.append(.success(()))
                named.append(item.root)
            } catch { outcomes.append(.failure(error)) }
        }
        try synchronizeNames(of: named)
        return outcomes
    }

    /// A file in `tmp/` whose bytes, and whose layer, only lack their names.
    private struct Prepared {
        let name: String
        let root: ContentRoot
        let layer: String?
    }

    private func prepare(
        _ extent: Extent, _ bytes: [UInt8], _ syncsWholeDisk: Bool
    ) throws(StoreError) -> Prepared {
        guard !bytes.isEmpty else { throw StoreError("store object", .mismatch) }
        let hashed = Merkle.hash(bytes)
        guard hashed.extent == extent else { throw StoreError("store object", .mismatch) }
        let new = try temporary()
        do throws(StoreError) {
            try write(bytes, to: new.file.raw, "object")
            try system("chmod object") { cstore_fchmod(new.file.raw, 0o400) }
            if syncsWholeDisk {
                // Not an error if it fails: syncfs waits for everything anyway.
                _ = cstore_start_writing(new.file.raw)
            } else {
                try synchronize(new.file.raw, "object")
            }
            let layer = try writeLayer(hashed, synchronizing: !syncsWholeDisk)
            return Prepared(name: new.name, root: extent.root, layer: layer)
        } catch {
            _ = try? temporaries.remove(new.name)
            throw error
        }
    }

    /// Writes a layer into `tmp/`.
    ///
    /// - Parameter synchronizing: false when the caller syncs the whole disk before `nameLayer`.
    /// - Returns: its name there; nil when the extent has none.
    func writeLayer(
        _ hashed: HashedExtent, synchronizing: Bool
    ) throws(StoreError) -> String? {
        guard !hashed.layer.isEmpty else { return nil }
        let new = try temporary()
        do throws(StoreError) {
            let file = new.file.raw
            try write(hashed.layer, to: file, "layer")
            try system("chmod layer") { cstore_fchmod(file, 0o400) }
            if synchronizing { try synchronize(file, "layer") }
        } catch {
            _ = try? temporaries.remove(new.name)
            throw error
        }
        return new.name
    }

    /// Gives a synced layer its name in `objects/`.
    func nameLayer(_ layer: String?, of root: ContentRoot) throws(StoreError) {
        guard let layer else { return }
        try temporaries.rename(layer, to: fanOut(root), layerName(root))
    }

    /// Gives synced bytes, and their layer, their names in `objects/`. The directory remains to be
    /// synced. These bytes were verified last, so that they replace an object that is here already.
    func install(
        _ hashed: HashedExtent, file: CInt, name: String, in directory: Directory
    ) throws(StoreError) {
        let root = hashed.extent.root
        try nameLayer(writeLayer(hashed, synchronizing: true), of: root)
        try system("chmod object") { cstore_fchmod(file, 0o400) }
        try directory.rename(name, to: fanOut(root), "\(root)")
    }
}
