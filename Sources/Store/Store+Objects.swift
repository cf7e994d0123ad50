import CStore
import Glibc
import Synchronization
public import SystemPackage
public import Volume

/// The file of an object that has lost its name.
public struct WithdrawnObject: Sendable {
    let name: String
}

public enum Withdrawal: Sendable {
    case withdrawn(WithdrawnObject)
    /// A file is being published that has its bytes there: it stays.
    case needed
}

extension Store {
    func layerName(_ root: ContentRoot) -> String { "\(root).layer" }

    /// The object's bytes, read-only; nil when it is not here.
    public func openObject(_ root: ContentRoot) throws(StoreError) -> FileDescriptor? {
        try openReadable("\(root)", in: fanOut(root))?.release()
    }

    /// An object that is ours and has lost its permissions is given them again.
    private func openReadable(
        _ name: String, in directory: Directory
    ) throws(StoreError) -> OwnedDescriptor? {
        do throws(StoreError) {
            return try directory.openIfPresent(name, O_RDONLY)
        } catch {
            guard error.errno == .permissionDenied else { throw error }
            try setMode(0o400, of: name, in: directory)
            return try directory.openIfPresent(name, O_RDONLY)
        }
    }

    /// An O_PATH descriptor of the object, to back a passthrough file; nil when it is not here.
    public func openObjectPath(_ root: ContentRoot) throws(StoreError) -> FileDescriptor? {
        guard let file = try fanOut(root).openIfPresent("\(root)", cstore_o_path) else {
            return nil
        }
        return file.release()
    }

    /// Bytes; nil when the object is not here.
    public func objectLength(_ root: ContentRoot) throws(StoreError) -> UInt64? {
        try fanOut(root).status("\(root)")?.size
    }

    /// The piece layer as stored (not verified): empty for an extent of one piece, nil when it is
    /// missing though the extent has more.
    public func layer(of extent: Extent) throws(StoreError) -> [UInt8]? {
        guard extent.length > extent.pieceBytes else { return [] }
        guard let file = try fanOut(extent.root).openIfPresent(layerName(extent.root), O_RDONLY)
        else { return nil }
        let size = try FileStatus(of: file.raw).size
        guard size == UInt64(extent.pieceCount * Merkle.hashBytes) else { return nil }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var failure: StoreError?
        let count = bytes.withUnsafeMutableBytes { buffer in
            do throws(StoreError) {
                return try read(into: buffer, from: file.raw, at: 0, "layer")
            } catch {
                failure = error
                return 0
            }
        }
        if let failure { throw failure }
        return count == bytes.count ? bytes : nil
    }

    /// Writes the layer again, after a scrub found it damaged.
    ///
    /// - Throws: `.mismatch` when the layer does not belong to the extent.
    public func restoreLayer(_ hashed: HashedExtent) throws(StoreError) {
        guard Merkle.verify(hashed) else { throw StoreError("layer", .mismatch) }
        guard !hashed.layer.isEmpty else { return }
        try nameLayer(writeLayer(hashed, synchronizing: true), of: hashed.extent.root)
        try fanOut(hashed.extent.root).synchronize()
    }

    /// Stores bytes that arrived whole, in an open reply for example.
    ///
    /// - Throws: `.mismatch` when they are not what the extent says.
    public func storeObject(_ extent: Extent, bytes: [UInt8]) throws(StoreError) {
        _ = try storeObjects([(extent, bytes)])[0].get()
    }

    /// The object's file has another name: it is still being published or fetched.
    public func isUnfinished(_ root: ContentRoot) throws(StoreError) -> Bool {
        try fanOut(root).status("\(root)").map { $0.links > 1 } ?? false
    }

    /// Takes the object's name away at once; its bytes go with `removeWithdrawn`. Whoever has it
    /// open keeps it. What a crash leaves between is removed by the next start.
    public func withdrawObject(_ root: ContentRoot) throws(StoreError) -> Withdrawal {
        let directory = try fanOut(root)
        let object = "\(root)"
        let name = temporaryName()
        // With the lock held, so that a split finds the object gone, or keeps it.
        let isNeeded = try state.withLock { (state) throws(StoreError) -> Bool in
            let isSplit = state.splits.values.contains { $0.contains(root) }
            guard let status = try directory.status(object) else { return false }
            if isSplit || status.links > 1 { return true }
            try directory.rename(object, to: temporaries, name)
            return false
        }
        if isNeeded { return .needed }
        try directory.remove(layerName(root))
        return .withdrawn(WithdrawnObject(name: name))
    }

    /// Nothing happens where the object was missing.
    public func removeWithdrawn(_ object: WithdrawnObject) throws(StoreError) {
        try temporaries.remove(object.name)
    }

