internal import Volume

/// Nodes, the links between them, clocks and disks: everything that happens follows from the seed.
///
/// Announcements are late, lost, doubled and overtake each other; partitions come and go; nodes crash
/// anywhere and start again from what was durable, or from a backup that is old; nodes join, others
/// never come back; wall clocks jump by minutes and by decades. Peers that can reach each other
/// compare heads now and then. The faults end with the writes; then the nodes must agree.
public struct SimulatedNetwork {
    public struct Configuration: Sendable {
        public var nodes = 5
        public var writes = 50
        /// Between two writes anywhere, milliseconds.
        public var writeGap = 0...120
        /// From a write to its commit.
        public var commitDelay = 200
        public var latency = 1...60
        /// From a head's arrival to what is done about it; what comes meanwhile is done with it.
        public var settleDelay = 5
        /// One announcement of so many is lost; nil: none.
        public var lossOneIn: Int?
        /// One of so many arrives twice.
        public var doubleOneIn: Int?
        public var partitions = false
        public var joins = 0
        /// Nodes that go for ever, with what they told nobody.
        public var leaves = 0
        public var crashes = 0
        /// Nodes that start again from an old backup of all that they had.
        public var restores = 0
        public var clockJumps = 0
        /// How far wall clocks are off at first, milliseconds.
        public var skew = -300_000...300_000
        /// What all nodes would compute alike is computed again one time in so many.
        public var recheckOneIn = 8
        /// The simulation must end of itself long before.
        public var eventsMax = 4_000_000
        package var mistakes: SimulatedMistakes = []

        public init() {}

        /// All that can go wrong, in proportion to the nodes; how bad the network is, the seed says.
        public static func rough(seed: UInt64, nodes: Int, writes: Int) -> Configuration {
            var generator = SeededGenerator(seed: seed ^ 0xbad)
            func draw(_ range: ClosedRange<Int>) -> Int {
                Int.random(in: range, using: &generator)
            }
            var rough = Configuration()
            rough.nodes = nodes
            rough.writes = writes
            rough.lossOneIn = draw(3...30)
            rough.doubleOneIn = draw(4...20)
            rough.latency = 1...draw(20...600)
            rough.settleDelay = draw(20...100)
            rough.writeGap = 0...draw(40...300)
            rough.partitions = draw(0...3) > 0
            rough.joins = draw(1...2) + nodes / 12
            rough.leaves = draw(0...2) + nodes / 16
            rough.crashes = draw(1...3) + nodes / 4
            rough.restores = draw(0...2) + nodes / 16
            rough.clockJumps = draw(1...3) + nodes / 8
            return rough
        }
    }

    enum Event {
        case write, commit(Int), flush(Int), deliver(from: Int, to: Int, head: ObjectID), greet
        case wake(Int), regroup, join, complete(Int)
        case leave, crash, restart(Int, losingPower: Bool), backUp(Int), restore(Int), setClock
    }

    enum Presence { case up, down, gone }

    static let greetEvery = 1000
    private static let regroupEvery = 1500
    static let backfillDelay = 700
    /// The catalog's group commit.
    private static let flushDelay = 50

    public internal(set) var nodes: [SimulatedNode] = []
    public private(set) var now = 1_700_000_000_000
    public private(set) var lastWrite = 0
    /// When the last change was committed anywhere.
    public private(set) var lastCommit = 0
    /// When all nodes showed the same, and when none had anything more to tell.
    public private(set) var agreedAt: Int?
    public private(set) var convergedAt: Int?
    /// Heads told because they are new; those that are compared now and then aside.
    public private(set) var announcements = 0

    let configuration: Configuration
    let work: SharedWork
    var operations: RandomOperations
    private var events = EventQueue<Event>()
    var writesLeft: Int
    /// Faults that are still to come.
    var faultsLeft = 0
    /// Nodes of different groups do not reach each other.
    var groups: [Int] = []
    var presence: [Presence] = []
    var backups: [Int: SimulatedNode] = [:]
    /// When a node is woken next.
    private var wakes: [Int?] = []

    public init(seed: UInt64, _ configuration: Configuration = Configuration()) throws {
        self.configuration = configuration
        operations = RandomOperations(seed: seed)
        work = SharedWork(
            seed: seed, recheckOneIn: configuration.recheckOneIn, mistakes: configuration.mistakes)
        writesLeft = configuration.writes
        try add(
            SimulatedNode(
                creating: Self.id(0), skew: skew(), work, mistakes: configuration.mistakes), 0)
        for index in 1..<configuration.nodes {
            var node = try SimulatedNode(
                joining: Self.id(index), skew: skew(), from: nodes[0], at: now, work,
                mistakes: configuration.mistakes)
            _ = try node.complete(from: nodes[0].commits)
            add(node, 0)
        }
        schedule(.write, after: 1)
        schedule(.greet, after: Self.greetEvery)
        if configuration.partitions { schedule(.regroup, after: Self.regroupEvery) }
        scheduleFaults()
    }

    static func id(_ index: Int) -> NodeID { NodeID(high: 9, low: UInt64(index + 1)) }

    mutating func skew() -> Int { random(configuration.skew) }

    mutating func random(_ range: ClosedRange<Int>) -> Int {
        Int.random(in: range, using: &operations.generator)
    }

    mutating func schedule(_ event: Event, after delay: Int) {
        events.add(event, at: now + max(1, delay))
    }

    mutating func add(_ node: SimulatedNode, _ group: Int) {
        nodes.append(node)
        groups.append(group)
        presence.append(.up)
        wakes.append(nil)
    }

    // MARK: Running

    /// Those that are or will be there.
    var members: [Int] { nodes.indices.filter { presence[$0] != .gone } }

