import Catalog
import FoundationEssentials
import Logging
import Mesh
import Mount
import Synchronization
import Volume

/// Who holds what: this node's own signed log, and those of all others, also second-hand.
///
/// Logs choose candidates and count copies; what may be dropped is decided by asking the holders.
final class HolderLogs: Sendable {
    /// Entries in one answer.
    static let batchEntriesMax = 4096
    /// Logs that are being fetched at a time.
    static let pullsMax = 8
    /// Epochs are milliseconds since 1970; a greater one is a mistake that is not to be followed.
    static let epochMax: UInt64 = 1 << 60
    /// In a long append each so many entries are signed, and the last: an answer ends at one.
    static let signedEvery = 1024

    private let catalog: Catalog
    private let identity: NodeIdentity
    private let logger: Logger
    /// Bytes, as the log is to say.
    private let capacity: Mutex<UInt64>
    private let pulling = Mutex<Set<NodeID>>([])
    /// One append at a time: each entry's hash covers the one before.
    private let position: Mutex<HolderLogPosition>
    private let heads = Mutex<[NodeID: HolderLogHead]>([:])

    /// Opens this node's log; a first start begins it with what is here.
    init(catalog: Catalog, identity: NodeIdentity, capacity: UInt64, logger: Logger) throws {
        self.catalog = catalog
        self.identity = identity
        self.logger = logger
        self.capacity = Mutex(capacity)
        let node = identity.node
        let last = try catalog.read { try $0.logHead(of: node) }
        let known = last.flatMap {
            HolderLogPosition(node: node, epoch: $0.epoch, count: $0.number, chain: $0.chain)
        }
        position = Mutex(
            known ?? HolderLogPosition(node: node, epoch: Monotonic.wallMilliseconds))
        for entry in try catalog.read({ try $0.nodes() }) {
            if let head = try catalog.read({ try $0.logHead(of: entry.id) }) {
                heads.withLock {
                    $0[entry.id] = HolderLogHead(
                        node: entry.id, epoch: head.epoch, count: head.number, hash: head.chain)
                }
            }
        }
        if known == nil { try append(snapshot()) } else { try catchUp() }
    }

    /// What a crash, or a disk that was full, kept out of the log.
    private func catchUp() throws {
        let node = identity.node
        let (misstated, stated) = try catalog.read {
            (try $0.misstated(by: node), try $0.capacity(of: node))
        }
        let capacity = capacity.withLock(\.self)
        if stated != capacity { try append([.capacity(capacity)]) }
        try note(misstated)
    }

    private func snapshot() throws -> [Volume.HolderLogEntry] {
        try catalog.read { reader in
            let stored = try reader.contents(in: .stored, limit: .max)
            let cached = try reader.contents(in: .cached, limit: .max)
            return [.capacity(capacity.withLock(\.self))] + stored.map { .stored($0.extent) }
                + cached.map { .cached($0.extent) }
        }
    }

    // MARK: This node's log

    /// Bytes that this node may store from now on.
    func setCapacity(_ bytes: UInt64, told: @escaping @Sendable () -> Void) throws {
        let isNew = capacity.withLock { capacity in
            defer { capacity = bytes }
            return capacity != bytes
        }
        if isNew { try append([.capacity(bytes)], told: told) }
    }

    /// - Parameter told: called when peers may hear of them: only what survives a crash is told, or
    ///   the log would go on with other entries under the same numbers.
    func append(
        _ entries: [Volume.HolderLogEntry], told: @escaping @Sendable () -> Void = {}
    ) throws {
        guard !entries.isEmpty else { return }
        let head = try position.withLock { position in
            let next = try write(entries, behind: position, isNewEpoch: false)
            position = next
            return next
        }
        tell(head, then: told)
    }

