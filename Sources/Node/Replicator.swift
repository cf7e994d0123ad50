import Catalog
import Foundation
import FoundationEssentials
import Logging
import Mesh
import Mount
import Synchronization
import Volume

/// Sees to it that every content has its target copies: asks the nodes that placement names to
/// clone what this node holds.
///
/// Which holder does it is decided by `RepairOwnership`, so that no two do the same repair; it
/// needs no election and no lock, and the next one takes over after a time without progress.
final class Replicator: Sendable {
    static let interval = Duration.seconds(1)
    /// Contents looked at per pass.
    static let scanMax = 4096
    /// Clones that this node has asked for and that are not confirmed yet.
    static let outstandingMax = 32
    /// Clones that this node makes at a time for others.
    static let clonesMax = 8
    /// A clone that was accepted and is not confirmed in its holder's log is asked for again after
    /// this long: only the node itself knows whether it is still at it.
    static let patience = Duration.seconds(30)

    private let catalog: Catalog
    private let mesh: Mesh
    private let node: NodeID
    private let logger: Logger
    private let options: @Sendable () -> Options
    private let state = Mutex(State())
    private let wakeup = AsyncStream<Void>.makeStream(bufferingPolicy: .bufferingNewest(1))

    struct Options: Sendable {
        var copies: Int
        var machine: String
        var capacity: UInt64
        var graceSeconds: Int
    }

    private struct Request: Hashable {
        let extent: Extent
        let node: NodeID
    }

    private enum Answer {
        case accepted
        /// Busy, or nothing was heard: the same node may take it soon.
        case later
        /// Full, draining or not there.
        case never
    }

    private struct State {
        var asked: [Request: ContinuousClock.Instant] = [:]
        /// Since when a root has too few copies, as far as this node has noticed.
        var since: [ContentRoot: ContinuousClock.Instant] = [:]
        var refusedUntil: [NodeID: (time: ContinuousClock.Instant, answer: Answer)] = [:]
        var underReplicated = Status.Amount(files: 0, bytes: 0)
        var unavailable = Status.Amount(files: 0, bytes: 0)
    }

    init(
        catalog: Catalog, mesh: Mesh, node: NodeID, logger: Logger,
        options: @escaping @Sendable () -> Options
    ) {
        self.catalog = catalog
        self.mesh = mesh
        self.node = node
        self.logger = logger
        self.options = options
    }

