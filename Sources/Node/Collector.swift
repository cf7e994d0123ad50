import Catalog
import History
import Logging
import Mesh
import Mount
import Store
import Synchronization
import SystemPackage
import Volume

/// Gives back the room of content that no file has any more: after the retention, or, oldest
/// first, when the disk needs room.
///
/// **Invariant:** content goes only when every node of the volume is known to have a state without
/// it: a node that does not know of the removal yet could bring the file back. A node that was not
/// heard of for `forgottenAfter` does not count. While the clocks of online nodes differ, none of
/// these times is over.
///
/// Order, so that a crash at any step leaves either the object or a node that says it has none: the
/// row is marked, the loss is logged, both durable; the name goes in one step with the row, and last
/// the bytes.
final class Collector: Sendable {
    static let interval = Duration.seconds(1)
    /// Between rounds while there is room.
    static let roundsPerLook = 60
    /// How long old content is kept while there is room.
    static let retentionMilliseconds: UInt64 = 30 * 24 * 3600 * 1000
    /// What no file ever had may be a copy whose commit is still on its way here.
    static let strayMilliseconds: UInt64 = 3600 * 1000
    static let forgottenAfterMilliseconds: UInt64 = 90 * 24 * 3600 * 1000
    static let batchMax = 64
    /// Objects looked up at once in the sweep of a start.
    static let sweepMax = 512
    /// Room that is made ahead of writers: a twentieth of the disk, or so much if that is more; of
    /// a small disk a tenth.
    static let headroomBytes: UInt64 = 4 << 30

    struct Surroundings: Sendable {
        /// The disk is so full that writers are refused.
        var isFull: @Sendable () -> Bool
        /// Tells the holder log what a content is here now.
        var note: @Sendable (Extent) throws -> Void
    }

    private let catalog: Catalog
    private let store: Store
    private let history: History
    private let mesh: Mesh
    private let exchange: ContentExchange
    private let node: NodeID
    private let logger: Logger
    private let surroundings: Surroundings
    private let headroom: UInt64
    /// How many want that nothing goes.
    private let holds = Mutex(0)
    private let isHurried = Atomic<Bool>(false)

    init(
        catalog: Catalog, store: Store, history: History, mesh: Mesh, exchange: ContentExchange,
        node: NodeID, diskBytes: UInt64, logger: Logger, surroundings: Surroundings
    ) {
        self.catalog = catalog
        self.store = store
        self.history = history
        self.mesh = mesh
        self.exchange = exchange
        self.node = node
        self.logger = logger
        self.surroundings = surroundings
        headroom = max(diskBytes / 20, min(Self.headroomBytes, diskBytes / 10))
    }

    func run() async {
        var round = 0
        while !Task.isCancelled {
            do {
                if round == 0 { try await Blocking.run(.content) { [self] in try sweep() } }
                let needsRoom = try await Blocking.run { [self] in try lacksRoom() }
                let isHurried = isHurried.exchange(false, ordering: .relaxed)
                if needsRoom || isHurried || round % Self.roundsPerLook == 0 {
                    while try await collect(needingRoom: needsRoom) == Self.batchMax {}
                }
            } catch { logger.error("collecting old content: \(error)") }
            round += 1
            try? await Task.sleep(for: Self.interval)
        }
    }

    // MARK: Holding

    /// From now until `release` nothing goes here, whoever began what.
    func hold() { holds.withLock { $0 += 1 } }

    func release() { holds.withLock { $0 -= 1 } }

    /// Looks at once for what may go.
    func hurry() { isHurried.store(true, ordering: .relaxed) }

    /// Asked within an operation of the catalog, so that who calls `hold` and then looks at the catalog
    /// finds what had begun to go gone.
    private var isHeld: Bool { holds.withLock { $0 > 0 } }

    // MARK: Collecting

