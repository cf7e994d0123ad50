/// A node that may hold content, as its log describes it.
public struct PlacementNode: Hashable, Sendable {
    public let id: NodeID
    /// The failure domain.
    public let machine: String
    /// Bytes it may store; 0: only a cache, or to be taken away: never a candidate, and what it has
    /// counts as no copy.
    public let capacity: UInt64

    public init(id: NodeID, machine: String, capacity: UInt64) {
        self.id = id
        self.machine = machine
        self.capacity = capacity
    }
}

/// Where copies belong: weighted rendezvous hashing, the same on every node.
///
/// A node that joins or leaves moves only what it takes or held. The arithmetic is in integers: the
/// last digit of a logarithm differs between C libraries, and two nodes must never differ.
public enum Placement {
    /// All candidates in order of preference: the first `copies` are where copies belong, the next
    /// take over what a full or absent one refuses.
    ///
    /// No machine comes a second time before every machine came once. A machine so large that its
    /// share is a copy of everything comes first, so that all machines fill evenly.
    public static func order(
        of root: ContentRoot, among nodes: [PlacementNode], copies: Int
    ) -> [PlacementNode] {
        let large = largeMachines(nodes, copies: copies)
        var onMachine: [String: Int] = [:]
        let ranked = ranked(root, nodes)
        let first = ranked.filter { large.contains($0.machine) }
        let tiers = (first + ranked.filter { !large.contains($0.machine) }).map { node in
            let tier = onMachine[node.machine, default: 0]
            onMachine[node.machine] = tier + 1
            return (tier, node)
        }
        let last = tiers.map(\.0).max() ?? -1
        return (0..<(last + 1)).flatMap { tier in tiers.filter { $0.0 == tier }.map(\.1) }
    }

    /// The copies of one content that each node has, on average, when all fill evenly: 0 to 1.
    public static func shares(among nodes: [PlacementNode], copies: Int) -> [NodeID: Double] {
        let able = nodes.filter { $0.capacity > 0 }
        let large = largeMachines(able, copies: copies)
        let rest = able.filter { !large.contains($0.machine) }
        func sum(_ nodes: [PlacementNode]) -> Double {
            nodes.reduce(0) { $0 + Double(weight($1.capacity)) }
        }
        let left = Double(max(0, copies - large.count)) / max(sum(rest), 1)
        var shares: [NodeID: Double] = [:]
        for node in rest { shares[node.id] = min(1, left * Double(weight(node.capacity))) }
        for machine in large {
            let disks = able.filter { $0.machine == machine }
            for disk in disks { shares[disk.id] = Double(weight(disk.capacity)) / sum(disks) }
        }
        return shares
    }

    /// Machines that have a copy of everything when all fill evenly: no machine has two of one content,
    /// so that the largest can be too large for its share. What is left is for the others.
    static func largeMachines(_ nodes: [PlacementNode], copies: Int) -> Set<String> {
        var sizes: [String: UInt64] = [:]
        for node in nodes where node.capacity > 0 {
            // In units that cannot overflow below: 64 copies of the largest sum.
            sizes[node.machine, default: 0] += max(1, weight(node.capacity) >> 16)
        }
        var left = sizes.values.reduce(0, +)
        var large: Set<String> = []
        for (machine, size) in sizes.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
            let copiesLeft = copies - large.count
            guard copiesLeft > 0,
                size.multipliedReportingOverflow(by: UInt64(copiesLeft)).partialValue >= left
            else { break }
            large.insert(machine)
            left -= size
        }
        return large
    }

    /// Whether copies on these machines are spread as well as the volume allows: on as many machines
    /// as there are copies, or on all machines that could hold one.
    public static func isSpread(
        _ machines: some Sequence<String>, copies: Int, among nodes: [PlacementNode]
    ) -> Bool {
        let available = Set(nodes.filter { $0.capacity > 0 }.map(\.machine)).count
        return Set(machines).count >= min(copies, available)
    }

    /// Capacity rounded down to sixteenths of its power of two, so that a weight seldom changes.
    static func weight(_ capacity: UInt64) -> UInt64 {
        guard capacity >= 16 else { return capacity }
        let shift = UInt64(63 - capacity.leadingZeroBitCount - 4)
        return (capacity >> shift) << shift
    }

    /// By falling weight / -log2(u), that is by the first of exponentially distributed arrivals.
    private static func ranked(_ root: ContentRoot, _ nodes: [PlacementNode]) -> [PlacementNode] {
        nodes.filter { $0.capacity > 0 }
            .map {
                (
                    node: $0, cost: negativeLog2(hash("place", root, $0.id)),
                    weight: weight($0.capacity)
                )
            }
            .sorted { a, b in
                let left = a.cost.multipliedFullWidth(by: b.weight)
                let right = b.cost.multipliedFullWidth(by: a.weight)
                if left == right { return a.node.id < b.node.id }
                return (left.high, left.low) < (right.high, right.low)
            }.map(\.node)
    }

    /// The first 8 bytes of SHA-256(purpose, root, node).
    static func hash(_ purpose: String, _ root: ContentRoot, _ node: NodeID) -> UInt64 {
        PureSHA256.digest(Array(purpose.utf8) + root.bytes + node.bytes)
            .prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// -log2(u / 2^64) with 40 bits after the point: digit by digit, squaring.
    static func negativeLog2(_ u: UInt64) -> UInt64 {
        let u = max(u, 1)
        let zeros = UInt64(u.leadingZeroBitCount)
        var mantissa = u << zeros
        var fraction: UInt64 = 0
        for _ in 0..<40 {
            let (high, low) = mantissa.multipliedFullWidth(by: mantissa)
            fraction <<= 1
            if high >> 63 == 1 {
                fraction |= 1
                mantissa = high
            } else {
                mantissa = high << 1 | low >> 63
            }
        }
        return 64 << 40 - ((63 - zeros) << 40 | fraction)
    }
}

/// Who repairs a root that has too few copies: one live holder after the other.
public enum RepairOwnership {
    /// Without progress of all before it, a holder waits this long for each of them.
    public static let secondsPerRank = 30

    /// Live holders in the order in which repair is theirs.
    public static func order(of root: ContentRoot, holders: some Sequence<NodeID>) -> [NodeID] {
        holders.map { (Placement.hash("repair", root, $0), $0) }
            .sorted { ($0.0, $0.1) < ($1.0, $1.1) }.map(\.1)
    }

    /// Seconds without progress after which the node starts; nil if it holds nothing.
    public static func delay(
        of node: NodeID, root: ContentRoot, holders: some Sequence<NodeID>
    ) -> Int? {
        order(of: root, holders: holders).firstIndex(of: node).map { $0 * secondsPerRank }
    }
}
