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
    /// Free space that clones leave to this disk's own writers.
    static let cloneReserveBytes: UInt64 = 256 << 20
    static let helloFreeStep: UInt64 = 64 << 20
    static let housekeepingInterval = Duration.seconds(2)
    /// Between counts of what only history holds.
    static let roundsPerCount = 30

    // MARK: Peers

    func hello() -> Hello {
        // In steps, so that not every byte written is news to every peer.
        let free = ((try? store.freeBytes()) ?? 0) / Self.helloFreeStep * Self.helloFreeStep
        let heads = timeline.announced
        return Hello(
            name: file.name, machine: file.machine, version: Self.version,
            bulkPort: Int(swarm.port), head: heads.first, announced: heads,
            freeBytes: free,
            capacityBytes: capacityBytes, holderLogs: holderLogs.vector)
    }

    /// Called by the mesh in the order of events; must not wait.
    func heard(_ event: MeshEvent) {
        switch event {
        case .online(let peer), .changed(let peer):
            gossip.heard(peer)
            holderLogs.heard(peer, through: mesh) { [weak self] in self?.replicator.poke() }
            replicator.poke()
        case .offline: replicator.poke()
        }
    }

    // MARK: Content

    /// Files became objects here.
    func published(_ extents: [Extent]) {
        timeline.changed()
        log(extents.map { .stored($0) })
    }

    /// Content from elsewhere became an object here, or an object turned out to be missing.
    func arrived(_ extent: Extent, _ state: ContentState) {
        switch state {
        case .stored: log([.stored(extent)])
        case .cached: log([.cached(extent)])
        default: log([.lost(extent)])
        }
    }

    /// A clone came to nothing: others need not wait for it.
    func gaveUp(_ extent: Extent) {
        guard let state = try? exchange.state(of: extent), state == .none else { return }
        log([.lost(extent)])
    }

    private func log(_ entries: [Volume.HolderLogEntry]) {
        guard !entries.isEmpty else { return }
        do {
            try holderLogs.append(entries) { [mesh] in mesh.pokeAll() }
        } catch { logger.error("holder log: \(error)") }
        replicator.poke()
    }

    /// Another node asks this one to store a copy.
    func acceptClone(_ extent: Extent) throws -> PeerMessage.CloneReply.Answer {
        switch try exchange.state(of: extent) {
        case .stored: return .stored
        case .cached:
            try catalog.perform {
                try $0.setContentState(extent, .stored, at: Monotonic.wallMilliseconds)
            }
            log([.stored(extent)])
            return .stored
        case .none: break
        }
        guard running.withLock({ $0.state }) == "ready" else { return .busy }
        if exchange.isCloning(extent) { return .accepted }
        let used = try catalog.read { try $0.total(.stored).bytes + $0.total(.cached).bytes }
        let free = try store.freeBytes()
        guard free > extent.length + Self.cloneReserveBytes, used + extent.length <= capacityBytes
        else { return .full }
        guard exchange.cloning < Replicator.clonesMax else { return .busy }
        // Before it starts: the entry must not come behind the one that says it is stored.
        log([.cloning(extent)])
        _ = exchange.clone(extent)
        // Another request for it may have been faster.
        switch try exchange.state(of: extent) {
        case .stored: log([.stored(extent)])
        case .cached, .none: break
        }
        return .accepted
    }

    /// What came from elsewhere is in the catalog: the kernel forgets what it remembers of it.
    func applied(_ effects: AppliedEffects) {
        running.withLock { $0.mount?.fileSystem }?.invalidate(effects)
        for ino in effects.orphaned { publisher.unlinked(ino) }
        replicator.poke()
    }

    func keepHouse() async {
        var round = 0
        while !Task.isCancelled {
            do {
                // A hello is heard once: what could not be fetched then is tried again.
                for peer in mesh.peers where peer.isOnline { heard(.changed(peer)) }
                if round % Self.roundsPerCount == 0 {
                    let bytes = try await Blocking.run { [catalog] in
                        try catalog.unreferencedBytes()
                    }
                    running.withLock { $0.historyBytes = bytes }
                }
            } catch { logger.warning("housekeeping: \(error)") }
            round += 1
            try? await Task.sleep(for: Self.housekeepingInterval)
        }
    }

    // MARK: Statistics

    func statistics() -> VolumeStatistics {
        let peers = mesh.peers.filter(\.isOnline)
        let copies = UInt64(max(1, min(settings.copies, peers.count + 1)))
        let localFree = (try? store.freeBytes()) ?? 0
        let capacity = peers.reduce(capacityBytes) { $0 + $1.hello.capacityBytes }
        let free = peers.reduce(min(localFree, capacityBytes)) { $0 + $1.hello.freeBytes }
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
        return states.sorted { $0.key < $1.key }.map { node, states in
            let whole = states.filter { $0 != .cloning }
            return Whereabouts.Holder(
                node: "\(node)", name: names[node]?.name ?? "?",
                machine: names[node]?.machine ?? "?",
                online: node == identity.node || mesh.peer(node)?.isOnline == true,
                complete: whole.count == extents.count,
                stored: states.allSatisfy { $0 == .stored })
        }
    }
}

extension Catalog {
    /// Bytes of complete content here that no file has.
    fileprivate func unreferencedBytes() throws -> UInt64 {
        var bytes: UInt64 = 0
        var after: Int64 = 0
        while true {
            let batch = try read { try $0.holdings(after: after, limit: 1000) }
            guard let last = batch.last else { return bytes }
            after = last.number
            for holding in batch where !holding.isReferenced {
                if [.cached, .stored].contains(holding.state) { bytes += holding.extent.length }
            }
        }
    }
}
