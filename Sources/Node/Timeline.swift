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
    /// Between tries to apply what conflicts with changes that are being made here.
    static let retryMilliseconds: UInt64 = 20
    /// Before what failed, for want of room perhaps, is tried again.
    static let failurePause: TimeInterval = 1

    private struct State {
        /// When the oldest uncommitted change happened.
        var dirtySince: UInt64?
        var incoming: Set<ObjectID> = []
        var waiters: [@Sendable () -> Void] = []
        var wanted = false
        var stopping = false
        var running = false
        /// When the heads want to be looked at again.
        var headsDue: UInt64?
        /// What is announced and applied; nil before the volume's first commit.
        var heads: HeadConvergence?
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
        /// The announced heads changed: tell the peers.
        var announce: @Sendable () -> Void = {}
        /// Rows changed by what came from elsewhere.
        var applied: @Sendable (AppliedEffects) -> Void = { _ in }
        /// Inodes that are open: their rows stay when the last link goes.
        var isPinned: @Sendable (InodeNumber) -> Bool = { _ in false }
        /// This node's rank among the online ones.
        var rank: @Sendable () -> Int = { 0 }
    }

    init(catalog: Catalog, history: History, node: NodeID, logger: Logger) throws {
        self.catalog = catalog
        self.history = history
        self.node = node
        self.logger = logger
        guard let applied = try catalog.read({ try $0.applied() }) else { return }
        let main = try history.head()
        let heads = try Self.heads(applied, history)
        state.withLock {
            $0.heads = heads
            // A branch that is ahead of the rows is treated as an incoming head.
            if let main, main != applied { $0.incoming.insert(main) }
            $0.headsDue = 0
        }
    }

    /// A merge that the rows represent at a start has perhaps never left this node.
    private static func heads(_ applied: ObjectID, _ history: History) throws -> HeadConvergence {
        let now = Duration.milliseconds(Int64(Monotonic.milliseconds))
        if let commit = try history.commit(applied),
            case .merge = try CommitMessage(decoding: commit.message).kind
        {
            return HeadConvergence(applied: applied, merging: commit.parents, at: now)
        }
        return HeadConvergence(applied: applied, at: now)
    }

    func setHooks(_ hooks: Hooks) { self.hooks.withLock { $0 = hooks } }

    /// The commit that the rows represent, apart from what is dirty.
    var applied: ObjectID? { state.withLock { $0.heads?.applied } }
    /// What peers are told.
    var announced: [ObjectID] { state.withLock { $0.heads?.announced ?? [] } }

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
        let isNew = state.withLock { state in
            guard state.heads?.announced.contains(head) != true else { return false }
            return state.incoming.insert(head).inserted
        }
        if isNew { wake() }
    }

    /// Blocks until everything changed before this call is committed, or the deadline has passed.
    /// - Returns: false when it is not committed.
    func commitNow(until deadline: Date) -> Bool {
        let done = Mutex(false)
        state.withLock { state in
            state.wanted = true
            state.waiters.append { done.withLock { $0 = true } }
        }
        return condition.withLock {
            condition.broadcast()
            while !done.withLock({ $0 }) {
                guard state.withLock({ $0.running }) else { return done.withLock { $0 } }
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
            let isTaken = attempt("taking in heads") { try take(incoming) }
            let isCommitted = attempt("committing") { try commit() }
            let isConverged = attempt("bringing heads together") { try converge() }
            attempt("repacking") { _ = try history.repackIfNeeded() }
            if isCommitted { for waiter in waiters { waiter() } }
            wake()
            if stopping { break }
            if isTaken && isCommitted && isConverged { continue }
            condition.withLock {
                _ = condition.wait(until: Date(timeIntervalSinceNow: Self.failurePause))
            }
            state.withLock { state in
                if !isTaken { state.incoming.formUnion(incoming) }
                if !isCommitted {
                    state.waiters += waiters
                    state.dirtySince = state.dirtySince ?? Monotonic.milliseconds
                }
                state.headsDue = Monotonic.milliseconds
            }
        }
        state.withLock { $0.running = false }
        wake()
    }

    @discardableResult
    private func attempt(_ what: String, _ body: () throws -> Void) -> Bool {
        do {
            try body()
            return true
        } catch {
            logger.error("\(what) failed: \(error)")
            return false
        }
    }

    /// Waits until there is something to do.
    private func next() -> (Set<ObjectID>, [@Sendable () -> Void], Bool) {
        condition.withLock {
            while true {
                let now = Monotonic.milliseconds
                let (work, due) = state.withLock {
                    state -> (
                        (
                            Set<ObjectID>, [@Sendable () -> Void], Bool
                        )?, UInt64?
                    ) in
                    let dues = [
                        state.dirtySince.map { $0 + Self.batchMilliseconds }, state.headsDue,
                    ]
                    .compactMap(\.self)
                    let isDue =
                        !state.incoming.isEmpty || state.wanted || state.stopping
                        || dues.contains { $0 <= now }
                    guard isDue else { return (nil, dues.min()) }
                    defer {
                        state.incoming = []
                        state.waiters = []
                        state.wanted = false
                        state.dirtySince = nil
                        state.headsDue = nil
                    }
                    return ((state.incoming, state.waiters, state.stopping), nil)
                }
                if let work { return work }
                let wait = due.map { Double($0 - now) / 1000 } ?? 3600
                _ = condition.wait(until: Date(timeIntervalSinceNow: wait))
            }
        }
    }

    private var now: Duration { .milliseconds(Int64(Monotonic.milliseconds)) }

    /// The heads are changed on this thread only; the lock is for those who look.
    private func update(_ body: (inout HeadConvergence) throws -> Void) throws {
        guard var heads = state.withLock({ $0.heads }) else { return }
        try body(&heads)
        state.withLock { $0.heads = heads }
    }

    // MARK: Committing

    /// - Returns: false when there was nothing to commit.
    ///
    /// A file that was created open appears elsewhere when it is first closed and published, never
    /// as an empty file.
    /// - Parameter includingNewborn: where something from elsewhere wants the same name, so that a
    ///   merge can settle it.
    @discardableResult
    private func commit(includingNewborn: Bool = false) throws -> Bool {
        guard try catalog.read({ try $0.isDirty() }) else { return false }
        try catalog.flush()
        let made = try catalog.snapshot { snapshot in
            snapshot.hidesNewborn = !includingNewborn
            return try write(snapshot)
        }
        guard let (commit, outcome, version) = made else { return false }
        try catalog.perform { tx in
            try tx.committed(
                outcome, as: commit.id, through: version, hidingNewborn: !includingNewborn)
        }
        try settle(on: commit.id)
        if state.withLock({ $0.heads == nil }) {
            let heads = HeadConvergence(applied: commit.id, at: now)
            state.withLock { $0.heads = heads }
            hooks.withLock { $0.announce }()
        } else {
            try update { try $0.committed(commit.id, at: now, graph: history.graph) }
        }
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
    }

    // MARK: What comes from peers

    private func take(_ incoming: Set<ObjectID>) throws {
        guard !incoming.isEmpty else { return }
        try update { try $0.received(incoming, at: now, graph: history.graph) }
    }

    /// Does what the rule of convergence says until it says wait.
    private func converge() throws {
        while true {
            guard var heads = state.withLock({ $0.heads }) else { return }
            let action = heads.next(at: now, rank: hooks.withLock { $0.rank }())
            state.withLock { $0.heads = heads }
            switch action {
            case .announce: hooks.withLock { $0.announce }()
            case .adopt(let commit):
                guard try bring(rowsTo: commit, while: [commit]) else { return }
                try update { $0.adopted(commit) }
            case .merge(let parents):
                guard try !self.commit() else { continue }
                let merge = try merged(parents)
                guard try bring(rowsTo: merge, while: parents) else { return }
                try update { $0.merged(parents, into: merge) }
            case .wait(let until):
                let due = until.map { UInt64($0 / .milliseconds(1)) + 1 }
                state.withLock { $0.headsDue = due }
                return
            }
        }
    }

    /// Applies the difference between what the rows represent and a commit. What is changed here
    /// meanwhile in the same places is committed first, which may change what is to be done.
    ///
    /// - Returns: false when the heads have to be looked at again.
    private func bring(rowsTo commit: ObjectID, while announced: [ObjectID]) throws -> Bool {
        try self.commit()
        guard let heads = state.withLock({ $0.heads }), heads.announced == announced else {
            state.withLock { $0.headsDue = Monotonic.milliseconds }
            return false
        }
        let graph = history.graph
        let change = try difference(
            from: graph.tree(of: heads.applied), to: graph.tree(of: commit), source: history)
        do {
            let isPinned = hooks.withLock { $0.isPinned }
            let effects = try catalog.apply(change, commit: commit, isPinned: isPinned)
            try settle(on: commit)
            hooks.withLock { $0.applied }(effects)
            return true
        } catch let conflict as ApplyConflict {
            logger.debug("applying \(commit): \(conflict)")
            try self.commit(includingNewborn: true)
            state.withLock { $0.headsDue = Monotonic.milliseconds + Self.retryMilliseconds }
            return false
        }
    }

    /// The commit with exactly these parents, the same on every node that makes it.
    private func merged(_ parents: [ObjectID]) throws -> ObjectID {
        try history.write { batch in
            var sink = batch
            let folded = try foldHeads(
                parents, graph: history.graph, source: history, sink: &sink)
            let seconds = try folded.parents.map { try history.commit($0)?.seconds ?? 0 }.max() ?? 0
            let commit = try Commit(
                tree: folded.tree, parents: folded.parents, seconds: seconds,
                message: try message(.merge(rules: VolumeSettings.rules), nil, folded.parents))
            _ = try sink.write(commit: commit)
            batch = sink
            return commit.id
        }
    }
}
