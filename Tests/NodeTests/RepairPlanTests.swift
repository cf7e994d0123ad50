import Testing
import Volume

@testable import Catalog
@testable import Node

@Suite("Which copies are asked of whom")
struct RepairPlanTests {
    private static let ids = (1...4).map { NodeID(high: 7, low: UInt64($0)) }
    /// This node and the next are in one machine, the others in one each.
    private static let nodes = zip(ids, ["m1", "m1", "m2", "m3"]).map {
        PlacementNode(id: $0, machine: $1, capacity: 1 << 40)
    }
    private let now = ContinuousClock.now

    private func plan(_ count: Int, online: [Int]? = nil, copies: Int = 2) -> RepairPlan {
        var plan = RepairPlan(node: Self.ids[0])
        plan.setNodes(
            Array(Self.nodes[..<count]),
            online: Set((online ?? Array(0..<count)).map { Self.ids[$0] }), copies: copies)
        return plan
    }

    private func holding(
        _ number: Int64, length: UInt64 = 1 << 20, copies: Int = 2, _ holders: [Int: HolderState]
    ) throws -> Holding {
        var bytes = [UInt8](repeating: 0, count: 32)
        for index in 0..<8 { bytes[index] = UInt8(truncatingIfNeeded: number >> (8 * index)) }
        let root = try #require(ContentRoot(bytes: bytes))
        return Holding(
            number: number, extent: Extent(root: root, length: length), state: .stored,
            isReferenced: true, copies: copies,
            holders: holders.map { Holder(node: Self.ids[$0], state: $1, since: 0) })
    }

    private func asked(_ plan: inout RepairPlan, at time: ContinuousClock.Instant) -> [Int: [Int64]]
    {
        var asked: [Int: [Int64]] = [:]
        for (node, contents) in plan.requests(time) {
            asked[Self.ids.firstIndex(of: node) ?? -1] = contents.map(\.number).sorted()
        }
        return asked
    }

    @Test("A copy goes to another machine, to a second disk of one only when no machine is left")
    func machines() throws {
        var alone = plan(2)
        alone.update(1, try holding(1, [0: .stored]), at: now)
        #expect(asked(&alone, at: now) == [1: [1]])
        var three = plan(3)
        three.update(1, try holding(1, [0: .stored]), at: now)
        #expect(asked(&three, at: now) == [2: [1]])
        // The other machine is busy: it is worth the wait.
        three.update(2, try holding(2, [0: .stored]), at: now)
        three.answered(Self.ids[2], three.requests(now)[Self.ids[2]] ?? [], [.busy], now)
        #expect(asked(&three, at: now).isEmpty)
        #expect(asked(&three, at: now + Replicator.busyPause) == [2: [2]])
    }

    @Test("Enough copies in one machine are not enough when there is another")
    func spread() throws {
        var plan = plan(3)
        plan.update(1, try holding(1, [0: .stored, 1: .stored]), at: now)
        #expect(plan.amounts.underReplicated.files == 0)
        let later = now + .seconds(RepairOwnership.secondsPerRank)
        #expect(asked(&plan, at: later) == [2: [1]])
        plan.update(1, try holding(1, [0: .stored, 1: .stored, 2: .stored]), at: now)
        #expect(asked(&plan, at: later).isEmpty)
    }

    @Test("A node is asked for no more at a time than it takes, and for more when it confirms")
    func window() throws {
        var plan = plan(3)
        for number in 1...Int64(Replicator.clonesMax + 1) {
            plan.update(number, try holding(number, [0: .stored]), at: now)
        }
        let first = try #require(asked(&plan, at: now)[2])
        #expect(first.count == Replicator.clonesMax)
        #expect(asked(&plan, at: now).isEmpty)
        plan.update(first[0], try holding(first[0], [0: .stored, 2: .stored]), at: now)
        #expect(asked(&plan, at: now)[2]?.count == 1)
        // What nobody confirms is asked for again.
        plan.expire(now + Replicator.patience)
        #expect(asked(&plan, at: now + Replicator.patience)[2]?.count == Replicator.clonesMax)
    }

    @Test("A confirmed clone ends the pause of a busy node")
    func busy() throws {
        var plan = plan(3)
        for number in 1...3 as ClosedRange<Int64> {
            plan.update(number, try holding(number, [0: .stored]), at: now)
        }
        let request = plan.requests(now)[Self.ids[2]] ?? []
        plan.answered(Self.ids[2], request, [.accepted, .busy, .busy], now)
        #expect(asked(&plan, at: now).isEmpty)
        let number = request[0].number
        plan.update(number, try holding(number, [0: .stored, 2: .stored]), at: now)
        #expect(asked(&plan, at: now)[2]?.count == 2)
    }

