import CStore
import Glibc
import Synchronization
import Volume

/// Files of more than one extent. Each extent is copied to an object of its own, by reflink or,
/// where the disk cannot, extent by extent with the source punched out behind, so that no more than
/// one extent exists twice.
///
/// From the first punch on the bytes are in two places; `staging/<ino>.<n>.split`, durable before it,
/// lists the extents. At a start `moveToObjects` of the same publication goes on where it ended.
///
/// **Invariant:** while the list is there none of its objects is withdrawn.
extension Store {
    /// Gives every extent an object, durably. The staging file, whose bytes may be gone from then
    /// on, and the list of its extents stay until `removeStaging`, so that the caller can keep its
    /// own record of them first. Calling it again goes on where it ended.
    ///
    /// - Precondition: nobody reads or writes the file.
    /// - Throws: `StoreError`; see `interruptedSplit` for what is left then: nothing of the split, if
    ///   the staging file still has all its bytes.
    public func moveToObjects(
        _ publication: Publication, cancellation: Cancellation? = nil
    ) throws(StoreError) {
        let name = publication.staging.description
        let source = try staging.open(name, O_RDWR)
        guard try FileStatus(of: source.raw).size == publication.result.length else {
            throw StoreError("publish \(name)", .wrongLength)
        }
        try synchronize(source.raw, "staging/\(name)")
        // What an earlier call punched out is not known.
        let goesOn = try staging.status(splitName(publication.staging)) != nil
        var isWhole = !goesOn
        try writeSplit(publication)
        do throws(StoreError) {
            var offset: UInt64 = 0
            for hashed in publication.result.extents {
                try cancellation?.check("publish \(name)")
                let range = offset..<offset + hashed.extent.length
                offset = range.upperBound
                if goesOn, try objectLength(hashed.extent.root) == hashed.extent.length { continue }
                let result = try publishExtent(hashed, of: source.raw, range, cancellation)
                if result == .copied {
                    isWhole = false
                    // A disk that cannot punch keeps the bytes twice for a while.
                    _ = cstore_punch(source.raw, range.lowerBound, UInt64(range.count))
                }
            }
        } catch {
            if isWhole { try? removeSplit(publication.staging) }
            throw error
        }
    }

    private func publishExtent(
        _ hashed: HashedExtent, of source: CInt, _ range: Range<UInt64>,
        _ cancellation: Cancellation?
    ) throws(StoreError) -> CloneResult {
        let new = try temporary()
        do throws(StoreError) {
            let result = try Cloning.clone(
                from: source, to: new.file.raw, range: range, at: 0, cancellation: cancellation)
            try synchronize(new.file.raw, "extent")
            try install(hashed, file: new.file.raw, name: new.name, in: temporaries)
            try fanOut(hashed.extent.root).synchronize()
            return result
        } catch {
            _ = try? temporaries.remove(new.name)
            throw error
        }
    }

    /// One line `<root> <length> <layer, hexadecimal>` for each extent.
    private func writeSplit(_ publication: Publication) throws(StoreError) {
        let lines = publication.result.extents.map {
            "\($0.extent.root) \($0.extent.length) \(Hex.encode($0.layer))\n"
        }
        keepObjects(of: publication)
        let new = try temporary()
        try write(Array(lines.joined().utf8), to: new.file.raw, "split")
        try synchronize(new.file.raw, "split")
        try temporaries.rename(new.name, to: staging, splitName(publication.staging))
        try staging.synchronize()
    }

    private func keepObjects(of publication: Publication) {
        let roots = Set(publication.result.extents.map(\.extent.root))
        state.withLock { $0.splits[publication.staging] = roots }
    }

    /// The staging file has all its bytes, or nobody needs them.
    func removeSplit(_ name: StagingName) throws(StoreError) {
        try staging.remove(splitName(name))
        state.withLock { _ = $0.splits.removeValue(forKey: name) }
    }

    /// The extents of a split that a crash or a cancellation ended; nil when there was none. The
    /// staging file may have lost those of its bytes that are objects already.
    ///
    /// - Throws: `StoreError`: EBADMSG when the list is damaged.
    public func interruptedSplit(_ name: StagingName) throws(StoreError) -> Publication? {
        guard let file = try staging.openIfPresent(splitName(name), O_RDONLY) else { return nil }
        let size = try FileStatus(of: file.raw).size
        guard size <= Self.splitBytesMax else { throw StoreError("split \(name)", .mismatch) }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var failure: StoreError?
        bytes.withUnsafeMutableBytes { buffer in
            do throws(StoreError) {
                _ = try read(into: buffer, from: file.raw, at: 0, "split")
            } catch { failure = error }
        }
        if let failure { throw failure }
        var extents: [HashedExtent] = []
        for line in bytes.split(separator: UInt8(ascii: "\n")) {
            let parts = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
            guard parts.count == 3, let root = Hex.decode(parts[0]).flatMap(ContentRoot.init),
                let length = UInt64(String(decoding: parts[1], as: UTF8.self)), length > 0,
                length <= Limits.extentBytesMax, let layer = Hex.decode(parts[2])
            else { throw StoreError("split \(name)", .mismatch) }
            let hashed = HashedExtent(extent: Extent(root: root, length: length), layer: layer)
            guard Merkle.verify(hashed) else { throw StoreError("split \(name)", .mismatch) }
            extents.append(hashed)
        }
        guard !extents.isEmpty else { throw StoreError("split \(name)", .mismatch) }
        let publication = Publication(staging: name, result: MerkleResult(extents: extents))
        keepObjects(of: publication)
        return publication
    }

    /// 512 extents of 8192 pieces, twice over for hexadecimal, and some.
    private static let splitBytesMax: UInt64 = 512 << 20
}
