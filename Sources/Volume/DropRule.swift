/// How a surplus copy is dropped without locks and clocks: first mark, then ask.
///
/// While a root is marked its holder neither confirms nor counts it. Of two holders that drop at once,
/// the one that marked later is asked by nobody who could still count it, so at least target-many
/// copies stay. Locks that expire do not give this: a suspended machine wakes and acts on stale word.
///
/// One attempt; the caller performs each action and reports back. What it reports twice or too late
/// changes nothing.
public struct DropAttempt: Hashable, Sendable {
    public enum Action: Hashable, Sendable {
        /// Make the mark durable, then report `marked`.
        case mark
        /// Ask these holders to confirm, with the nonce.
        case ask([NodeID])
        /// Log `lost` and fsync, then report `lostIsDurable`.
        case logLost
        /// Unlink the object, then remove the mark.
        case unlink
        /// Remove the mark; the copy stays. Try again later with another nonce.
        case clear
    }

    private enum State: Hashable, Sendable { case begun, marking, asking, losing, ended }

    public let root: ContentRoot
    /// Tells this attempt's confirmations from those of an earlier one; never used twice.
    public let nonce: UInt64
    private let holders: [NodeID: String]
    private let copies: Int
    private let machinesNeeded: Int
    private var unanswered: Set<NodeID>
    private var confirmations: Set<NodeID> = []
    private var state = State.begun

    /// Nil unless the rule lets this node start: it is outside the first `copies` of the placement
    /// order, the last of all that hold the root in that order, and enough others hold it, of those
    /// whose copies count.
    ///
    /// Behind all others in that order are nodes that only cache, or are to be taken away.
    public init?(
        root: ContentRoot, node: NodeID, nonce: UInt64, copies: Int, holders: Set<NodeID>,
        among nodes: [PlacementNode]
    ) {
        let order = Placement.order(of: root, among: nodes, copies: copies)
        let position = { (id: NodeID) in order.firstIndex { $0.id == id } ?? Int.max }
        let own = position(node)
        guard own >= copies, holders.allSatisfy({ (position($0), $0) <= (own, node) }) else {
            return nil
        }
        self.init(
            root: root, nonce: nonce, copies: copies, others: holders.subtracting([node]),
            among: nodes)
    }

    /// For a copy that does not count: whoever has one may start, as long as enough others hold the
    /// root.
    public init?(
        uncounted root: ContentRoot, node: NodeID, nonce: UInt64, copies: Int,
        holders: Set<NodeID>, among nodes: [PlacementNode]
    ) {
        self.init(
            root: root, nonce: nonce, copies: copies, others: holders.subtracting([node]),
            among: nodes)
    }

    private init?(
        root: ContentRoot, nonce: UInt64, copies: Int, others: Set<NodeID>,
        among nodes: [PlacementNode]
    ) {
        self.root = root
        self.nonce = nonce
        self.copies = copies
        self.holders = Dictionary(
            nodes.filter { others.contains($0.id) && $0.capacity > 0 }.map { ($0.id, $0.machine) },
            uniquingKeysWith: { first, _ in first })
        machinesNeeded = min(copies, Set(nodes.filter { $0.capacity > 0 }.map(\.machine)).count)
        unanswered = Set(self.holders.keys)
        guard copies > 0, isEnough(unanswered) else { return nil }
    }

    /// What a start finds: a mark whose loss was logged is carried out, any other is removed.
    public static func afterRestart(lossIsLogged: Bool) -> Action {
        lossIsLogged ? .unlink : .clear
    }

    /// What the holder that is asked answers.
    public static func confirms(isStored: Bool, isOnDisk: Bool, isMarked: Bool) -> Bool {
        isStored && isOnDisk && !isMarked
    }

    public mutating func begin() -> Action? {
        guard state == .begun else { return nil }
        state = .marking
        return .mark
    }

    public mutating func marked() -> Action? {
        guard state == .marking else { return nil }
        state = .asking
        return .ask(unanswered.sorted())
    }

    public mutating func confirmed(by holder: NodeID, nonce: UInt64) -> Action? {
        guard state == .asking, nonce == self.nonce, unanswered.remove(holder) != nil else {
            return nil
        }
        confirmations.insert(holder)
        return decide()
    }

    /// A refusal, or no connection.
    public mutating func refused(by holder: NodeID, nonce: UInt64) -> Action? {
        guard state == .asking, nonce == self.nonce, unanswered.remove(holder) != nil else {
            return nil
        }
        return decide()
    }

    /// Waited long enough, or the node stops.
    public mutating func abort() -> Action? {
        guard state == .asking || state == .marking else { return nil }
        state = .ended
        return .clear
    }

    public mutating func lostIsDurable() -> Action? {
        guard state == .losing else { return nil }
        state = .ended
        return .unlink
    }

    private mutating func decide() -> Action? {
        if isEnough(confirmations) {
            state = .losing
            return .logLost
        }
        if isEnough(confirmations.union(unanswered)) { return nil }
        state = .ended
        return .clear
    }

    private func isEnough(_ set: Set<NodeID>) -> Bool {
        set.count >= copies && Set(set.compactMap { holders[$0] }).count >= machinesNeeded
    }
}
