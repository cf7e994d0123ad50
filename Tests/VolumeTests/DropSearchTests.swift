import Testing

@testable import Volume

/// Every order in which some holders of one root may try to drop it.
///
/// What a node hears it may hear at any later time or never, so that lost, late and overtaking
/// messages, partitions, and a machine that is suspended between any two steps are all in it. So are
/// aborts, restarts and new attempts without end. A confirmation that arrived is kept until it decides
/// something: until then nobody can tell when it was read.
private struct DropSearch {
    /// The rule, or what goes wrong with it when something is changed.
    enum Rule { case asItIs, marksExpire, confirmsWhileMarked, noncesIgnored }

    enum Phase: UInt64 { case idle, asking, losing, gone }

    /// Eight bits of a state: who has confirmed this attempt, is it marked, the phase.
    private struct Holder: Equatable {
        var confirmed: UInt64 = 0
        var isMarked = false
        var phase = Phase.idle

        init() {}

        init(_ state: UInt64, _ index: Int) {
            let bits = state >> UInt64(8 * index)
            confirmed = bits & 31
            isMarked = bits & 32 != 0
            phase = Phase(rawValue: bits >> 6 & 3) ?? .gone
        }

        var bits: UInt64 { confirmed | (isMarked ? 32 : 0) | phase.rawValue << 6 }
        var kind: UInt64 { bits & ~31 | UInt64(confirmed.nonzeroBitCount) }
    }

    private let nodes: [PlacementNode]
    private let copies: Int
    private let rule: Rule
    /// All machines differ: then it makes no difference which holder is which.
    private let isSymmetric: Bool
    private let begins: [Bool]
    /// By holder and confirmations: whether the rule takes them for enough.
    private let decides: [[Bool]]

    /// - Parameter machines: of each holder.
    init(machines: [Int], copies: Int, rule: Rule = .asItIs) {
        let nodes = machines.enumerated().map {
            PlacementNode(
                id: NodeID(high: 0, low: UInt64($0)), machine: "m\($1)", capacity: 1 << 40)
        }
        self.nodes = nodes
        self.copies = copies
        self.rule = rule
        isSymmetric = Set(machines).count == machines.count
        let attempts = nodes.indices.map { Self.attempt($0, nodes, copies) }
        begins = attempts.map { $0 != nil }
        decides = attempts.map { attempt in
            (0..<32).map { confirmed in
                guard var attempt else { return false }
                _ = attempt.begin()
                _ = attempt.marked()
                return nodes.indices.contains {
                    confirmed >> $0 & 1 == 1
                        && attempt.confirmed(by: nodes[$0].id, nonce: 1) == .logLost
                }
            }
        }
    }

    /// Views of the capacities differ: each node may believe that it is the worst place.
    private static func attempt(
        _ index: Int, _ nodes: [PlacementNode], _ copies: Int
    ) -> DropAttempt? {
        var nodes = nodes
        nodes[index] = PlacementNode(
            id: nodes[index].id, machine: nodes[index].machine, capacity: 1)
        return DropAttempt(
            root: ContentRoot(bytes: .init(repeating: 7, count: 32)).unsafelyUnwrapped,
            node: nodes[index].id, nonce: 1, copies: copies, holders: Set(nodes.map(\.id)),
            among: nodes)
    }

    /// - Returns: How many states there are, and whether in each of them enough copies are left on
    ///   enough machines.
    func run() -> (states: Int, isSafe: Bool) {
        var seen: Set<UInt64> = [0]
        var waiting: [UInt64] = [0]
        while let state = waiting.popLast() {
            let left = nodes.indices.filter { Holder(state, $0).phase != .gone }
            let machines = left.map { nodes[$0].machine }
            guard
                left.count == nodes.count
                    || left.count >= copies
                        && Placement.isSpread(machines, copies: copies, among: nodes)
            else { return (seen.count, false) }
            for next in successors(state).map(canonical) where seen.insert(next).inserted {
                waiting.append(next)
            }
        }
        return (seen.count, true)
    }