    /// Removes object and layer, durably. Whoever has it open keeps it.
    ///
    /// - Returns: false when it was not here.
    @discardableResult
    public func removeObject(_ root: ContentRoot) throws(StoreError) -> Bool {
        let directory = try fanOut(root)
        // In this order a crash between leaves a layer without an object, never the reverse.
        let wasHere = try directory.remove("\(root)")
        let hadLayer = try directory.remove(layerName(root))
        if wasHere || hadLayer { try directory.synchronize() }
        return wasHere
    }

    /// Every object with its length, in no order; the body answers false to end. For recovery: a
    /// running node knows its objects from the catalog.
    public func forEachObject(
        _ body: (ContentRoot, UInt64) throws(StoreError) -> Bool
    ) throws(StoreError) {
        for byte in UInt8.min...UInt8.max {
            guard let directory = try fanOutIfPresent(byte) else { continue }
            var goesOn = true
            try directory.forEachName { (name) throws(StoreError) in
                guard let root = ContentRoot(hex: name), root.bytes[0] == byte,
                    let status = try directory.status(name), status.isRegular
                else { return true }
                goesOn = try body(root, status.size)
                return goesOn
            }
            guard goesOn else { return }
        }
    }

    private func fanOutIfPresent(_ byte: UInt8) throws(StoreError) -> Directory? {
        if let known = state.withLock({ $0.fanOut[byte] }) { return known }
        let name = Hex.encode([byte])
        guard try objects.status(name) != nil else { return nil }
        return try objects.subdirectory(name)
    }

    /// Re-reads an object from the disk; see `ScrubResult`. Runs on the caller's thread.
    ///
    /// - Parameter afterRead: called with the number of bytes read; the place to wait.
    /// - Returns: nil when the object is not here.
    public func scrub(
        _ extent: Extent, cancellation: Cancellation? = nil, afterRead: (Int) -> Void = { _ in }
    ) throws(StoreError) -> ScrubResult? {
        guard let file = try openReadable("\(extent.root)", in: fanOut(extent.root)) else {
            return nil
        }
        return try Merkle.scrub(
            file.raw, extent: extent, layer: try layer(of: extent), cancellation: cancellation,
            afterRead: afterRead)
    }

    /// Gives the inode behind an object to a writer: the object's name gets a copy, the inode that
    /// readers hold becomes the staging file `name`. One atomic exchange; a crash before it leaves
    /// only a copy under the staging name.
    ///
    /// - Parameter copyBytesMax: where the disk cannot share blocks, more than this is not copied.
    /// - Parameter expecting: the file that readers hold; another one may bear the name since.
    /// - Parameter exchanging: runs the exchange that it is given, or answers false when somebody
    ///   else uses the file, for ESTALE.
    /// - Returns: the staging file, open for reading and writing.
    /// - Throws: `StoreError`: ENOENT when the object is not here, ESTALE when it is another file,
    ///   EFBIG when the copy would be too large.
    public func detachObject(
        _ root: ContentRoot, to name: StagingName, copyBytesMax: UInt64,
        expecting: FileIdentity? = nil, cancellation: Cancellation? = nil,
        exchanging: (() throws(StoreError) -> Void) throws(StoreError) -> Bool = {
            (exchange) throws(StoreError) in
            try exchange()
            return true
        }
    ) throws(StoreError) -> FileDescriptor {
        let directory = try fanOut(root)
        let object = try directory.open("\(root)", O_RDONLY)
        let status = try FileStatus(of: object.raw)
        let length = status.size
        let identity = FileIdentity(device: status.device, inode: status.inode)
        guard expecting == nil || expecting == identity else {
            throw StoreError("detach object", .staleNFSFileHandle)
        }
        let mayCopy = try length <= copyBytesMax ? true : abilities().supportsReflink
        guard mayCopy else {
            throw StoreError("detach object", .fileTooLarge)
        }
        let copy = try staging.open(name.description, O_RDWR | O_CREAT | O_EXCL)
        do throws(StoreError) {
            _ = try Cloning.clone(
                from: object.raw, to: copy.raw, range: 0..<length, at: 0, cancellation: cancellation
            )
            try synchronize(copy.raw, "copy of object")
            try system("chmod object") { cstore_fchmod(copy.raw, 0o400) }
            let isOurs = try exchanging { () throws(StoreError) in
                try system("exchange object") {
                    cstore_exchangeat(staging.raw, name.description, directory.raw, "\(root)")
                }
            }
            guard isOurs else { throw StoreError("exchange object", .staleNFSFileHandle) }
        } catch {
            _ = try? staging.remove(name.description)
            throw error
        }
        try system("chmod staging") { cstore_fchmod(object.raw, 0o600) }
        try directory.synchronize()
        try staging.synchronize()
        return try staging.open(name.description, O_RDWR).release()
    }
}
