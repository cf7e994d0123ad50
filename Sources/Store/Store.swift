import CStore
import Glibc
import Synchronization
public import SystemPackage
public import Volume

/// The files of one root directory: what is being written, what is complete, what is being fetched.
///
/// ```
/// objects/ab/<root>         complete content, read-only;  objects/ab/<root>.layer  its piece layer
/// partial/<root>            being fetched
/// staging/<ino>.<n>         being written;  staging/<ino>.<n>.split  being split into extents
/// tmp/<n>                   not yet anything; removed at a start
/// lock  reserve
/// ```
/// **Invariant:** a file that bears its name in `objects/` is complete and durable, and so is its
/// layer: both are synced under another name first.
///
/// All calls block and may come from any thread, on different names concurrently; calls about one
/// name are ordered by the caller. Descriptors that are returned are the caller's to close.
public final class Store: Sendable {
    let root: Directory
    let objects: Directory
    let partial: Directory
    let staging: Directory
    let temporaries: Directory
    /// A smaller bound in tests: files of 32 GiB take long.
    let extentBytesMax: UInt64
    private let nextTemporary = Atomic<UInt64>(0)
    let state = Mutex(State())

    struct State {
        /// Held for the life of the store once acquired.
        var lock: CInt?
        /// The open directories below `objects/` by the first byte of the root; at most 256.
        var fanOut: [UInt8: Directory] = [:]
        /// Staging files made so far, and how many of them had a durable name.
        var stagingMade: UInt64 = 0
        var stagingDurable: UInt64 = 0
        /// To be synced by `synchronizeOwed`.
        var owedSyncs: Set<StagingName> = []
        /// Objects that have the bytes of a staging file which is being split.
        var splits: [StagingName: Set<ContentRoot>] = [:]
        /// See `isDamaged`; at most the files in `staging/`.
        var damaged: Set<StagingName> = []
        var facts: DiskAbilities?
    }

    /// Opens a root and makes what is missing in it (0700).
    ///
    /// - Parameter path: of an existing directory; bytes, relative to the working directory or
    ///   absolute.
    /// - Throws: `StoreError`; `.rootTooWide`, before anything is written, when group or others have
    ///   any permission on it.
    public convenience init(root path: [UInt8]) throws(StoreError) {
        try self.init(root: path, extentBytesMax: Limits.extentBytesMax)
    }

    public convenience init(root path: String) throws(StoreError) {
        try self.init(root: Array(path.utf8))
    }

    init(root path: [UInt8], extentBytesMax: UInt64) throws(StoreError) {
        root = try Directory(path: path, label: "root")
        guard try FileStatus(of: root.raw).mode & 0o077 == 0 else {
            throw StoreError("open root", .rootTooWide)
        }
        objects = try root.subdirectory("objects")
        partial = try root.subdirectory("partial")
        staging = try root.subdirectory("staging")
        temporaries = try root.subdirectory("tmp")
        self.extentBytesMax = extentBytesMax
    }

    /// Opens a root of which nothing is made, changed or removed: one that no node has, of a damaged or
    /// read-only disk perhaps. Only what reads may be called; an object whose directory is missing is
    /// ENOENT.
    public init(reading path: [UInt8]) throws(StoreError) {
        root = try Directory(path: path, label: "root", isReadOnly: true)
        // Nothing is found in what is missing: no name in the root is one of theirs.
        objects = try root.status("objects") == nil ? root : root.subdirectory("objects")
        staging = try root.status("staging") == nil ? root : root.subdirectory("staging")
        partial = root
        temporaries = root
        extentBytesMax = Limits.extentBytesMax
    }

    deinit {
        state.withLock { if let lock = $0.lock { Glibc.close(lock) } }
    }

    /// Makes this process the only one that works on the root, until the store is released.
    ///
    /// - Throws: `.rootInUse` when another process, or another store of this one, has it.
    public func acquireLock() throws(StoreError) {
        guard state.withLock({ $0.lock == nil }) else { return }
        // Where there is none and none may be made, no node ever was.
        guard
            let file = try root.openIfPresent(
                "lock", root.isReadOnly ? O_RDONLY : O_RDWR | O_CREAT)
        else { return }
        do throws(StoreError) {
            try system("lock root") { cstore_lock(file.raw) }
        } catch {
            throw error.errno == .wouldBlock ? StoreError("lock root", .rootInUse) : error
        }
        let raw = file.release().rawValue
        state.withLock { $0.lock = raw }
    }

