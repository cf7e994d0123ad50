import CStore
import Glibc
import Synchronization
public import SystemPackage
public import Volume

/// The name of a file being written: `<ino>.<n>`, both decimal.
public struct StagingName: Hashable, Sendable, Comparable {
    public let ino: InodeNumber
    /// Tells the staging files of one inode apart.
    public let number: UInt64

    public init(ino: InodeNumber, number: UInt64) {
        self.ino = ino
        self.number = number
    }

    /// The one spelling that `description` gives; nil for any other.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 2, let ino = UInt64(parts[0]), let number = UInt64(parts[1])
        else { return nil }
        self.init(ino: InodeNumber(rawValue: ino), number: number)
        guard description == text else { return nil }
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.ino, a.number) < (b.ino, b.number)
    }
}

extension StagingName: CustomStringConvertible {
    public var description: String { "\(ino.rawValue).\(number)" }
}

public enum StagingAccess: Hashable, Sendable {
    case read
    case readWrite
    /// O_PATH: neither reads nor writes and counts as no writer; what backs a passthrough file.
    case path

    var flags: CInt {
        switch self {
        case .read: O_RDONLY
        case .readWrite: O_RDWR
        case .path: cstore_o_path
        }
    }
}

extension Store {
    /// A new, empty file (0600), open for reading and writing.
    ///
    /// - Throws: `StoreError`: EEXIST, ENOSPC …
    public func createStaging(_ name: StagingName) throws(StoreError) -> FileDescriptor {
        let file = try staging.open(name.description, O_RDWR | O_CREAT | O_EXCL)
        state.withLock { $0.stagingMade += 1 }
        return file.release()
    }

    /// A new overlay: the files of its bases get names beside the staging file, so that they stay
    /// whatever becomes of the objects.
    ///
    /// - Throws: `StoreError`: ENOENT when an object is not here, EEXIST, ENOSPC …
    public func createOverlay(
        _ name: StagingName, _ overlay: Overlay
    ) throws(StoreError) -> FileDescriptor {
        let file = try createStaging(name)
        do throws(StoreError) {
            for (index, base) in overlay.bases.enumerated() {
                let directory = try fanOut(base.root)
                try system("link base of staging/\(name)") {
                    cstore_linkat(
                        directory.raw, "\(base.root)", staging.raw, baseName(name, index))
                }
            }
            state.withLock { $0.stagingMade += 1 }
            try system("ftruncate") {
                cstore_ftruncate(file.rawValue, overlay.visible.last?.upperBound ?? 0)
            }
            return file
        } catch {
            try? file.close()
            try? removeStaging(name)
            throw error
        }
    }

    /// - Throws: `StoreError`: ENOENT, or `.wrongLength`.
    public func openBase(
        of name: StagingName, _ overlay: Overlay, _ index: Int
    ) throws(StoreError) -> FileDescriptor {
        let file = try staging.open(baseName(name, index), O_RDONLY)
        guard try FileStatus(of: file.raw).size == overlay.bases[index].length else {
            throw StoreError("base of staging/\(name)", .wrongLength)
        }
        return file.release()
    }

    /// - Throws: `StoreError`: ENOENT …
    public func openStaging(
        _ name: StagingName, _ access: StagingAccess
    ) throws(StoreError) -> FileDescriptor {
        do throws(StoreError) {
            return try staging.open(name.description, access.flags).release()
        } catch {
            // Publishing makes a file read-only just before its rename, and detaching makes it
            // writable just after: what ended in between is still a staging file.
            guard error.errno == .permissionDenied, access == .readWrite else { throw error }
            let file = try staging.open(name.description, O_RDONLY)
            try system("chmod staging/\(name)") { cstore_fchmod(file.raw, 0o600) }
            return try staging.open(name.description, access.flags).release()
        }
    }

    /// A sync of the file has failed. The kernel takes its pages for written all the same and may drop
    /// them: another sync would say that they are on the disk. Only a copy can be published.
    public func isDamaged(_ name: StagingName) -> Bool {
        state.withLock { $0.damaged.contains(name) }
    }

    /// As after a failed sync, which an earlier process met.
    public func distrust(_ name: StagingName) {
        state.withLock { _ = $0.damaged.insert(name) }
    }

    func synchronizeBytes(_ name: StagingName, _ file: CInt) throws(StoreError) {
        guard !isDamaged(name) else { throw StoreError("fsync staging/\(name)", .ioError) }
        do throws(StoreError) { try synchronize(file, "staging/\(name)") } catch {
            distrust(name)
            throw error
        }
    }

    /// The bytes written so far and the file's name are durable. The corresponding C function is
    /// `fsync`.
    ///
    /// - Throws: `StoreError`, from the first failure on.
    public func synchronizeStaging(
        _ name: StagingName, _ file: FileDescriptor
    ) throws(StoreError) {
        try synchronizeBytes(name, file.rawValue)
        let made = state.withLock { $0.stagingMade == $0.stagingDurable ? nil : $0.stagingMade }
        guard let made else { return }
        try staging.synchronize()
        state.withLock { $0.stagingDurable = max($0.stagingDurable, made) }
    }

    /// The next `synchronizeOwed` makes the file durable: for what takes the place of older, durable
    /// bytes, before the row that says so is durable. Bounded by what one batch of rows names.
    public func oweSync(_ name: StagingName) {
        state.withLock { _ = $0.owedSyncs.insert(name) }
    }

    /// - Returns: what could not be made durable, and why.
    public func synchronizeOwed() -> [StagingName: StoreError] {
        let names = state.withLock { state in
            defer { state.owedSyncs = [] }
            return state.owedSyncs
        }
        if names.count >= Self.wholeDiskSyncFilesMin {
            // If it fails, it does not say which file is damaged.
            do throws(StoreError) {
                try synchronizeDisk()
                return [:]
            } catch {}
        }
        var failures: [StagingName: StoreError] = [:]
        for name in names {
            do throws(StoreError) {
                let file = try staging.openIfPresent(name.description, O_RDONLY)
                // Else it was published or removed meanwhile.
                if let file { try synchronizeStaging(name, FileDescriptor(rawValue: file.raw)) }
            } catch { failures[name] = error }
        }
        return failures
    }

    /// Removes the file, what a split left of it and the bases of an overlay; nothing happens when it
    /// is missing.
    public func removeStaging(_ name: StagingName) throws(StoreError) {
        // Before the name by which a start finds them.
        var index = 0
        while try staging.remove(baseName(name, index)) { index += 1 }
        try staging.remove(name.description)
        try removeSplit(name)
        state.withLock { _ = $0.damaged.remove(name) }
    }

    /// Every staging file, in no order. Compare with the catalog at a start.
    public func listStaging() throws(StoreError) -> [StagingName] {
        var names: [StagingName] = []
        try staging.forEachName { (text) throws(StoreError) in
            if let name = StagingName(text) { names.append(name) }
            return true
        }
        return names
    }

    func baseName(_ name: StagingName, _ index: Int) -> String { "\(name).base\(index)" }

    func splitName(_ name: StagingName) -> String { "\(name).split" }
}
