import CGit

/// Limits of the history's own files. What belongs to the volume's format is in `Limits`.
public enum HistoryLimits {
    /// Encoded commit, bytes.
    public static let commitBytesMax = 64 << 10
    /// Encoded tree, bytes: an unsplit directory's entries with the longest escaped names fit.
    public static let treeBytesMax = 2 << 20
    /// Heads that one merge may join.
    public static let commitParentsMax = 1024
    /// Objects in one pack that is sent, received or written.
    public static let packObjectsMax = 4 << 20
    /// Bytes of a pack that is received or copied as a file.
    public static let packBytesMax = 8 << 30
    /// Bytes of a pack handed over in memory; larger ones go through a file.
    public static let packInMemoryBytesMax = 32 << 20
    /// New commits in one receipt.
    public static let receivedCommitsMax = 16 << 20
    /// A batch that holds more is written out in parts, each a pack of its own.
    public static let batchBytesMax = 32 << 20
    public static let batchObjectsMax = 100_000
    /// More packs than this are combined in the background.
    public static let packsMax = 50
    /// The same while heads wait to be merged.
    public static let packsLateMax = 200
    /// Objects that one repack combines at most.
    public static let repackObjectsMax = 500_000
    /// Free bytes that must be left after a pack is written.
    public static let freeBytesMin: UInt64 = 16 << 20

    /// Commits beyond a quarter of the saved graph, and at least these, make a new one.
    static let unsavedCommitsMax = 1000
    /// Findings that a check gathers before it stops.
    public static let problemsMax = 100

    // MARK: Memory

    /// Parsed trees kept, bytes, in each of two generations.
    static let treeCacheBytes = 12 << 20
    /// libgit2's own object cache, bytes, for all handles.
    static let libraryCacheBytes = 8 << 20
    /// Pack bytes mapped at once, by all handles.
    static let mappedBytesMax = 128 << 20
    static let mappedWindowBytes = 4 << 20
    static let mappedFilesMax = 128
    /// Handles for concurrent readers.
    static let readersMax = 2
    /// Directories looked into to recognise what was moved and changed at once.
    static let vanishedTreesMax = 10_000
}

/// libgit2's process-wide state.
enum Library {
    /// Initialised once and never shut down; touching it is the only use.
    static let ready: Bool = {
        guard git_libgit2_init() > 0 else { return false }
        let sizes: [(git_libgit2_opt_t, Int)] = [
            (GIT_OPT_SET_MWINDOW_SIZE, HistoryLimits.mappedWindowBytes),
            (GIT_OPT_SET_MWINDOW_MAPPED_LIMIT, HistoryLimits.mappedBytesMax),
            (GIT_OPT_SET_MWINDOW_FILE_LIMIT, HistoryLimits.mappedFilesMax),
            (GIT_OPT_SET_PACK_MAX_OBJECTS, HistoryLimits.packObjectsMax),
        ]
        var results = sizes.map { cgit_option_size(CInt($0.rawValue), $1) }
        // A reference or object must outlive a power cut; off by default.
        results.append(cgit_option_flag(CInt(GIT_OPT_ENABLE_FSYNC_GITDIR.rawValue), 1))
        // Every object read is hashed again: bit rot is an error, never a wrong answer.
        results.append(cgit_option_flag(CInt(GIT_OPT_ENABLE_STRICT_HASH_VERIFICATION.rawValue), 1))
        results.append(cgit_option_cache_bytes(HistoryLimits.libraryCacheBytes))
        // The user's and the machine's Git settings must not change what a node does.
        for level in [
            GIT_CONFIG_LEVEL_PROGRAMDATA, GIT_CONFIG_LEVEL_SYSTEM, GIT_CONFIG_LEVEL_XDG,
            GIT_CONFIG_LEVEL_GLOBAL,
        ] {
            results.append(cgit_option_search_path(level, ""))
        }
        return results.allSatisfy { $0 == 0 }
    }()

    static func require() throws {
        guard ready else { throw HistoryError(.library, "start", "libgit2 did not initialise") }
    }
}
