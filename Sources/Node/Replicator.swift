import Catalog
import FoundationEssentials
import Logging
import Mesh
import Mount
import Synchronization
import Volume

/// Sees to it that every content has its target copies, no fewer and no more: asks the nodes that
/// placement names to clone what this node holds, and has copies here that are too many dropped.
///
/// Which holder does it is decided by `RepairOwnership`, so that no two do the same repair; it
/// needs no election and no lock, and the next one takes over after a time without progress.
///
/// All contents are looked at when the set of live nodes has changed and every `surveyInterval`;
/// otherwise those alone whose holders or references changed.
final class Replicator: Sendable {
    static let interval = Duration.seconds(1)
    /// Between passes: what is learned meanwhile is dealt with together.
    static let passPause = Duration.milliseconds(50)
    /// Between looks at all contents: because of time alone, and at the least.
    static let surveyInterval = Duration.seconds(300)
    static let surveyPause = Duration.seconds(1)
    /// Contents looked at under one lock.
    static let surveyStep = 4096
    static let changesStep = 256
    /// Clones that a node makes at a time: so many of any size, and more as long as they are small
    /// together. As many are asked of it before they are confirmed.
    static let clonesAnySizeMax = 8
    static let clonesMax = 64
    static let cloneBytesMax: UInt64 = 64 << 20
    /// A clone that was accepted and is not confirmed in its holder's log is asked for again after
    /// this long: only the node itself knows whether it is still at it.
    static let patience = Duration.seconds(30)
    /// Until a node is asked again: one that was busy, unless it confirms a clone before; one that
    /// did not answer; one that was full, for what is as large.
    static let busyPause = Duration.seconds(1)
    static let silentPause = Duration.seconds(5)
    static let fullPause = Duration.seconds(30)
    static let askTimeout = Duration.seconds(5)

    /// Beyond its share a disk may have so much, as a part of it, before copies move.
    static let unevenMax = 0.03
    /// Between looks at how evenly disks are filled, and a look's share of all time.
    static let balanceInterval = Duration.seconds(5)
    static let balanceShare = 100
    /// Contents looked at each time for what can move.
    static let balanceStep = 512
    /// A copy that moves counts as moved for so long, whether it came to anything or not.
    static let movingMax = Duration.seconds(180)

    private let catalog: Catalog
    private let mesh: Mesh
    private let node: NodeID
    private let logger: Logger
    private let options: @Sendable () -> Options
    /// Makes a cached copy here one that counts.
    private let promote: @Sendable (Extent) throws -> Void
    private let dropper: Dropper
    private let isDropping = Atomic<Bool>(false)
    private let amounts = Mutex(Amounts())
    private let wakeup = AsyncStream<Void>.makeStream(bufferingPolicy: .bufferingNewest(1))
    /// When this node began to listen for others.
    private let started = Int64(Monotonic.wallMilliseconds)

    struct Options: Sendable {
        var copies: Int
        var machine: String
        /// Bytes; 0: what is stored here counts as no copy.
        var capacity: UInt64
        var graceSeconds: Int
        /// Whether cached copies are to make room.
        var lacksRoom: Bool
    }

    struct Amounts: Sendable {
        /// Contents with fewer live copies than the target.
        var underReplicated = Status.Amount(files: 0, bytes: 0)
        /// Contents that no online node has.
        var unavailable = Status.Amount(files: 0, bytes: 0)
    }

    init(
        catalog: Catalog, mesh: Mesh, node: NodeID, logger: Logger,
        dropper: Dropper, options: @escaping @Sendable () -> Options,
        promote: @escaping @Sendable (Extent) throws -> Void
    ) {
        self.dropper = dropper
        self.catalog = catalog
        self.mesh = mesh
        self.node = node
        self.logger = logger
        self.options = options
        self.promote = promote
    }

    var lacking: Amounts { amounts.withLock { $0 } }

    /// Something changed: look soon.
    func poke() { wakeup.continuation.yield() }

    func run() async {
        let ticker = Task { [wakeup] in
            while !Task.isCancelled {
                try? await Task.sleep(for: Self.interval)
                wakeup.continuation.yield()
            }
        }
        defer { ticker.cancel() }
        do { try await Blocking.run { [dropper] in try dropper.clearMarks() } } catch {
            logger.error("what was being dropped: \(error)")
        }
        var plan = RepairPlan(node: node)
        var balance = Balance()
        for await _ in wakeup.stream {
            if Task.isCancelled { return }
            do { try await pass(&plan, &balance) } catch { logger.error("replication: \(error)") }
            try? await Task.sleep(for: Self.passPause)
        }
    }