    /// Appends what these contents are here now, where the log does not say it yet. Whoever changes a
    /// state calls this afterwards, and in whatever order those calls come, the last entry is true.
    ///
    /// - Parameter cloning: what is not complete here is about to be fetched.
    func note(
        _ extents: [Extent], cloning: Bool = false, told: @escaping @Sendable () -> Void = {}
    ) throws {
        guard !extents.isEmpty else { return }
        let head: HolderLogPosition? = try position.withLock { position in
            let entries = try catalog.read { reader in
                try extents.compactMap { try entry(about: $0, cloning, reader) }
            }
            guard !entries.isEmpty else { return nil }
            let next = try write(entries, behind: position, isNewEpoch: false)
            position = next
            return next
        }
        if let head { tell(head, then: told) }
    }

    private func entry(
        about extent: Extent, _ cloning: Bool, _ reader: Reader
    ) throws -> Volume.HolderLogEntry? {
        let content = try reader.content(extent.root)
        // By another length it is no content.
        if let content, content.extent != extent { return nil }
        let said = try reader.holders(of: extent.root).first { $0.node == identity.node }?.state
        switch content?.state {
        case .stored: return said == .stored ? nil : .stored(extent)
        case .cached: return said == .cached ? nil : .cached(extent)
        default:
            if cloning { return said == .cloning ? nil : .cloning(extent) }
            return said == nil ? nil : .lost(extent)
        }
    }

    private func tell(_ head: HolderLogPosition, then told: @escaping @Sendable () -> Void) {
        catalog.afterDurable { [weak self] failure in
            guard failure == nil, let self else { return }
            heads.withLock { heads in
                let known = heads[head.node].map { ($0.epoch, $0.count) } ?? (0, 0)
                // Appends of other threads may be told before this one.
                if (head.epoch, head.count) > known { heads[head.node] = HolderLogHead(head) }
            }
            told()
        }
    }

    /// A peer knows more of this node's log than the node, or something else: the root was restored
    /// or copied. It begins a new epoch with what is here, which replaces all earlier ones.
    func beginEpoch(
        overtakenBy theirs: HolderLogHead, told: @escaping @Sendable () -> Void
    ) throws {
        let head: HolderLogPosition? = try position.withLock { position in
            guard
                let known = HolderLogPosition(
                    node: theirs.node, epoch: theirs.epoch, count: theirs.count,
                    chain: theirs.hash),
                try position.isOvertaken(by: known) || isForked(position, from: known)
            else { return nil }
            let epoch = max(Monotonic.wallMilliseconds, position.epoch + 1, theirs.epoch + 1)
            let next = try write(
                snapshot(), behind: HolderLogPosition(node: identity.node, epoch: epoch),
                isNewEpoch: true)
            position = next
            return next
        }
        guard let head else { return }
        logger.notice("peers knew more of this disk's holder log than it does; it was begun anew")
        tell(head, then: told)
    }

    /// Whether the log said something else when it was as long as they know it: a restored root that
    /// went on, past what it had said before, until it met somebody.
    private func isForked(
        _ ours: HolderLogPosition, from theirs: HolderLogPosition
    ) throws -> Bool {
        guard theirs.epoch == ours.epoch, theirs.count > 0, theirs.count < ours.count else {
            return false
        }
        let entry = try catalog.read {
            try $0.logEntries(of: ours.node, epoch: ours.epoch, from: theirs.count, limit: 1).first
        }
        return entry.map { $0.number == theirs.count && $0.chain != theirs.chain } ?? false
    }

    /// Under the lock of `position`.
    private func write(
        _ entries: [Volume.HolderLogEntry], behind position: HolderLogPosition, isNewEpoch: Bool
    ) throws -> HolderLogPosition {
        let node = identity.node
        let now = Monotonic.wallMilliseconds
        var next = position
        var signed: [(StoredLogEntry, Volume.HolderLogEntry)] = []
        for (index, entry) in entries.enumerated() {
            next = next.advanced(by: entry)
            let isSigned = index == entries.count - 1 || index % Self.signedEvery == 0
            let signature =
                isSigned ? try identity.sign(next.signedBytes, for: .holderLogHead) : []
            signed.append(
                (
                    StoredLogEntry(
                        epoch: next.epoch, number: next.count, entry: entry.bytes,
                        chain: next.chain, signature: signature), entry
                ))
        }
        try catalog.perform { tx in
            if isNewEpoch { try tx.clearHolders(node) }
            for (stored, entry) in signed {
                try tx.appendLog(stored, of: node)
                try tx.apply(entry, of: node, at: now)
            }
        }
        return next
    }

