import Foundation
import Glibc
import History
import Mesh
import SystemPackage
import Volume

/// Brings the whole history to a node that has nothing: a peer's pack files as they are, for a pack
/// made for the joiner would cost the peer a walk over all of it. What the peer commits meanwhile
/// comes by gossip.
///
/// The files lie in `history.git/joining` until they are proven, so that a copy that was cut off
/// goes on where it was, also after a restart.
struct Joining: Sendable {
    /// Packs that a peer may have, and bytes of one list.
    static let packsMax = 4096
    static let listBytesMax = 1 << 20
    /// Of one request for a part of a pack; the next one goes on behind it.
    static let partBytesMax: Int64 = 256 << 20

    let history: History
    /// Whose packs they are.
    let peer: NodeID
    /// The peer's answer to `/v1/packs`.
    let list: @Sendable () async throws -> PeerMessage.PacksReply
    /// Writes some of a pack into a file, at the same offset: how many bytes.
    let part: @Sendable (PeerMessage.PackPart, FileDescriptor, _ most: Int64) async throws -> Int64

    init(
        _ history: History, from peer: NodeID,
        list: @escaping @Sendable () async throws -> PeerMessage.PacksReply,
        part:
            @escaping @Sendable (PeerMessage.PackPart, FileDescriptor, Int64) async throws -> Int64
    ) {
        self.history = history
        self.peer = peer
        self.list = list
        self.part = part
    }

    private var directory: FilePath { history.path.appending("joining") }

    /// - Returns: the peer's head, which is in the graph then, validated as every commit before it.
    func fetch() async throws -> ObjectID {
        let list = try checked(await list())
        guard !history.graph.contains(list.head) else { return list.head }
        try await Blocking.alone { try prepare(keeping: list.packs) }
        for pack in list.packs { try await copy(pack) }
        let files = list.packs.map { directory.appending($0.name) }
        // Not among the packs of a node at work, whose threads stand back.
        try await Blocking.alone {
            do {
                try history.receive(packs: files, heads: [list.head], unrelated: .kept) {
                    try Gossip.validate($0, $1)
                }
            } catch let error as HistoryError where error.code == .noSpace {
                throw error
            } catch {
                // Perhaps they changed on the way: all of them anew.
                try? FileManager.default.removeItem(atPath: directory.string)
                throw error
            }
            try history.noteHead(list.head, of: peer)
            try? FileManager.default.removeItem(atPath: directory.string)
        }
        return list.head
    }

    private struct List {
        let head: ObjectID
        let packs: [PeerMessage.PackName]
    }

    private func checked(_ reply: PeerMessage.PacksReply) throws -> List {
        let names = Set(reply.packs.map(\.name))
        let sizes = 1...Int64(HistoryLimits.packBytesMax)
        guard let head = ObjectID(hex: reply.head), names.count == reply.packs.count,
            (1...Self.packsMax).contains(names.count),
            reply.packs.allSatisfy({ PackFile.isName($0.name) && sizes.contains($0.bytes) })
        else { throw NodeError("node \(peer) has no list of packs to copy") }
        return List(head: head, packs: reply.packs)
    }

    /// Packs that the peer has no more are of no use.
    private func prepare(keeping packs: [PeerMessage.PackName]) throws {
        let names = Set(packs.map(\.name))
        try FileManager.default.createDirectory(
            atPath: directory.string, withIntermediateDirectories: true)
        for name in try FileManager.default.contentsOfDirectory(atPath: directory.string)
        where !names.contains(name) {
            try FileManager.default.removeItem(atPath: directory.appending(name).string)
        }
    }

    private func copy(_ pack: PeerMessage.PackName) async throws {
        let file = try FileDescriptor.open(
            directory.appending(pack.name), .readWrite, options: [.create, .closeOnExec],
            permissions: .ownerReadWrite)
        defer { try? file.close() }
        var size = try file.seek(offset: 0, from: .end)
        if size > pack.bytes {
            try file.resize(to: 0)
            size = 0
        }
        while size < pack.bytes {
            let bytes = try await part(
                PeerMessage.PackPart(name: pack.name, from: size), file, pack.bytes - size)
            guard bytes > 0 else { throw NodeError("node \(peer) sent nothing") }
            size += bytes
        }
    }

    // MARK: Between nodes

    init(_ history: History, from peer: NodeID, through mesh: Mesh) {
        self.history = history
        self.peer = peer
        list = {
            let reply = try await mesh.request(
                peer, path: "/v1/packs", replyBytesMax: Self.listBytesMax
            ).successful()
            return try JSONDecoder().decode(PeerMessage.PacksReply.self, from: Data(reply.body))
        }
        part = { part, file, most in
            let body = Array(try JSONEncoder().encode(part))
            return try await mesh.download(
                peer, path: "/v1/pack-part", body: body, to: file.rawValue, at: part.from,
                timeout: .seconds(60), replyBytesMax: most
            ).successful().fileBytes
        }
    }

    static func packs(of history: History, head: ObjectID?) throws -> PeerMessage.PacksReply? {
        // The head first: all that it needs is in the packs then.
        guard let head else { return nil }
        let packs = try history.joinPacks()
        guard !packs.isEmpty, packs.count <= packsMax else { return nil }
        return PeerMessage.PacksReply(
            head: "\(head)",
            packs: packs.map { PeerMessage.PackName(name: $0.name, bytes: Int64($0.bytes)) })
    }

    static func part(_ request: PeerMessage.PackPart, of history: History) throws -> PeerResponse {
        let file: FileDescriptor
        do {
            file = try history.openPack(request.name)
        } catch let error as HistoryError where error.code == .notFound {
            return .refusal(404, "That pack is not here.")
        }
        do {
            let rest = try file.seek(offset: 0, from: .end) - request.from
            guard request.from >= 0, rest > 0 else {
                try file.close()
                return .refusal(400, "That part is not in the pack.")
            }
            return PeerResponse(
                body: .file(
                    FileRegion(
                        owning: file.rawValue, offset: request.from,
                        length: min(rest, partBytesMax))))
        } catch {
            try? file.close()
            throw error
        }
    }
}
