import Foundation
import Glibc
import History
import Mount
import Store
import Synchronization
public import SystemPackage
import Volume

/// What a recovery did.
public struct RecoveryReport: Encodable, Sendable {
    /// The state that was recovered, and when it was made.
    public let commit: String
    public let time: String
    /// Names of all kinds but directories.
    public internal(set) var files = 0
    public internal(set) var directories = 0
    /// Of files, further names not counted.
    public internal(set) var bytes: UInt64 = 0
    /// Paths of what was being written when the node ended, as the names it was given here.
    public internal(set) var unfinished: [String] = []
    /// Device nodes, which only `--privileged` makes.
    public internal(set) var devicesLeftOut = 0
    /// What is wrong with the history as a whole; a sentence each.
    public internal(set) var notes: [String] = []
    /// Of what was not found or not made; counted, for there may be as many as files.
    public internal(set) var lost: [RecoveryLoss.Kind: Int] = [:]

    private enum CodingKeys: CodingKey {
        case commit, time, files, directories, bytes, unfinished, devicesLeftOut, notes
    }
}

/// One name that is not as it was, and why.
public struct RecoveryLoss: Sendable {
    public enum Kind: String, Sendable {
        /// The bytes are not on this disk, or not right.
        case content
        /// The history cannot tell what it was.
        case record
        /// The target would not take it.
        case refused
        /// It is there, and attributes of it are not.
        case attributes
        /// It is there as it was committed; what was being written is not.
        case unfinished
    }

    public let kind: Kind
    /// In the volume: `/a/b`; bytes, as names are no text.
    public let path: [UInt8]
    public let reason: String
}

/// How far a recovery is; read by any thread.
public final class RecoveryProgress: Sendable {
    public struct Counts: Sendable {
        public var files = 0
        public var bytes: UInt64 = 0
    }

    private let state = Mutex(Counts())

    public init() {}

    public var counts: Counts { state.withLock(\.self) }
    func add(files: Int = 0, bytes: UInt64 = 0) {
        state.withLock {
            $0.files += files
            $0.bytes += bytes
        }
    }
}

/// What `delugefs recover` was asked for.
public struct RecoveryRequest: Sendable {
    public var root: FilePath
    public var target: FilePath
    /// Owners, set-id bits, devices and extended attributes of the system too.
    public var isPrivileged: Bool

    public init(root: FilePath, target: FilePath, isPrivileged: Bool) {
        self.root = root
        self.target = target
        self.isPrivileged = isPrivileged
    }
}

/// `delugefs recover`: names and bytes of one disk whose node does not run. Nothing in the root is
/// made, changed or removed, and the catalog is not needed. Used by one thread, which it blocks.
///
/// **Invariant:** no file has bytes that its record does not name: each extent is hashed where it was
/// copied to before the file gets its name.
public final class Recovery {
    let store: Store
    let history: HistoryReader
    let tree: OutputTree
    let volume: VolumeTree
    let isPrivileged: Bool
    /// Of the node, for names of what was being written.
    let name: String
    let progress: RecoveryProgress
    let tell: (RecoveryLoss) -> Void
    var report: RecoveryReport
    /// Of the top directory; nil: unknown.
    var top: FileAttributes?
    /// What has several names, until the last of them was met: the memory that grows with the volume.
    var shared: [LineageID: SharedFile] = [:]
    /// Whose bytes may lie in `staging/`, and those of them that were met.
    let staged: Set<InodeNumber>
    var written: [InodeNumber: WrittenFile] = [:]

    /// - Parameter tell: called with each loss as it is found.
    /// - Throws: `NodeError`: a sentence for each refusal, before anything is made; later when the
    ///   target takes no more, or the disk cannot be read at all. What is there by then stays.
    public static func run(
        _ request: RecoveryRequest, progress: RecoveryProgress,
        tell: @escaping (RecoveryLoss) -> Void
    ) throws -> RecoveryReport {
        guard !request.isPrivileged || geteuid() == 0 else {
            throw NodeError(
                "--privileged needs root. Run as root, or without it: all files are yours then.")
        }
        let store = try openStore(request.root)
        try refuse(request.target, within: request.root)
        let history: HistoryReader
        do {
            history = try HistoryReader(
                request.root.appending("history.git"),
                copyingTo: request.target.appending(OutputTree.scratchName).appending("history"))
        } catch { throw sentence(error) }
        let tree = try makeTarget(request.target)
        do {
            let recovery = try Recovery(request, store, history, tree, progress, tell)
            try recovery.recoverNames()
            try recovery.recoverWritten()
            history.close()
            return try recovery.finished()
        } catch {
            history.close()
            _ = try? tree.finish()
            throw sentence(error)
        }
    }

