import Catalog
import FUSE
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
/// are committed, and both before a head is announced. The branch follows last.
final class Timeline: Sendable {
    /// Changes are gathered for this long before they are committed; for as long again for each other
    /// node that writes as well: what every node has to take in is the commits of all.
    static let batchMilliseconds: UInt64 = 100
    static let batchMillisecondsMax: UInt64 = 1000
    /// After a commit the next waits for as long as it took, up to this: one that changes a thousand
    /// directories takes seconds, whether it has one second's changes or ten.
    static let commitRestMillisecondsMax: UInt64 = 5000
    /// A node counts as writing for so long after a commit of it came.
    static let writingMilliseconds: UInt64 = 2000
    /// Between tries to apply what conflicts with changes that are being made here.
    static let retryMilliseconds: UInt64 = 20
    /// Before what failed, for want of room perhaps, is tried again.
    static let failurePause = Duration.seconds(1)
    /// Between looks whether there still are heads on their way.
    static let awaitingMilliseconds: UInt64 = 500
    /// Tries in a row that end in a conflict; more are a failure.
    static let conflictsMax = 500
    /// Commits of ours remembered that peers refuse; of more nobody is told.
    static let refusalsMax = 64
    /// Rows looked up at once.
    static let lookedUpMax = 512
    /// After more changes at once memory is given back to the system.
    static let changesKeptMax = 5000
    /// Below it are commits of ours that were not valid, by their ids.
    static let rejected = "refs/rejected/"

    /// What the thread does in each round; the raw value is the code of the problem when it fails.
    enum Step: String {
        case taking = "heads-failed"
        case committing = "commit-failed"
        case converging = "merge-failed"
        case repacking = "repack-failed"
        case healing = "heal-failed"
    }

    struct State {
        /// When the oldest uncommitted change happened.
        var dirtySince: UInt64?
        var incoming: Set<ObjectID> = []
        var waiters: [@Sendable () -> Void] = []
        var wanted = false
        var stopping = false
        var running = false
        var isRepacking = false
        /// When the heads want to be looked at again.
        var headsDue: UInt64?
        /// When a commit of each other node came last.
        var writers: [NodeID: UInt64] = [:]
        /// When something came from elsewhere last.
        var takenAt: UInt64 = 0
        /// The end of the rest after the last commit.
        var nextCommit: UInt64 = 0
        /// What is announced and applied; nil before the volume's first commit.
        var heads: HeadConvergence?
        /// Since the last success of a step: why it failed.
        var failures: [Step: String] = [:]
        var conflicts = 0
        /// Commits made here that peers refuse: who, and why.
        var refusals: [ObjectID: [NodeID: String]] = [:]
        /// Those of them that are not looked at yet.
        var disputed: Set<ObjectID> = []
        /// Commits of ours that were not valid; nothing that has them is taken in.
        var rejected: Set<ObjectID> = []
        var massRemoval = MassRemoval()
        /// The commit that the rows represent, when the history does not have it.
        var missing: ObjectID?
        /// Heads that came while it is missing.
        var held: Set<ObjectID> = []
        /// Something in the history could not be read.
        var isSuspect = false
        /// When it was looked at last.
        var examined: UInt64?
    }

    let catalog: Catalog
    let history: History
    let node: NodeID
    let logger: Logger
    private let condition = TimedCondition()
    let state = Mutex(State())
    /// Set by the composition before `start`.
    let hooks = Mutex(Hooks())

    struct Hooks: Sendable {
        /// The announced heads changed: tell the peers.
        var announce: @Sendable () -> Void = {}
        /// Rows changed by what came from elsewhere.
        var applied: @Sendable (AppliedEffects) -> Void = { _ in }
        /// Inodes that are open: their rows stay when the last link goes.
        var isPinned: @Sendable (InodeNumber) -> Bool = { _ in false }
        /// This node's rank among the online ones.
        var rank: @Sendable () -> Int = { 0 }
        /// Whether peers have heads that are not here yet.
        var isAwaiting: @Sendable () -> Bool = { false }
        /// Asks those online for a commit; true: all of them are known not to have it, and what they
        /// have is here.
        var isGone: @Sendable (ObjectID) -> Bool = { _ in false }
        /// The disk is full: false when there is nothing more to give. What is removed frees room
        /// only once a commit says so.
        var makeRoom: @Sendable () -> Bool = { false }
        /// Other nodes removed most of the volume.
        var removedMuch: @Sendable (MassRemoval.Alarm) -> Void = { _ in }
    }