    /// Objects that the catalog does not know: a kill came between their name and their row.
    private func sweep() throws {
        var found: [Extent] = []
        try store.forEachObject { (root, length) throws(StoreError) in
            if try !store.isUnfinished(root) { found.append(Extent(root: root, length: length)) }
            return true
        }
        for start in stride(from: 0, to: found.count, by: Self.sweepMax) {
            let part = found[start..<min(start + Self.sweepMax, found.count)]
            let unknown = try catalog.read { reader in
                try part.filter { try (reader.content($0.root)?.state ?? .absent) == .absent }
            }
            guard !unknown.isEmpty else { continue }
            try catalog.perform { tx in
                for extent in unknown where try store.objectLength(extent.root) == extent.length {
                    try tx.abandon(extent, at: Monotonic.wallMilliseconds)
                }
            }
        }
    }

    func lacksRoom() throws -> Bool {
        if surroundings.isFull() { return true }
        return try store.freeBytes() < headroom
    }

    /// - Returns: how much went; a whole batch: there may be more.
    private func collect(needingRoom: Bool) async throws -> Int {
        let now = Monotonic.wallMilliseconds
        let found = try await Blocking.run { [catalog] in
            // The clock may be anywhere.
            let before = now - min(now, Self.strayMilliseconds)
            if try catalog.snapshot({ try $0.hasStrays(olderThan: before) }) {
                try catalog.perform { try $0.noteStrays(olderThan: before) }
            }
            if try catalog.read({ try $0.hasUnnoted() }) {
                try catalog.perform { try $0.noteUnreferenced(at: now) }
            }
            return try catalog.read { try $0.unreferenced(limit: Self.batchMax) }
        }
        var needsRoom = needingRoom
        var gone = 0
        let isOver = !mesh.isClockDoubtful
        for old in found
        where needsRoom || isOver && now >= old.since + Self.retentionMilliseconds {
            guard try await everybodyHas(old.head) else { continue }
            try await drop(old.extent)
            gone += 1
            if needsRoom { needsRoom = try await Blocking.run { [self] in try lacksRoom() } }
        }
        return gone
    }

    /// Whether every other node's last known state has this commit in its ancestry; nil is no
    /// commit yet.
    private func everybodyHas(_ commit: ObjectID?) async throws -> Bool {
        let online = Dictionary(
            mesh.peers.filter(\.isOnline).map { ($0.node, $0.hello.announced) },
            uniquingKeysWith: { first, _ in first })
        return try await Blocking.run { [catalog, history, mesh, node] in
            let now = Monotonic.wallMilliseconds
            let isClockDoubtful = mesh.isClockDoubtful
            for entry in try catalog.read({ try $0.nodes() })
            where entry.id != node && entry.description != nil {
                let isForgotten =
                    online[entry.id] == nil && !isClockDoubtful
                    && entry.seen.map { now > $0 + Self.forgottenAfterMilliseconds } ?? false
                if isForgotten { continue }
                guard let commit else { return false }
                var heads = online[entry.id] ?? []
                if let head = try history.reference(History.peerReference(entry.id)) {
                    heads.append(head)
                }
                let graph = history.graph
                let knows = try heads.contains { head in
                    guard graph.contains(head) else { return false }
                    return try head == commit || graph.isAncestor(commit, of: head)
                }
                if !knows { return false }
            }
            return true
        }
    }

    private func drop(_ extent: Extent) async throws {
        let isMarked = try await Blocking.run { [self] in
            guard try !store.isUnfinished(extent.root),
                try catalog.perform({ try mark(extent, $0) })
            else { return false }
            try surroundings.note(extent)
            try catalog.flush()
            return true
        }
        guard isMarked else { return }
        let removal = ContentRemoval(catalog: catalog, store: store, exchange: exchange)
        guard try await removal.run(extent, if: { [self] in try mark(extent, $0) }) else {
            return try await Blocking.run { [self] in try surroundings.note(extent) }
        }
        logger.debug("gave up \(extent.root), \(extent.length) bytes that no file has")
    }

    private func mark(_ extent: Extent, _ tx: Transaction) throws -> Bool {
        try !isHeld && tx.beginDropping(extent, at: Monotonic.wallMilliseconds)
    }
}
