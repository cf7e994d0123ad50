import Catalog
import Foundation
import Glibc
import History
import Logging
import Mesh
import Mount
import Synchronization
import SystemPackage
import Volume

/// Brings peers' commits here and gives them ours.
final class Gossip: Sendable {
    /// Packs that are being fetched at a time, and from one peer: one that was cut off must not keep
    /// others waiting. What is not fetched for that is when another fetch has ended.
    static let pullsMax = 32
    static let pullsPerPeerMax = 2
    /// Only when the peer has not answered for this long the next begins beside it: what several peers
    /// have to send is the same for the most part, and would come from each of them.
    static let pullPatience = Duration.seconds(3)
    /// The same for a peer that answers and does not get done with it.
    static let pullPatienceMax = Duration.seconds(30)
    /// What a pack may weigh.
    static let packBytesMax: Int64 = 4 << 30
    /// Heads named in a request, on either side.
    static let headsMax = 64
    /// Refused heads remembered; beyond, all are forgotten and fetched once more.
    static let refusedMax = 1024
    /// What was wrong with a pack and not with a commit is fetched again after this.
    static let refusedPackPause = Duration.seconds(600)
    /// Of the reason that is told for a refusal.
    static let reasonCharactersMax = 500

    private let mesh: Mesh
    private let timeline: Timeline
    private let history: History
    private let logger: Logger
    private let pulling = Mutex<[ObjectID: Pull]>([:])
    /// Heads that were refused, so that they are not fetched every time.
    private let refused = Mutex<[ObjectID: Refusal]>([:])

    /// Those that were asked for the commit that is missing here, and do not have it.
    private let lacking = Mutex<Set<NodeID>>([])

    private struct Pull {
        let peer: NodeID
        let begin = ContinuousClock.now
    }

    private struct Refusal {
        var reason: String
        /// Nil: for good, the commit itself is not valid.
        var until: ContinuousClock.Instant?
    }

    /// Not valid by its bytes and its ancestors, whoever looks.
    struct InvalidCommit: Error, CustomStringConvertible {
        let commit: ObjectID
        let author: NodeID?
        let description: String
    }

    init(mesh: Mesh, timeline: Timeline, logger: Logger) {
        self.mesh = mesh
        self.timeline = timeline
        self.history = timeline.history
        self.logger = logger
    }

    /// A peer said hello: what it has and we have not is fetched.
    func heard(_ peer: Peer) {
        if let head = peer.hello.head { timeline.accepted(head, by: peer.node) }
        for head in peer.heads {
            if history.graph.contains(head) {
                timeline.received(head)
            } else {
                pull(head, from: peer.node)
            }
        }
    }

    /// Whether somebody online has heads that are not here yet.
    var isAwaiting: Bool {
        let refused = refused.withLock { Set($0.keys) }
        return mesh.peers.contains { peer in
            peer.isOnline
                && peer.heads.contains { !history.graph.contains($0) && !refused.contains($0) }
        }
    }

    /// Asks who is online for a commit that is missing here; true: all of them are known not to have
    /// it, and what they have is here.
    func isGone(_ commit: ObjectID) -> Bool {
        let online = mesh.peers.filter { $0.isOnline && $0.hello.head != nil }
        let lacking = lacking.withLock(\.self)
        for peer in online where !lacking.contains(peer.node) { pull(commit, from: peer.node) }
        return !online.isEmpty
            && online.allSatisfy { peer in
                lacking.contains(peer.node)
                    && peer.hello.head.map { history.graph.contains($0) } == true
            }
    }

    private func pull(_ head: ObjectID, from node: NodeID) {
        let isRefused = refused.withLock { refused in
            guard let refusal = refused[head] else { return false }
            return refusal.until.map { $0 > .now } ?? true
        }
        guard !isRefused else { return }
        let isNew = pulling.withLock { pulling in
            guard pulling[head] == nil, pulling.count < Self.pullsMax,
                pulling.values.count(where: { $0.peer == node }) < Self.pullsPerPeerMax,
                pulling.values.allSatisfy(isStuck)
            else { return false }
            pulling[head] = Pull(peer: node)
            return true
        }
        guard isNew else { return }
        Task {
            var isFetched = false
            do {
                try await fetch(head, from: node)
                timeline.received(head)
                refused.withLock { $0[head] = nil }
                isFetched = true
            } catch let error as InvalidCommit {
                refuse(head, of: node, "\(error)", until: nil)
                await tell([node, error.author ?? node], error.commit, "\(error)")
            } catch let error as UpgradeNeeded {
                refuse(head, of: node, "\(error)", until: nil)
            } catch let error as HistoryError
                where [.malformed, .unrelated, .tooLarge].contains(error.code)
            {
                refuse(head, of: node, "\(error)", until: .now + Self.refusedPackPause)
                await tell([node], head, "\(error)")
            } catch PeerError.status(404, _) where head == timeline.missing {
                lacking.withLock { _ = $0.insert(node) }
            } catch { logger.warning("fetching commit \(head) from node \(node): \(error)") }
            _ = pulling.withLock { $0.removeValue(forKey: head) }
            guard isFetched else { return }
            for peer in mesh.peers where peer.isOnline { heard(peer) }
        }
    }