    init(catalog: Catalog, history: History, node: NodeID, logger: Logger) throws {
        self.catalog = catalog
        self.history = history
        self.node = node
        self.logger = logger
        guard let applied = try catalog.read({ try $0.applied() }) else { return }
        let rejected = Set(try history.references(below: Self.rejected).values)
        state.withLock { $0.rejected = rejected }
        do {
            if !history.graph.contains(applied) { try history.restore(applied) }
            try resume(applied)
        } catch let error as HistoryError where error.isDamage {
            logger.critical("\(HistoryLost(commit: applied)): \(error)")
            state.withLock {
                $0.missing = applied
                $0.headsDue = 0
            }
        }
    }

    /// Goes on from a commit that the history has and the rows represent.
    func resume(_ applied: ObjectID) throws {
        let main = try recoverBranch(applied)
        let heads = try Self.heads(applied, history)
        // Fetched before the last stop and not applied; a branch that is ahead of the rows likewise.
        var known = try history.peerHeads()
        if main != applied { known.insert(main) }
        state.withLock { [known] in
            $0.heads = heads
            $0.incoming.formUnion(known.union($0.held))
            $0.held = []
            $0.missing = nil
            $0.headsDue = 0
        }
    }

    /// The rows name a commit before the branch does: a crash between the two leaves the branch
    /// behind, and the commit where no reference leads to it.
    private func recoverBranch(_ applied: ObjectID) throws -> ObjectID {
        let main = try history.head()
        if let main, try !history.graph.isAncestor(main, of: applied) {
            // The catalog is an older copy; before the branch moves with its commits.
            try history.noteHead(main, of: node)
            return main
        }
        if main != applied { try history.setHead(applied) }
        return applied
    }

