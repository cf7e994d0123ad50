import Volume

/// Notices that what other nodes did removes most of the volume: perhaps a mistake, or a program
/// gone mad, that nobody here has seen.
///
/// What is removed file by file arrives in many commits: they count together until there is a pause.
struct MassRemoval {
    /// More files than this, and more than half of those that there were.
    static let filesMin = 1000
    static let pauseMilliseconds: UInt64 = 10 * 60 * 1000
    /// How long `status` tells of it.
    static let shownMilliseconds: UInt64 = 7 * 24 * 3600 * 1000

    struct Alarm: Hashable, Sendable {
        var files: Int
        /// Of how many.
        var total: Int
        /// Below this all of them were.
        var path: [FileName]
        /// The state before.
        var commit: ObjectID
    }

    private(set) var alarm: Alarm?
    private var current: Alarm?
    private var last: UInt64 = 0
    private var raised: UInt64 = 0

    /// - Parameters:
    ///   - paths: the tops of what was removed.
    ///   - total: files that there were before.
    /// - Returns: what is to be told now.
    mutating func removed(
        _ files: Int, _ paths: [[FileName]], from commit: ObjectID, of total: Int, at now: UInt64
    ) -> Alarm? {
        guard files > 0, let first = paths.first else { return nil }
        if now >= last + Self.pauseMilliseconds { current = nil }
        last = now
        var alarm = current ?? Alarm(files: 0, total: total, path: first, commit: commit)
        alarm.files += files
        for path in paths {
            let common = zip(alarm.path, path).prefix { $0 == $1 }.count
            alarm.path.removeLast(alarm.path.count - common)
        }
        let before = current
        current = alarm
        guard alarm.files > Self.filesMin, alarm.files * 2 > alarm.total else { return nil }
        let isNew =
            self.alarm?.commit != alarm.commit || self.alarm?.path != alarm.path
            || before.map { alarm.files >= 2 * $0.files } ?? true
        self.alarm = alarm
        raised = now
        return isNew ? alarm : nil
    }

    /// What `status` shows.
    func shown(at now: UInt64) -> Alarm? {
        now < raised + Self.shownMilliseconds ? alarm : nil
    }
}
