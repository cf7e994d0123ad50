internal import SystemPackage

/// Blocks that the database and its log own before they need them: a COMMIT on a disk that somebody
/// else has just filled needs no new ones.
///
/// They lie behind the ends of the files, where SQLite does not see them. It writes its log anew from
/// the start without truncating it; what it cuts off the database at a checkpoint is owned again
/// after it. Where a disk cannot do this, or has no room, nothing happens.
///
/// `@unchecked Sendable`: `ownedLog` is touched by the committing thread alone, all else is constant.
final class Preallocation: @unchecked Sendable {
    private let database: FileDescriptor
    private let log: FileDescriptor
    private let own: @Sendable (UInt64, FileDescriptor) -> Bool
    private var ownedLog: UInt64 = 0

    /// Beyond what database and log use, each.
    private static let aheadBytes: UInt64 = 16 << 20
    private static let frameBytes: UInt64 = 4096 + 24

    /// - Parameter path: of the database; its log exists.
    init(path: String, own: @escaping @Sendable (UInt64, FileDescriptor) -> Bool) throws {
        database = try FileDescriptor.open(path, .readWrite, options: .closeOnExec)
        log = try FileDescriptor.open(path + "-wal", .readWrite, options: .closeOnExec)
        self.own = own
        logGrew(to: 0)
        databaseMoved()
    }

    /// After a COMMIT: on the committing thread.
    func logGrew(to frames: Int32) {
        let needed = UInt64(max(frames, 0)) * Self.frameBytes + Self.aheadBytes
        guard needed > ownedLog else { return }
        // More than is needed now, so that this is rare.
        if own(needed + Self.aheadBytes, log) { ownedLog = needed + Self.aheadBytes }
    }

    /// After a checkpoint.
    func databaseMoved() {
        guard let end = try? database.seek(offset: 0, from: .end) else { return }
        _ = own(UInt64(end) + Self.aheadBytes, database)
    }

    /// - Precondition: SQLite has closed the files: its locks would go with the descriptors.
    func close() {
        for file in [database, log] { _ = try? file.close() }
    }
}
