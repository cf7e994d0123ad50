import Catalog
import Foundation
import Mesh
import Mount
import Synchronization
import Volume

extension ControlMessage {
    /// `POST /v1/drain`
    public struct Drain: Codable, Sendable {
        public enum Wish: String, Codable, Sendable {
            case begin
            /// The disk stays after all.
            case cancel
            /// Only how far it is.
            case ask
        }
        public var wish: Wish
        public init(_ wish: Wish) { self.wish = wish }
    }

    public struct DrainReply: Codable, Sendable {
        public var isDraining: Bool
        /// Contents that this disk still has to keep for others.
        public var files: Int
        public var bytes: UInt64
        /// Changes are on their way to other nodes.
        public var isCommitting: Bool
        /// Nothing is needed from this disk any more.
        public var isDone: Bool
    }
}

// `delugefs drain`: the disk is to be taken away. Its copies count no longer, so that others are made;
// then they become cached ones, which stay on the disk.
extension Node {
    static let drainingKey = "draining"

    /// Bytes that this node may store for others; 0: what it has counts as no copy.
    var countedBytes: UInt64 { running.withLock { $0.isDraining } ? 0 : capacityBytes }

    /// Those online whose copies count.
    var storingPeers: [Peer] { mesh.peers.filter { $0.isOnline && $0.hello.capacityBytes > 0 } }

    func drain(_ message: ControlMessage.Drain) async throws -> ControlMessage.DrainReply {
        switch message.wish {
        case .ask: break
        case .cancel: try await Blocking.run { [self] in try setDraining(false) }
        case .begin:
            try checkDrain()
            try await Blocking.run { [self] in try setDraining(true) }
        }
        return try await drainState()
    }

    /// Where the copies could never go, draining is refused.
    private func checkDrain() throws {
        let others = storingPeers.count
        let copies = (try? catalog.read { try $0.copies(in: .root, otherwise: settings.copies) })
        let needed = copies ?? settings.copies
        guard others < needed else { return }
        let have =
            others == 0
            ? "no other disk that stores anything is online"
            : "only \(others) other \(others == 1 ? "disk that stores anything is" : "disks that store anything are") online"
        throw NodeError(
            "Files are to have \(needed) \(needed == 1 ? "copy" : "copies"), but \(have). Start more nodes, or ask for fewer copies (delugefs policy / --copies N), then drain again."
        )
    }

    private func setDraining(_ isDraining: Bool) throws {
        try catalog.perform { try $0.setMeta(Self.drainingKey, isDraining ? [1] : nil) }
        try catalog.flush()
        running.withLock { $0.isDraining = isDraining }
        if !isDraining { try promoteCached() }
        try holderLogs.setCapacity(countedBytes) { [mesh] in mesh.pokeAll() }
        replicator.poke()
    }

    /// What draining made cached copies of are copies again; those that are too many are dropped.
    private func promoteCached() throws {
        for entry in try catalog.read({ try $0.contents(in: .cached, limit: .max) })
        where try catalog.read({ try $0.references(to: entry.extent.root) }) > 0 {
            try promote(entry.extent)
        }
    }

    private func drainState() async throws -> ControlMessage.DrainReply {
        let isDraining = running.withLock { $0.isDraining }
        let (stored, uncommitted) = try await Blocking.run { [catalog] in
            try catalog.flush()
            return try catalog.snapshot { reader in
                (try reader.storedForFiles(), try reader.uncommittedFiles())
            }
        }
        let heads = timeline.announced
        var isCommitting = publisher.unpublished + uncommitted > 0
        // Names, and what is small enough to stand beside them, are copied with the history.
        if isDraining, !isCommitting, stored.count == 0 {
            isCommitting = await unacknowledged(heads) != nil
        }
        return ControlMessage.DrainReply(
            isDraining: isDraining, files: Int(stored.count), bytes: stored.bytes,
            isCommitting: isCommitting,
            isDone: isDraining && stored.count == 0 && !isCommitting)
    }
}
