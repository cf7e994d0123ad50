internal import Volume

/// What goes wrong besides messages.
extension SimulatedNetwork {
    private static let day = 86_400_000
    private static let downMax = 3000
    /// Nodes that are always left, so that there is somebody to agree.
    private static let membersMin = 2

    /// All faults at random times between the first write and the last.
    mutating func scheduleFaults() {
        let gap = configuration.writeGap
        let duration = max(2, configuration.writes * (gap.lowerBound + gap.upperBound) / 2)
        func times(_ count: Int) -> Range<Int> { 0..<count }
        for _ in times(configuration.joins) { add(.join, duration) }
        for _ in times(configuration.leaves) { add(.leave, duration) }
        for _ in times(configuration.crashes) { add(.crash, duration) }
        for _ in times(configuration.clockJumps) { add(.setClock, duration) }
        for _ in times(configuration.restores) {
            let node = random(0...nodes.count - 1)
            let time = random(1...duration)
            schedule(.backUp(node), after: time / 2)
            schedule(.restore(node), after: time)
            faultsLeft += 2
        }
    }

    private mutating func add(_ event: Event, _ duration: Int) {
        schedule(event, after: random(1...duration))
        faultsLeft += 1
    }

    mutating func performFault(_ event: Event) throws {
        faultsLeft -= 1
        switch event {
        case .join: try join()
        case .leave: try leave()
        case .crash: crashAnyone()
        case .setClock: setAnyClock()
        case .backUp(let node):
            if presence[node] == .up, !nodes[node].isJoining { backups[node] = nodes[node] }
        case .restore(let node): restore(node)
        default: preconditionFailure("no fault")
        }
    }

    private mutating func anyoneUp() -> Int? {
        nodes.indices.filter { presence[$0] == .up }.randomElement(using: &operations.generator)
    }

    // MARK: Coming and going

    private mutating func join() throws {
        guard let peer = anyoneUp() else { return }
        let clockSkew = skew()
        add(
            try SimulatedNode(
                joining: Self.id(nodes.count), skew: clockSkew, from: nodes[peer], at: now, work,
                mistakes: configuration.mistakes), groups[peer])
        schedule(.complete(nodes.count - 1), after: Self.backfillDelay)
    }

    mutating func complete(_ node: Int) throws {
        guard presence[node] != .gone, nodes[node].isJoining else { return }
        for peer in nodes.indices
        where peer != node && reaches(peer, node) && !nodes[peer].isJoining {
            let table = nodes[peer].commits
            var isComplete = false
            try attempt(node) { node, _ in isComplete = try node.complete(from: table) }
            if isComplete { return }
        }
        schedule(.complete(node), after: Self.backfillDelay)
    }

    /// Until then the head that a joining node adopted may be nowhere else as a whole; who loses that
    /// has to join anew.
    private var isAnyoneJoining: Bool { members.contains { nodes[$0].isJoining } }

    /// For ever; sometimes after telling all that it has.
    private mutating func leave() throws {
        guard members.count > Self.membersMin, !isAnyoneJoining, let node = anyoneUp() else {
            return
        }
        if operations.generator.once(in: 2) { try attempt(node) { try $0.commit(at: $1) } }
        presence[node] = .gone
    }

    // MARK: Crashes

    /// At once, or in the middle of the next commit or merge.
    private mutating func crashAnyone() {
        guard let node = anyoneUp() else { return }
        if operations.generator.once(in: 2) {
            nodes[node].failing = SimulatedNode.FailurePoint.allCases
                .randomElement(using: &operations.generator)
        } else {
            crash(node, losingPower: operations.generator.once(in: 2))
        }
    }

    mutating func crash(_ node: Int, losingPower: Bool) {
        presence[node] = .down
        faultsLeft += 1
        schedule(.restart(node, losingPower: losingPower), after: random(1...Self.downMax))
    }

    mutating func restart(_ node: Int, losingPower: Bool) throws {
        faultsLeft -= 1
        guard presence[node] == .down else { return }
        presence[node] = .up
        try nodes[node].restart(at: now, losingPower: losingPower)
        schedule(.commit(node), after: configuration.commitDelay)
        wake(node, at: now)
    }

    /// All that it had is as it was then; the clock is what it is.
    private mutating func restore(_ node: Int) {
        guard presence[node] != .gone, !isAnyoneJoining, let backup = backups[node] else { return }
        let skew = nodes[node].skew
        nodes[node] = backup
        nodes[node].skew = skew
        if presence[node] == .up { crash(node, losingPower: true) }
    }

    // MARK: Clocks

    private mutating func setAnyClock() {
        guard let node = anyoneUp() else { return }
        let jump: Int
        switch random(0...4) {
        case 0: jump = random(1...60) * 60_000
        case 1: jump = random(1...30) * Self.day
        case 2: jump = random(10...60) * 365 * Self.day
        // Beyond the last valid stamp, and before 1970.
        case 3: jump = random(180...300) * 365 * Self.day
        default: jump = now
        }
        nodes[node].skew += operations.generator.once(in: 2) ? jump : -jump
    }
}
