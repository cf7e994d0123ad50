import Catalog
import Foundation
import History
import Logging
import Mount
import Synchronization
import Volume

/// One thread that moves the volume through its commits: commits what changed here, applies what
/// comes from peers, decides what is announced.
///
/// **Invariant:** a commit's parent is always `applied`, the commit that the catalog's rows
/// represent; objects are durable before the catalog says `applied`, rows are durable before they
/// are committed, and both before a head is announced.
final class Timeline: Sendable {
    /// Changes are gathered for this long before they are committed.
    static let batchMilliseconds: UInt64 = 100
    /// A merge leaves the node after this long without a new head, and so much more per rank.
    static let quietMilliseconds: UInt64 = 300
    static let rankMilliseconds: UInt64 = 100
    /// Merges tried between commits before one is made with operations held up.
    static let applyAttemptsMax = 8

    private struct State {
        /// When the oldest uncommitted change happened.
        var dirtySince: UInt64?
        var incoming: [ObjectID] = []
        var waiters: [@Sendable () -> Void] = []
        var wanted = false
        var stopping = false
        var running = false
        /// What peers are told.
        var announced: ObjectID?
        var applied: ObjectID?
        /// `applied` is a merge that nobody was told of; the time of the last new head.
        var mergedSince: UInt64?
    }

    private let catalog: Catalog
    let history: History
    private let node: NodeID
    private let logger: Logger
    private let condition = NSCondition()
    private let state = Mutex(State())
    /// Set by the composition before `start`.
    private let hooks = Mutex(Hooks())

    struct Hooks: Sendable {
        /// The announced head changed: tell the peers.
        var announce: @Sendable () -> Void = {}
        /// Rows changed by what came from elsewhere.
        var applied: @Sendable (AppliedEffects) -> Void = { _ in }
        /// Inodes that are open: their rows stay when the last link goes.
        var pinned: @Sendable () -> Set<InodeNumber> = { [] }
        /// This node's rank among the online ones.
        var rank: @Sendable () -> UInt64 = { 0 }
    }

    init(catalog: Catalog, history: History, node: NodeID, logger: Logger) throws {
        self.catalog = catalog
        self.history = history
        self.node = node
        self.logger = logger
        let applied = try catalog.read { try $0.applied() }
        let main = try history.head()
        state.withLock {
            $0.applied = applied
            $0.announced = main
            // A head that is ahead of the rows is treated as an incoming one.
            if let main, main != applied { $0.incoming.append(main) }
        }
    }

    func setHooks(_ hooks: Hooks) { self.hooks.withLock { $0 = hooks } }

    var applied: ObjectID? { state.withLock { $0.applied } }
    var announced: ObjectID? { state.withLock { $0.announced } }

    // MARK: From other threads

    func start() {
        state.withLock { $0.running = true }
        let thread = Thread { self.run() }
        thread.name = "timeline"
        thread.start()
        changed()
    }

    /// Something changed in the catalog.
    func changed() {
        let isFirst = state.withLock { state in
            guard state.dirtySince == nil else { return false }
            state.dirtySince = Monotonic.milliseconds
            return true
        }
        if isFirst { wake() }
    }

    /// A commit from a peer is whole in the repository.
    func received(_ head: ObjectID) {
        state.withLock { state in
            if !state.incoming.contains(head) { state.incoming.append(head) }
        }
        wake()
    }

    /// Blocks until everything changed before this call is committed, or the deadline has passed.
    func commitNow(until deadline: Date) -> Bool {
        let done = Mutex(false)
        state.withLock { state in
            state.wanted = true
            state.waiters.append { done.withLock { $0 = true } }
        }
        return condition.withLock {
            condition.broadcast()
            while !done.withLock({ $0 }) {
                guard condition.wait(until: deadline) else { return done.withLock { $0 } }
            }
            return true
        }
    }

    func stop() {
        state.withLock { $0.stopping = true }
        condition.withLock {
            condition.broadcast()
            while state.withLock({ $0.running }) { condition.wait() }
        }
    }

    private func wake() { condition.withLock { condition.broadcast() } }

    // MARK: The thread

    private func run() {
        while true {
            let (incoming, waiters, stopping) = next()
            for head in incoming { attempt("applying \(head)") { try integrate(head) } }
            attempt("committing") { try commit() }
            attempt("announcing") { try announceMerge(force: stopping) }
            attempt("repacking") { _ = try history.repackIfNeeded() }
            for waiter in waiters { waiter() }
            wake()
            if stopping { break }
        }
        state.withLock { $0.running = false }
        wake()
    }

    private func attempt(_ what: String, _ body: () throws -> Void) {
        do { try body() } catch { logger.error("\(what) failed: \(error)") }
    }

    /// Waits until there is something to do.
    private func next() -> ([ObjectID], [@Sendable () -> Void], Bool) {
        condition.withLock {
            while true {
                let now = Monotonic.milliseconds
                let quiet = quietTime
                let (work, due) = state.withLock { state -> ((
                    [ObjectID], [@Sendable () -> Void], Bool
                )?, UInt64?) in
                    let dirtyDue = state.dirtySince.map { $0 + Self.batchMilliseconds }
                    let mergeDue = state.mergedSince.map { $0 + quiet }
                    let isDue =
                        !state.incoming.isEmpty || state.wanted || state.stopping
                        || [dirtyDue, mergeDue].contains { ($0 ?? .max) <= now }
                    guard isDue else { return (nil, [dirtyDue, mergeDue].compactMap(\.self).min()) }
                    defer {
                        state.incoming = []
                        state.waiters = []
                        state.wanted = false
                        state.dirtySince = nil
                    }
                    return ((state.incoming, state.waiters, state.stopping), nil)
                }
                if let work { return work }
                let wait = due.map { Double($0 - now) / 1000 } ?? 3600
                _ = condition.wait(until: Date(timeIntervalSinceNow: wait))
            }
        }
    }