    /// Contents with fewer live copies than the target, and those without any.
    var lacking: (underReplicated: Status.Amount, unavailable: Status.Amount) {
        state.withLock { ($0.underReplicated, $0.unavailable) }
    }

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
        for await _ in wakeup.stream {
            if Task.isCancelled { return }
            do { try await pass() } catch { logger.error("replication: \(error)") }
        }
    }

    /// Nodes whose copies count: this one, those online, those absent for less than the grace time.
    private func live(_ options: Options) -> [PlacementNode] {
        let now = Int64(Monotonic.wallMilliseconds)
        let grace = Int64(options.graceSeconds) * 1000
        let peers = mesh.peers.filter { $0.isOnline || now - $0.lastSeenMilliseconds < grace }
        return [
            PlacementNode(id: node, machine: options.machine, capacity: options.capacity)
        ]
            + peers.map {
                PlacementNode(
                    id: $0.node, machine: $0.hello.machine, capacity: $0.hello.capacityBytes)
            }
    }

    private func pass() async throws {
        let options = options()
        let nodes = live(options)
        try await Blocking.run { [self] in try settle() }
        var after: Int64? = 0
        var lacking = Status.Amount(files: 0, bytes: 0)
        var unavailable = Status.Amount(files: 0, bytes: 0)
        var roots: Set<ContentRoot> = []
        while let number = after {
            let (found, next) = try await Blocking.run { [catalog] in
                try catalog.read {
                    try $0.underReplicated(
                        online: nodes.map(\.id), target: options.copies, after: number,
                        limit: Self.scanMax)
                }
            }
            for (extent, copies) in found {
                lacking.files += 1
                lacking.bytes += extent.length
                if copies == 0 {
                    unavailable.files += 1
                    unavailable.bytes += extent.length
                }
                roots.insert(extent.root)
                try await consider(extent, nodes, options)
            }
            after = next
        }
        let now = ContinuousClock.now
        state.withLock { [lacking, unavailable, roots] state in
            state.underReplicated = lacking
            state.unavailable = unavailable
            state.since = state.since.filter { roots.contains($0.key) }
            state.asked = state.asked.filter { now - $0.value < Self.patience }
        }
    }

    /// Asks for the copies that one content lacks, when that is this node's to do.
    private func consider(
        _ extent: Extent, _ nodes: [PlacementNode], _ options: Options
    ) async throws {
        let holders = try await Blocking.run { [catalog] in
            try catalog.read { try $0.holders(of: extent.root) }
        }
        let living = Set(nodes.map(\.id))
        let stored = holders.filter { $0.state == .stored && living.contains($0.node) }.map(\.node)
        guard stored.contains(node) else { return }
        let now = ContinuousClock.now
        let since = state.withLock { state in
            let since = state.since[extent.root] ?? now
            state.since[extent.root] = since
            return since
        }
        guard let delay = RepairOwnership.delay(of: node, root: extent.root, holders: stored),
            now - since >= .seconds(delay)
        else { return }
        var cloning = Set(
            state.withLock { $0.asked.keys.filter { $0.extent == extent }.map(\.node) }
        ).intersection(living).subtracting(stored)
        for holder in holders where holder.state == .cloning && living.contains(holder.node) {
            // What the log says may have ended with a restart of that node.
            if cloning.contains(holder.node) { continue }
            if await ask(holder.node, extent, isRenewal: true) == .accepted {
                cloning.insert(holder.node)
            }
        }
        var missing = options.copies - stored.count - cloning.count
        var used = Set(
            nodes.filter { stored.contains($0.id) || cloning.contains($0.id) }.map(\.machine))
        let candidates = Placement.order(of: extent.root, among: nodes)
            .filter { !stored.contains($0.id) && !cloning.contains($0.id) }
        // Other machines first; a second disk of one only when no machine is left.
        for onFreshMachine in [true, false] {
            var mayComeLater = false
            for candidate in candidates where missing > 0 {
                guard used.contains(candidate.machine) != onFreshMachine else { continue }
                switch await ask(candidate.id, extent) {
                case .accepted:
                    missing -= 1
                    used.insert(candidate.machine)
                case .later: mayComeLater = true
                case .never: break
                }
            }
            // A machine that is only busy can take it soon: it is worth the wait.
            if mayComeLater { return }
        }
    }

    /// - Parameter isRenewal: what it refused of other contents says nothing of this one.
    private func ask(
        _ candidate: NodeID, _ extent: Extent, isRenewal: Bool = false
    ) async -> Answer {
        let now = ContinuousClock.now
        guard mesh.peer(candidate)?.isOnline == true else { return .never }
        let obstacle = state.withLock { state -> Answer? in
            if let refusal = state.refusedUntil[candidate], now < refusal.time {
                return refusal.answer
            }
            return state.asked.count < Self.outstandingMax ? nil : .later
        }
        if let obstacle, !isRenewal { return obstacle }
        do {
            let body = try JSONEncoder().encode(PeerMessage.ExtentName(extent))
            let reply = try await mesh.request(
                candidate, path: "/v1/clone", body: Array(body), timeout: .seconds(5)
            ).successful()
            let answer = try JSONDecoder().decode(
                PeerMessage.CloneReply.self, from: Data(reply.body)
            ).answer
            switch answer {
            case .accepted, .stored:
                state.withLock { $0.asked[Request(extent: extent, node: candidate)] = now }
                return .accepted
            case .busy:
                state.withLock { $0.refusedUntil[candidate] = (now + .seconds(1), .later) }
                return .later
            case .full, .draining:
                state.withLock { $0.refusedUntil[candidate] = (now + .seconds(30), .never) }
                return .never
            }
        } catch {
            logger.debug("asking \(candidate) to clone: \(error)")
            // Who does not answer is not asked again at once, for every content.
            state.withLock { $0.refusedUntil[candidate] = (now + .seconds(5), .never) }
            return .never
        }
    }

    /// A holder's log confirmed a copy, or took it back.
    func confirmed(_ extents: some Sequence<Extent>, by node: NodeID) {
        state.withLock { state in
            for extent in extents { state.asked[Request(extent: extent, node: node)] = nil }
        }
    }

    /// Forgets requests whose outcome the holder logs tell by now.
    func settle() throws {
        let asked = state.withLock { Array($0.asked.keys) }
        for request in asked {
            let holders = try catalog.read { try $0.holders(of: request.extent.root) }
            if holders.contains(where: { $0.node == request.node && $0.state == .stored }) {
                confirmed([request.extent], by: request.node)
            }
        }
    }
}
