import CStore
import SystemPackage
import Volume

/// What a start needs that cannot ask the catalog.
extension Store {
    /// The files of the objects that show through an overlay, in their order; empty for any other
    /// staging file.
    public func stagingBases(_ name: StagingName) throws(StoreError) -> [FileFacts] {
        var bases: [FileFacts] = []
        while true {
            var status = cstore_stat()
            do throws(StoreError) {
                try system("stat base of staging/\(name)") {
                    cstore_fstatat(staging.raw, baseName(name, bases.count), &status)
                }
            } catch {
                guard error.errno == .noSuchFileOrDirectory else { throw error }
                return bases
            }
            bases.append(FileFacts(status))
        }
    }

    /// Whether the staging file has just these bytes, which are few.
    public func holds(_ name: StagingName, _ bytes: [UInt8]) throws(StoreError) -> Bool {
        guard try stagingFacts(name).size == bytes.count else { return false }
        let file = OwnedDescriptor(raw: try openStaging(name, .read).rawValue)
        var found = [UInt8](repeating: 0, count: bytes.count)
        var failure: StoreError?
        let count = found.withUnsafeMutableBytes { buffer in
            do throws(StoreError) {
                return try read(into: buffer, from: file.raw, at: 0, "staging/\(name)")
            } catch {
                failure = error
                return 0
            }
        }
        if let failure { throw failure }
        return count == bytes.count && found == bytes
    }
}
