internal import Volume

/// Nodes, the links between them, and a clock: everything that happens follows from the seed.
///
/// Announcements are late, lost and overtake each other; partitions come and go; wall clocks are
/// off by minutes. Peers that can reach each other compare heads now and then.
public struct SimulatedNetwork {
    public struct Configuration: Sendable {
        public var nodes = 5
        public var writes = 50
        /// Between two writes anywhere, milliseconds.
        public var writeGap = 0...120
        /// From a write to its commit.
        public var commitDelay = 200
        public var latency = 1...60
        /// One announcement of so many is lost; nil: none.
        public var lossOneIn: Int?
        public var partitions = false
        public var joins = 0
        /// How far wall clocks are off, milliseconds.
        public var skew = -300_000...300_000

        public init() {}
    }

    private enum Event {
        case write, commit(Int), deliver(from: Int, to: Int, head: ObjectID), greet, wake(Int)
        case regroup, join, complete(Int)
    }

    private static let greetEvery = 1000
    private static let regroupEvery = 1500
    private static let backfillDelay = 700
    /// The simulation must end of itself long before.
    private static let eventsMax = 1_000_000

    public private(set) var nodes: [SimulatedNode] = []
    public private(set) var now = 1_700_000_000_000
    public private(set) var lastWrite = 0
    public private(set) var announcements = 0
    public private(set) var objects = MemoryObjects()

    private let configuration: Configuration
    private var operations: RandomOperations
    /// By time, then by order of scheduling.
    private var events: [Int: [Event]] = [:]
    private var writesLeft: Int
    private var joinsLeft: Int
    /// Nodes of different groups do not reach each other.
    private var groups: [Int] = []

    public init(seed: UInt64, _ configuration: Configuration = Configuration()) throws {
        self.configuration = configuration
        operations = RandomOperations(seed: seed)
        writesLeft = configuration.writes
        joinsLeft = configuration.joins
        let first = try SimulatedNode(creating: Self.id(0), skew: skew(), objects: &objects)
        nodes = [first]
        for index in 1..<configuration.nodes {
            var node = try SimulatedNode(
                joining: Self.id(index), skew: skew(), from: first, at: now, objects: objects)
            try node.complete(from: first.commits)
            nodes.append(node)
        }
        groups = nodes.map { _ in 0 }
        schedule(.write, after: 1)
        schedule(.greet, after: Self.greetEvery)
        if configuration.partitions { schedule(.regroup, after: Self.regroupEvery) }
        if configuration.joins > 0 { schedule(.join, after: Self.regroupEvery) }
    }

    private static func id(_ index: Int) -> NodeID { NodeID(high: 9, low: UInt64(index + 1)) }

    private mutating func skew() -> Int { random(configuration.skew) }

    private mutating func random(_ range: ClosedRange<Int>) -> Int {
        Int.random(in: range, using: &operations.generator)
    }

    private mutating func schedule(_ event: Event, after delay: Int) {
        events[now + max(1, delay), default: []].append(event)
    }

    // MARK: Running

    /// All have told all: one head, applied everywhere.
    public var isConverged: Bool {
        writesLeft == 0 && joinsLeft == 0
            && nodes.allSatisfy {
                !$0.isJoining && $0.space.dirtyPlaces.isEmpty && $0.space.dirtyRecords.isEmpty
                    && $0.heads.announced == [$0.heads.applied]
                    && $0.heads.applied == nodes[0].heads.applied
            }
    }

    /// Runs until the nodes agree after the last write. False: they do not within the limit.
    public mutating func run() throws -> Bool {
        var performed = 0
        while let time = events.keys.min() {
            now = time
            for event in events.removeValue(forKey: time) ?? [] {
                try perform(event)
                performed += 1
            }
            if isConverged { return true }
            if performed > Self.eventsMax { return false }
        }
        return false
    }