    /// A merge that the rows represent at a start has perhaps never left this node.
    private static func heads(_ applied: ObjectID, _ history: History) throws -> HeadConvergence {
        let now = Duration.milliseconds(Int64(Monotonic.milliseconds))
        // What is no message at all peers will refuse.
        if let commit = try history.commit(applied),
            case .merge? = try? CommitMessage(decoding: commit.message).kind
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

    /// What fails again and again, by the code of the problem.
    var problems: [(code: String, text: String)] {
        let (failures, refusals) = state.withLock { ($0.failures, $0.refusals) }
        var problems = failures.map { step, reason in
            switch step {
            case .taking, .converging:
                (step.rawValue, "Changes made elsewhere cannot be brought in: \(reason).")
            case .committing:
                (step.rawValue, "Changes made here cannot be given to other nodes: \(reason).")
            case .repacking: (step.rawValue, "The history cannot be compacted: \(reason).")
            case .healing: (step.rawValue, "The history cannot be healed: \(reason).")
            }
        }
        for (commit, peers) in refusals.sorted(by: { $0.key < $1.key }) {
            guard let (peer, reason) = peers.min(by: { $0.key < $1.key }) else { continue }
            let text =
                "Node \(peer) does not take in changes made here, commit \(commit): \(reason). Run the same version of delugefs on all nodes."
            problems.append(("commit-refused", text))
            break
        }
        return problems
    }

    /// Other nodes removed most of the volume lately.
    var massRemoval: MassRemoval.Alarm? {
        state.withLock { $0.massRemoval.shown(at: Monotonic.milliseconds) }
    }

    // MARK: From other threads

    func start() {
        state.withLock { $0.running = true }
        OwnThread.start("timeline", .background) { self.run() }
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

    /// A peer refuses a commit. One that was made here is looked at again, and committed anew if it
    /// is not valid.
    func refused(_ commit: ObjectID, by peer: NodeID, _ reason: String) throws {
        guard history.graph.contains(commit), let message = try history.commit(commit)?.message
        else { return }
        if case .change(let author)? = try? CommitMessage(decoding: message).kind, author != node {
            return
        }
        logger.error("node \(peer) refuses commit \(commit): \(reason)")
        state.withLock { state in
            guard !state.rejected.contains(commit),
                state.refusals[commit] != nil || state.refusals.count < Self.refusalsMax
            else { return }
            state.refusals[commit, default: [:]][peer] = reason
            state.disputed.insert(commit)
            state.headsDue = Monotonic.milliseconds
        }
        wake()
    }

    /// A peer has a commit, and so all before it.
    func accepted(_ head: ObjectID, by peer: NodeID) {
        for commit in state.withLock({ Array($0.refusals.keys) }) {
            guard (try? history.graph.isAncestor(commit, of: head)) == true else { continue }
            state.withLock { state in
                state.refusals[commit]?[peer] = nil
                if state.refusals[commit]?.isEmpty == true { state.refusals[commit] = nil }
            }
        }
    }

    /// Blocks until everything changed before this call is committed, or the deadline has passed.
    /// - Returns: false when it is not committed.
    func commitNow(until deadline: ContinuousClock.Instant) -> Bool {
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
            while state.withLock({ $0.running || $0.isRepacking }) { condition.wait() }
        }
    }

    func wake() { condition.withLock { condition.broadcast() } }

    // MARK: The thread

    private func commitMakingRoom() throws {
        while true {
            do {
                try commit()
                return
            } catch let error as HistoryError where error.code == .noSpace {
                guard hooks.withLock({ $0.makeRoom })() else { throw error }
            }
        }
    }

    private func run() {
        while true {
            let work = next()
            let isTaken = attempt(.taking) { try take(work.incoming) }
            let isCommitted = attempt(.committing) {
                try settleMissing()
                try settleDisputes()
                if work.commits { try commitMakingRoom() }
            }
            let isConverged = attempt(.converging) { try converge() }
            repackIfNeeded()
            attempt(.healing) { try healIfSuspect() }
            if isCommitted { for waiter in work.waiters { waiter() } }
            wake()
            if work.stopping { break }
            if isTaken && isCommitted && isConverged { continue }
            condition.withLock { _ = condition.wait(until: .now + Self.failurePause) }
            state.withLock { state in
                if !isTaken { state.incoming.formUnion(work.incoming) }
                if !isCommitted {
                    state.waiters += work.waiters
                    state.dirtySince = state.dirtySince ?? Monotonic.milliseconds
                }
                state.headsDue = Monotonic.milliseconds
            }
        }
        state.withLock { $0.running = false }
        wake()
    }

    @discardableResult
    func attempt(_ step: Step, _ body: () throws -> Void) -> Bool {
        do {
            try body()
            state.withLock { $0.failures[step] = nil }
            return true
        } catch {
            suspect(error)
            let isNew = state.withLock { state in
                defer { state.failures[step] = "\(error)" }
                return state.failures[step] != "\(error)"
            }
            // Tried again every second: what is known already is no news.
            logger.log(level: isNew ? .error : .debug, "\(step.rawValue): \(error)")
            return false
        }
    }

    fileprivate struct Work {
        var incoming: Set<ObjectID>
        var waiters: [@Sendable () -> Void]
        var stopping: Bool
        /// Whether what changed here is to be committed.
        var commits: Bool
    }

    /// Waits until there is something to do.
    private func next() -> Work {
        condition.withLock {
            while true {
                let now = Monotonic.milliseconds
                let (work, due) = state.withLock { $0.work(at: now) }
                if let work { return work }
                if let due {
                    condition.wait(until: .now + .milliseconds(Int64(due - now)))
                } else {
                    condition.wait()
                }
            }
        }
    }

    var now: Duration { .milliseconds(Int64(Monotonic.milliseconds)) }

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
        let begin = ContinuousClock.now
        try catalog.flush()
        let made: Written?
        do {
            made = try catalog.snapshot { try write($0, showing: includingNewborn) }
        } catch let error as InvalidTree {
            // What is the fault of how the difference was written is not in the whole.
            logger.error("a commit would not be valid and is made anew: \(error)")
            let commit = try commitWhole(on: catalog.read { try $0.applied() })
            try update { try $0.committed(commit, at: now, graph: history.graph) }
            try history.setHead(commit)
            return true
        }
        guard let made else { return false }
        try record(made)
        guard made.isNew else { return false }
        try catalog.flush()
        defer {
            let time = ContinuousClock.now - begin
            logger.debug("committed \(made.commit) in \(time)")
            let rest = min(UInt64(time / .milliseconds(1)), Self.commitRestMillisecondsMax)
            state.withLock { $0.nextCommit = Monotonic.milliseconds + rest }
        }
        if state.withLock({ $0.heads == nil }) {
            let heads = HeadConvergence(applied: made.commit, at: now)
            state.withLock { $0.heads = heads }
            hooks.withLock { $0.announce }()
        } else {
            try update { try $0.committed(made.commit, at: now, graph: history.graph) }
        }
        try history.setHead(made.commit)
        return true
    }

