import Catalog
import Volume

/// Which copies are missing and who is to be asked for them, and which copies here are too many: what
/// the replicator knows. No I/O.
struct RepairPlan {
    typealias Instant = ContinuousClock.Instant

    /// A content with too few copies.
    struct Lack {
        let number: Int64
        let extent: Extent
        /// How many it is to have.
        let copies: Int
        /// Live ones.
        var holders: [NodeID: HolderState]
        /// Since when, as far as this node has noticed.
        let since: Instant
        /// They began a clone that came to nothing, and are asked after all others.
        var gaveUp: Set<NodeID> = []
        /// Computed once: where it belongs, and after how long this node acts.
        var order: [NodeID]?
        var delay: Duration?

        func holders(_ state: HolderState) -> [NodeID] {
            holders.filter { $0.value == state }.map(\.key)
        }
    }

    /// A copy here that others make unnecessary.
    struct Surplus {
        let extent: Extent
        let copies: Int
        /// Live ones that store it, this node among them.
        let holders: Set<NodeID>
        /// Since when, as far as this node has noticed.
        let since: Instant
        var retryAfter: Instant
    }

    private enum Readiness {
        case ready
        /// Busy: the same node may take it soon.
        case later
        /// Full, or not there.
        case never
    }

    let node: NodeID
    private var nodes: [NodeID: PlacementNode] = [:]
    private var online: Set<NodeID> = []
    private var copies = 1
    /// By row number; no more than files have contents. Changed by `setLack` alone.
    private var lacking: [Int64: Lack] = [:]
    /// Of all that is lacking.
    private(set) var amounts = Replicator.Amounts()
    /// Those of which this node has a cached copy and nobody one that counts.
    private var promotable: Set<Int64> = []
    /// By row number; no more than this node stores.
    private var surplus: [Int64: Surplus] = [:]
    /// Clones that this node has begun and that nobody needs any more.
    private var needless: [Extent] = []
    /// Clones that were accepted and are not confirmed: at most `Replicator.clonesMax` of a node.
    private var asked: [NodeID: [Int64: Instant]] = [:]
    private var busyUntil: [NodeID: Instant] = [:]
    private var silentUntil: [NodeID: Instant] = [:]
    private var fullUntil: [NodeID: (time: Instant, length: UInt64)] = [:]
    /// Copies on their way to where they belong: until when they count as moved, and their bytes.
    private var moving: [Int64: (until: Instant, bytes: UInt64)] = [:]
    private var surveyed: Instant?
    var mustSurvey = true

    init(node: NodeID) { self.node = node }

    // MARK: What is

    mutating func setNodes(_ nodes: [PlacementNode], online: Set<NodeID>, copies: Int) {
        let nodes = Dictionary(nodes.map { ($0.id, $0) }) { first, _ in first }
        guard nodes != self.nodes || online != self.online || copies != self.copies else { return }
        self.nodes = nodes
        self.online = online
        self.copies = copies
        // Who went is not waited for.
        asked = asked.filter { online.contains($0.key) }
        mustSurvey = true
        recount()
    }

    /// Machines on which copies can be.
    private var machines: Int { Set(nodes.values.filter { $0.capacity > 0 }.map(\.machine)).count }

    private func machinesMin(_ copies: Int) -> Int { min(copies, machines) }

    var rule: CopyRule {
        CopyRule(
            places: nodes.mapValues {
                CopyRule.Place(
                    machine: $0.machine, isOnline: online.contains($0.id), counts: $0.capacity > 0)
            }, copies: copies, own: node)
    }

    func isSurveyDue(_ now: Instant) -> Bool {
        guard let surveyed else { return true }
        let pause = mustSurvey ? Replicator.surveyPause : Replicator.surveyInterval
        return now - surveyed >= pause
    }

    /// All contents were looked at; these have not what they are to have.
    mutating func surveyed(_ found: [Int64: Holding], at now: Instant) {
        surveyed = now
        mustSurvey = false
        for number in lacking.keys where found[number] == nil { update(number, nil, at: now) }
        for number in surplus.keys where found[number] == nil { surplus[number] = nil }
        for (number, holding) in found { update(number, holding, at: now) }
    }