    private var isQuiet: Bool { writesLeft == 0 && faultsLeft == 0 }

    /// All show the same, and nothing waits to be committed.
    private var isAgreed: Bool {
        var tree: ObjectID?
        for node in nodes.indices where presence[node] != .gone {
            guard presence[node] == .up, !nodes[node].isJoining, nodes[node].space.isClean else {
                return false
            }
            let applied = work.commits[nodes[node].applied]?.tree
            guard tree == nil || applied == tree else { return false }
            tree = applied
        }
        return true
    }

    /// All have told all: one head, applied everywhere.
    public var isConverged: Bool {
        guard isQuiet, isAgreed, let first = members.first else { return false }
        let head = nodes[first].applied
        return nodes.indices.allSatisfy { node in
            presence[node] == .gone
                || nodes[node].applied == head && nodes[node].heads.announced == [head]
        }
    }

    /// Runs until the nodes agree after the last write. False: they do not within the limit.
    public mutating func run() throws -> Bool {
        var performed = 0
        while performed < configuration.eventsMax, let next = events.next() {
            if next.time > now, isQuiet {
                if isAgreed { agreedAt = agreedAt ?? now } else { agreedAt = nil }
                if isConverged {
                    convergedAt = now
                    // Not lost: what is still to come must change nothing.
                    events.add(next.event, at: next.time)
                    return true
                }
            }
            now = next.time
            try perform(next.event)
            performed += 1
        }
        return false
    }

    /// Goes on for long enough that any node would have closed a round.
    ///
    /// - Returns: Whether nobody told anything, made a commit, or left the common head.
    public mutating func staysSilent() throws -> Bool {
        let end = now + 10_000 + 100 * nodes.count
        let before = (announcements, work.commits.count)
        while let next = events.next(), next.time < end {
            now = next.time
            try perform(next.event)
        }
        return before == (announcements, work.commits.count) && isConverged
    }

    private mutating func perform(_ event: Event) throws {
        switch event {
        case .write: write()
        case .commit(let node): try attempt(node) { try $0.commit(at: $1) }
        case .flush(let node): if presence[node] == .up { nodes[node].flush() }
        case .deliver(let from, let to, let head): try deliver(head, from: from, to: to)
        case .greet: greet()
        case .wake(let node):
            guard wakes[node] == now else { return }
            wakes[node] = nil
            try attempt(node) { _, _ in }
        case .regroup: regroup()
        case .join, .leave, .crash, .setClock, .backUp, .restore: try performFault(event)
        case .restart(let node, let losingPower): try restart(node, losingPower: losingPower)
        case .complete(let node): try complete(node)
        }
    }

    private mutating func write() {
        guard writesLeft > 0 else { return }
        writesLeft -= 1
        let up = nodes.indices.filter { presence[$0] == .up }
        if let node = up.randomElement(using: &operations.generator) {
            nodes[node].operate(&operations, at: now)
            lastWrite = now
            schedule(.flush(node), after: Self.flushDelay)
            schedule(.commit(node), after: configuration.commitDelay)
        }
        if writesLeft > 0 { schedule(.write, after: random(configuration.writeGap)) }
        if writesLeft == 0 { groups = groups.map { _ in 0 } }
    }

    private mutating func deliver(_ head: ObjectID, from: Int, to: Int) throws {
        guard reaches(from, to) else { return }
        do {
            try nodes[to].receive(head, from: nodes[from].commits, at: now)
            wake(to, at: now + configuration.settleDelay)
        } catch is CommitTable.Unknown {
            // The sender joined just now, or lost what it told: it has not got what lies below.
            return
        }
    }

    func reaches(_ one: Int, _ other: Int) -> Bool {
        presence[one] == .up && presence[other] == .up && groups[one] == groups[other]
    }

    mutating func wake(_ node: Int, at time: Int) {
        let time = max(time, now + 1)
        if let earlier = wakes[node], earlier <= time { return }
        wakes[node] = time
        events.add(.wake(node), at: time)
    }

    /// Lets a node do something and then what convergence asks for; it may crash meanwhile.
    mutating func attempt(
        _ node: Int, _ body: (inout SimulatedNode, Int) throws -> Void
    ) throws {
        guard presence[node] == .up else { return }
        if !nodes[node].space.isClean { lastCommit = now }
        do {
            try body(&nodes[node], now)
            try step(node)
        } catch is SimulatedCrash { crash(node, losingPower: true) }
    }

    private mutating func step(_ node: Int) throws {
        if nodes[node].isJoining {
            // Without the graph it cannot tell which heads are maximal; it only adds its own.
            announce(nodes[node].heads.applied, from: node)
            return
        }
        let rank = nodes.indices.count { reaches($0, node) && nodes[$0].id < nodes[node].id }
        let (told, wake) = try nodes[node].step(at: now, rank: rank)
        for head in told { announce(head, from: node) }
        if let wake { self.wake(node, at: wake) }
    }

    private mutating func announce(_ head: ObjectID, from node: Int) {
        for other in nodes.indices where other != node && reaches(node, other) {
            announcements += 1
            tell(head, from: node, to: other)
        }
    }

    private mutating func tell(_ head: ObjectID, from: Int, to: Int) {
        if let one = configuration.lossOneIn, operations.generator.once(in: one) { return }
        schedule(.deliver(from: from, to: to, head: head), after: random(configuration.latency))
        if let one = configuration.doubleOneIn, operations.generator.once(in: one) {
            schedule(.deliver(from: from, to: to, head: head), after: random(configuration.latency))
        }
    }

    private mutating func greet() {
        for node in nodes.indices {
            let other = random(0...nodes.count - 1)
            guard other != node, reaches(node, other),
                nodes[node].heads.announced != nodes[other].heads.announced
            else { continue }
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
}
