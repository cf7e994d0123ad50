import Catalog
import FUSE
import FoundationEssentials
import Logging
import Mesh
import Mount
import Store
import Swarm
import Synchronization
import Volume

// What the parts tell each other about content and peers.
extension Node {
    /// Free space that clones leave to this disk's own writers, or an eighth of a small disk, which is more than
    /// `SpaceGuard` keeps.
    static let cloneReserveBytes: UInt64 = 256 << 20
    static let helloFreeStep: UInt64 = 64 << 20
    static let housekeepingInterval = Duration.seconds(2)
    /// Between notes of who is online.
    static let roundsPerNote = 30
    /// Between counts of what only history holds, and a count's share of all time.
    static let historyCountInterval = Duration.seconds(6)
    static let historyCountShare = 100

    // MARK: Peers

    func hello() -> Hello {
        // In steps, so that not every byte written is news to every peer.
        let free = ((try? store.freeBytes()) ?? 0) / Self.helloFreeStep * Self.helloFreeStep
        let heads = timeline.announced
        return Hello(
            name: file.name, machine: file.machine, version: Self.version,
            bulkPort: Int(swarm.port), dhtPort: finder.port,
            dhtAddresses: finder.addresses, head: heads.first, announced: heads,
            freeBytes: free, capacityBytes: countedBytes,
            historyBytes: running.withLock { $0.historyBytes } / Self.helloFreeStep
                * Self.helloFreeStep, holderLogs: holderLogs.vector)
    }

    /// Called by the mesh in the order of events; must not wait.
    func heard(_ event: MeshEvent) {
        switch event {
        case .online(let peer), .changed(let peer):
            gossip.heard(peer)
            holderLogs.heard(peer, through: mesh) { [weak self] in self?.replicator.poke() }
            replicator.poke()
        case .offline(let peer):
            replicator.poke()
            Task { try? await Blocking.run { [weak self] in try self?.keepSeen([peer]) } }
        }
    }

    /// When peers were heard last, for the time after the next start.
    private func keepSeen(_ peers: [Peer]) throws {
        for peer in peers {
            try catalog.perform {
                try $0.setNodeInfo(
                    peer.node, seen: UInt64(max(0, peer.lastSeenMilliseconds)), info: nil)
            }
        }
    }

    // MARK: Content

    /// Files became objects here.
    func published(_ extents: [Extent]) {
        timeline.changed()
        note(extents)
    }

    /// Content from elsewhere became an object here, or an object turned out to be missing.
    func arrived(_ extent: Extent, _ state: ContentState) { note([extent]) }

    /// A clone came to nothing: others need not wait for it.
    func gaveUp(_ extent: Extent) { note([extent]) }

    private func note(_ extents: [Extent], cloning: Bool = false) {
        do {
            try holderLogs.note(extents, cloning: cloning) { [mesh] in mesh.pokeAll() }
        } catch { logger.error("holder log: \(error)") }
        if !cloning { finder.noted(extents) }
        replicator.poke()
    }

    /// Another node asks this one to store copies. Clones begin in the order in which they are asked
    /// for, as many as there is room for.
    func acceptClones(_ extents: [Extent]) throws -> [PeerMessage.CloneReply.Answer] {
        try exchange.admission.withLock { _ in
            var new: [Extent] = []
            var room = try cloneRoom()
            let (isReady, isDraining) = running.withLock { ($0.state == "ready", $0.isDraining) }
            let answers = try extents.map { extent -> PeerMessage.CloneReply.Answer in
                if isDraining { return .draining }
                if try promote(extent) { return .stored }
                guard isReady else { return .busy }
                if exchange.isCloning(extent) || new.contains(extent) { return .accepted }
                let answer = room.answer(extent)
                if answer == .accepted { new.append(extent) }
                return answer
            }
            if room.lackingBytes > 0 { makeRoom(for: room.lackingBytes) }
            // Before they start: a clone that fails at once is to be taken back.
            note(new, cloning: true)
            for extent in new { _ = exchange.clone(extent) }
            return answers
        }
    }

    /// What this node can take on now.
    func cloneRoom() throws -> CloneRoom {
        let local = catalog.local
        return CloneRoom(
            free: try store.freeBytes(), reserve: cloneReserveBytes, stored: local.stored.bytes,
            cached: local.cached.bytes, capacity: countedBytes, clones: exchange.clones)
    }

    /// Cached copies are to go until so much can be taken on.
    private func makeRoom(for bytes: UInt64) {
        roomWanted.store(bytes, ordering: .relaxed)
        replicator.poke()
    }

    /// What replication goes by now.
    func options(_ usual: Replicator.Options) -> Replicator.Options {
        var options = usual
        options.capacity = countedBytes
        options.lacksRoom = lacksRoom()
        return options
    }

    /// Whether cached copies are to make room.
    func lacksRoom() -> Bool {
        let local = catalog.local
        guard local.cached.bytes > 0 || (try? catalog.read { try $0.hasPartial() }) == true else {
            return false
        }
        // Once: who still wants it asks again.
        let wanted = roomWanted.exchange(0, ordering: .relaxed)
        return wanted > 0 || local.bytes > capacityBytes && capacityBytes > 0
            || (try? collector.lacksRoom()) == true
    }

    /// What is here is a copy that counts from now on.
    /// - Returns: false when it is not here.
    @discardableResult
    func promote(_ extent: Extent) throws -> Bool {
        guard try exchange.confirmedState(of: extent) != .none else { return false }
        let isStored = try catalog.perform { tx in
            let state = try tx.content(extent.root)?.state
            if state == .cached {
                try tx.setContentState(extent, .stored, at: Monotonic.wallMilliseconds)
            }
            return state == .cached || state == .stored
        }
        // Also when it was stored already: the log may have missed it.
        note([extent])
        return isStored
    }