    private func record(_ made: Written) throws {
        try catalog.perform { tx in
            try tx.committed(
                made.outcome, as: made.commit, through: made.version, showing: made.shown)
        }
    }

    private struct Written {
        var commit: ObjectID
        /// Else what was marked changes nothing, and this is the parent.
        var isNew: Bool
        var outcome: CommitOutcome
        var version: UInt64
        /// Newborn files that are in it.
        var shown: [LineageID]
    }

    /// - Returns: nil when there is nothing to write, nor any mark to take away.
    private func write(_ live: Snapshot, showing includingNewborn: Bool) throws -> Written? {
        let state = try live.dirtyState()
        guard !state.isEmpty, try live.settings() != nil else { return nil }
        let parent = try live.applied()
        let base = try parent.map { try history.graph.tree(of: $0) }
        let newborn = try live.newborn()
        let hidden = includingNewborn ? [] : Set(newborn.values.joined())
        return try history.write { batch in
            var sink = batch
            let outcome = try tree(
                of: live, live, onto: base, dirty: state.dirty, hiding: hidden, into: &sink)
            var written = Written(
                commit: outcome.root, isNew: false, outcome: outcome, version: state.version,
                shown: includingNewborn ? Array(newborn.keys) : [])
            if let parent, outcome.root == base {
                written.commit = parent
                return state.dirty == outcome.pending ? nil : written
            }
            // As every peer will: what it would refuse must not leave here.
            _ = try difference(from: base, to: outcome.root, source: sink)
            written.commit = try write(outcome, on: parent, into: &sink)
            written.isNew = true
            batch = sink
            releaseMemory(after: state.dirty.records.count)
            return written
        }
    }

    /// Some kilobytes are used for each of many things changed at once, and the allocator would
    /// keep them.
    private func releaseMemory(after changes: Int) {
        if changes > Self.changesKeptMax { History.releaseMemory() }
    }

    private func tree(
        of live: some LiveState, _ snapshot: Snapshot, onto base: ObjectID?, dirty: DirtySet,
        hiding hidden: Set<Place>, into sink: inout Batch
    ) throws -> CommitOutcome {
        guard let settings = try snapshot.settings() else {
            throw InvalidTree("a volume without settings")
        }
        return try commitTree(
            onto: base, dirty: dirty, hiding: hidden, live: live, settings: settings,
            nodes: try snapshot.nodeDescriptions(), horizon: try snapshot.horizon(),
            adopting: base != nil, source: history, sink: &sink)
    }