    private mutating func perform(_ event: Event) throws {
        switch event {
        case .write: write()
        case .commit(let node):
            try nodes[node].commit(at: now, &objects)
            try step(node)
        case .deliver(let from, let to, let head):
            guard groups[from] == groups[to] else { return }
            do {
                try nodes[to].receive(head, from: nodes[from].commits, at: now, objects)
            } catch is CommitTable.Unknown {
                // The sender joined just now and lacks what lies below; others will tell it too.
                return
            }
            try step(to)
        case .greet: greet()
        case .wake(let node): try step(node)
        case .regroup: regroup()
        case .join: try join()
        case .complete(let node): try complete(node)
        }
    }

    private mutating func write() {
        guard writesLeft > 0 else { return }
        writesLeft -= 1
        let node = random(0...nodes.count - 1)
        nodes[node].operate(&operations, at: now)
        lastWrite = now
        schedule(.commit(node), after: configuration.commitDelay)
        if writesLeft > 0 { schedule(.write, after: random(configuration.writeGap)) }
        if writesLeft == 0 { groups = groups.map { _ in 0 } }
    }

    private mutating func step(_ node: Int) throws {
        if nodes[node].isJoining {
            // Without the graph it cannot tell which heads are maximal; it only adds its own.
            announce(nodes[node].heads.applied, from: node)
            return
        }
        let online = nodes.indices.filter { groups[$0] == groups[node] }.map { nodes[$0].id }
        let rank = online.count { $0 < nodes[node].id }
        let (told, wake) = try nodes[node].step(at: now, rank: rank, &objects)
        for head in told { announce(head, from: node) }
        if let wake { schedule(.wake(node), after: wake - now) }
    }

    private mutating func announce(_ head: ObjectID, from node: Int) {
        for other in nodes.indices where other != node && groups[other] == groups[node] {
            tell(head, from: node, to: other)
        }
    }

    private mutating func tell(_ head: ObjectID, from: Int, to: Int) {
        announcements += 1
        if let one = configuration.lossOneIn, operations.generator.once(in: one) { return }
        schedule(.deliver(from: from, to: to, head: head), after: random(configuration.latency))
    }

    private mutating func greet() {
        for node in nodes.indices {
            let other = random(0...nodes.count - 1)
            guard other != node, groups[other] == groups[node] else { continue }
            for head in nodes[node].heads.announced { tell(head, from: node, to: other) }
            for head in nodes[other].heads.announced { tell(head, from: other, to: node) }
        }
        schedule(.greet, after: Self.greetEvery)
    }

    private mutating func regroup() {
        guard writesLeft > 0 else { return }
        let count = random(1...3)
        for node in groups.indices { groups[node] = random(0...count - 1) }
        schedule(.regroup, after: Self.regroupEvery)
    }

    private mutating func join() throws {
        guard joinsLeft > 0 else { return }
        joinsLeft -= 1
        let peer = random(0...nodes.count - 1)
        let clockSkew = skew()
        let node = try SimulatedNode(
            joining: Self.id(nodes.count), skew: clockSkew, from: nodes[peer], at: now,
            objects: objects)
        nodes.append(node)
        groups.append(groups[peer])
        schedule(.complete(nodes.count - 1), after: Self.backfillDelay)
        if joinsLeft > 0 { schedule(.join, after: Self.regroupEvery) }
    }

    private mutating func complete(_ node: Int) throws {
        let peers = nodes.indices.filter {
            $0 != node && groups[$0] == groups[node] && !nodes[$0].isJoining
        }
        // The graph below the adopted head: from whoever has it.
        let wanted = nodes[node].heads.announced + [nodes[node].heads.applied]
        let known = Set(nodes[node].commits.commits.values.flatMap(\.parents))
        guard
            let peer = peers.first(where: { peer in
                known.allSatisfy {
                    nodes[peer].commits.commits[$0] != nil
                        || nodes[node].commits.commits[$0] != nil
                } && !wanted.isEmpty
            })
        else {
            schedule(.complete(node), after: Self.backfillDelay)
            return
        }
        try nodes[node].complete(from: nodes[peer].commits)
        try step(node)
    }
}
