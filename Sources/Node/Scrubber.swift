import Catalog
import Foundation
import Logging
import Mount
import Store
import Synchronization
import SystemPackage
import Volume

/// Re-reads everything that is complete on this disk, against its Merkle trees, and sees to it that
/// what the disk has spoiled is fetched again.
///
/// One thread of the background reads: gently by itself a month after the last pass, at full speed
/// when a person asks. A damaged object is no copy from the moment it is found; its good pieces
/// stay. It is tried again, with a pause, until somebody has it.
///
/// | kept in the catalog (`scrub`) | |
/// |---|---|
/// | where the pass is, its counts | a kill costs what was read in `saveInterval` |
/// | what is damaged, `damagedMax` at most | more of it is left to replication |
final class Scrubber: Sendable {
    static let pauseMilliseconds: UInt64 = 30 * 24 * 3600 * 1000
    static let saveInterval = Duration.seconds(3)
    /// Contents asked for at once.
    static let batchMax = 64
    static let damagedMax = 1024
    static let suspectsMax = 1024
    /// Repairs under way.
    static let repairsMax = 8
    /// Between two tries to repair one content.
    static let retryPause = Duration.seconds(5)
    /// Between looks at what is being repaired.
    static let lookInterval = Duration.milliseconds(200)
    /// Between looks at whether there is anything to do.
    static let idleSeconds = 0.25
    /// The longest sleep at a gentle rate: how late a stop may be.
    static let stepSeconds = 0.05
    /// After an error of the catalog's.
    static let errorPauseSeconds = 5.0
    /// How long a stop waits for the read under way.
    static let stopMax = Duration.seconds(10)
    /// An object that is given to a writer while it is read is read again so often.
    static let attemptsMax = 3
    private static let key = "scrub"

    struct Surroundings: Sendable {
        /// The path of a file that has the content; nil: none has it now.
        var path: @Sendable (ContentRoot) -> String?
        /// The mount is told: set aside, or whole again.
        var setAside: @Sendable (Extent) -> Void
        var repaired: @Sendable (Extent) -> Void
    }

    /// A content that is to be repaired.
    struct Damage: Codable {
        var root: String
        var length: UInt64
        /// Counted as a copy.
        var isStored: Bool
        /// What is to be set aside once somebody else has it; until then the rest serves, and may
        /// be written to.
        var unreadable: [Int]?
        /// Why it cannot be read at all, where that is so: nothing can be fetched in its place.
        var obstacle: String?
    }

    /// What is kept.
    struct Progress: Codable {
        /// Milliseconds since 1970: the end of the last pass, or the first start.
        var since: UInt64
        var lastCompleted: UInt64?
        /// The row that was checked last; nil: no pass is under way.
        var cursor: Int64?
        var isUrgent = false
        /// Of this pass, or the last one.
        var bytesChecked: UInt64 = 0
        var errorsFound = 0
        var errorsRepaired = 0
        var damaged: [Damage] = []
    }

    struct Trial {
        var isUnderWay = false
        var hasFailed = false
        var next = ContinuousClock.now
        /// Of a cached copy: the interest in it.
        var stream: (any ContentStream)?
    }

    struct State {
        var progress: Progress
        var trials: [String: Trial] = [:]
        var suspects: [Extent] = []
        /// Passes that were begun since the start, and those that ended.
        var begun = 0
        var ended = 0
        var isDirty = false
        var saved = ContinuousClock.now
        /// When the next byte may be read.
        var next = ContinuousClock.now
        var isStopping = false
        var isRunning = false
    }

    let catalog: Catalog
    let store: Store
    let exchange: ContentExchange
    let logger: Logger
    let surroundings: Surroundings
    /// Bytes a second of a pass that nobody asked for; 0: there is none.
    let rate: UInt64
    let state: Mutex<State>
    private let cancellation = Cancellation()

    init(
        catalog: Catalog, store: Store, exchange: ContentExchange, rate: UInt64, logger: Logger,
        surroundings: Surroundings
    ) throws {
        self.catalog = catalog
        self.store = store
        self.exchange = exchange
        self.rate = rate
        self.logger = logger
        self.surroundings = surroundings
        let kept = try catalog.read { try $0.meta(Self.key) }.flatMap {
            try? JSONDecoder().decode(Progress.self, from: Data($0))
        }
        let progress = kept ?? Progress(since: Monotonic.wallMilliseconds)
        state = Mutex(State(progress: progress, begun: progress.cursor == nil ? 0 : 1))
        if kept == nil { save(atOnce: true) }
    }