    private func isStuck(_ pull: Pull) -> Bool {
        let age = ContinuousClock.now - pull.begin
        if age <= Self.pullPatience { return false }
        if age >= Self.pullPatienceMax { return true }
        guard let peer = mesh.peer(pull.peer), peer.isOnline else { return true }
        let silence = Int64(Monotonic.wallMilliseconds) - peer.lastSeenMilliseconds
        return .milliseconds(silence) > Self.pullPatience
    }

    private func refuse(
        _ head: ObjectID, of node: NodeID, _ reason: String, until: ContinuousClock.Instant?
    ) {
        logger.error("refused commit \(head) of node \(node): \(reason)")
        refused.withLock { refused in
            if refused.count >= Self.refusedMax { refused = [:] }
            refused[head] = Refusal(reason: reason, until: until)
        }
    }

    /// An author hears of what is wrong with its commit, and from whom it came hears it too.
    private func tell(_ nodes: Set<NodeID>, _ commit: ObjectID, _ reason: String) async {
        let message = PeerMessage.Refused(
            commit: "\(commit)", reason: String(reason.prefix(Self.reasonCharactersMax)))
        guard let body = try? JSONEncoder().encode(message) else { return }
        for node in nodes where mesh.peer(node)?.isOnline == true {
            // Who is not reached now hears it when he has restarted and the head is met again.
            _ = try? await mesh.request(
                node, path: "/v1/refused", body: Array(body), timeout: .seconds(5))
        }
    }

    /// What online peers have and this node refuses, for its owner.
    var problem: String? {
        let refused = refused.withLock { $0 }
        for peer in mesh.peers where peer.isOnline {
            for head in peer.heads {
                guard let refusal = refused[head] else { continue }
                return
                    "Changes that node \(peer.hello.name) has are not taken in, commit \(head): \(refusal.reason). Run the same version of delugefs on all nodes."
            }
        }
        return nil
    }

    private func fetch(_ head: ObjectID, from node: NodeID) async throws {
        try await Self.fetch(
            head, from: node, have: knownHeads(), through: mesh, into: history)
    }

    /// Fetches what leads to a head, validates it, and makes it durable.
    static func fetch(
        _ head: ObjectID, from node: NodeID, have: [ObjectID], through mesh: Mesh,
        into history: History
    ) async throws {
        let body = try JSONEncoder().encode(
            PeerMessage.Pack(want: [head.description], have: have.map(\.description)))
        let path = history.path.removingLastComponent().appending("tmp/pack-\(head)")
        let file = try FileDescriptor.open(
            path, .readWrite, options: [.create, .truncate, .closeOnExec],
            permissions: .ownerReadWrite)
        defer {
            try? file.close()
            unlink(path.string)
        }
        _ = try await mesh.download(
            node, path: "/v1/pack", body: Array(body), to: file.rawValue,
            timeout: .seconds(60), replyBytesMax: packBytesMax
        ).successful()
        try await Blocking.run(.packs) {
            _ = try history.receive(packs: [path], heads: [head]) { commit, intake in
                try validate(commit, intake)
            }
            try history.noteHead(head, of: node)
        }
    }

    /// Validity is a function of the commit's bytes and its ancestors alone.
    static func validate(_ commit: Commit, _ intake: Intake) throws {
        var author: NodeID?
        do {
            if case .change(let node) = try CommitMessage(decoding: commit.message).kind {
                author = node
            }
            let parent = try commit.parents.first.map { try intake.tree(of: $0) }
            _ = try difference(from: parent, to: commit.tree, source: intake)
        } catch let error as InvalidTree {
            throw InvalidCommit(commit: commit.id, author: author, description: "\(error)")
        }
    }

    private func knownHeads() throws -> [ObjectID] {
        var heads = Set(try history.references().values)
        if let applied = timeline.applied { heads.insert(applied) }
        return Array(heads.sorted().prefix(Self.headsMax))
    }

    // MARK: Answers

    func pack(_ request: PeerMessage.Pack) async throws -> PeerResponse {
        let want = request.want.prefix(Self.headsMax).compactMap { ObjectID(hex: $0) }
        let have = request.have.prefix(Self.headsMax).compactMap { ObjectID(hex: $0) }
        guard !want.isEmpty, want.allSatisfy({ history.graph.contains($0) }) else {
            return .refusal(404, "This node does not have that commit.")
        }
        let name = "out-\(UInt64.random(in: .min ... .max))"
        let path = history.path.removingLastComponent().appending("tmp/\(name)")
        return try await Blocking.run(.packs) { [history, timeline] in
            defer { unlink(path.string) }
            let size: Int
            do { size = try history.pack(wanted: want, have: have, into: path) } catch {
                timeline.suspect(error)
                throw error
            }
            guard size > 0 else { return .refusal(410, "There is nothing to send.") }
            let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            return PeerResponse(
                body: .file(FileRegion(owning: file.rawValue, offset: 0, length: Int64(size))))
        }
    }
}

extension Peer {
    /// What it has, and what it knows of others.
    fileprivate var heads: Set<ObjectID> {
        Set([hello.head].compactMap(\.self) + hello.announced)
    }
}