    private func successors(_ state: UInt64) -> [UInt64] {
        var found: [UInt64] = []
        let holders = nodes.indices.map { Holder(state, $0) }
        func change(_ index: Int, _ body: (inout Holder) -> Void) {
            var holder = holders[index]
            body(&holder)
            let shift = UInt64(8 * index)
            found.append(state & ~(255 << shift) | holder.bits << shift)
        }
        for index in nodes.indices {
            switch holders[index].phase {
            case .gone: break
            case .idle:
                guard begins[index] else { break }
                change(index) {
                    $0.phase = .asking
                    $0.isMarked = true
                }
            case .asking:
                // Gives up, or starts again before the loss is logged.
                precondition(DropAttempt.afterRestart(lossIsLogged: false) == .clear)
                change(index) {
                    $0.phase = .idle
                    $0.isMarked = false
                    if rule != .noncesIgnored { $0.confirmed = 0 }
                }
                if rule == .marksExpire { change(index) { $0.isMarked = false } }
                for other in nodes.indices where other != index && confirms(holders[other]) {
                    change(index) { $0.confirmed |= 1 << UInt64(other) }
                }
                if decides[index][Int(holders[index].confirmed)] {
                    change(index) { $0.phase = .losing }
                }
            case .losing:
                // At once, or at the next start.
                precondition(DropAttempt.afterRestart(lossIsLogged: true) == .unlink)
                change(index) {
                    $0 = Holder()
                    $0.phase = .gone
                }
            }
        }
        return found
    }

    private func confirms(_ holder: Holder) -> Bool {
        let isStored = holder.phase == .idle || holder.phase == .asking
        return DropAttempt.confirms(
            isStored: isStored, isOnDisk: isStored,
            isMarked: holder.isMarked && rule != .confirmsWhileMarked)
    }

    /// One state for most that differ only in which holder is which: numbered anew in an order that
    /// such renumbering does not change. That some are missed makes only more states.
    private func canonical(_ state: UInt64) -> UInt64 {
        guard isSymmetric else { return state }
        let holders = nodes.indices.map { Holder(state, $0) }
        let kinds = holders.map(\.kind)
        var signs = kinds.map { $0 &* 0x9E37_79B9_7F4A_7C15 }
        for (index, holder) in holders.enumerated() where holder.confirmed != 0 {
            for other in holders.indices where holder.confirmed >> UInt64(other) & 1 == 1 {
                signs[index] &+= (kinds[other] + 1) &* 0xBF58_476D_1CE4_E5B9
                signs[other] &+= (kinds[index] + 1) &* 0x94D0_49BB_1331_11EB
            }
        }
        let order = holders.indices.sorted { (signs[$0], $0) < (signs[$1], $1) }
        var renumbered: UInt64 = 0
        for (new, old) in order.enumerated() {
            var holder = holders[old]
            if holder.confirmed != 0 {
                holder.confirmed = 0
                for (bit, other) in order.enumerated() {
                    holder.confirmed |= (holders[old].confirmed >> UInt64(other) & 1) << UInt64(bit)
                }
            }
            renumbered |= holder.bits << UInt64(8 * new)
        }
        return renumbered
    }
}

@Suite("Dropping copies, searched exhaustively")
struct DropSearchTests {
    @Test(
        "Two to five holders, whatever they do and hear, keep target-many copies",
        arguments: [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 1), (5, 2), (5, 3), (5, 4)])
    func copiesStay(holders: Int, copies: Int) {
        let result = DropSearch(machines: Array(0..<holders), copies: copies).run()
        #expect(result.isSafe)
        // From 9 states up to some 13,000.
        #expect(result.states > 1 << holders)
    }

    @Test(
        "Holders that share machines keep copies on enough of them",
        arguments: [([0, 0, 1], 2), ([0, 0, 1, 1], 2), ([0, 0, 0, 1], 2), ([0, 0, 1, 2], 3)])
    func machinesStay(machines: [Int], copies: Int) {
        let result = DropSearch(machines: machines, copies: copies).run()
        #expect(result.isSafe && result.states > 3)
    }

    @Test("A mark that expires, that does not count, or a stale word: copies end below the target")
    func changedRules() {
        for holders in 2...5 {
            for copies in 1..<holders {
                let machines = Array(0..<holders)
                for rule in [DropSearch.Rule.marksExpire, .confirmsWhileMarked] {
                    let result = DropSearch(machines: machines, copies: copies, rule: rule).run()
                    #expect(!result.isSafe, "\(holders) holders, \(copies) copies, \(rule)")
                }
            }
        }
        #expect(!DropSearch(machines: [0, 1, 2], copies: 1, rule: .noncesIgnored).run().isSafe)
    }
}