    func start() {
        state.withLock { $0.isRunning = true }
        OwnThread.start("scrub", .background) { [self] in
            var pause = 0.0
            while !isStopping {
                if pause > 0 { Thread.sleep(forTimeInterval: Self.stepSeconds) }
                pause = max(0, pause - Self.stepSeconds)
                guard pause == 0 else { continue }
                do {
                    if try !work() { pause = Self.idleSeconds }
                } catch {
                    logger.error("scrub: \(error)")
                    pause = Self.errorPauseSeconds
                }
                save(atOnce: false)
            }
            state.withLock { $0.isRunning = false }
        }
    }

    /// Returns when nothing of it uses the catalog any more.
    func stop() async {
        state.withLock { $0.isStopping = true }
        cancellation.cancel()
        let deadline = ContinuousClock.now + Self.stopMax
        while state.withLock({ $0.isRunning }), ContinuousClock.now < deadline {
            try? await Task.sleep(for: .milliseconds(10))
        }
        _ = try? await Blocking.run { [self] in save(atOnce: true) }
    }

    private var isStopping: Bool { state.withLock { $0.isStopping } }

    // MARK: Passes

    /// Begins a pass at full speed, or joins one that was asked for already.
    ///
    /// - Returns: its number; see `hasEnded`.
    func request() -> Int {
        let (number, isNew) = state.withLock { state in
            if state.progress.cursor != nil, state.progress.isUrgent { return (state.begun, false) }
            begin(&state, isUrgent: true)
            return (state.begun, true)
        }
        if isNew { save(atOnce: true) }
        return number
    }

    func hasEnded(_ number: Int) -> Bool { state.withLock { $0.ended >= number } }

    private func begin(_ state: inout State, isUrgent: Bool) {
        // A gentle one that is under way ends with it.
        state.begun += 1
        state.progress.cursor = 0
        state.progress.isUrgent = isUrgent
        state.progress.bytesChecked = 0
        state.progress.errorsFound = state.progress.damaged.count
        state.progress.errorsRepaired = 0
        state.isDirty = true
    }

    /// - Returns: false when there is nothing to do now.
    private func work() throws -> Bool {
        let suspect = state.withLock { $0.suspects.isEmpty ? nil : $0.suspects.removeFirst() }
        if let suspect {
            try check(suspect, afterRead: { _ in })
            return true
        }
        let (cursor, pass) = state.withLock { state in
            let isDue =
                rate > 0 && state.progress.cursor == nil
                && Monotonic.wallMilliseconds >= state.progress.since + Self.pauseMilliseconds
            if isDue { begin(&state, isUrgent: false) }
            return (state.progress.cursor, state.begun)
        }
        guard let cursor else { return false }
        let batch = try catalog.read { try $0.holdings(after: cursor, limit: Self.batchMax) }
        for holding in batch {
            if holding.state == .stored || holding.state == .cached {
                try check(holding.extent) { self.pace($0, pass) }
            }
            let goesOn = state.withLock { state in
                guard state.begun == pass, !state.isStopping else { return false }
                state.progress.cursor = holding.number
                state.isDirty = true
                return state.suspects.isEmpty
            }
            save(atOnce: false)
            guard goesOn else { return true }
        }
        if batch.isEmpty { end(pass) }
        return true
    }

    private func end(_ pass: Int) {
        let found: Progress? = state.withLock { state in
            guard state.begun == pass else { return nil }
            let now = Monotonic.wallMilliseconds
            state.progress.cursor = nil
            state.progress.isUrgent = false
            state.progress.since = now
            state.progress.lastCompleted = now
            state.ended = pass
            return state.progress
        }
        guard let found else { return }
        logger.notice(
            "scrub: \(found.bytesChecked) bytes checked, \(found.errorsFound) contents damaged, \(found.errorsRepaired) of them repaired so far"
        )
        save(atOnce: true)
    }

    /// Counts, and waits as long as a gentle rate wants.
    private func pace(_ bytes: Int, _ pass: Int) {
        let clock = ContinuousClock()
        state.withLock { state in
            guard state.begun == pass else { return }
            state.progress.bytesChecked += UInt64(bytes)
            state.next =
                max(state.next, clock.now) + .seconds(Double(bytes) / Double(max(1, rate)))
        }
        while true {
            let isOver = state.withLock { state in
                state.isStopping || state.begun != pass || state.progress.isUrgent
                    || clock.now >= state.next
            }
            if isOver { return }
            Thread.sleep(forTimeInterval: Self.stepSeconds)
        }
    }

    // MARK: Checking

    /// Somebody could not read it: it is looked at soon.
    func suspect(_ extent: Extent) {
        state.withLock { state in
            guard state.suspects.count < Self.suspectsMax, !state.suspects.contains(extent) else {
                return
            }
            state.suspects.append(extent)
        }
    }

