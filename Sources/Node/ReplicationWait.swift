import Catalog
import Mesh
import Volume

/// One wait until every content of a file has its target copies: asks the holders themselves, each
/// content until it is confirmed.
struct ReplicationWait {
    static let poll = Duration.milliseconds(500)
    /// Contents in one question.
    static let questionMax = 1000

    private typealias State = PeerMessage.WhoHasReply.State

    private let node: Node
    /// What is not confirmed yet.
    private var open: [Extent]

    init(_ node: Node) async throws {
        self.node = node
        open = try await Blocking.run { [catalog = node.catalog] in
            var open: [Extent] = []
            var after: Int64 = 0
            while true {
                let batch = try catalog.read {
                    try $0.holdings(after: after, limit: Self.questionMax)
                }
                guard let last = batch.last else { return open }
                after = last.number
                open += batch.filter(\.isReferenced).map(\.extent)
            }
        }
    }

    /// - Returns: nil while copies are being made.
    mutating func outcome() async throws -> ControlMessage.WaitReply? {
        let peers = node.mesh.peers.filter(\.isOnline)
        let target = node.settings.copies
        var unavailable = 0
        var remaining: [Extent] = []
        for start in stride(from: 0, to: open.count, by: Self.questionMax) {
            let part = Array(open[start..<min(start + Self.questionMax, open.count)])
            let own = try await states(here: part)
            let theirs = await states(of: part, at: peers)
            for (index, extent) in part.enumerated() {
                // No file has it any more.
                guard let here = own[index] else { continue }
                let answers = theirs.map { $0?[index] } + [here]
                if answers.count(where: { $0 == .stored }) >= target { continue }
                remaining.append(extent)
                // Only if all have answered.
                if answers.allSatisfy({ $0 == State.none }) { unavailable += 1 }
            }
        }
        open = remaining
        if open.isEmpty { return ControlMessage.WaitReply(outcome: .done, text: "") }
        let able =
            peers.filter { $0.hello.capacityBytes > 0 }.count + (node.capacityBytes > 0 ? 1 : 0)
        if able < target {
            return impossible(
                "\(open.count) contents cannot get \(target) copies: only \(able) online disks store any. Start more nodes."
            )
        }
        if unavailable > 0 {
            return impossible(
                "\(unavailable) contents are on no disk that is online. Start the disks that `delugefs whereis` names."
            )
        }
        return nil
    }

    private func impossible(_ text: String) -> ControlMessage.WaitReply {
        ControlMessage.WaitReply(outcome: .impossible, text: text)
    }

    /// nil: no file has it.
    private func states(here extents: [Extent]) async throws -> [State?] {
        try await Blocking.run { [catalog = node.catalog, exchange = node.exchange] in
            try extents.map { extent in
                guard try catalog.read({ try $0.references(to: extent.root) }) > 0 else {
                    return nil
                }
                return try exchange.confirmedState(of: extent)
            }
        }
    }

    /// Of each peer what it says of each content; nil of one that did not answer.
    private func states(of extents: [Extent], at peers: [Peer]) async -> [[State]?] {
        await withTaskGroup(of: [State]?.self) { [exchange = node.exchange] group in
            for peer in peers {
                group.addTask { try? await exchange.whoHas(extents, peer.node) }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
    }
}
