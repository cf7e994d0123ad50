import Catalog
import FUSE
import Foundation
import History
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

    /// `POST /v1/log`: a part of it.
    public struct Log: Codable, Sendable {
        public struct Position: Codable, Sendable {
            public var commit: String
            public var path: [UInt8]
        }

        public var path: [UInt8]
        public var limit: Int
        /// Where the part before ended; nil: from the present.
        public var positions: [Position]?
        public init(path: [UInt8], limit: Int, positions: [Position]?) {
            self.path = path
            self.limit = limit
            self.positions = positions
        }
    }

    public struct LogReply: Codable, Sendable {
        public struct Change: Codable, Sendable {
            /// `created`, `removed`, `renamed`, `linked`, `edited`, `touched`, `mode`, `owner` or
            /// `attributes`
            public var what: String
            public var path: String
            public var isDirectory: Bool
            /// Of a renamed file, what it was called; of a linked one, another name.
            public var from: String?
            /// For a person: from what to what.
            public var detail: String?
        }

        public struct Entry: Codable, Sendable {
            public var commit: String
            /// ISO 8601: of its last change.
            public var time: String
            /// Who made it; nil: a merge of what several nodes made.
            public var node: String?
            public var name: String?
            public var changes: [Change]
            /// There are more, which are not told.
            public var isCut: Bool
        }

        /// Newest first.
        public var entries: [Entry]
        /// Where to go on; empty: that was all.
        public var positions: [Log.Position]
    }

    /// `POST /v1/purge`: a path in the volume.
    public struct Purge: Codable, Sendable {
        public var path: [UInt8]
        public init(path: [UInt8]) { self.path = path }
    }

    public struct PurgeReply: Codable, Sendable {
        /// Old contents that were here and went, and their bytes.
        public var gone = 0
        public var goneBytes: UInt64 = 0
        /// Those that stay until every node has heard that no file has them.
        public var waiting = 0
        public var waitingBytes: UInt64 = 0
        /// Names of nodes that were told, and of those that could not be.
        public var told: [String] = []
        public var untold: [String] = []
    }

    /// `POST /v1/restore`: paths in the volume, bytes.
    public struct Restore: Codable, Sendable {
        public var path: [UInt8]
        /// As `PastTime.normalised` gives it.
        public var at: String
        public var to: [UInt8]?
        public init(path: [UInt8], at: String, to: [UInt8]?) {
            self.path = path
            self.at = at
            self.to = to
        }
    }

    public struct RestoreReply: Codable, Sendable {
        /// What could not be restored.
        public struct Failure: Codable, Sendable {
            public var path: String
            /// In one clause for a person.
            public var reason: String
        }

        /// The state that was restored from.
        public var commit: String
        /// ISO 8601: of its last change.
        public var time: String
        /// Directories and all else that were gone, changed, and the same.
        public var made = 0
        public var changed = 0
        public var same = 0
        /// Files whose content no online disk has.
        public var missing = 0
        /// What else could not be restored.
        public var blocked = 0
        /// The first of both.
        public var failures: [Failure] = []

        public init(commit: String, time: String) {
            self.commit = commit
            self.time = time
        }
    }
}

/// Points in the past as a person writes them, for command lines.
public enum PastTime {
    /// What means the same to the node: times in this process's time zone, from now.
    public static func normalised(_ text: String) throws -> String {
        do throws(PastError) {
            return try PastPoint(text, now: Int64(Monotonic.wallMilliseconds)).text
        } catch { throw NodeError(error.description) }
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
                return try await answer(request) { (message: ControlMessage.WhereIs) in
                    try await whereAre(message.paths)
                }
            case ("POST", "/v1/wait"):
                return try await answer(request, wait)
            case ("POST", "/v1/log"):
                return try await answer(request, log)
            case ("POST", "/v1/purge"):
                return try await answer(request, purge)
            case ("POST", "/v1/scrub"):
                return try await answer(request, scrub)
            case ("POST", "/v1/restore"):
                return try await answer(request, restore)
            case ("POST", "/v1/drain"):
                return try await answer(request, drain)
            case ("POST", "/v1/forget"):
                return try await answer(request, forget)
            case ("POST", "/v1/policy"):
                return try await answer(request, policy)
            default: return .refusal(404, "This node does not know that command.")
            }
        } catch let error as NodeError {
            return .refusal(409, error.description)
        } catch let error as PastError {
            return .refusal(409, error.description)
        } catch { return .refusal(500, "\(error)") }
    }

    private func answer<Message: Decodable, Reply: Encodable>(
        _ request: PeerRequest, _ body: (Message) async throws -> Reply
    ) async throws -> PeerResponse {
        let message = try JSONDecoder().decode(Message.self, from: Data(request.body))
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return PeerResponse(body: .bytes(Array(try encoder.encode(await body(message)))))
    }

    // MARK: wait

    private func wait(_ message: ControlMessage.Wait) async throws -> ControlMessage.WaitReply {
        let seconds = min(message.timeoutSeconds ?? Self.waitSecondsMax, Self.waitSecondsMax)
        let deadline = ContinuousClock.now + .seconds(seconds)
        let late = ControlMessage.WaitReply(outcome: .timedOut, text: "")
        await noticeCloses()
        let (isPublished, isCommitted) = try await Blocking.alone { [publisher, timeline] in
            let isPublished = publisher.settle(until: deadline)
            return (isPublished, isPublished && timeline.commitNow(until: deadline))
        }
        // Not `applied`: that may be a merge which never leaves this node.
        let heads = timeline.announced
        guard isCommitted, !heads.isEmpty else {
            let hasFailed = !isPublished && ContinuousClock.now < deadline
            let reason = hasFailed ? publisher.lastFailure : nil
            return ControlMessage.WaitReply(
                outcome: .timedOut,
                text: reason.map { "Some closed files cannot be published now: \($0)." }
                    ?? "Some closed files are still being published.")
        }
        mesh.pokeAll()
        while let missing = await unacknowledged(heads) {
            guard ContinuousClock.now < deadline else {
                return ControlMessage.WaitReply(
                    outcome: .timedOut, text: "\(missing) has not acknowledged the latest changes.")
            }
            try await Task.sleep(for: Self.waitPoll)
        }
        guard message.replicated else {
            return ControlMessage.WaitReply(outcome: .done, text: "")
        }
        var replication = try await ReplicationWait(self)
        while true {
            if let reply = try await replication.outcome() {
                if reply.outcome == .done { await catchUpStatus() }
                return reply
            }
            guard ContinuousClock.now < deadline else { return late }
            try await Task.sleep(for: ReplicationWait.poll)
        }
    }

    /// A close that has returned may still be on its way: the kernel sends RELEASE without waiting
    /// for it. It is queued by then, so what is asked afterwards is read afterwards, and when all
    /// that was being answered at that moment is answered too, the publisher knows of the close.
    func noticeCloses() async {
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
            for head in heads where await !hasTaken(head, peer) {
                if mesh.peer(peer.node)?.isOnline == true { return peer.hello.name }
            }
        }
        return nil
    }

    func hasTaken(_ head: ObjectID, _ peer: Peer) async -> Bool {
        if peer.hello.announced == [head] { return true }
        let body = try? JSONEncoder().encode(PeerMessage.HasCommit(commit: "\(head)"))
        let reply = try? await mesh.request(
            peer.node, path: "/v1/has-commit", body: Array(body ?? Data()),
            timeout: .seconds(2)
        ).successful()
        let has = reply.flatMap {
            try? JSONDecoder().decode(PeerMessage.HasCommitReply.self, from: Data($0.body)).has
        }
        return has == true
    }
}
