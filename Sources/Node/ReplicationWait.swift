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
    /// What is not confirmed yet, and how many copies it is to have.
    private var open: [(extent: Extent, copies: Int)]
    /// Rounds in a row that found no room for some copy; after `fullRoundsMax` there is none.
    private var fullRounds = 0
    private static let fullRoundsMax = 6

    /// - Parameter copies: asked of each content, where not fewer are to be made of it.
    init(_ node: Node, of extents: [Extent], copies: Int) async throws {
        self.node = node
        let target = node.settings.copies
        open = try await Blocking.run { [catalog = node.catalog] in
            try catalog.read { reader in
                try extents.map { extent in
                    let asked = try reader.copies(of: extent.root, otherwise: target)
                    return (extent, min(copies, asked))
                }
            }
        }
    }

    /// Of every file's content.
    init(_ node: Node) async throws {
        self.node = node
        let copies = node.settings.copies
        open = try await Blocking.run { [catalog = node.catalog] in
            var open: [(extent: Extent, copies: Int)] = []
            var after: Int64 = 0
            while true {
                let batch = try catalog.read {
                    try $0.holdings(after: after, limit: Self.questionMax, copies: copies)
                }
                guard let last = batch.last else { return open }
                after = last.number
                open += batch.filter(\.isReferenced).map { ($0.extent, $0.copies) }
            }
        }
    }

    /// - Returns: nil while copies are being made.
    mutating func outcome() async throws -> ControlMessage.WaitReply? {
        let peers = node.mesh.peers.filter(\.isOnline)
        // What the others have counts as no copy.
        let storing = peers.filter { $0.hello.capacityBytes > 0 }
        let stores = node.countedBytes > 0
        let machines = Set(
            storing.map(\.hello.machine) + (stores ? [node.file.machine] : []))
        var unavailable = 0
        var full = 0
        var remaining: [(extent: Extent, copies: Int)] = []
        for start in stride(from: 0, to: open.count, by: Self.questionMax) {
            let part = Array(open[start..<min(start + Self.questionMax, open.count)])
            let extents = part.map(\.extent)
            let own = try await states(here: extents)
            let theirs = await replies(about: extents, of: peers)
            for (index, content) in part.enumerated() {
                // No file has it any more.
                guard let here = own[index] else { continue }
                var holding = storing.filter { theirs[$0.node]?.states[index] == .stored }
                    .map(\.hello.machine)
                if stores, here == .stored { holding.append(node.file.machine) }
                let counted = holding.count
                if counted >= content.copies,
                    Set(holding).count >= min(content.copies, machines.count)
                {
                    continue
                }
                remaining.append(content)
                let answers = peers.map { theirs[$0.node]?.states[index] } + [here]
                // Only if all have answered.
                if answers.allSatisfy({ $0 == State.none }) { unavailable += 1 }
                let able = storing.count { peer in
                    guard let reply = theirs[peer.node] else { return true }
                    return reply.states[index] != .stored
                        && reply.hasRoom(for: content.extent, at: index)
                }
                let isOwnUse = stores && here != .stored
                if counted + able + (isOwnUse ? 1 : 0) < content.copies { full += 1 }
            }
        }
        open = remaining
        if open.isEmpty { return ControlMessage.WaitReply(outcome: .done, text: "") }
        let able = storing.count + (stores ? 1 : 0)
        if let most = open.map(\.copies).max(), able < most {
            return impossible(
                "\(open.count) contents cannot get \(most) copies: only \(able) online disks store any. Start more nodes."
            )
        }
        if unavailable > 0 {
            return impossible(
                "\(unavailable == 1 ? "1 content is" : "\(unavailable) contents are") on no disk that is online. Start the disks that `delugefs whereis` names."
            )
        }
        fullRounds = full > 0 ? fullRounds + 1 : 0
        if fullRounds > Self.fullRoundsMax {
            return impossible(
                "\(full) contents cannot get the copies they are to have: the other disks are full. Make room on them, or start another node."
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

    /// What each peer says of each content; nothing of one that did not answer.
    private func replies(
        about extents: [Extent], of peers: [Peer]
    ) async -> [NodeID: PeerMessage.WhoHasReply] {
        await withTaskGroup(of: (NodeID, PeerMessage.WhoHasReply?).self) {
            [exchange = node.exchange] group in
            for peer in peers {
                group.addTask { (peer.node, try? await exchange.ask(extents, of: peer.node)) }
            }
            return await group.reduce(into: [:]) { $0[$1.0] = $1.1 }
        }
    }
}