    private init(
        _ request: RecoveryRequest, _ store: Store, _ history: HistoryReader, _ tree: OutputTree,
        _ progress: RecoveryProgress, _ tell: @escaping (RecoveryLoss) -> Void
    ) throws {
        let file = try? VolumeFile.load(root: request.root.string)
        guard let newest = try history.newestCommit(of: file.flatMap { NodeID(hex: $0.node) })
        else {
            throw NodeError(
                "No state of the volume can be read from \(request.root)/history.git; the files in \(request.root)/objects have no names without it. Recover from another disk of the volume."
            )
        }
        report = RecoveryReport(
            commit: "\(newest.commit.id)",
            time: Node.iso8601(milliseconds: newest.commit.seconds * 1000))
        if !newest.isBranch {
            report.notes.append("The latest state cannot be read; this is that of \(report.time).")
        }
        volume = try VolumeTree(reading: newest.commit.tree, from: history)
        staged = Set(try store.listStaging().map(\.ino))
        isPrivileged = request.isPrivileged
        name = file?.name ?? "recovered"
        self.store = store
        self.history = history
        self.tree = tree
        self.progress = progress
        self.tell = tell
    }

    private func finished() throws -> RecoveryReport {
        noteAttributes(try tree.finish(top), [])
        if let damage = history.damage, !damage.packs.isEmpty {
            report.notes.append(
                "Of the history \(damage.packs.count) packs are damaged; what could be read of them was used."
            )
        }
        return report
    }

    // MARK: Refusals

    private static func openStore(_ root: FilePath) throws -> Store {
        guard access(root.string, R_OK | X_OK) == 0 || errno != EACCES else {
            throw NodeError("\(root) may not be read by this user; run as its owner, or as root.")
        }
        guard RootDirectory.isDirectory(root.appending("history.git")) else {
            throw NodeError(
                "There is no volume in \(root): it has no history.git. Give the root of a node, as \"delugefs --root\" had it."
            )
        }
        do {
            let store = try Store(reading: Array(root.string.utf8))
            try store.acquireLock()
            return store
        } catch  where error.reason == .rootInUse {
            throw NodeError(
                "A node is running on \(root): its files are in its mount. Stop it first to recover from the disk alone: delugefs stop --root \(root)"
            )
        } catch { throw sentence(error) }
    }

    /// Compared by identity all the way up: a link, or the root mounted a second time, hides nothing.
    private static func refuse(_ target: FilePath, within root: FilePath) throws {
        guard let own = FileStatus(root) else { return }
        // A target that is there already may be a link.
        var path = FileStatus(target) == nil ? target.removingLastComponent() : target
        if path.isEmpty { path = "." }
        while let status = FileStatus(path) {
            guard (status.device, status.inode) != (own.device, own.inode) else {
                throw NodeError(
                    "\(target) lies in \(root), from which nothing may be changed. Give a new or empty directory elsewhere."
                )
            }
            let above = path.appending("..")
            guard let next = FileStatus(above),
                (next.device, next.inode) != (status.device, status.inode)
            else { return }
            path = above
        }
    }

    private static func makeTarget(_ target: FilePath) throws -> OutputTree {
        do {
            return try OutputTree(at: target)
        } catch {
            throw switch error.errno {
            case .directoryNotEmpty:
                NodeError("\(target) is not empty. Give a new or empty directory as --to.")
            case .noSuchFileOrDirectory:
                NodeError(
                    "\(target) does not exist, and neither does the directory above it. Create that, or give another --to."
                )
            case .notDirectory:
                NodeError("\(target) is no directory. Give a new or empty directory as --to.")
            default: NodeError("\(target) cannot be used: \(error.errno). Give another --to.")
            }
        }
    }

    private static func sentence(_ error: any Error) -> any Error {
        switch error {
        case is NodeError: return error
        case let error as UpgradeNeeded: return NodeError("\(error).")
        case let error as StoreError where TargetFailure(error) != nil:
            return sentence(TargetFailure(error) ?? .full)
        case let error as TargetFailure:
            return NodeError(
                "The target takes no more (\(error.errno)); what is there by now is a part only. Give a --to with more room."
            )
        case let error as HistoryError where error.code == .noSpace:
            return NodeError(
                "The history is damaged, and the target has no room for a copy of what is whole. Give a --to with more room."
            )
        default:
            return NodeError(
                "Recovery ended early: \(error). What is there by now is a part only. If the root's disk fails, copy it first, for example with ddrescue, and recover from the copy."
            )
        }
    }
}

/// The target takes no more: no file after this one would fare better.
struct TargetFailure: Error {
    private static let reasons: [Errno] = [.noSpace, .diskQuotaExceeded, .readOnlyFileSystem]

    let errno: Errno

    init?(_ error: StoreError) {
        guard Self.reasons.contains(error.errno) else { return nil }
        errno = error.errno
    }

    static let full = TargetFailure(errno: .noSpace)

    private init(errno: Errno) { self.errno = errno }
}