    /// What is known of one content now; nil: nothing is lacking, or it is gone.
    mutating func update(_ number: Int64, _ holding: Holding?, at now: Instant) {
        let holders = Dictionary(
            (holding?.holders ?? []).filter { nodes[$0.node] != nil }.map { ($0.node, $0.state) }
        ) { first, _ in first }
        for node in asked.keys where asked[node]?[number] != nil {
            // Confirmed, or begun and given up.
            let hadBegun = lacking[number]?.holders[node] == .cloning
            if holders[node] == .stored || hadBegun && holders[node] != .cloning || holding == nil {
                asked[node]?[number] = nil
                busyUntil[node] = nil
            }
        }
        if holders[node] != .stored { moving[number] = nil }
        guard let holding, holding.isReferenced else {
            surplus[number] = nil
            return setLack(number, nil)
        }
        noteSurplus(number, holding, holders, now)
        guard isLacking(holders, holding.copies) else {
            // By what nodes have that are there: of the absent ones each node thinks for itself.
            let present = holders.filter { online.contains($0.key) }
            if holders[node] == .cloning, !isLacking(present, holding.copies),
                !places(of: holding).contains(node)
            {
                needless.append(holding.extent)
            }
            return setLack(number, nil)
        }
        let known = lacking[number]
        let ended = known?.holders(.cloning).filter { holders[$0] == nil } ?? []
        setLack(
            number,
            Lack(
                number: number, extent: holding.extent, copies: holding.copies, holders: holders,
                since: known?.since ?? now, gaveUp: (known?.gaveUp ?? []).union(ended)))
    }

    /// Where its copies belong.
    private func places(of holding: Holding) -> [NodeID] {
        Placement.order(
            of: holding.extent.root, among: Array(nodes.values), copies: holding.copies
        ).prefix(holding.copies).map(\.id)
    }

    private mutating func noteSurplus(
        _ number: Int64, _ holding: Holding, _ holders: [NodeID: HolderState], _ now: Instant
    ) {
        let others = holders.filter { $0.key != node }
        guard holders[node] == .stored, !isLacking(others, holding.copies) else {
            surplus[number] = nil
            return
        }
        let known = surplus[number]
        surplus[number] = Surplus(
            extent: holding.extent, copies: holding.copies,
            holders: Set(holders.filter { $0.value == .stored }.keys),
            since: known?.since ?? now, retryAfter: known?.retryAfter ?? now)
    }

    /// Those whose copies count.
    private func counted(_ holders: [NodeID: HolderState]) -> [NodeID] {
        holders.filter { $0.value == .stored && (nodes[$0.key]?.capacity ?? 0) > 0 }.map(\.key)
    }

    private mutating func setLack(_ number: Int64, _ lack: Lack?) {
        if let old = lacking[number] { count(old, -1) }
        lacking[number] = lack
        if let lack { count(lack, 1) }
        if let lack, lack.holders[node] == .cached, lack.holders(.stored).isEmpty {
            promotable.insert(number)
        } else {
            promotable.remove(number)
        }
    }

    /// - Parameter sign: 1 or -1.
    private mutating func count(_ lack: Lack, _ sign: Int) {
        func add(to amount: inout Status.Amount) {
            amount.files += sign
            amount.bytes = amount.bytes &+ UInt64(bitPattern: Int64(sign)) &* lack.extent.length
        }
        if counted(lack.holders).count < lack.copies { add(to: &amounts.underReplicated) }
        if !isAvailable(lack.holders) { add(to: &amounts.unavailable) }
    }

    /// What counts as lacking depends on the nodes and on how many copies are wanted.
    private mutating func recount() {
        amounts = Replicator.Amounts()
        for lack in lacking.values { count(lack, 1) }
    }

    private func isLacking(_ holders: [NodeID: HolderState], _ copies: Int) -> Bool {
        let counted = counted(holders)
        return counted.count < copies
            || Set(counted.compactMap { nodes[$0]?.machine }).count < machinesMin(copies)
            || !isAvailable(holders)
    }

    private func isAvailable(_ holders: [NodeID: HolderState]) -> Bool {
        holders.contains { $0.value != .cloning && online.contains($0.key) }
    }

    // MARK: What is to be done

    mutating func expire(_ now: Instant) {
        for node in asked.keys {
            asked[node] = asked[node]?.filter { now - $0.value < Replicator.patience }
        }
    }

    /// What this node has as a cached copy, when nobody has one that counts and it is this node's turn.
    mutating func promotions(_ now: Instant) -> [Extent] {
        var found: [Extent] = []
        for number in promotable {
            guard isOurTurn(number, now), let lack = lacking[number] else { continue }
            found.append(lack.extent)
        }
        return found
    }

    /// Whether the content is this node's to care for: live holders take turns.
    private mutating func isOurTurn(_ number: Int64, _ now: Instant) -> Bool {
        guard let lack = lacking[number], let own = lack.holders[node], own != .cloning else {
            return false
        }
        if lack.delay == nil {
            let stored = lack.holders(.stored)
            guard own == .stored || stored.isEmpty else { return false }
            let seconds = RepairOwnership.delay(
                of: node, root: lack.extent.root, holders: lack.holders(own))
            lacking[number]?.delay = seconds.map { .seconds($0) }
        }
        guard let delay = lacking[number]?.delay else { return false }
        return now - lack.since >= delay
    }

