import Catalog
import FUSE
import Foundation
import Mesh
import Mount
import Synchronization
import SystemPackage
import Volume

/// The bodies of the local control API, for command lines.
public enum ControlMessage {
    /// `POST /v1/whereis`: paths in the volume, bytes.
    public struct WhereIs: Codable, Sendable {
        public var paths: [[UInt8]]
        public init(paths: [[UInt8]]) { self.paths = paths }
    }

    /// `POST /v1/wait`
    public struct Wait: Codable, Sendable {
        public var replicated: Bool
        public var timeoutSeconds: Double?
        public init(replicated: Bool, timeoutSeconds: Double?) {
            self.replicated = replicated
            self.timeoutSeconds = timeoutSeconds
        }
    }

    public struct WaitReply: Codable, Sendable {
        public enum Outcome: String, Codable, Sendable { case done, timedOut, impossible }
        public var outcome: Outcome
        /// For a person: what is missing.
        public var text: String
    }
}

// `ROOT/control.sock`: who may connect is checked by the server.
extension Node {
    /// A wait without a timeout ends after this, so that nothing waits for ever.
    static let waitSecondsMax: Double = 7 * 24 * 3600
    static let waitPoll = Duration.milliseconds(50)
    /// How long a successful wait waits for `status` to say the same.
    static let catchUpMax = Duration.seconds(2)

    func control(_ request: PeerRequest) async -> PeerResponse {
        do {
            switch (request.method, request.path) {
            case ("GET", "/v1/status"):
                return try await Blocking.run { [self] in
                    PeerResponse(body: .bytes(statusText()))
                }
            case ("POST", "/v1/stop"):
                requestStop()
                return PeerResponse()
            case ("POST", "/v1/whereis"):
                let message = try JSONDecoder().decode(
                    ControlMessage.WhereIs.self, from: Data(request.body))
                return try await Blocking.run { [self] in
                    try encoded(try message.paths.map { try whereIs($0) })
                }
            case ("POST", "/v1/wait"):
                let message = try JSONDecoder().decode(
                    ControlMessage.Wait.self, from: Data(request.body))
                return try encoded(await wait(message))
            default: return .refusal(404, "This node does not know that command.")
            }
        } catch let error as NodeError {
            return .refusal(409, error.description)
        } catch { return .refusal(500, "\(error)") }
    }

    private func encoded(_ value: some Encodable) throws -> PeerResponse {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return PeerResponse(body: .bytes(Array(try encoder.encode(value))))
    }

    // MARK: whereis

    private func whereIs(_ path: [UInt8]) throws -> Whereabouts {
        let text = String(decoding: path, as: UTF8.self)
        let (inode, content) = try catalog.read { reader in
            var ino = InodeNumber.root
            for part in path.split(separator: 0x2F) {
                guard let name = FileName(Array(part)) else {
                    throw NodeError("\(text) is no path.")
                }
                do { ino = try reader.lookup(ino, name).ino } catch {
                    throw NodeError("There is no \(text) in the volume.")
                }
            }
            guard let inode = try reader.inode(ino) else {
                throw NodeError("There is no \(text) in the volume.")
            }
            let content = inode.kind == .file ? try reader.content(of: ino) : .empty
            return (inode, content)
        }
        let holders =
            content.extents.isEmpty
            ? try everybody() : try holders(of: content.extents)
        return Whereabouts(
            path: text, ino: inode.ino.rawValue, length: content.length,
            roots: content.extents.map { "\($0.root)" }, target: settings.copies,
            copies: holders.filter { $0.stored && $0.complete && $0.online }.count,
            holders: holders)
    }

    /// What lies in the metadata is on every node.
    private func everybody() throws -> [Whereabouts.Holder] {
        try catalog.read { try $0.nodeDescriptions() }.sorted { $0.key < $1.key }.map {
            Whereabouts.Holder(
                node: "\($0.key)", name: $0.value.name, machine: $0.value.machine,
                online: $0.key == identity.node || mesh.peer($0.key)?.isOnline == true,
                complete: true, stored: true)
        }
    }

    // MARK: wait