    /// What came from elsewhere is in the catalog: the kernel forgets what it remembers of it.
    func applied(_ effects: AppliedEffects) {
        running.withLock { $0.mount?.fileSystem }?.invalidate(effects)
        for ino in effects.orphaned { publisher.unlinked(ino) }
        replicator.poke()
    }

    func keepHouse() async {
        let clock = ContinuousClock()
        var round = 0
        var nextCount = clock.now
        while !Task.isCancelled {
            do {
                // A hello is heard once: what could not be fetched then is tried again.
                for peer in mesh.peers where peer.isOnline { heard(.changed(peer)) }
                try await Blocking.run { [self] in try describeAgain() }
                if round % Self.roundsPerNote == 0 {
                    let peers = mesh.peers.filter(\.isOnline)
                    try await Blocking.run { [self] in try keepSeen(peers) }
                }
                if clock.now >= nextCount {
                    let start = clock.now
                    try await countHistory()
                    nextCount =
                        start
                        + max(
                            Self.historyCountInterval,
                            (clock.now - start) * Self.historyCountShare)
                }
            } catch { logger.warning("housekeeping: \(error)") }
            round += 1
            try? await Task.sleep(for: Self.housekeepingInterval)
        }
    }

    private func countHistory() async throws {
        let bytes = try await Blocking.run { [catalog] in
            try catalog.snapshot { try $0.unreferencedBytes() }
        }
        running.withLock { $0.historyBytes = bytes }
    }

    // MARK: Statistics

    func statistics() -> VolumeStatistics {
        let peers = mesh.peers.filter(\.isOnline)
        let copies = UInt64(max(1, min(settings.copies, peers.count + 1)))
        // What only history holds, and what is only cached, goes as soon as somebody needs its room.
        let localFree =
            ((try? store.freeBytes()) ?? 0) + running.withLock { $0.historyBytes }
            + catalog.local.cached.bytes
        let capacity = peers.reduce(countedBytes) { $0 + $1.hello.capacityBytes }
        let free = peers.reduce(min(localFree, countedBytes)) {
            $0 + min($1.hello.freeBytes + $1.hello.historyBytes, $1.hello.capacityBytes)
        }
        let counts = (try? catalog.perform { $0.counts }) ?? Counts()
        let block: UInt64 = 4096
        return VolumeStatistics(
            blocks: capacity / copies / block, blocksFree: free / copies / block,
            blocksAvailable: min(free / copies, localFree) / block,
            files: counts.inodes + (1 << 32), filesFree: 1 << 32)
    }

    /// Names of the disks that hold all of these as stored copies, offline ones too.
    func holderNames(_ extents: [Extent]) -> [String] {
        ((try? holders(of: extents)) ?? []).filter { $0.complete && $0.stored }.map(\.name)
    }

    /// Everybody who holds a part, as the logs say.
    func holders(of extents: [Extent]) throws -> [Whereabouts.Holder] {
        var states: [NodeID: [HolderState]] = [:]
        for extent in extents {
            for holder in try catalog.read({ try $0.holders(of: extent.root) }) {
                states[holder.node, default: []].append(holder.state)
            }
        }
        let names = try catalog.read { try $0.nodeDescriptions() }
        return states.sorted { $0.key < $1.key }.compactMap { node, states in
            let isOnline = node == identity.node || mesh.peer(node)?.isOnline == true
            // Of a disk that will not come back nothing is expected.
            guard names[node] != nil || isOnline else { return nil }
            let whole = states.filter { $0 != .cloning }
            return Whereabouts.Holder(
                node: "\(node)", name: names[node]?.name ?? "?",
                machine: names[node]?.machine ?? "?",
                online: isOnline, complete: whole.count == extents.count,
                stored: states.allSatisfy { $0 == .stored })
        }
    }
}

/// What a node can still take on, with the clones that are under way paid for.
struct CloneRoom {
    /// Bytes: free now, and with what is only cached out of the way.
    private let free: UInt64
    private let possible: UInt64
    private let reserve: UInt64
    private var used: UInt64
    private let capacity: UInt64
    private var missing: UInt64
    private var count: Int
    private var clonedBytes: UInt64
    /// What has to be freed for a clone that would find room then.
    private(set) var lackingBytes: UInt64 = 0

    init(
        free: UInt64, reserve: UInt64, stored: UInt64, cached: UInt64, capacity: UInt64,
        clones: ContentExchange.Clones
    ) {
        self.free = free
        self.reserve = reserve
        possible = free + cached
        used = stored + clones.bytes
        self.capacity = capacity
        missing = clones.missingBytes
        count = clones.count
        clonedBytes = clones.bytes
    }

    /// Bytes of the largest clone that there can be room for.
    var bytes: UInt64 {
        func less(_ a: UInt64, _ b: UInt64) -> UInt64 { a - min(a, b) }
        return min(less(possible, missing + reserve), less(capacity, used))
    }

    mutating func answer(_ extent: Extent) -> PeerMessage.CloneReply.Answer {
        let length = extent.length
        guard length <= bytes else { return .full }
        guard free >= missing + length + reserve else {
            lackingBytes = max(lackingBytes, missing + length + reserve)
            return .busy
        }
        guard
            count < Replicator.clonesAnySizeMax
                || count < Replicator.clonesMax
                    && clonedBytes + length <= Replicator.cloneBytesMax
        else { return .busy }
        used += length
        missing += length
        count += 1
        clonedBytes += length
        return .accepted
    }
}