    /// Clones of this node that are to be ended. Each is told once.
    mutating func takeNeedless() -> [Extent] {
        defer { needless = [] }
        return needless
    }

    /// What this node may try to drop now: copies that have been too many for a while.
    ///
    /// - Parameter settling: who comes back for a moment only is to find that nothing was dropped.
    mutating func drops(
        _ now: Instant, settling: Duration, nonce: () -> UInt64
    ) -> [Dropper.Attempt] {
        var attempts: [Dropper.Attempt] = []
        var looks = 0
        for (number, content) in surplus {
            // What is on its way elsewhere was made one too many on purpose.
            let hasSettled = moving[number] != nil || now >= content.since + settling
            guard hasSettled, now >= content.retryAfter else { continue }
            looks += 1
            guard looks <= Dropper.looksMax, attempts.count < Dropper.batchMax else { break }
            surplus[number]?.retryAfter = now + Dropper.retryPause
            let rule = DropAttempt(
                root: content.extent.root, node: node, nonce: nonce(), copies: content.copies,
                holders: content.holders, among: Array(nodes.values))
            if let rule { attempts.append(Dropper.Attempt(extent: content.extent, rule: rule)) }
        }
        return attempts
    }

    /// To give up what counts as no copy; nil when it is needed still.
    func eviction(_ holding: Holding, nonce: UInt64) -> Dropper.Attempt? {
        let holders = holding.holders.filter { $0.state == .stored && nodes[$0.node] != nil }
        return DropAttempt(
            uncounted: holding.extent.root, node: node, nonce: nonce, copies: holding.copies,
            holders: Set(holders.map(\.node)), among: Array(nodes.values)
        ).map { Dropper.Attempt(extent: holding.extent, rule: $0) }
    }

    /// Everything has its copies.
    var isSettled: Bool { lacking.isEmpty }

    /// How many bytes this disk has beyond its share of what all store, those on their way to others
    /// not counted; 0 until it is far beyond, so that nothing moves to and fro.
    mutating func excess(_ stored: [NodeID: UInt64], _ now: Instant) -> UInt64 {
        moving = moving.filter { now < $0.value.until }
        let own = Double(stored[node] ?? 0) - moving.values.reduce(0) { $0 + Double($1.bytes) }
        let ideal = ideal(stored)[node] ?? 0
        guard own > ideal * (1 + Replicator.unevenMax) else { return 0 }
        return UInt64(own - ideal)
    }

    /// What each node would store of all that is stored if all were filled evenly.
    private func ideal(_ stored: [NodeID: UInt64]) -> [NodeID: Double] {
        let shares = Placement.shares(among: Array(nodes.values), copies: copies)
        let total = stored.filter { nodes[$0.key] != nil }.reduce(0) { $0 + Double($1.value) }
        let sum = max(shares.values.reduce(0, +), .leastNonzeroMagnitude)
        return shares.mapValues { total * $0 / sum }
    }

    /// Whom to ask for copies of contents that are here and do not belong here. What is here then is
    /// one too many, and goes by the rule of all such.
    ///
    /// - Parameter excess: bytes that are to go.
    mutating func moves(
        _ holdings: [Holding], excess: UInt64, stored: [NodeID: UInt64], _ now: Instant
    ) -> [NodeID: [Lack]] {
        var left = excess
        var requests: [NodeID: [Lack]] = [:]
        let ideal = ideal(stored)
        for holding in holdings where holding.extent.length <= left && moving[holding.number] == nil
        {
            let holders = Set(holding.holders.map(\.node))
            let places = places(of: holding)
            guard holding.state == .stored, holding.isReferenced, !places.contains(node),
                let target = places.first(where: { place in
                    !holders.contains(place)
                        && Double(stored[place] ?? 0) < (ideal[place] ?? 0)
                        && readiness(of: place, holding.extent.length, isRunning: false, now)
                            == .ready
                })
            else { continue }
            left -= holding.extent.length
            moving[holding.number] = (now + Replicator.movingMax, holding.extent.length)
            asked[target, default: [:]][holding.number] = now
            requests[target, default: []].append(
                Lack(
                    number: holding.number, extent: holding.extent, copies: holding.copies,
                    holders: [:], since: now))
        }
        return requests
    }

