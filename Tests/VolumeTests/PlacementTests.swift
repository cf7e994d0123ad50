import Simulation
import Testing

@testable import Volume

@Suite("Placement")
struct PlacementTests {
    private func root(_ number: UInt64) -> ContentRoot {
        var hash = PureSHA256()
        hash.update(number)
        return ContentRoot(bytes: hash.finish()).unsafelyUnwrapped
    }

    private func node(_ id: UInt64, _ machine: String, _ capacity: UInt64 = 1 << 40)
        -> PlacementNode
    {
        PlacementNode(id: NodeID(high: 0, low: id), machine: machine, capacity: capacity)
    }

    @Test("Shares follow capacities, and a node of no capacity gets nothing")
    func balance() {
        let nodes = [
            node(1, "a", 1 << 40), node(2, "b", 2 << 40), node(3, "c", 1 << 40), node(4, "d", 0),
        ]
        var first: [NodeID: Int] = [:]
        for number in 0..<2000 {
            first[
                Placement.order(of: root(UInt64(number)), among: nodes, copies: 1)[0].id, default: 0
            ] += 1
        }
        #expect((850..<1150).contains(first[nodes[1].id] ?? 0))
        #expect((400..<600).contains(first[nodes[0].id] ?? 0))
        #expect((400..<600).contains(first[nodes[2].id] ?? 0))
        #expect(first[nodes[3].id] == nil)
    }

    @Test("A machine larger than its share has a copy of everything, and the others fill evenly")
    func large() {
        let nodes = [
            node(1, "a", 1 << 40), node(2, "b", 2 << 40), node(3, "c", 5 << 40),
            node(4, "c", 3 << 40),
        ]
        var count: [String: Int] = [:]
        for number in 0..<3000 {
            let order = Placement.order(of: root(UInt64(number)), among: nodes, copies: 2)
            for node in order.prefix(2) { count[node.machine, default: 0] += 1 }
        }
        #expect(count["c"] == 3000)
        #expect((920..<1080).contains(count["a"] ?? 0))
        #expect(Placement.largeMachines(nodes, copies: 1).isEmpty)
        #expect(Placement.largeMachines(nodes, copies: 3) == ["a", "b", "c"])
    }

    @Test("No machine takes a second copy before every machine has one", arguments: testSeeds(5))
    func machines(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for number in 0..<60 {
            let nodes = (0..<random.number(1..<12)).map {
                node(UInt64($0), "m\(random.number(0..<5))", UInt64(random.number(1..<1000)) << 30)
            }
            let order = Placement.order(
                of: root(UInt64(number)), among: nodes.shuffled(using: &random),
                copies: random.number(1..<5))
            #expect(Set(order.map(\.id)) == Set(nodes.map(\.id)))
            let count = Set(nodes.map(\.machine)).count
            #expect(Set(order.prefix(count).map(\.machine)).count == count)
            for copies in 1...4 {
                let chosen = order.prefix(copies).map(\.machine)
                #expect(Placement.isSpread(chosen, copies: copies, among: nodes))
            }
        }
    }

    @Test("A node that joins takes copies, and no copy moves between the others")
    func stability() {
        let nodes = (1...6).map { node(UInt64($0), "m\($0)") }
        let joined = nodes + [node(7, "m7")]
        var moved = 0
        for number in 0..<500 {
            let before = Placement.order(of: root(UInt64(number)), among: nodes, copies: 2).prefix(
                2
            ).map(\.id)
            let after = Placement.order(of: root(UInt64(number)), among: joined, copies: 2).prefix(
                2
            ).map(\.id)
            let gained = Set(after).subtracting(before)
            #expect(gained.isEmpty || gained == [NodeID(high: 0, low: 7)])
            moved += gained.count
        }
        #expect((90..<200).contains(moved))
    }

    @Test("Weights move in sixteenths, and the logarithm is exact at powers of two")
    func arithmetic() {
        #expect(Placement.weight(1000) == 992)
        #expect(Placement.weight(1007) == Placement.weight(1000))
        #expect(Placement.weight(.max) == 0b11111 << 59)
        #expect(Placement.weight(15) == 15)
        #expect(Placement.negativeLog2(1) == 64 << 40)
        #expect(Placement.negativeLog2(1 << 63) == 1 << 40)
        // -log2(0.75) = 0.415037…
        let found = Placement.negativeLog2(3 << 62)
        #expect(abs(Double(found) / Double(UInt64(1) << 40) - 0.415037499278844) < 1e-9)
    }

    @Test("Repair passes from holder to holder in an order that all agree on")
    func repair() {
        let holders = (1...4).map { NodeID(high: 1, low: UInt64($0)) }
        let order = RepairOwnership.order(of: root(3), holders: holders.reversed())
        #expect(order == RepairOwnership.order(of: root(3), holders: holders))
        for (rank, holder) in order.enumerated() {
            let delay = RepairOwnership.delay(of: holder, root: root(3), holders: holders)
            #expect(delay == rank * 30)
        }
        let stranger = NodeID(high: 9, low: 9)
        #expect(RepairOwnership.delay(of: stranger, root: root(3), holders: holders) == nil)
    }
}