    private func write(
        _ outcome: CommitOutcome, on parent: ObjectID?, into sink: inout Batch
    ) throws -> ObjectID {
        let parents = parent.map { [$0] } ?? []
        let commit = try Commit(
            tree: outcome.root, parents: parents,
            seconds: Int64(min(Monotonic.wallMilliseconds, Limits.clockMillisecondsMax) / 1000),
            message: try message(.change(node), outcome.newestStamp, parents))
        return try sink.write(commit: commit)
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

    // MARK: Commits that are not valid

    /// Validity is a function of a commit and its ancestors alone: who refuses one that is valid by
    /// what this node knows is of another version, and nothing is done here but to say so.
    private func settleDisputes() throws {
        while let commit = state.withLock({ $0.disputed.first }) {
            if let applied, try history.graph.isAncestor(commit, of: applied),
                try !isValid(commit)
            {
                try commitAnew(insteadOf: commit)
            }
            _ = state.withLock { $0.disputed.remove(commit) }
        }
    }

    private func isValid(_ commit: ObjectID) throws -> Bool {
        let parent = try history.graph.parents(of: commit).first
        do {
            _ = try history.commit(commit).map { try CommitMessage(decoding: $0.message) }
            _ = try difference(
                from: parent.map { try history.graph.tree(of: $0) },
                to: history.graph.tree(of: commit), source: history)
            return true
        } catch is InvalidTree {
            return false
        } catch let error as HistoryError where error.code == .malformed {
            return false
        }
    }

    /// Heads that are in the history and turn out not to be valid (our own branch, where somebody
    /// else moved it: what peers send is looked at before) are given up, by the same rule that peers
    /// follow, with what has them in its past.
    ///
    /// - Returns: false when all of them are valid.
    private func rejectInvalid() throws -> Bool {
        let graph = history.graph
        guard let heads = state.withLock({ $0.heads }) else { return false }
        let fresh = try graph.commits(from: heads.announced, excluding: [heads.applied])
        let invalid = try fresh.filter { try !isValid($0) }
        guard !invalid.isEmpty else { return false }
        for commit in invalid {
            logger.error("commit \(commit) is not valid and is given up")
            try history.setReference(Self.rejected + "\(commit)", to: commit)
        }
        state.withLock { $0.rejected.formUnion(invalid) }
        try update { try $0.rejected(Set(invalid), graph: graph) }
        try history.setHead(heads.applied)
        return true
    }

    /// The live state, written whole, on the last valid ancestor; peers validate parents first, so
    /// that is the parent. What was refused keeps a reference.
    private func commitAnew(insteadOf refused: ObjectID) throws {
        let parent = try history.graph.parents(of: refused).first
        try history.setReference(Self.rejected + "\(refused)", to: refused)
        let made = try commitWhole(on: parent)
        try update {
            try $0.recommitted(as: made, insteadOf: refused, at: now, graph: history.graph)
        }
        state.withLock { state in
            state.rejected.insert(refused)
            state.refusals[refused] = nil
        }
        try history.setHead(made)
        logger.error("commit \(refused) was not valid; \(made) is in its place")
    }

    /// Commits the live state without a look at any commit's trees but the parent's, for a check.
    func commitWhole(on parent: ObjectID?) throws -> ObjectID {
        let base = try parent.map { try history.graph.tree(of: $0) }
        try catalog.flush()
        let made = try catalog.snapshot { snapshot in
            let hidden = Set(try snapshot.newborn().values.joined())
            let version = try snapshot.dirtyState().version
            return try history.write { batch in
                var sink = batch
                let outcome = try tree(
                    of: WholeState(snapshot: snapshot), snapshot, onto: nil, dirty: DirtySet(),
                    hiding: hidden, into: &sink)
                _ = try difference(from: base, to: outcome.root, source: sink)
                let commit = try write(outcome, on: parent, into: &sink)
                batch = sink
                return Written(
                    commit: commit, isNew: true, outcome: outcome, version: version, shown: [])
            }
        }
        try record(made)
        try catalog.flush()
        return made.commit
    }

    /// A state of which no commit knows any tree.
    private struct WholeState: LiveState {
        let snapshot: Snapshot

        func record(_ id: LineageID) throws -> Record? { try snapshot.record(id) }
        func links(of id: LineageID) throws -> [(place: Place, link: Link)] {
            try snapshot.links(of: id)
        }
        func link(at place: Place) throws -> Link? { try snapshot.link(at: place) }
        func children(of directory: LineageID) throws -> [(name: FileName, link: Link)] {
            try snapshot.children(of: directory)
        }
        func tree(of directory: LineageID) -> ObjectID? { nil }
    }

    // MARK: What comes from peers

    private func take(_ incoming: Set<ObjectID>) throws {
        let isHeld = state.withLock { state in
            guard state.missing != nil else { return false }
            state.held.formUnion(incoming)
            return true
        }
        guard !isHeld else { return }
        let rejected = state.withLock { $0.rejected }
        let valid = try incoming.filter { head in
            try !rejected.contains { try history.graph.isAncestor($0, of: head) }
        }
        guard !valid.isEmpty else { return }
        noteAuthors(of: valid)
        try update { try $0.received(valid, at: now, graph: history.graph) }
    }

    private func noteAuthors(of heads: Set<ObjectID>) {
        let now = Monotonic.milliseconds
        let authors = heads.compactMap { head -> NodeID? in
            guard let message = try? history.commit(head)?.message,
                case .change(let author)? = try? CommitMessage(decoding: message).kind
            else { return nil }
            return author
        }
        state.withLock { state in
            state.takenAt = now
            state.writers = state.writers.filter { $0.value + Self.writingMilliseconds > now }
            for author in authors where author != node { state.writers[author] = now }
        }
    }

    /// Does what the rule of convergence says until it says wait. Commits nothing before it brings
    /// rows to a commit: whoever writes without a pause would keep it from that for ever.
    private func converge() throws {
        while true {
            guard var heads = state.withLock({ $0.heads }) else { return }
            let hooks = hooks.withLock(\.self)
            let isAwaiting = hooks.isAwaiting()
            let action = heads.next(at: now, rank: hooks.rank(), isAwaiting: isAwaiting)
            state.withLock { $0.heads = heads }
            switch action {
            case .announce: hooks.announce()
            case .adopt(let commit):
                guard try bring(rowsTo: commit, { $0.adopted(commit) }) else { return }
            case .merge(let parents):
                let begin = ContinuousClock.now
                let merge = try history.merge(parents)
                logger.debug("merged \(parents.count) heads in \(ContinuousClock.now - begin)")
                let isThere = try bring(rowsTo: merge) {
                    $0.merged(parents, into: merge, at: now, taking: ContinuousClock.now - begin)
                }
                guard isThere else { return }
            case .wait(let until):
                var due = until.map { UInt64($0 / .milliseconds(1)) + 1 }
                if isAwaiting {
                    due = min(due ?? .max, Monotonic.milliseconds + Self.awaitingMilliseconds)
                }
                state.withLock { $0.headsDue = due }
                return
            }
        }
    }

    /// Applies the difference between what the rows represent and a commit. What was changed here in
    /// the same places and cannot be settled row by row is committed first, which changes what is to
    /// be done.
    ///
    /// - Returns: false when the heads have to be looked at again.
    private func bring(
        rowsTo commit: ObjectID, _ done: (inout HeadConvergence) -> Void
    ) throws -> Bool {
        guard let applied = try catalog.read({ try $0.applied() }) else { return false }
        let graph = history.graph
        let begin = ContinuousClock.now
        defer { logger.debug("brought rows to \(commit) in \(ContinuousClock.now - begin)") }
        do {
            let change = try difference(
                from: graph.tree(of: applied), to: graph.tree(of: commit), source: history)
            defer { releaseMemory(after: change.records.count) }
            let removal = try removal(in: change)
            let hooks = hooks.withLock(\.self)
            let effects = try OwnThread.run("apply") { [catalog] in
                try catalog.apply(
                    change, commit: commit, isPinned: hooks.isPinned, ahead: hooks.applied)
            }
            try catalog.flush()
            hooks.applied(effects)
            state.withLock { $0.conflicts = 0 }
            warn(of: removal, from: applied)
            try update(done)
            try history.setHead(commit)
            try history.forgetMerged(into: commit)
            return true
        } catch let conflict as ApplyConflict {
            logger.debug("applying \(commit): \(conflict)")
            let conflicts = state.withLock { state in
                state.conflicts += 1
                return state.conflicts
            }
            try self.commit(includingNewborn: true)
            guard conflicts <= Self.conflictsMax else { throw conflict }
            state.withLock { $0.headsDue = Monotonic.milliseconds + Self.retryMilliseconds }
            return false
        } catch let error as InvalidTree {
            guard try rejectInvalid() else { throw error }
            state.withLock { $0.headsDue = 0 }
            return false
        }
    }
}

extension Timeline.State {
    /// What there is to do, which is taken from here; or when there will be.
    fileprivate mutating func work(at now: UInt64) -> (Timeline.Work?, due: UInt64?) {
        let merged = UInt64((heads?.commitDue ?? .zero) / .milliseconds(1))
        let writing = writers.values.count { $0 + Timeline.writingMilliseconds > now }
        let batch = min(
            Timeline.batchMilliseconds * UInt64(1 + writing), Timeline.batchMillisecondsMax)
        let commitDue = dirtySince.map { max($0 + batch, merged, nextCommit) }
        // Nobody who waits for a commit that failed is told of one that was not tried again.
        let commits =
            wanted || stopping || !waiters.isEmpty || commitDue.map { $0 <= now } == true
        guard commits || !incoming.isEmpty || headsDue.map({ $0 <= now }) == true else {
            return (nil, [commitDue, headsDue].compactMap(\.self).min())
        }
        let work = Timeline.Work(
            incoming: incoming, waiters: waiters, stopping: stopping, commits: commits)
        incoming = []
        waiters = []
        wanted = false
        if commits { dirtySince = nil }
        headsDue = nil
        return (work, nil)
    }
}