    private var quietTime: UInt64 {
        Self.quietMilliseconds + Self.rankMilliseconds * hooks.withLock { $0.rank }()
    }

    // MARK: Committing

    /// - Returns: false when there was nothing to commit.
    @discardableResult
    private func commit() throws -> Bool {
        guard try catalog.read({ try $0.isDirty() }) else { return false }
        try catalog.flush()
        let made = try catalog.snapshot { snapshot in try write(snapshot) }
        guard let (commit, outcome, version) = made else { return false }
        try catalog.perform { tx in
            try tx.committed(outcome, as: commit.id, through: version)
        }
        try settle(on: commit.id)
        announce(commit.id)
        return true
    }

    private func write(
        _ live: Snapshot
    ) throws -> (Commit, CommitOutcome, UInt64)? {
        let state = try live.dirtyState()
        guard !state.isEmpty, let settings = try live.settings() else { return nil }
        let parent = try live.applied()
        let base = try parent.map { try history.graph.tree(of: $0) }
        let nodes = try live.nodeDescriptions()
        return try history.write { batch in
            var sink = batch
            let outcome = try commitTree(
                onto: base, dirty: state.dirty, live: live, settings: settings, nodes: nodes,
                horizon: try live.horizon(), source: history, sink: &sink)
            let commit = try Commit(
                tree: outcome.root, parents: parent.map { [$0] } ?? [],
                seconds: Int64(Monotonic.wallMilliseconds / 1000),
                message: try message(
                    .change(node), outcome.newestStamp, parent.map { [$0] } ?? []))
            _ = try sink.write(commit: commit)
            batch = sink
            return (commit, outcome, state.version)
        }
    }

    /// The message carries the greatest stamp of the ancestry, so that a rebuilt catalog regains it.
    private func message(
        _ kind: CommitMessage.Kind, _ newest: Stamp?, _ parents: [ObjectID]
    ) throws -> [UInt8] {
        var greatest = newest
        for parent in parents {
            guard let bytes = try history.commit(parent)?.message else { continue }
            let stamp = try CommitMessage(decoding: bytes).newestStamp
            greatest = max(greatest ?? stamp, stamp)
        }
        guard let greatest else { throw InvalidTree("a commit without any stamp") }
        return CommitMessage(kind: kind, newestStamp: greatest).encoded
    }

    /// The rows represent this commit; makes that durable, and the repository's branch too.
    private func settle(on commit: ObjectID) throws {
        try catalog.flush()
        try history.setHead(commit)
        state.withLock { $0.applied = commit }
    }

    private func announce(_ head: ObjectID) {
        state.withLock {
            $0.announced = head
            $0.mergedSince = nil
        }
        hooks.withLock { $0.announce }()
    }

    private func announceMerge(force: Bool) throws {
        let quiet = quietTime
        let due = state.withLock { state -> ObjectID? in
            guard let since = state.mergedSince,
                force || Monotonic.milliseconds >= since + quiet
            else { return nil }
            return state.applied
        }
        if let due { announce(due) }
    }

    // MARK: What comes from peers

    private func integrate(_ head: ObjectID) throws {
        for attempt in 1...Self.applyAttemptsMax {
            let applied = state.withLock { $0.applied }
            if let applied, try history.graph.isAncestor(head, of: applied) { return }
            let (target, isMerge) = try target(head, applied)
            let change = try difference(
                from: applied.map { try history.graph.tree(of: $0) },
                to: history.graph.tree(of: target), source: history)
            do {
                let pinned = hooks.withLock { $0.pinned }()
                let effects = try catalog.apply(change, commit: target, pinned: pinned)
                try settle(on: target)
                state.withLock {
                    if isMerge { $0.mergedSince = Monotonic.milliseconds } else {
                        $0.mergedSince = nil
                        $0.announced = target
                    }
                }
                hooks.withLock { $0.applied }(effects)
                if !isMerge { hooks.withLock { $0.announce }() }
                return
            } catch let conflict as ApplyConflict {
                logger.debug("applying \(head), attempt \(attempt): \(conflict)")
                try commit()
            }
        }
        // Heavy writing here: the head comes again with the peer's next hello.
        state.withLock { $0.incoming.append(head) }
    }

    /// What the rows are to represent next: the head itself where it contains what is here.
    private func target(
        _ head: ObjectID, _ applied: ObjectID?
    ) throws -> (commit: ObjectID, isMerge: Bool) {
        guard let applied else { return (head, false) }
        if try history.graph.isAncestor(applied, of: head) { return (head, false) }
        let commit = try history.write { batch in
            var sink = batch
            let folded = try foldHeads(
                [applied, head], graph: history.graph, source: history, sink: &sink)
            let seconds = try folded.parents.map { try history.commit($0)?.seconds ?? 0 }.max() ?? 0
            let commit = try Commit(
                tree: folded.tree, parents: folded.parents, seconds: seconds,
                message: try message(
                    .merge(rules: VolumeSettings.rules), nil, folded.parents))
            _ = try sink.write(commit: commit)
            batch = sink
            return commit
        }
        return (commit.id, true)
    }
}
