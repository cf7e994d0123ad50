/// One line of a node's log of what it holds.
public enum HolderLogEntry: Hashable, Sendable {
    /// A copy that counts.
    case stored(Extent)
    /// A copy that may go at any time.
    case cached(Extent)
    case lost(Extent)
    /// A copy is being made; it counts against the need, never as a copy.
    case cloning(Extent)
    /// Bytes this node may store; the weight of placement.
    case capacity(UInt64)

    /// Tag, root (zeros for a capacity), number.
    public static let encodedBytes = 41

    public var bytes: [UInt8] {
        let (tag, root, number): (UInt8, [UInt8], UInt64) =
            switch self {
            case .stored(let extent): (1, extent.root.bytes, extent.length)
            case .cached(let extent): (2, extent.root.bytes, extent.length)
            case .lost(let extent): (3, extent.root.bytes, extent.length)
            case .cloning(let extent): (4, extent.root.bytes, extent.length)
            case .capacity(let bytes): (5, [UInt8](repeating: 0, count: 32), bytes)
            }
        return [tag] + root + (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * $0)) }
    }

    /// Nil unless the bytes are those of an entry.
    public init?(bytes: some Collection<UInt8>) {
        let bytes = Array(bytes)
        guard bytes.count == Self.encodedBytes, let root = ContentRoot(bytes: Array(bytes[1..<33]))
        else { return nil }
        let number = bytes[33...].reduce(0) { $0 << 8 | UInt64($1) }
        let extent = Extent(root: root, length: number)
        guard bytes[0] == 5 || (1...Limits.extentBytesMax).contains(number) else { return nil }
        switch bytes[0] {
        case 1: self = .stored(extent)
        case 2: self = .cached(extent)
        case 3: self = .lost(extent)
        case 4: self = .cloning(extent)
        case 5 where bytes[1..<33].allSatisfy { $0 == 0 }: self = .capacity(number)
        default: return nil
        }
    }
}

/// How far a log goes: what nodes exchange to find out what they lack of each other's logs.
public struct HolderLogPosition: Hashable, Sendable {
    public let node: NodeID
    /// A later one starts with a snapshot and replaces all earlier ones: the clock's milliseconds.
    public let epoch: UInt64
    /// Entries in this epoch.
    public let count: UInt64
    /// h(n) = SHA-256(h(n-1), entry): 32 bytes.
    public let chain: [UInt8]

    public init?(node: NodeID, epoch: UInt64, count: UInt64, chain: [UInt8]) {
        guard chain.count == 32 else { return nil }
        self.init(node, epoch, count, chain)
    }

    private init(_ node: NodeID, _ epoch: UInt64, _ count: UInt64, _ chain: [UInt8]) {
        self.node = node
        self.epoch = epoch
        self.count = count
        self.chain = chain
    }

    /// The start of an epoch; h(0) binds node and epoch.
    public init(node: NodeID, epoch: UInt64) {
        var hash = PureSHA256()
        hash.update(Array("delugefs holder log".utf8) + node.bytes)
        hash.update(epoch)
        self.init(node, epoch, 0, hash.finish())
    }

    public func advanced(by entry: HolderLogEntry) -> HolderLogPosition {
        HolderLogPosition(node, epoch, count + 1, PureSHA256.digest(chain + entry.bytes))
    }

    public func advanced(by entries: some Sequence<HolderLogEntry>) -> HolderLogPosition {
        entries.reduce(self) { $0.advanced(by: $1) }
    }

    /// Whether these entries lead from here exactly to a position that the node has signed.
    public func verifies(_ batch: [HolderLogEntry], upTo claimed: HolderLogPosition) -> Bool {
        claimed.node == node && claimed.epoch == epoch && claimed.count >= count
            && claimed.count - count == UInt64(batch.count) && advanced(by: batch) == claimed
    }

    /// What the node signs: node, epoch, count, chain.
    public var signedBytes: [UInt8] {
        let numbers = [epoch, count].flatMap { number in
            (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * $0)) }
        }
        return Array("delugefs holder log position".utf8) + node.bytes + numbers + chain
    }
}

extension HolderLogPosition {
    /// How a position that someone else knows of the same log relates to this one.
    public enum Relation: Hashable, Sendable {
        case same
        /// They lack what follows their count.
        case theyLack
        /// We lack what follows our count, if the chain agrees: `verifies` tells.
        case weLack
        /// Another epoch replaces ours: ask for it from its start.
        case theirsIsNewer
        case oursIsNewer
        /// One number, two chains: the log's root was restored or copied.
        case forked
    }

    public func relation(to theirs: HolderLogPosition) -> Relation {
        if theirs.epoch != epoch { return theirs.epoch > epoch ? .theirsIsNewer : .oursIsNewer }
        if theirs.count != count { return theirs.count > count ? .weLack : .theyLack }
        return theirs.chain == chain ? .same : .forked
    }

    /// For one's own log: a peer knows what this root does not. It was restored from a backup or
    /// copied, and must start a new epoch.
    public func isOvertaken(by known: HolderLogPosition) -> Bool {
        switch relation(to: known) {
        case .weLack, .theirsIsNewer, .forked: true
        case .same, .theyLack, .oursIsNewer: false
        }
    }
}

/// What a log says when it is read from the start of its epoch.
public struct HolderLogState: Hashable, Sendable {
    public enum Holding: Hashable, Sendable { case stored, cached, cloning }

    public private(set) var holdings: [Extent: Holding] = [:]
    public private(set) var capacity: UInt64 = 0

    public init() {}

    public mutating func apply(_ entry: HolderLogEntry) {
        switch entry {
        case .stored(let extent): holdings[extent] = .stored
        case .cached(let extent): holdings[extent] = .cached
        case .cloning(let extent): holdings[extent] = .cloning
        case .lost(let extent): holdings[extent] = nil
        case .capacity(let bytes): capacity = bytes
        }
    }
}
