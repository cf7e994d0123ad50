import Catalog
import Foundation
import History
import Mesh
import Synchronization
import Volume

// `delugefs purge`: old bytes go before their time.
extension Node {
    /// How long a purge waits for what may go here.
    static let purgePatience = Duration.seconds(10)
    /// Contents marked in one operation of the catalog.
    static let purgeBatchMax = 256

    func purge(_ message: ControlMessage.Purge) async throws -> ControlMessage.PurgeReply {
        let path = try Self.names(of: message.path)
        let old = try await Blocking.alone { [self] in try oldContent(of: path) }
        var reply = ControlMessage.PurgeReply()
        let here = try await Blocking.alone { [self] in try expire(old) }
        for peer in mesh.peers {
            if peer.isOnline, await tell(peer, toExpire: old) {
                reply.told.append(peer.hello.name)
            } else {
                reply.untold.append(peer.hello.name)
            }
        }
        reply.untold += absentNames()
        let deadline = ContinuousClock.now + Self.purgePatience
        var left = here
        while !left.isEmpty, ContinuousClock.now < deadline {
            left = try await Blocking.run { [left, self] in try stillHere(left) }
            if !left.isEmpty { try await Task.sleep(for: .milliseconds(200)) }
        }
        reply.waiting = left.count
        reply.waitingBytes = left.reduce(0) { $0 + $1.length }
        reply.gone = here.count - left.count
        reply.goneBytes = here.reduce(0) { $0 + $1.length } - reply.waitingBytes
        return reply
    }

    /// What was replaced or removed at a path or below it, in all of the history.
    private func oldContent(of path: [FileName]) throws -> [Extent] {
        guard let head = try timeline.history.head() else { return [] }
        var log = try PathLog(
            [LogPosition(commit: head, path: path)], of: timeline.history, entriesMax: .max)
        var found: Set<Extent> = []
        while !log.isAtEnd {
            guard running.withLock({ $0.state }) == "ready" else {
                throw NodeError("The node is stopping.")
            }
            guard let commit = try log.next() else { continue }
            for change in commit.changes {
                // A file with several names may be another's: its own log tells of it.
                guard let place = change.path, place.starts(with: commit.path) else { continue }
                found.formUnion(change.replaced)
            }
        }
        return found.sorted { $0.root < $1.root }
    }

    /// Old content may go as soon as every node knows that no file has it.
    /// - Returns: what of it is here.
    func expire(_ extents: [Extent]) throws -> [Extent] {
        var here: [Extent] = []
        for start in stride(from: 0, to: extents.count, by: Self.purgeBatchMax) {
            let part = extents[start..<min(start + Self.purgeBatchMax, extents.count)]
            here += try catalog.perform { try $0.expire(part) }
        }
        if !here.isEmpty { collector.hurry() }
        return here
    }

    private func stillHere(_ extents: [Extent]) throws -> [Extent] {
        try catalog.read { reader in
            try extents.filter { try (reader.content($0.root)?.state ?? .absent) != .absent }
        }
    }

    private func tell(_ peer: Peer, toExpire extents: [Extent]) async -> Bool {
        for start in stride(from: 0, to: extents.count, by: PeerService.extentsMax) {
            let part = extents[start..<min(start + PeerService.extentsMax, extents.count)]
            let message = PeerMessage.Expire(extents: part.map(PeerMessage.ExtentName.init))
            guard let body = try? JSONEncoder().encode(message),
                (try? await mesh.request(
                    peer.node, path: "/v1/expire", body: Array(body), timeout: .seconds(30)
                ).successful()) != nil
            else { return false }
        }
        return true
    }

    /// Nodes of the volume that have not been heard of since this one started.
    private func absentNames() -> [String] {
        let heard = Set(mesh.peers.map(\.node) + [identity.node])
        let known = (try? catalog.read { try $0.nodeDescriptions() }) ?? [:]
        return known.filter { !heard.contains($0.key) }.map(\.value.name).sorted()
    }
}
