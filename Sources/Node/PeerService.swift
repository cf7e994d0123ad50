import FoundationEssentials
import History
import Logging
import Mesh
import Volume

/// Answers members' requests. Every number and id in them is checked here or where it is used.
struct PeerService {
    static let extentsMax = 4096

    let node: Node

    /// Bytes of a request body, by route; nil for what is no route.
    static func bodyLimit(_ path: String) -> Int? {
        switch path {
        case "/v1/pack", "/v1/clone": 64 << 10
        case "/v1/who-has", "/v1/expire": 1 << 20
        case "/v1/has-commit", "/v1/open", "/v1/holders", "/v1/refused", "/v1/packs",
            "/v1/pack-part":
            4096
        default: nil
        }
    }

    func answer(_ request: PeerRequest) async -> PeerResponse {
        do {
            switch request.path {
            case "/v1/pack": return try await node.gossip.pack(decode(request))
            case "/v1/packs": return try await packs()
            case "/v1/pack-part":
                let message: PeerMessage.PackPart = try decode(request)
                return try await Blocking.run(.packs) { [history = node.timeline.history] in
                    try Joining.part(message, of: history)
                }
            case "/v1/has-commit": return try await hasCommit(decode(request))
            case "/v1/refused": return try await refused(decode(request), request.origin)
            case "/v1/open":
                guard let extent = try decode(request, as: PeerMessage.ExtentName.self).extent
                else { return .refusal(400, "That is no extent.") }
                return try await node.exchange.serve(extent)
            case "/v1/who-has": return try await whoHas(decode(request))
            case "/v1/expire": return try await expire(decode(request))
            case "/v1/clone": return try await clone(decode(request))
            case "/v1/holders":
                let message: PeerMessage.Holders = try decode(request)
                return try await Blocking.run { [logs = node.holderLogs] in
                    try logs.answer(message)
                }
            default: return .refusal(404, "There is nothing by that name here.")
            }
        } catch is DecodingError {
            return .refusal(400, "The request is not in the right form.")
        } catch {
            node.logger.warning("answering \(request.path): \(error)")
            return .refusal(500, "The node could not answer.")
        }
    }

    private func decode<T: Decodable>(_ request: PeerRequest, as type: T.Type = T.self) throws -> T
    {
        try JSONDecoder().decode(type, from: Data(request.body))
    }

    private func reply(_ value: some Encodable) throws -> PeerResponse {
        PeerResponse(body: .bytes(Array(try JSONEncoder().encode(value))))
    }

    private func packs() async throws -> PeerResponse {
        let reply = try await Blocking.run(.packs) { [timeline = node.timeline] in
            try Joining.packs(of: timeline.history, head: timeline.announced.first)
        }
        guard let reply else { return .refusal(404, "There is nothing to copy here.") }
        return try self.reply(reply)
    }

    private func hasCommit(_ message: PeerMessage.HasCommit) async throws -> PeerResponse {
        guard let commit = ObjectID(hex: message.commit) else {
            return .refusal(400, "That is no commit id.")
        }
        let history = node.timeline.history
        let applied = node.timeline.applied
        let has = try await Blocking.run {
            guard history.graph.contains(commit), let applied else { return false }
            return try history.graph.isAncestor(commit, of: applied)
        }
        return try reply(PeerMessage.HasCommitReply(has: has))
    }

    private func refused(
        _ message: PeerMessage.Refused, _ origin: PeerRequest.Origin
    ) async throws -> PeerResponse {
        guard let commit = ObjectID(hex: message.commit), case .member(let peer) = origin else {
            return .refusal(400, "That is no commit id.")
        }
        try await Blocking.run { [timeline = node.timeline] in
            try timeline.refused(commit, by: peer, message.reason)
        }
        return PeerResponse()
    }

    private func whoHas(_ message: PeerMessage.WhoHas) async throws -> PeerResponse {
        guard message.extents.count <= Self.extentsMax else {
            return .refusal(400, "Too many at once.")
        }
        let extents = message.extents.map(\.extent)
        let (states, room) = try await Blocking.run { [node] in
            let states = try extents.map {
                try $0.map { try node.exchange.confirmedState(of: $0) } ?? .none
            }
            return (states, try node.cloneRoom().bytes)
        }
        let coming = extents.indices.filter { index in
            extents[index].map { node.exchange.isCloning($0) } ?? false
        }
        return try reply(
            PeerMessage.WhoHasReply(states: states, roomBytes: room, coming: coming))
    }

    private func expire(_ message: PeerMessage.Expire) async throws -> PeerResponse {
        guard message.extents.count <= Self.extentsMax else {
            return .refusal(400, "Too many at once.")
        }
        let extents = message.extents.compactMap(\.extent)
        _ = try await Blocking.run { [node] in try node.expire(extents) }
        return PeerResponse()
    }

    private func clone(_ message: PeerMessage.Clone) async throws -> PeerResponse {
        let extents = message.extents.compactMap(\.extent)
        guard extents.count == message.extents.count, extents.count <= Replicator.clonesMax else {
            return .refusal(400, "Those are no extents, or too many at once.")
        }
        let answers = try await Blocking.run { [node] in try node.acceptClones(extents) }
        return try reply(PeerMessage.CloneReply(answers: answers))
    }
}
