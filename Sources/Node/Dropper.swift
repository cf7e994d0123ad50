import Catalog
import Logging
import Mesh
import Mount
import Store
import Volume

/// Gives up copies of files' content that others make unnecessary, by the rule of `DropAttempt`:
/// first mark, then ask the holders, and go only on their word.
///
/// Order, so that a crash at any step leaves the object and at worst a log that denies it, which the
/// next start corrects: the mark, durable; the answers; the loss in the log, durable; the object's
/// name in one step with the row; the bytes.
struct Dropper {
    /// Copies in one round of questions.
    static let batchMax = 256
    /// Copies looked at in one round, most of which are another holder's to drop.
    static let looksMax = 1024
    /// Until a copy is tried again.
    static let retryPause = Duration.seconds(60)
    /// Copies stay this long after they became too many, or for the time of grace if that is shorter.
    static let settlingMax = Duration.seconds(60)

    struct Attempt {
        let extent: Extent
        var rule: DropAttempt
    }

    let catalog: Catalog
    let store: Store
    let exchange: ContentExchange
    let holderLogs: HolderLogs
    let mesh: Mesh
    let logger: Logger

    /// What the attempts end with where enough others have confirmed.
    enum End {
        /// The bytes go.
        case absent
        /// They stay as a cached copy: for readers here, and for who is left with this disk alone.
        case cached
    }

    /// Marks of an earlier run: nothing had gone.
    func clearMarks() throws {
        let marked = try catalog.read { try $0.contents(in: .dropping, limit: .max) }
        let referenced = try catalog.read { reader in
            try marked.map(\.extent).filter { try reader.references(to: $0.root) > 0 }
        }
        try setState(of: referenced, .stored)
        try note(referenced)
    }

    /// - Parameter state: that the copies are in: `stored`, or `cached`.
    /// - Returns: how many ended so.
    func run(_ attempts: [Attempt], from state: ContentState, to end: End) async throws -> Int {
        let open = try await Blocking.run { try mark(attempts, in: state) }
        guard !open.isEmpty else { return 0 }
        let extents = open.map(\.extent)
        do {
            let confirmed = await ask(open)
            let ending = extents.filter { confirmed.contains($0) }
            try await Blocking.run {
                try setState(of: extents.filter { !confirmed.contains($0) }, state)
                if end == .cached { try setState(of: ending, .cached) }
                // Of what is marked it says that it is lost.
                try note(extents)
                if end == .absent { try catalog.flush() }
            }
            if end == .absent { for extent in ending { try await remove(extent) } }
            return ending.count
        } catch {
            // What is still marked is here still: it is to count and to confirm again.
            try await Blocking.run {
                try setState(of: extents, state)
                try note(extents)
            }
            throw error
        }
    }

    private func mark(_ attempts: [Attempt], in state: ContentState) throws -> [Attempt] {
        let marked = try catalog.perform { tx in
            try attempts.filter { attempt in
                let root = attempt.extent.root
                guard let known = try tx.content(root), known.extent == attempt.extent,
                    known.state == state, try tx.references(to: root) > 0,
                    try !store.isUnfinished(root)
                else { return false }
                try tx.setContentState(attempt.extent, .dropping, at: Monotonic.wallMilliseconds)
                return true
            }
        }
        try catalog.flush()
        return marked
    }

    /// - Returns: what enough holders have confirmed.
    private func ask(_ attempts: [Attempt]) async -> Set<Extent> {
        var attempts = attempts
        var questions: [NodeID: [Int]] = [:]
        for index in attempts.indices {
            _ = attempts[index].rule.begin()
            guard case .ask(let holders)? = attempts[index].rule.marked() else { continue }
            for holder in holders { questions[holder, default: []].append(index) }
        }
        var confirmed: Set<Extent> = []
        let extents = attempts.map(\.extent)
        await withTaskGroup(of: (NodeID, [Int], [PeerMessage.WhoHasReply.State]?).self) { group in
            for (holder, indices) in questions {
                group.addTask { [exchange] in
                    let states = try? await exchange.whoHas(indices.map { extents[$0] }, holder)
                    return (holder, indices, states)
                }
            }
            for await (holder, indices, states) in group {
                for (offset, index) in indices.enumerated() {
                    // An answer belongs to this attempt: it came on the connection that asked.
                    let nonce = attempts[index].rule.nonce
                    let action =
                        states?[offset] == .stored
                        ? attempts[index].rule.confirmed(by: holder, nonce: nonce)
                        : attempts[index].rule.refused(by: holder, nonce: nonce)
                    if action == .logLost { confirmed.insert(extents[index]) }
                }
            }
        }
        return confirmed
    }

    // MARK: Room

    /// Parts of contents that nobody fetches any more. They may be all that is left of a damaged copy,
    /// so that they go only where holders confirm theirs; without a mark, for a part confirms nothing.
    ///
    /// - Returns: how many are gone.
    func removeParts(_ attempts: [Attempt]) async throws -> Int {
        let confirmed = await ask(attempts)
        return try await Blocking.run {
            try confirmed.reduce(0) { try $0 + (removePart($1) ? 1 : 0) }
        }
    }

    private func removePart(_ extent: Extent) throws -> Bool {
        try catalog.perform { tx in
            guard try tx.content(extent.root)?.state == .partial, !exchange.isFetching(extent)
            else { return false }
            try store.removePartial(extent.root)
            try tx.setContentState(extent, .absent, at: Monotonic.wallMilliseconds)
            return true
        }
    }

    private func setState(of extents: [Extent], _ state: ContentState) throws {
        guard !extents.isEmpty else { return }
        try catalog.perform { tx in
            // Somebody may have written or fetched the same meanwhile.
            for extent in extents where try tx.content(extent.root)?.state == .dropping {
                try tx.setContentState(extent, state, at: Monotonic.wallMilliseconds)
            }
        }
    }

    private func note(_ extents: [Extent]) throws {
        try holderLogs.note(extents) { [mesh] in mesh.pokeAll() }
    }

    private func remove(_ extent: Extent) async throws {
        let removal = ContentRemoval(catalog: catalog, store: store, exchange: exchange)
        guard try await removal.run(extent, if: { _ in true }) else {
            return try await Blocking.run { try note([extent]) }
        }
        logger.debug("gave up \(extent.root), \(extent.length) bytes, of which others have copies")
    }
}