    @Test("Who goes off line, or gives a clone up, is replaced by another")
    func unfinished() throws {
        for goes in [true, false] {
            var plan = plan(4)
            plan.update(1, try holding(1, [0: .stored]), at: now)
            let request = plan.requests(now)
            let chosen = try #require(request.first)
            plan.answered(chosen.key, chosen.value, [.accepted], now)
            let index = try #require(Self.ids.firstIndex(of: chosen.key))
            plan.update(1, try holding(1, [0: .stored, index: .cloning]), at: now)
            #expect(asked(&plan, at: now).isEmpty)
            if goes {
                plan.setNodes(
                    Self.nodes, online: Set(Self.ids).subtracting([chosen.key]), copies: 2)
            } else {
                plan.update(1, try holding(1, [0: .stored]), at: now)
            }
            #expect(asked(&plan, at: now) == [index == 2 ? 3 : 2: [1]])
        }
    }

    @Test("Who has no room for a large content is still asked for smaller ones")
    func full() throws {
        var plan = plan(3)
        plan.update(1, try holding(1, length: 32 << 30, [0: .stored]), at: now)
        plan.answered(Self.ids[2], plan.requests(now)[Self.ids[2]] ?? [], [.full], now)
        plan.update(2, try holding(2, [0: .stored]), at: now)
        // The large one goes to this machine's other disk, for no other can take it.
        #expect(asked(&plan, at: now) == [1: [1], 2: [2]])
    }

    @Test("Who does not answer is left alone for a while, also about what it has begun")
    func silence() throws {
        var plan = plan(3, online: [0, 2])
        plan.update(1, try holding(1, [0: .stored, 2: .cloning]), at: now)
        plan.answered(Self.ids[2], plan.requests(now)[Self.ids[2]] ?? [], nil, now)
        #expect(asked(&plan, at: now).isEmpty)
        #expect(asked(&plan, at: now + Replicator.silentPause) == [2: [1]])
    }

    @Test("The last copies are promoted by one cached holder after the other")
    func promotion() throws {
        var plan = plan(3)
        plan.update(1, try holding(1, [0: .cached]), at: now)
        #expect(plan.promotions(now).count == 1)
        #expect(asked(&plan, at: now).isEmpty)
        plan.update(1, try holding(1, [0: .cached, 1: .stored]), at: now)
        #expect(plan.promotions(now).isEmpty)
        let others = (2...99).filter {
            (try? holding($0, [0: .cached, 2: .cached])).map {
                RepairOwnership.delay(
                    of: Self.ids[0], root: $0.extent.root, holders: [Self.ids[0], Self.ids[2]]) == 0
            } == false
        }
        let number = try #require(others.first)
        plan.update(number, try holding(number, [0: .cached, 2: .cached]), at: now)
        #expect(plan.promotions(now).isEmpty)
        let later = now + .seconds(RepairOwnership.secondsPerRank)
        #expect(plan.promotions(later).count == 1)
    }

    @Test("A content is unavailable when no online node has it, though absent ones count as copies")
    func unavailable() throws {
        var plan = plan(4, online: [0, 1])
        plan.update(1, try holding(1, [2: .stored, 3: .stored]), at: now)
        plan.update(2, try holding(2, [1: .cached, 2: .stored]), at: now)
        #expect(plan.amounts.unavailable.files == 1)
        #expect(plan.amounts.underReplicated.files == 1)
        let rule = plan.rule
        #expect(rule.places.values.filter(\.isOnline).count == 2)
        #expect(rule.places.values.filter(\.counts).count == 4)
    }

    @Test("What a directory wants more copies of gets more")
    func policy() throws {
        var plan = plan(4)
        plan.update(1, try holding(1, copies: 3, [0: .stored, 2: .stored]), at: now)
        plan.update(2, try holding(2, copies: 1, [0: .stored]), at: now)
        #expect(plan.amounts.underReplicated.files == 1)
        let later = now + .seconds(RepairOwnership.secondsPerRank)
        #expect(asked(&plan, at: later) == [3: [1]])
    }

    @Test("What a node has that is to be taken away counts as no copy, and is copied from")
    func leaving() throws {
        var plan = RepairPlan(node: Self.ids[0])
        var nodes = Self.nodes
        nodes[0] = PlacementNode(id: Self.ids[0], machine: "m1", capacity: 0)
        plan.setNodes(nodes, online: Set(Self.ids), copies: 2)
        plan.update(1, try holding(1, [0: .stored]), at: now)
        #expect(plan.amounts.underReplicated.files == 1)
        #expect(asked(&plan, at: now).values.flatMap(\.self) == [1, 1])
        #expect(drops(&plan, at: now) == 0)
        plan.update(1, try holding(1, [0: .stored, 1: .stored, 2: .stored]), at: now)
        #expect(plan.amounts.underReplicated.files == 0)
        #expect(drops(&plan, at: now) == 1)
    }

