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

public enum LinkOutcome: Hashable, Sendable {
    /// The staging file's inode is the object too: nothing may write to it any more.
    case linked
    /// Another file has the same content already; the staging file is only itself.
    case alreadyHere
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
        let layer =
            hashed.layer.isEmpty
            ? nil : try writeLayer(hashed, then: synchronizing ? .synchronize : .leaveToCaller)
        return PreparedObject(staging: name, hashed: hashed, layer: layer)
    }

    /// Everything written so far is on the disk. The corresponding C function is `syncfs`.
    public func synchronizeDisk() throws(StoreError) {
        try system("syncfs") { cstore_syncfs(root.raw) }
    }

    /// Gives a synced file its name in `objects/` beside its staging name. Quick; the name is
    /// durable after `synchronizeNames`.
    ///
    /// - Throws: `StoreError`; the file is then no object.
    public func link(_ object: PreparedObject) throws(StoreError) -> LinkOutcome {
        let root = object.hashed.extent.root
        let directory = try fanOut(root)
        let name = object.staging.description
        // Open before it is linked: afterwards there may be no descriptor to make it read-only by.
        let file = try staging.open(name, O_RDONLY)
        if let layer = object.layer {
            try temporaries.rename(layer, to: directory, layerName(root))
        }
        while true {
            let result = cstore_linkat(staging.raw, name, directory.raw, "\(root)")
            if result == 0 { break }
            guard Errno(rawValue: -result) == .fileExists else {
                throw StoreError("link \(name) as object", Errno(rawValue: -result))
            }
            guard let other = try directory.status("\(root)") else { continue }
            if other.inode == (try FileStatus(of: file.raw)).inode { break }
            if other.size == object.hashed.extent.length { return .alreadyHere }
            // Damaged from outside: an object is never shorter than its content.
            try directory.remove("\(root)")
        }
        do throws(StoreError) {
            try system("chmod object") { cstore_fchmod(file.raw, 0o400) }
        } catch {
            try directory.remove("\(root)")
            throw error
        }
        return .linked
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