    /// Removes what an earlier process left in `tmp/`; at most `temporariesRemovedMax` a call.
    ///
    /// - Precondition: the lock is held.
    /// - Returns: how many files were removed.
    @discardableResult
    public func removeTemporaries() throws(StoreError) -> Int {
        precondition(state.withLock { $0.lock != nil }, "tmp/ may be another process's")
        var names: [String] = []
        try temporaries.forEachName { (name) throws(StoreError) in
            names.append(name)
            return names.count < Self.temporariesRemovedMax
        }
        for name in names { try temporaries.remove(name) }
        return names.count
    }

    static let temporariesRemovedMax = 100_000

    /// Where the root is now: absolute, without symbolic links; bytes.
    public var rootPath: [UInt8] { get throws(StoreError) { try path(of: root) } }

    /// The directory of `partial/<root>` files, for who needs paths (libtorrent); see `rootPath`.
    public var partialPath: [UInt8] { get throws(StoreError) { try path(of: partial) } }

    /// The directory that holds, or will hold, an object of this root.
    public func objectDirectoryPath(_ root: ContentRoot) throws(StoreError) -> [UInt8] {
        try path(of: fanOut(root))
    }

    private func path(of directory: Directory) throws(StoreError) -> [UInt8] {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = try system("readlink \(directory.label)") {
            cstore_readlink("/proc/self/fd/\(directory.raw)", &buffer, UInt64(buffer.count))
        }
        return buffer.prefix(Int(count)).map { UInt8(bitPattern: $0) }
    }

    /// A file in `tmp/`, open for reading and writing.
    struct Temporary: ~Copyable {
        let name: String
        let file: OwnedDescriptor
    }

    /// A new file in `tmp/`, to be renamed from there.
    func temporary() throws(StoreError) -> Temporary {
        while true {
            let name = temporaryName()
            do throws(StoreError) {
                let file = try temporaries.open(name, O_RDWR | O_CREAT | O_EXCL)
                return Temporary(name: name, file: file)
            } catch {
                // Left by an earlier process; there are fewer of those than numbers.
                guard error.errno == .fileExists else { throw error }
            }
        }
    }

    func temporaryName() -> String {
        String(nextTemporary.wrappingAdd(1, ordering: .relaxed).oldValue)
    }

    /// The directory below `objects/` that an object belongs in.
    func fanOut(_ root: ContentRoot) throws(StoreError) -> Directory {
        let key = root.bytes[0]
        if let known = state.withLock({ $0.fanOut[key] }) { return known }
        let directory = try objects.subdirectory(Hex.encode([key]))
        return state.withLock { state in
            if let known = state.fanOut[key] { return known }
            state.fanOut[key] = directory
            return directory
        }
    }

    /// Whether anybody can still write to a file: through a descriptor, a shared mapping, or a
    /// passthrough file of the kernel's. Takes a read lease and drops it at once.
    ///
    /// - Parameter file: open read-only. Its break signal becomes SIGURG.
    /// - Throws: `StoreError` when leases cannot tell (`EINVAL`: not on this disk; `EACCES`: not our
    ///   file); treat it as "unsupported".
    public func hasWriters(_ file: FileDescriptor) throws(StoreError) -> Bool {
        do throws(StoreError) {
            try system("lease") { cstore_take_and_drop_read_lease(file.rawValue) }
            return false
        } catch {
            guard error.errno == .resourceTemporarilyUnavailable else { throw error }
            return true
        }
    }

    /// Copies `range` of one file to `destination` in another of this root, sharing blocks where
    /// the disk can. Holes stay holes. The target grows as needed; what it had there is gone.
    ///
    /// - Throws: `StoreError`; `.wrongLength` when the source ends before the range does.
    @discardableResult
    public func clone(
        from source: FileDescriptor, to target: FileDescriptor, range: Range<UInt64>,
        at destination: UInt64 = 0, cancellation: Cancellation? = nil
    ) throws(StoreError) -> CloneResult {
        try Cloning.clone(
            from: source.rawValue, to: target.rawValue, range: range, at: destination,
            cancellation: cancellation)
    }

    /// `Merkle.hash`, with this store's bound on extents.
    public func hash(
        _ file: FileDescriptor, length: UInt64, cancellation: Cancellation? = nil
    ) throws(StoreError) -> MerkleResult {
        try Merkle.hash(
            file, length: length, extentBytesMax: extentBytesMax, cancellation: cancellation)
    }
}
