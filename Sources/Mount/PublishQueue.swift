/// What is to be published, and when. Pure: time comes in.
///
/// | in | until |
/// |---|---|
/// | ready | a thread of its lane takes it |
/// | later | it is due, or somebody waits for everything (`hurry`) |
/// | in work | `done`; it may be added again meanwhile |
///
/// One that is ready or later is not added twice: who takes it looks at the file as it is then.
/// Bounded by the files that are closed and unpublished, which the catalog names.
struct PublishQueue<Item> {
    /// Long hashings do not hold up short ones.
    enum Lane: Int, CaseIterable {
        case small, large
    }

    /// Why it waits.
    enum Delay: Equatable {
        /// It was published a moment ago and may be written again at once.
        case quiet
        /// A mapping or an orphaned descriptor can still write to it, or it is open and too large
        /// to be split. When somebody waits, a copy is published; then that is done.
        case held(isCopied: Bool)
        case failed
    }

    struct Entry {
        let key: UInt64
        let item: Item
        /// Bytes, for what is taken together.
        let size: UInt64
        /// Somebody waits: no quiet time, and a copy of what is held.
        var isHurried: Bool
    }

    private struct Later {
        var entry: Entry
        let lane: Lane
        let due: UInt64
        let delay: Delay
        /// Of the hurry that it failed in.
        let round: UInt64
    }

    private var ready: [[Entry]] = Lane.allCases.map { _ in [] }
    private var later: [Later] = []
    private var queued: Set<UInt64> = []
    private var inWork: Set<UInt64> = []
    /// Those who wait, by the round that they began.
    private var hurries: [UInt64: Hurry] = [:]
    /// Counts hurries begun, so that a failure before one is tried again in it.
    private var round: UInt64 = 0

    private struct Hurry {
        /// What was here when it began and has not come to an end since: what comes later does not
        /// hold it up.
        var keys: Set<UInt64>
        var hasFailed = false
    }

    /// Closed files that are not published yet.
    var unpublished: Int {
        let copied = later.filter { $0.delay == .held(isCopied: true) }.count
        return queued.union(inWork).count - copied
    }

    /// - Returns: false when it is queued already.
    mutating func add(_ key: UInt64, _ item: Item, size: UInt64, _ lane: Lane) -> Bool {
        guard queued.insert(key).inserted else { return false }
        ready[lane.rawValue].append(
            Entry(key: key, item: item, size: size, isHurried: !hurries.isEmpty))
        return true
    }

    /// What was taken goes back to be tried again.
    ///
    /// - Returns: false when it was added again meanwhile.
    mutating func postpone(
        _ entry: Entry, _ lane: Lane, until due: UInt64, _ delay: Delay
    ) -> Bool {
        guard queued.insert(entry.key).inserted else { return false }
        var entry = entry
        entry.isHurried = false
        later.append(Later(entry: entry, lane: lane, due: due, delay: delay, round: round))
        if !hurries.isEmpty, !isSettled(later[later.count - 1]) {
            advance { $0.entry.key == entry.key }
        }
        return true
    }

    /// - Returns: at least one entry that is due, of at most these bytes together, or nothing and
    ///   when to look again.
    mutating func take(
        _ lane: Lane, now: UInt64, filesMax: Int, bytesMax: UInt64
    ) -> (batch: [Entry], due: UInt64?) {
        advance { $0.due <= now }
        let waiting = ready[lane.rawValue]
        guard !waiting.isEmpty else {
            return ([], later.filter { $0.lane == lane }.map(\.due).min())
        }
        var bytes: UInt64 = 0
        let batch = waiting.prefix(filesMax).prefix { entry in
            defer { bytes += entry.size }
            return bytes == 0 || bytes + entry.size <= bytesMax
        }
        ready[lane.rawValue].removeFirst(batch.count)
        for entry in batch {
            queued.remove(entry.key)
            inWork.insert(entry.key)
        }
        return (Array(batch), nil)
    }

    /// Work on what was taken has ended, after what is to be tried again was postponed.
    mutating func done(_ batch: [Entry]) {
        for entry in batch { inWork.remove(entry.key) }
        if hurries.isEmpty { return }
        var settled: [UInt64: Delay] = [:]
        for later in later where isSettled(later) { settled[later.entry.key] = later.delay }
        for round in hurries.keys {
            for entry in batch where !queued.contains(entry.key) || settled[entry.key] != nil {
                guard hurries[round]?.keys.remove(entry.key) != nil else { continue }
                if settled[entry.key] == .failed { hurries[round]?.hasFailed = true }
            }
        }
    }

    // MARK: Waiting for everything

    /// Somebody waits for all that is here: nothing is put off any more until `endHurry`, which is
    /// given what this returns.
    mutating func hurry() -> UInt64 {
        round += 1
        hurries[round] = Hurry(keys: queued.union(inWork))
        advance { _ in true }
        for lane in Lane.allCases {
            for index in ready[lane.rawValue].indices {
                ready[lane.rawValue][index].isHurried = true
            }
        }
        return round
    }

    mutating func endHurry(_ round: UInt64) { hurries[round] = nil }

    enum Progress { case busy, settled, failed }

    /// How far a hurry has come: `failed` when only what failed in it is left.
    func progress(of round: UInt64) -> Progress {
        guard let hurry = hurries[round], hurry.keys.isEmpty else { return .busy }
        return hurry.hasFailed ? .failed : .settled
    }

    /// Trying again at once would change nothing.
    private func isSettled(_ later: Later) -> Bool {
        switch later.delay {
        case .quiet, .held(isCopied: false): false
        case .held(isCopied: true): true
        case .failed: later.round == round
        }
    }

    private mutating func advance(_ isDue: (Later) -> Bool) {
        guard later.contains(where: isDue) else { return }
        for var due in later where isDue(due) {
            due.entry.isHurried = !hurries.isEmpty
            ready[due.lane.rawValue].append(due.entry)
        }
        later.removeAll(where: isDue)
    }
}

extension PublishQueue.Entry: Sendable where Item: Sendable {}
