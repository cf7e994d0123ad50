import CStore
import Glibc
import Synchronization
import SystemPackage
public import Volume

/// A staging file whose bytes, and whose layer in `tmp/`, only lack their names.
public struct PreparedObject: Sendable {
    public let staging: StagingName
    public let hashed: HashedExtent
    let layer: String?
}

// Publishing in steps, for a caller that decides between them and that keeps the staging name
// until its own records are durable: prepare, sync, link, sync names.
extension Store {
    /// - Parameter synchronizing: false when the caller calls `synchronizeDisk` before `link`; if that
    ///   fails, only preparing each file again says which one is damaged.
    /// - Throws: `StoreError`; `.wrongLength` when the file is not as long as what was hashed; EIO
    ///   when it is damaged.
    public func prepareObject(
        _ name: StagingName, _ hashed: HashedExtent, synchronizing: Bool
    ) throws(StoreError) -> PreparedObject {
        let file = try staging.open(name.description, O_RDONLY)
        guard try FileStatus(of: file.raw).size == hashed.extent.length else {
            throw StoreError("publish \(name)", .wrongLength)
        }
        if synchronizing {
            try synchronizeBytes(name, file.raw)
        } else {
            // Not an error if it fails: syncfs waits for everything anyway.
            _ = cstore_start_writing(file.raw)
        }
        let layer = try writeLayer(hashed, synchronizing: synchronizing)
        return PreparedObject(staging: name, hashed: hashed, layer: layer)
    }

    /// Everything written so far is on the disk. The corresponding C function is `syncfs`.
    public func synchronizeDisk() throws(StoreError) {
        try system("syncfs") { cstore_syncfs(root.raw) }
    }

    /// Gives a synced file its name in `objects/` beside its staging name: the staging file's inode
    /// is the object too, and nothing may write to it any more. Quick; the name is durable after
    /// `synchronizeNames`.
    ///
    /// These bytes were read a moment ago; those of an object that is here already may have decayed
    /// since it was written. So it is replaced: who has it open keeps it.
    ///
    /// - Throws: `StoreError`; the file is then no object.
    public func link(_ prepared: PreparedObject) throws(StoreError) {
        let root = prepared.hashed.extent.root
        let directory = try fanOut(root)
        let name = prepared.staging.description
        // Open before it is linked: afterwards there may be no descriptor to make it read-only by.
        let file = try staging.open(name, O_RDONLY)
        try nameLayer(prepared.layer, of: root)
        let object = "\(root)"
        let result = cstore_linkat(staging.raw, name, directory.raw, object)
        if Errno(rawValue: -result) == .fileExists {
            try replaceObject(object, in: directory, by: name)
        } else {
            try system("link \(name) as object") { result }
        }
        do throws(StoreError) {
            try system("chmod object") { cstore_fchmod(file.raw, 0o400) }
        } catch {
            try directory.remove(object)
            throw error
        }
    }

    private func replaceObject(
        _ object: String, in directory: Directory, by name: String
    ) throws(StoreError) {
        let link = temporaryName()
        try system("link \(name)") { cstore_linkat(staging.raw, name, temporaries.raw, link) }
        do throws(StoreError) { try temporaries.rename(link, to: directory, object) } catch {
            _ = try? temporaries.remove(link)
            throw error
        }
        // Where both were names of one file already, the rename has done nothing.
        try temporaries.remove(link)
    }

    /// The names of these objects, as far as they were linked, are durable.
    public func synchronizeNames(of roots: [ContentRoot]) throws(StoreError) {
        let touched = Set(roots.map { $0.bytes[0] })
        if touched.count >= Self.wholeDiskSyncFilesMin { return try synchronizeDisk() }
        for directory in state.withLock({ state in touched.map { state.fanOut[$0] } }) {
            try directory?.synchronize()
        }
    }

    /// Drops what `prepareObject` made.
    public func discard(_ object: PreparedObject) {
        if let layer = object.layer { _ = try? temporaries.remove(layer) }
    }
}