    private func check(_ extent: Extent, afterRead: (Int) -> Void) throws {
        for _ in 0..<Self.attemptsMax {
            guard try isComplete(extent) != nil else { return }
            let before = try store.objectFacts(extent.root)?.identity
            let result: ScrubResult?
            do throws(StoreError) {
                result = try store.scrub(
                    extent, cancellation: cancellation, afterRead: afterRead)
            } catch {
                if error.reason != .canceled { cannotRead(extent, error) }
                return
            }
            guard let result else { return try isMissing(extent) }
            if result.isSound { return forget(extent) }
            // It was given to a writer meanwhile: what was read is another file by now.
            guard try store.objectFacts(extent.root)?.identity == before else { continue }
            if result.damagedPieces.isEmpty { return try restoreLayer(result.hashed) }
            let knowsWhich =
                extent.pieceCount == 1 || result.damagedPieces.count < extent.pieceCount
            return try setAside(
                extent, damaged: Set(result.damagedPieces), knowsWhich: knowsWhich)
        }
    }

    /// - Returns: as what it is a complete content here.
    func isComplete(_ extent: Extent) throws -> ContentState? {
        let known = try catalog.read { try $0.content(extent.root) }
        guard let known, known.extent == extent, known.state == .stored || known.state == .cached
        else { return nil }
        return known.state
    }

    private func restoreLayer(_ hashed: HashedExtent) throws {
        try store.restoreLayer(hashed)
        logger.error(
            "\(name(of: hashed.extent)): the hashes beside the object were damaged; they were made anew"
        )
        state.withLock { state in
            state.progress.errorsFound += 1
            state.progress.errorsRepaired += 1
            state.isDirty = true
        }
    }

    private func isMissing(_ extent: Extent) throws {
        guard let was = try isComplete(extent), try exchange.confirmedState(of: extent) == .none
        else { return }
        logger.error("\(name(of: extent)): the object is gone; it is fetched again")
        note(extent, isStored: was == .stored)
    }

    /// - Parameter knowsWhich: false: nothing here says which pieces are good.
    func setAside(_ extent: Extent, damaged: Set<Int>, knowsWhich: Bool = true) throws {
        guard let was = try exchange.setAside(extent, damaged: knowsWhich ? damaged : nil) else {
            return
        }
        let shown = damaged.sorted().prefix(10).map(String.init).joined(separator: ", ")
        logger.error(
            "\(name(of: extent)): \(damaged.count) of \(extent.pieceCount) pieces are damaged (\(shown)\(damaged.count > 10 ? ", ..." : "")); they are fetched again"
        )
        note(extent, isStored: was == .stored)
        surroundings.setAside(extent)
    }

    /// A read of these pieces failed. What nobody else has stays as it is.
    func unreadable(_ extent: Extent, _ pieces: Set<Int>, isElsewhere: Bool) throws {
        if isElsewhere { return try setAside(extent, damaged: pieces) }
        guard let state = try isComplete(extent) else { return }
        let isNew = note(extent, isStored: state == .stored, unreadable: pieces.sorted())
        guard isNew else { return }
        logger.error(
            "\(name(of: extent)): pieces \(pieces.sorted()) cannot be read, and no disk that is online has them"
        )
    }

    private func cannotRead(_ extent: Extent, _ error: StoreError) {
        logger.error(
            "\(name(of: extent)) cannot be checked: \(error). Look after the disk and who owns its files, then run `delugefs scrub`."
        )
        note(extent, isStored: true, obstacle: "\(error)")
    }

    /// - Returns: whether it was not known yet.
    @discardableResult
    private func note(
        _ extent: Extent, isStored: Bool, unreadable: [Int]? = nil, obstacle: String? = nil
    ) -> Bool {
        let new = Damage(
            root: "\(extent.root)", length: extent.length, isStored: isStored,
            unreadable: unreadable, obstacle: obstacle)
        let isNew = state.withLock { state in
            state.isDirty = true
            if let index = state.progress.damaged.firstIndex(where: { $0.root == new.root }) {
                state.progress.damaged[index] = new
                return false
            }
            state.progress.errorsFound += 1
            if state.progress.damaged.count < Self.damagedMax {
                state.progress.damaged.append(new)
            }
            return true
        }
        save(atOnce: true)
        return isNew
    }

    /// For the log.
    private func name(of extent: Extent) -> String {
        "\(surroundings.path(extent.root) ?? "old content") (\(extent.root))"
    }

    // MARK: Keeping

    func save(atOnce: Bool) {
        let progress: Progress? = state.withLock { state in
            let now = ContinuousClock.now
            guard atOnce || state.isDirty && now - state.saved >= Self.saveInterval else {
                return nil
            }
            state.isDirty = false
            state.saved = now
            return state.progress
        }
        guard let progress else { return }
        do {
            let bytes = Array(try JSONEncoder().encode(progress))
            try catalog.perform { try $0.setMeta(Self.key, bytes) }
        } catch { logger.debug("scrub: \(error)") }
    }
}