    /// Whom to ask for which contents now.
    mutating func requests(_ now: Instant) -> [NodeID: [Lack]] {
        var requests: [NodeID: [Lack]] = [:]
        var open = Set(
            online.filter {
                $0 != node && (nodes[$0]?.capacity ?? 0) > 0
                    && readiness(of: $0, 0, isRunning: false, now) == .ready
            })
        for number in lacking.keys {
            if open.isEmpty { break }
            guard lacking[number]?.holders[node] == .stored, isOurTurn(number, now) else {
                continue
            }
            for candidate in candidates(number, now) {
                guard let lack = lacking[number] else { continue }
                requests[candidate, default: []].append(lack)
                asked[candidate, default: [:]][number] = now
                if asked[candidate]?.count == Replicator.clonesMax { open.remove(candidate) }
            }
        }
        return requests
    }

    /// The nodes to ask for one content. Other machines first; a second disk of one only when no
    /// machine is left.
    private mutating func candidates(_ number: Int64, _ now: Instant) -> [NodeID] {
        guard let lack = lacking[number] else { return [] }
        let stored = Set(lack.holders(.stored))
        let counted = Set(counted(lack.holders))
        let running = Set(asked.filter { $0.value[number] != nil }.map(\.key)).subtracting(stored)
        var used = Set(counted.union(running).compactMap { nodes[$0]?.machine })
        var missing = lack.copies - counted.count - running.count
        var machinesMissing = machinesMin(lack.copies) - used.count
        guard missing > 0 || machinesMissing > 0 else { return [] }
        // What a log says has begun may have ended with a restart of that node: it is asked first.
        let begun = Set(lack.holders(.cloning)).subtracting(running)
        let open = order(number).filter {
            !stored.contains($0) && !running.contains($0) && !begun.contains($0)
        }
        let others =
            open.filter { !lack.gaveUp.contains($0) } + open.filter { lack.gaveUp.contains($0) }
        var chosen: [NodeID] = []
        for onFreshMachine in [true, false] {
            for candidate in begun.sorted() + others {
                guard missing > 0 || onFreshMachine && machinesMissing > 0 else { break }
                guard let machine = nodes[candidate]?.machine,
                    used.contains(machine) != onFreshMachine
                else { continue }
                let isRunning = begun.contains(candidate)
                let readiness = readiness(
                    of: candidate, lack.extent.length, isRunning: isRunning, now)
                if readiness == .never { continue }
                // Who is only busy can take it soon: that is worth the wait, for if the next ones
                // took what the right ones have no time for, disks would fill unevenly.
                if readiness == .ready { chosen.append(candidate) }
                missing -= 1
                if used.insert(machine).inserted { machinesMissing -= 1 }
            }
        }
        return chosen
    }

    private mutating func order(_ number: Int64) -> [NodeID] {
        guard let lack = lacking[number] else { return [] }
        if let order = lack.order { return order }
        let order = Placement.order(
            of: lack.extent.root, among: Array(nodes.values), copies: lack.copies
        ).map(\.id)
        lacking[number]?.order = order
        return order
    }

    /// - Parameter isRunning: what it refused of other contents says nothing of this one.
    private func readiness(
        of candidate: NodeID, _ length: UInt64, isRunning: Bool, _ now: Instant
    ) -> Readiness {
        guard online.contains(candidate), candidate != node else { return .never }
        if let until = silentUntil[candidate], now < until { return .never }
        if (asked[candidate]?.count ?? 0) >= Replicator.clonesMax { return .later }
        if isRunning { return .ready }
        if let full = fullUntil[candidate], now < full.time, length >= full.length { return .never }
        if let until = busyUntil[candidate], now < until { return .later }
        return .ready
    }

    /// - Parameter answers: one for each content; nil when nothing was heard.
    mutating func answered(
        _ candidate: NodeID, _ contents: [Lack], _ answers: Replicator.Answers?, _ now: Instant
    ) {
        guard let answers else {
            // Who does not answer is not asked again at once, for every content.
            silentUntil[candidate] = now + Replicator.silentPause
            for lack in contents { asked[candidate]?[lack.number] = nil }
            return
        }
        for (lack, answer) in zip(contents, answers) {
            switch answer {
            case .accepted, .stored: continue
            case .busy: busyUntil[candidate] = now + Replicator.busyPause
            case .full:
                let known = fullUntil[candidate].flatMap { now < $0.time ? $0.length : nil }
                fullUntil[candidate] = (
                    now + Replicator.fullPause, min(known ?? .max, lack.extent.length)
                )
            case .draining: fullUntil[candidate] = (now + Replicator.fullPause, 0)
            }
            asked[candidate]?[lack.number] = nil
        }
    }
}
