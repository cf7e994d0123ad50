import CStore
import Glibc
public import SystemPackage
public import Volume

/// Content being fetched: `partial/<root>`, as long as the content, with holes where nothing is yet.
extension Store {
    /// A file of the extent's length, all hole; an existing one is opened as it is.
    ///
    /// - Throws: `.wrongLength` when there is one of another length.
    public func createPartial(_ extent: Extent) throws(StoreError) -> FileDescriptor {
        let file = try partial.open("\(extent.root)", O_RDWR | O_CREAT)
        let size = try FileStatus(of: file.raw).size
        if size == 0 {
            try system("ftruncate partial") { cstore_ftruncate(file.raw, extent.length) }
        } else if size != extent.length {
            throw StoreError("partial \(extent.root)", .wrongLength)
        }
        return file.release()
    }

    /// Read-only; nil when there is none.
    public func openPartial(_ root: ContentRoot) throws(StoreError) -> FileDescriptor? {
        guard let file = try partial.openIfPresent("\(root)", O_RDONLY) else { return nil }
        return file.release()
    }

    /// The verified bytes are durable, so that a bitfield saying so may be kept.
    public func synchronizePartial(_ root: ContentRoot) throws(StoreError) {
        let file = try partial.open("\(root)", O_RDONLY)
        try synchronize(file.raw, "partial/\(root)")
        try partial.synchronize()
    }

    /// Makes complete, verified partial content an object, durably. The name in `partial/` stays
    /// until `removePartial`: the torrent may still use it.
    ///
    /// - Throws: `.mismatch` when the layer does not belong to the extent; `.wrongLength`.
    public func adoptPartial(_ hashed: HashedExtent) throws(StoreError) {
        guard Merkle.verify(hashed) || hashed.extent.length <= hashed.extent.pieceBytes else {
            throw StoreError("adopt partial", .mismatch)
        }
        let root = hashed.extent.root
        let file = try partial.open("\(root)", O_RDONLY)
        guard try FileStatus(of: file.raw).size == hashed.extent.length else {
            throw StoreError("adopt partial \(root)", .wrongLength)
        }
        try synchronize(file.raw, "partial/\(root)")
        let directory = try fanOut(root)
        try nameLayer(writeLayer(hashed, synchronizing: true), of: root)
        try system("chmod object") { cstore_fchmod(file.raw, 0o400) }
        do throws(StoreError) {
            try system("link partial/\(root)") {
                cstore_linkat(partial.raw, "\(root)", directory.raw, "\(root)")
            }
        } catch {
            guard error.errno == .fileExists else { throw error }
        }
        try directory.synchronize()
    }

    /// Removes the name in `partial/`; nothing happens when it is missing.
    public func removePartial(_ root: ContentRoot) throws(StoreError) {
        try partial.remove("\(root)")
    }

    /// Every name in `partial/`, in no order.
    public func listPartial() throws(StoreError) -> [ContentRoot] {
        var roots: [ContentRoot] = []
        try partial.forEachName { (name) throws(StoreError) in
            if let root = ContentRoot(hex: name) { roots.append(root) }
            return true
        }
        return roots
    }
}