@Suite("Dropping copies")
struct DropRuleTests {
    /// Holders that drop at once, messages in any order, lost and late ones, aborts and retries.
    private struct World {
        var random: SeededGenerator
        let root = ContentRoot(bytes: .init(repeating: 7, count: 32)).unsafelyUnwrapped
        let nodes: [PlacementNode]
        let copies: Int
        var stored: Set<NodeID>
        var marked: Set<NodeID> = []
        var attempts: [NodeID: DropAttempt] = [:]
        var asks: [(from: NodeID, to: NodeID, nonce: UInt64)] = []
        var answers: [(from: NodeID, to: NodeID, nonce: UInt64, yes: Bool)] = []
        var nonce: UInt64 = 0
        var dropped = 0

        mutating func step() {
            let kind = random.number(0..<10)
            guard let node = nodes.randomElement(using: &random)?.id else { return }
            if kind < 3, attempts[node] == nil, stored.contains(node) {
                nonce += 1
                // Each node knows a part of the holders, and other capacities than the next.
                let seen = nodes.map { node in
                    let capacity = UInt64(random.number(1..<100)) << 30
                    return PlacementNode(id: node.id, machine: node.machine, capacity: capacity)
                }
                let known = stored.filter { _ in !random.once(in: 4) }.union([node])
                attempts[node] = DropAttempt(
                    root: root, node: node, nonce: nonce, copies: copies, holders: known,
                    among: seen)
                perform(attempts[node]?.begin(), node)
            } else if kind < 6, !asks.isEmpty {
                let ask = asks.remove(at: random.number(0..<asks.count))
                let yes = DropAttempt.confirms(
                    isStored: stored.contains(ask.to), isOnDisk: stored.contains(ask.to),
                    isMarked: marked.contains(ask.to))
                answers.append((ask.to, ask.from, ask.nonce, yes))
            } else if kind < 9, !answers.isEmpty {
                let at = random.number(0..<answers.count)
                let answer = answers[at]
                if !random.once(in: 4) { answers.remove(at: at) }
                perform(
                    answer.yes
                        ? attempts[answer.to]?.confirmed(by: answer.from, nonce: answer.nonce)
                        : attempts[answer.to]?.refused(by: answer.from, nonce: answer.nonce),
                    answer.to)
            } else if kind == 9, random.once(in: 8) {
                perform(attempts[node]?.abort(), node)
            }
        }

        mutating func perform(_ action: DropAttempt.Action??, _ node: NodeID) {
            guard let action = action ?? nil else { return }
            switch action {
            case .mark:
                marked.insert(node)
                perform(attempts[node]?.marked(), node)
            case .ask(let holders):
                for holder in holders { asks.append((node, holder, nonceOf(node))) }
            case .logLost: perform(attempts[node]?.lostIsDurable(), node)
            case .unlink:
                stored.remove(node)
                dropped += 1
                marked.remove(node)
                attempts[node] = nil
            case .clear:
                marked.remove(node)
                attempts[node] = nil
            }
        }

        private func nonceOf(_ node: NodeID) -> UInt64 { attempts[node]?.nonce ?? 0 }
    }

    @Test(
        "However messages and aborts fall, target-many copies on enough machines stay",
        arguments: testSeeds(100))
    func safety(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let copies = random.number(1..<4)
        let machines = random.number(1..<5)
        let nodes = (0..<random.number(4..<9)).map {
            PlacementNode(
                id: NodeID(high: 0, low: UInt64($0)), machine: "m\(random.number(0..<machines))",
                capacity: 1 << 40)
        }
        // Not where they belong: else the placement order alone would protect them.
        let stored = Set(nodes.map(\.id).filter { _ in !random.once(in: 3) })
        var world = World(random: random, nodes: nodes, copies: copies, stored: stored)
        for _ in 0..<300 {
            world.step()
            if world.dropped == 0 { continue }
            #expect(world.stored.count >= copies)
            let machines = nodes.filter { world.stored.contains($0.id) }.map(\.machine)
            #expect(Placement.isSpread(machines, copies: copies, among: nodes))
        }
    }

    @Test("A surplus copy goes, once confirmed, and each node acts once")
    func progress() throws {
        let root = ContentRoot(bytes: .init(repeating: 9, count: 32)).unsafelyUnwrapped
        let nodes = (0..<3).map {
            PlacementNode(id: NodeID(high: 0, low: $0), machine: "m\($0)", capacity: 1 << 40)
        }
        let order = Placement.order(of: root, among: nodes, copies: 2).map(\.id)
        let holders = Set(order)
        func attempt(_ node: NodeID) -> DropAttempt? {
            DropAttempt(root: root, node: node, nonce: 5, copies: 2, holders: holders, among: nodes)
        }
        #expect(attempt(order[0]) == nil)
        #expect(attempt(order[1]) == nil)
        var drop = try #require(attempt(order[2]))
        let actions = [
            drop.begin(), drop.begin(), drop.marked(), drop.confirmed(by: order[0], nonce: 4),
            drop.confirmed(by: order[1], nonce: 4),
            drop.confirmed(by: order[0], nonce: 5), drop.confirmed(by: order[0], nonce: 5),
            drop.confirmed(by: order[1], nonce: 5), drop.abort(), drop.lostIsDurable(),
            drop.lostIsDurable(),
        ]
        #expect(
            actions == [
                .mark, nil, .ask(order.prefix(2).sorted()), nil, nil, nil, nil, .logLost, nil,
                .unlink,
                nil,
            ])
        #expect(DropAttempt.afterRestart(lossIsLogged: false) == .clear)
        #expect(DropAttempt.afterRestart(lossIsLogged: true) == .unlink)
    }
}
