import CStore
import Glibc
import SystemPackage
public import Volume

/// Damaged objects: what is good of them stays, as partial content, and is completed in place.
extension Store {
    /// The file that bears the object's name; nil when none does.
    public func objectFacts(_ root: ContentRoot) throws(StoreError) -> FileFacts? {
        var status = cstore_stat()
        do throws(StoreError) {
            let directory = try fanOut(root)
            try system("stat object \(root)") {
                cstore_fstatat(directory.raw, "\(root)", &status)
            }
        } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return nil
        }
        return FileFacts(status)
    }

    /// Moves what bears the object's name to `partial/`, in the place of what was there, with the
    /// length of the content; durable. In one step the object is gone for who opens it. Who has it
    /// open keeps it, and reads there what is put in place of its damage.
    ///
    /// **Invariant:** the row says `partial` before, durably, so that no start takes the file for
    /// an object or for left over.
    ///
    /// - Returns: false when nothing bears the name.
    /// - Throws: `StoreError`.
    @discardableResult
    public func setAside(_ extent: Extent) throws(StoreError) -> Bool {
        let name = "\(extent.root)"
        let directory = try fanOut(extent.root)
        guard try directory.status(name) != nil else { return false }
        try directory.rename(name, to: partial, name)
        try setMode(0o600, of: name, in: partial)
        let file = try partial.open(name, O_RDWR)
        if try FileStatus(of: file.raw).size != extent.length {
            try system("ftruncate partial") { cstore_ftruncate(file.raw, extent.length) }
        }
        try synchronize(file.raw, "partial/\(name)")
        try partial.synchronize()
        try directory.synchronize()
        return true
    }

    /// The pieces of a partial content that its file has, by reading it.
    ///
    /// - Parameter layer: of the content, verified.
    public func goodPieces(
        ofPartial extent: Extent, layer: [UInt8], cancellation: Cancellation? = nil
    ) throws(StoreError) -> [Int] {
        guard let file = try partial.openIfPresent("\(extent.root)", O_RDONLY) else { return [] }
        let status = try FileStatus(of: file.raw)
        guard status.size == extent.length, status.blocks512 > 0 else { return [] }
        let damaged = try Merkle.scrub(
            file.raw, extent: extent, layer: layer, cancellation: cancellation, afterRead: { _ in }
        ).damagedPieces
        let bad = Set(damaged)
        return (0..<extent.pieceCount).filter { !bad.contains($0) }
    }

    /// Sets the permissions of a file that perhaps may not be opened.
    func setMode(_ mode: mode_t, of name: String, in directory: Directory) throws(StoreError) {
        guard fchmodat(directory.raw, name, mode, 0) == 0 else {
            throw StoreError("chmod \(directory.label)/\(name)", Errno(rawValue: errno))
        }
    }
}