    private func pass(_ plan: inout RepairPlan, _ balance: inout Balance) async throws {
        let options = options()
        let (nodes, online) = try await Blocking.run { [self] in try live(options) }
        plan.setNodes(nodes, online: online, copies: options.copies)
        try await look(&plan)
        let now = ContinuousClock.now
        plan.expire(now)
        for extent in plan.promotions(now) {
            try await Blocking.run { [promote] in try promote(extent) }
        }
        for extent in plan.takeNeedless() { dropper.exchange.endClone(extent) }
        try await drop(&plan, options, now)
        var requests = plan.requests(now)
        amounts.withLock { $0 = plan.amounts }
        if requests.isEmpty, plan.isSettled, options.capacity > 0, now >= balance.due {
            requests = try await moves(&plan, &balance, options)
        }
        guard !requests.isEmpty else { return }
        await withTaskGroup(of: (NodeID, [RepairPlan.Lack], Answers?).self) { group in
            for (candidate, contents) in requests {
                group.addTask {
                    (candidate, contents, await self.ask(candidate, contents.map(\.extent)))
                }
            }
            for await (candidate, contents, answers) in group {
                plan.answered(candidate, contents, answers, ContinuousClock.now)
            }
        }
        // Who was refused is to be replaced, and there may be room for more.
        poke()
    }

    // MARK: Dropping

    /// Begins a round of drops, unless one is under way: holders that are slow to answer hold up no
    /// repair.
    private func drop(
        _ plan: inout RepairPlan, _ options: Options, _ now: ContinuousClock.Instant
    ) async throws {
        guard !isDropping.load(ordering: .relaxed) else { return }
        let isLeaving = options.capacity == 0
        let settling =
            isLeaving || options.lacksRoom
            ? .zero : min(.seconds(options.graceSeconds), Dropper.settlingMax)
        let surplus = plan.drops(now, settling: settling) { .random(in: 0...(.max)) }
        // What is being fetched is in use.
        let parts =
            options.lacksRoom
            ? try await evictions(.partial, plan, options).filter {
                !dropper.exchange.isFetching($0.extent)
            } : []
        let evictions = options.lacksRoom ? try await evictions(.cached, plan, options) : []
        guard !surplus.isEmpty || !parts.isEmpty || !evictions.isEmpty else { return }
        isDropping.store(true, ordering: .relaxed)
        Task {
            do {
                let dropped = try await dropper.run(
                    surplus, from: .stored, to: isLeaving ? .cached : .absent)
                let removed = try await dropper.removeParts(parts)
                let evicted = try await dropper.run(evictions, from: .cached, to: .absent)
                if dropped + removed + evicted > 0 {
                    logger.info(
                        "dropped \(dropped) copies too many, \(evicted) cached ones, parts of \(removed)"
                    )
                }
            } catch { logger.error("dropping copies: \(error)") }
            isDropping.store(false, ordering: .relaxed)
            poke()
        }
    }

    /// What is here in this state and may go, oldest first.
    private func evictions(
        _ state: ContentState, _ plan: RepairPlan, _ options: Options
    ) async throws -> [Dropper.Attempt] {
        try await Blocking.run { [catalog] in
            let holdings = try catalog.read { reader in
                try reader.contents(in: state, limit: Dropper.batchMax).compactMap {
                    try reader.holding(of: $0.extent.root, copies: options.copies)
                }.filter(\.isReferenced)
            }
            let attempts = holdings.map { holding in
                (holding, plan.eviction(holding, nonce: .random(in: 0...(.max))))
            }
            // What is needed is not to stand before the others again.
            let needed = attempts.filter { $0.1 == nil }.map(\.0.extent.root)
            try catalog.perform { tx in
                for root in needed { try tx.touchContent(root, at: Monotonic.wallMilliseconds) }
            }
            return attempts.compactMap(\.1)
        }
    }

    // MARK: Filling evenly

    private struct Balance {
        var due = ContinuousClock.now
        /// Contents up to here were looked at.
        var cursor: Int64 = 0
    }

    /// Copies that are to move from this disk to ones that are less full.
    private func moves(
        _ plan: inout RepairPlan, _ balance: inout Balance, _ options: Options
    ) async throws -> [NodeID: [RepairPlan.Lack]] {
        let begin = ContinuousClock.now
        let stored = try await Blocking.run { [catalog] in
            try catalog.snapshot { try $0.storedBytes() }
        }
        let now = ContinuousClock.now
        balance.due =
            now + max(Self.balanceInterval, (now - begin) * Self.balanceShare)
        let excess = plan.excess(stored, now)
        guard excess > 0 else { return [:] }
        let holdings = try await Blocking.run { [catalog, cursor = balance.cursor] in
            try catalog.snapshot { reader in
                try reader.holdings(
                    after: cursor, limit: Self.balanceStep, copies: options.copies
                ).map { holding in
                    var holding = holding
                    holding.holders = try reader.holders(of: holding.extent.root)
                    return holding
                }
            }
        }
        balance.cursor = holdings.count < Self.balanceStep ? 0 : holdings.last?.number ?? 0
        // There is more to do: soon.
        balance.due = now + max(Self.interval, (now - begin) * Self.balanceShare)
        return plan.moves(holdings, excess: excess, stored: stored, now)
    }