    private func drops(_ plan: inout RepairPlan, at time: ContinuousClock.Instant) -> Int {
        plan.drops(time, settling: .seconds(60)) { 1 }.count
            + plan.drops(time, settling: .zero) { 1 }.count
    }

    @Test(
        "Of copies that are too many the last in order may go, once they have been so for a while")
    func surplus() throws {
        let later = now + .seconds(60)
        var ours = 0
        for number in 1...Int64(60) {
            var plan = plan(4)
            let holding = try holding(number, [0: .stored, 2: .stored, 3: .stored])
            plan.update(number, holding, at: now)
            #expect(plan.drops(now, settling: .seconds(60)) { 1 }.isEmpty)
            let attempts = plan.drops(later, settling: .seconds(60)) { 1 }
            ours += attempts.count
            let order = Placement.order(
                of: holding.extent.root, among: Self.nodes, copies: 2
            ).map(\.id)
            #expect(attempts.isEmpty == (order.filter { $0 != Self.ids[1] }.last != Self.ids[0]))
            // Not at once again.
            #expect(plan.drops(later, settling: .seconds(60)) { 1 }.isEmpty)
            // One of the others went: it is needed.
            plan.update(number, try self.holding(number, [0: .stored, 2: .stored]), at: later)
            #expect(plan.drops(later + .seconds(600), settling: .zero) { 1 }.isEmpty)
        }
        #expect(ours > 5)
    }

    @Test("A disk that has more than its share gives away what does not belong on it, no more")
    func uneven() throws {
        let nodes = [1, 2, 8].enumerated().map {
            PlacementNode(
                id: Self.ids[$0.offset], machine: "m\($0.offset)",
                capacity: UInt64($0.element) << 40)
        }
        var plan = RepairPlan(node: Self.ids[0])
        plan.setNodes(nodes, online: Set(Self.ids[..<3]), copies: 2)
        // All was written here: one copy of each stayed.
        let holdings = try (1...Int64(300)).map { try holding($0, [0: .stored, 2: .stored]) }
        let stored = [Self.ids[0]: UInt64(300) << 20, Self.ids[2]: UInt64(300) << 20]
        let excess = plan.excess(stored, now)
        #expect(excess == 200 << 20)
        let moves = plan.moves(holdings, excess: excess, stored: stored, now)
        #expect(Set(moves.keys) == [Self.ids[1]])
        #expect((1...Replicator.clonesMax).contains(moves[Self.ids[1]]?.count ?? 0))
        // What is on its way is not counted twice.
        let moved = moves[Self.ids[1]] ?? []
        #expect(plan.excess(stored, now) == excess - UInt64(moved.count) << 20)
        // There, it goes here at once: it did not become one too many by itself.
        let first = try #require(moved.first).number
        let arrived = try holding(first, [0: .stored, 1: .stored, 2: .stored])
        plan.update(first, arrived, at: now)
        #expect(plan.drops(now, settling: .seconds(60)) { 1 }.count == 1)
        plan.update(first, try holding(first, [1: .stored, 2: .stored]), at: now)
        #expect(plan.excess(stored, now) == excess - UInt64(moved.count - 1) << 20)
        let even = [Self.ids[0]: UInt64(101), Self.ids[1]: 199, Self.ids[2]: 300]
        var settled = RepairPlan(node: Self.ids[0])
        settled.setNodes(nodes, online: Set(Self.ids[..<3]), copies: 2)
        #expect(settled.excess(even, now) == 0)
    }

    @Test("What is no copy goes only where enough others have one")
    func eviction() throws {
        let plan = plan(4)
        let alone = try holding(1, [:])
        #expect(plan.eviction(alone, nonce: 1) == nil)
        #expect(plan.eviction(try holding(1, [0: .cached, 2: .stored]), nonce: 1) == nil)
        #expect(plan.eviction(try holding(1, [2: .stored, 3: .cached]), nonce: 1) == nil)
        #expect(plan.eviction(try holding(1, [2: .stored, 3: .stored]), nonce: 1) != nil)
        #expect(
            plan.eviction(try holding(1, copies: 3, [2: .stored, 3: .stored]), nonce: 1) == nil)
    }

    @Test("A clone is ended when nodes that are there have enough copies")
    func needless() throws {
        var plan = plan(4, online: [0, 2])
        plan.update(1, try holding(1, [0: .cloning, 2: .stored, 3: .stored]), at: now)
        #expect(plan.takeNeedless().isEmpty)
        plan.setNodes(Self.nodes, online: Set(Self.ids), copies: 2)
        plan.update(1, try holding(1, [0: .cloning, 2: .stored, 3: .stored]), at: now)
        #expect(plan.takeNeedless().count == 1)
        #expect(plan.takeNeedless().isEmpty)
    }
}