    // MARK: Exchange

    /// In one order, so that an unchanged hello is the same.
    var vector: [HolderLogHead] {
        heads.withLock { $0.values.sorted { $0.node < $1.node } }
    }

    /// A peer said which logs it knows how far: what it has more of is fetched.
    /// - Parameter learned: called when something new is in the catalog.
    func heard(
        _ peer: Peer, through mesh: Mesh, learned: @escaping @Sendable () -> Void = {}
    ) {
        if let own = peer.hello.holderLogs.first(where: { $0.node == identity.node }) {
            heardOwn(own, told: { mesh.pokeAll() })
        }
        for theirs in peer.hello.holderLogs where theirs.node != identity.node {
            let ours = heads.withLock { $0[theirs.node] }
            let isNewer =
                ours.map { (theirs.epoch, theirs.count) > ($0.epoch, $0.count) } ?? true
            guard isNewer else { continue }
            let isNew = pulling.withLock {
                $0.count < Self.pullsMax && $0.insert(theirs.node).inserted
            }
            guard isNew else { continue }
            Task {
                do {
                    // What was said meanwhile is not said again: ask for the newest.
                    var newest: HolderLogHead? = theirs
                    while let head = newest {
                        if try await pull(head, from: peer.node, through: mesh) { continue }
                        let latest = mesh.peer(peer.node)?.hello.holderLogs.first {
                            $0.node == theirs.node
                        }
                        newest = latest.flatMap {
                            ($0.epoch, $0.count) > (head.epoch, head.count) ? $0 : nil
                        }
                    }
                } catch {
                    logger.warning("reading the holder log of \(theirs.node): \(error)")
                }
                _ = pulling.withLock { $0.remove(theirs.node) }
                learned()
            }
        }
    }

    /// What a peer knows of this node's own log is a beginning of it, unless the root is an old one.
    private func heardOwn(_ theirs: HolderLogHead, told: @escaping @Sendable () -> Void) {
        guard theirs.epoch <= Self.epochMax, let ours = heads.withLock({ $0[theirs.node] }),
            theirs != ours, theirs.epoch >= ours.epoch
        else { return }
        Task {
            do {
                try await Blocking.run { [self] in
                    try beginEpoch(overtakenBy: theirs, told: told)
                }
            } catch { logger.error("beginning the holder log anew: \(error)") }
        }
    }

    /// - Returns: whether there is more.
    private func pull(
        _ theirs: HolderLogHead, from peer: NodeID, through mesh: Mesh
    ) async throws -> Bool {
        let ours = heads.withLock { $0[theirs.node] }
        let after = ours?.epoch == theirs.epoch ? ours?.count ?? 0 : 0
        guard after < theirs.count else { return false }
        let request = PeerMessage.Holders(
            node: "\(theirs.node)", epoch: theirs.epoch, after: after)
        let reply = try await mesh.request(
            peer, path: "/v1/holders", body: Array(try JSONEncoder().encode(request)),
            timeout: .seconds(20), replyBytesMax: 4 << 20
        ).successful()
        let batch = try JSONDecoder().decode(PeerMessage.HoldersReply.self, from: Data(reply.body))
        return try await Blocking.run { [self] in
            try accept(batch, of: theirs, after: after, known: ours)
        }
    }