    // MARK: Looking

    /// Nodes whose copies count: this one, those online, those absent for less than the grace time,
    /// which for nodes not heard since this one started begins with that. A time to come is one that a
    /// wrong clock told.
    private func live(_ options: Options) throws -> ([PlacementNode], online: Set<NodeID>) {
        let now = Int64(Monotonic.wallMilliseconds)
        let grace = Int64(options.graceSeconds) * 1000
        let peers = mesh.peers
        let heard = Set(peers.map(\.node) + [node])
        let (listed, capacities) = try catalog.read { reader in
            // Without those that were said not to come back.
            let listed = try reader.nodes().filter { $0.description != nil }
            let absent = listed.filter { !heard.contains($0.id) }
            return (listed, try absent.map { ($0, try reader.capacity(of: $0.id) ?? 0) })
        }
        let known = Set(listed.map(\.id))
        let live = peers.filter {
            $0.isOnline
                || known.contains($0.node) && (0..<grace).contains(now - $0.lastSeenMilliseconds)
        }.map {
            PlacementNode(
                id: $0.node, machine: $0.hello.machine, capacity: $0.hello.capacityBytes)
        }
        let absent = capacities.compactMap { entry, capacity -> PlacementNode? in
            guard let machine = entry.description?.machine,
                now - max(Int64(clamping: entry.seen ?? 0), started) < grace
            else { return nil }
            return PlacementNode(id: entry.id, machine: machine, capacity: capacity)
        }
        let own = PlacementNode(id: node, machine: options.machine, capacity: options.capacity)
        return ([own] + live + absent, Set(peers.filter(\.isOnline).map(\.node) + [node]))
    }

    /// Brings the plan up to date.
    private func look(_ plan: inout RepairPlan) async throws {
        let now = ContinuousClock.now
        let rule = plan.rule
        let changes = catalog.takeContentChanges()
        if changes == .all { plan.mustSurvey = true }
        if case .these(let numbers) = changes {
            let numbers = Array(numbers)
            for start in stride(from: 0, to: numbers.count, by: Self.changesStep) {
                let part = numbers[start..<min(start + Self.changesStep, numbers.count)]
                let holdings = try await Blocking.run { [catalog] in
                    try catalog.read { reader in
                        try part.map { ($0, try reader.holding($0, copies: rule.copies)) }
                    }
                }
                for (number, holding) in holdings { plan.update(number, holding, at: now) }
            }
        }
        if plan.isSurveyDue(now) { try await survey(&plan, now) }
    }

    /// Looks at all contents. What changed lately is committed first, for it was taken from the
    /// list of changes.
    private func survey(_ plan: inout RepairPlan, _ now: ContinuousClock.Instant) async throws {
        let rule = plan.rule
        try await Blocking.run { [catalog] in try catalog.flush() }
        var found: [Int64: Holding] = [:]
        var after: Int64? = 0
        while let number = after {
            let (holdings, next) = try await Blocking.run { [catalog] in
                try catalog.snapshot { reader in
                    let page = try reader.deviating(
                        from: rule, after: number, limit: Self.surveyStep)
                    let holdings = try page.found.compactMap {
                        try reader.holding($0, copies: rule.copies)
                    }
                    return (holdings, page.next)
                }
            }
            for holding in holdings { found[holding.number] = holding }
            after = next
        }
        plan.surveyed(found, at: now)
    }

    typealias Answers = [PeerMessage.CloneReply.Answer]

    /// - Returns: nil when it did not answer.
    private func ask(_ candidate: NodeID, _ extents: [Extent]) async -> Answers? {
        do {
            let message = PeerMessage.Clone(extents: extents.map(PeerMessage.ExtentName.init))
            let reply = try await mesh.request(
                candidate, path: "/v1/clone", body: Array(try JSONEncoder().encode(message)),
                timeout: Self.askTimeout
            ).successful()
            let answers = try JSONDecoder().decode(
                PeerMessage.CloneReply.self, from: Data(reply.body)
            ).answers
            return answers.count == extents.count ? answers : nil
        } catch {
            logger.debug("asking \(candidate) to clone: \(error)")
            return nil
        }
    }
}
