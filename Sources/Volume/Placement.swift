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
    /// All candidates in order of preference: the first T are where T copies belong, the next take over
    /// what a full or absent one refuses.
    ///
    /// No machine comes a second time before every machine came once.
    public static func order(of root: ContentRoot, among nodes: [PlacementNode]) -> [PlacementNode]
    {
        var onMachine: [String: Int] = [:]
        let tiers = ranked(root, nodes).map { node in
            let tier = onMachine[node.machine, default: 0]
            onMachine[node.machine] = tier + 1
            return (tier, node)
        }
        let last = tiers.map(\.0).max() ?? -1
        return (0..<(last + 1)).flatMap { tier in tiers.filter { $0.0 == tier }.map(\.1) }
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