    private func accept(
        _ batch: PeerMessage.HoldersReply, of theirs: HolderLogHead, after: UInt64,
        known: HolderLogHead?
    ) throws -> Bool {
        let node = theirs.node
        let entries = batch.entries.compactMap { Volume.HolderLogEntry(bytes: $0) }
        let start =
            after > 0
            ? known.flatMap {
                HolderLogPosition(node: node, epoch: $0.epoch, count: $0.count, chain: $0.hash)
            } : HolderLogPosition(node: node, epoch: theirs.epoch)
        guard !entries.isEmpty, entries.count == batch.entries.count,
            entries.count <= Self.batchEntriesMax, let start,
            NodeIdentity.node(ofPublicKey: batch.publicKey) == node
        else { throw NodeError("The holder log of node \(node) is not in the right form.") }
        let end = start.advanced(by: entries)
        guard
            NodeIdentity.verify(
                batch.signature, of: end.signedBytes, for: .holderLogHead, by: node,
                publicKey: batch.publicKey)
        else { throw NodeError("The holder log of node \(node) is not signed by it.") }
        let now = Monotonic.wallMilliseconds
        try catalog.perform { tx in
            if after == 0 { try tx.clearHolders(node) }
            var position = start
            for (index, entry) in entries.enumerated() {
                position = position.advanced(by: entry)
                try tx.appendLog(
                    StoredLogEntry(
                        epoch: position.epoch, number: position.count, entry: entry.bytes,
                        chain: position.chain,
                        signature: index == entries.count - 1
                            ? batch.publicKey + batch.signature : []), of: node)
                try tx.apply(entry, of: node, at: now)
            }
        }
        heads.withLock { $0[node] = HolderLogHead(end) }
        return end.count < theirs.count
    }

    /// A part of a log that ends where its node has signed.
    func answer(_ request: PeerMessage.Holders) throws -> PeerResponse {
        guard let node = NodeID(hex: request.node), request.after < .max else {
            return .refusal(400, "That is no part of a log.")
        }
        let own = node == identity.node
        let keyBytes = identity.publicKey.count
        let entries = try catalog.read {
            try $0.logEntries(
                of: node, epoch: request.epoch, from: request.after + 1,
                limit: Self.batchEntriesMax)
        }
        // Of one's own only what is durable.
        let last = heads.withLock { $0[node] }.map { own ? $0.count : .max } ?? 0
        guard
            let end = entries.lastIndex(where: { !$0.signature.isEmpty && $0.number <= last })
        else {
            return .refusal(404, "There is nothing more of that log here.")
        }
        let signature = entries[end].signature
        let reply = PeerMessage.HoldersReply(
            entries: entries[...end].map(\.entry),
            publicKey: own ? identity.publicKey : Array(signature.prefix(keyBytes)),
            signature: own ? signature : Array(signature.dropFirst(keyBytes)))
        return PeerResponse(body: .bytes(Array(try JSONEncoder().encode(reply))))
    }
}

extension HolderLogHead {
    init(_ position: HolderLogPosition) {
        self.init(
            node: position.node, epoch: position.epoch, count: position.count,
            hash: position.chain)
    }
}

extension Transaction {
    /// What an entry says, as a row.
    func apply(_ entry: Volume.HolderLogEntry, of node: NodeID, at now: UInt64) throws {
        switch entry {
        case .stored(let extent): try setHolder(of: extent, node, .stored, since: now)
        case .cached(let extent): try setHolder(of: extent, node, .cached, since: now)
        case .cloning(let extent): try setHolder(of: extent, node, .cloning, since: now)
        case .lost(let extent): try setHolder(of: extent, node, nil, since: now)
        case .capacity(let bytes): try setMeta("capacity.\(node)", Array("\(bytes)".utf8))
        }
    }
}

extension Reader {
    /// What the node's log says it may store; nil: nothing is known of it.
    func capacity(of node: NodeID) throws -> UInt64? {
        try meta("capacity.\(node)").flatMap { UInt64(String(decoding: $0, as: UTF8.self)) }
    }
}
