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
    /// Packs that are being fetched at a time; others wait for the next hello.
    static let pullsMax = 4
    /// What a pack may weigh.
    static let packBytesMax: Int64 = 4 << 30
    /// Heads named in a request, on either side.
    static let headsMax = 64
    /// Refused heads remembered; beyond, all are forgotten and fetched once more.
    static let refusedMax = 1024

    private let mesh: Mesh
    private let timeline: Timeline
    private let history: History
    private let logger: Logger
    private let pulling = Mutex<Set<ObjectID>>([])
    /// Heads that were refused, with the reason, so that they are fetched once.
    private let refused = Mutex<[ObjectID: String]>([:])

    init(mesh: Mesh, timeline: Timeline, logger: Logger) {
        self.mesh = mesh
        self.timeline = timeline
        self.history = timeline.history
        self.logger = logger
    }

    /// A peer said hello: what it has and we have not is fetched.
    func heard(_ peer: Peer) {
        for head in Set([peer.hello.head].compactMap(\.self) + peer.hello.announced) {
            if history.graph.contains(head) {
                timeline.received(head)
            } else {
                pull(head, from: peer.node)
            }
        }
    }

    private func pull(_ head: ObjectID, from node: NodeID) {
        guard refused.withLock({ $0[head] == nil }) else { return }
        let isNew = pulling.withLock { $0.count < Self.pullsMax && $0.insert(head).inserted }
        guard isNew else { return }
        Task {
            do {
                try await fetch(head, from: node)
                timeline.received(head)
            } catch let error where error is InvalidTree || error is UpgradeNeeded {
                logger.error("refused commit \(head) of node \(node): \(error)")
                refused.withLock { refused in
                    if refused.count >= Self.refusedMax { refused = [:] }
                    refused[head] = "\(error)"
                }
            } catch { logger.warning("fetching commit \(head) from node \(node): \(error)") }
            _ = pulling.withLock { $0.remove(head) }
        }
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
            try history.setReference("refs/peers/\(node)", to: head)
        }
    }

    /// Validity is a function of the commit's bytes and its ancestors alone.
    private static func validate(_ commit: Commit, _ intake: Intake) throws {
        _ = try CommitMessage(decoding: commit.message)
        let parent = try commit.parents.first.map { try intake.tree(of: $0) }
        _ = try difference(from: parent, to: commit.tree, source: intake)
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
        return try await Blocking.run(.packs) { [history] in
            defer { unlink(path.string) }
            let size = try history.pack(wanted: want, have: have, into: path)
            guard size > 0 else { return .refusal(410, "There is nothing to send.") }
            let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            return PeerResponse(
                body: .file(FileRegion(owning: file.rawValue, offset: 0, length: Int64(size))))
        }
    }
}