    private func wait(_ message: ControlMessage.Wait) async throws -> ControlMessage.WaitReply {
        let seconds = min(message.timeoutSeconds ?? Self.waitSecondsMax, Self.waitSecondsMax)
        let deadline = Date(timeIntervalSinceNow: seconds)
        let late = ControlMessage.WaitReply(outcome: .timedOut, text: "")
        await noticeCloses()
        let isCommitted = try await Blocking.alone { [publisher, timeline] in
            publisher.settle(until: deadline) && timeline.commitNow(until: deadline)
        }
        // Not `applied`: that may be a merge which never leaves this node.
        let heads = timeline.announced
        guard isCommitted, !heads.isEmpty else {
            return ControlMessage.WaitReply(
                outcome: .timedOut, text: "Some closed files are still being published.")
        }
        mesh.pokeAll()
        while let missing = await unacknowledged(heads) {
            guard Date() < deadline else {
                return ControlMessage.WaitReply(
                    outcome: .timedOut, text: "\(missing) has not acknowledged the latest changes.")
            }
            try await Task.sleep(for: Self.waitPoll)
        }
        guard message.replicated else {
            return ControlMessage.WaitReply(outcome: .done, text: "")
        }
        while true {
            if let reply = try await replicationOutcome() {
                if reply.outcome == .done { await catchUpStatus() }
                return reply
            }
            guard Date() < deadline else { return late }
            try await Task.sleep(for: Self.waitPoll)
        }
    }

    /// A close that has returned may still be on its way: the kernel sends RELEASE without waiting
    /// for it. It is queued by then, so what is asked afterwards is read afterwards, and when all
    /// that was being answered at that moment is answered too, the publisher knows of the close.
    private func noticeCloses() async {
        guard let mount = running.withLock({ $0.mount }) else { return }
        let path = mount.path.string
        // Twice: a reader that lost its processor with the RELEASE in hand has it back by then.
        for _ in 0..<2 {
            _ = try? await Blocking.alone {
                var statistics = statvfs()
                _ = statvfs(path, &statistics)
            }
            await withCheckedContinuation { continuation in
                let isKept = mount.session.afterCurrentRequests { continuation.resume() }
                if !isKept { continuation.resume() }
            }
        }
    }

    /// `status` follows the holders' logs, which come a moment after their answers: whoever looks
    /// after a successful wait shall find what he was told.
    private func catchUpStatus() async {
        let deadline = ContinuousClock.now + Self.catchUpMax
        mesh.pokeAll()
        while replicator.lacking.underReplicated.files > 0, ContinuousClock.now < deadline {
            replicator.poke()
            try? await Task.sleep(for: Self.waitPoll)
        }
    }

    /// The name of an online peer that has not taken in these commits; nil when all have.
    func unacknowledged(_ heads: [ObjectID]) async -> String? {
        for peer in mesh.peers where peer.isOnline {
            for head in heads where peer.hello.head != head {
                let body = try? JSONEncoder().encode(PeerMessage.HasCommit(commit: "\(head)"))
                let reply = try? await mesh.request(
                    peer.node, path: "/v1/has-commit", body: Array(body ?? Data()),
                    timeout: .seconds(2)
                ).successful()
                let has = reply.flatMap {
                    try? JSONDecoder().decode(
                        PeerMessage.HasCommitReply.self, from: Data($0.body)
                    ).has
                }
                if has != true, mesh.peer(peer.node)?.isOnline == true { return peer.hello.name }
            }
        }
        return nil
    }

    /// Asks the holders themselves whether every content has its copies.
    /// - Returns: nil while copies are being made.
    private func replicationOutcome() async throws -> ControlMessage.WaitReply? {
        let peers = mesh.peers.filter(\.isOnline)
        let able = peers.filter { $0.hello.capacityBytes > 0 }.count + (capacityBytes > 0 ? 1 : 0)
        var confirmed: [Extent: Int] = [:]
        var after: Int64 = 0
        while true {
            let batch = try await Blocking.run { [catalog, after] in
                try catalog.read { try $0.holdings(after: after, limit: 1000) }
            }
            guard let last = batch.last else { break }
            after = last.number
            for holding in batch where holding.isReferenced {
                confirmed[holding.extent] = holding.state == .stored ? 1 : 0
            }
        }
        if confirmed.isEmpty { return ControlMessage.WaitReply(outcome: .done, text: "") }
        let extents = Array(confirmed.keys)
        for peer in peers {
            for start in stride(from: 0, to: extents.count, by: 1000) {
                let part = Array(extents[start..<min(start + 1000, extents.count)])
                guard let states = try? await exchange.whoHas(part, peer.node) else { break }
                for (extent, state) in zip(part, states) where state == .stored {
                    confirmed[extent, default: 0] += 1
                }
            }
        }
        let missing = confirmed.values.filter { $0 < settings.copies }.count
        if missing == 0 { return ControlMessage.WaitReply(outcome: .done, text: "") }
        if able < settings.copies {
            return ControlMessage.WaitReply(
                outcome: .impossible,
                text:
                    "\(missing) contents cannot get \(settings.copies) copies: only \(able) online disks store any. Start more nodes."
            )
        }
        return nil
    }
}
