import Catalog
import Logging
import Mesh
import Swarm
import Synchronization
import Volume

/// The third way to find who has content, for volumes in which holder logs lag behind and not every
/// peer can be asked: the private DHT of the volume's nodes.
///
/// It begins where a node knows enough others. Every second it admits the addresses of the members that are known,
/// invites those that are new, and announces some of the content that few are known to hold. What it
/// finds counts only where it is a member's place; that member is then asked like any other.
final class Finder: Sendable {
    static let beat = Duration.seconds(1)
    /// In a smaller volume everybody has everybody's log, or can ask.
    static let peersMin = 7
    static let announcesPerBeat = 2
    /// What can be renewed in time; of more content, about this many at a time take turns.
    static let announcedMax = announcesPerBeat * Int(DHT.renewal.components.seconds)
    /// New content that waits to be announced; what is beyond waits for its turn.
    static let freshMax = 1000
    /// Rows of the catalog that are looked at in one go, and how often for one turn.
    static let pageRows: Int64 = 200
    static let pagesMax = 5000
    /// From a new member's invitation until it is told what few hold.
    static let settling = Duration.seconds(2)
    /// Invitations of a new member, one at each beat: it may not know this node yet, and drop the first.
    static let firstInvitations = 5
    /// Between later ones.
    static let reinvitation = Duration.seconds(60)
    /// Between attempts to start.
    static let startRetry = Duration.seconds(60)
    static let portAttemptsMax = 5
    static let lookUpTime = Duration.seconds(3)
    /// For a member that was found and is not connected.
    static let dialTime = Duration.seconds(3)
    static let dialPoll = Duration.milliseconds(100)
    /// What was found, or that nothing was, is not asked for again for so long.
    static let rememberedTime = Duration.seconds(5)
    static let rememberedMax = 256
    /// Places that the log names.
    static let toldMax = 4

    private struct Member: Equatable {
        var places: [SwarmEndpoint]
        var isOnline: Bool
        /// One that was started anew has forgotten what it was told.
        var instance: UInt64
    }

    private struct Remembered {
        var places: Set<SwarmEndpoint>
        var until: ContinuousClock.Instant
    }

    private struct State {
        var table: DHT?
        var isStopped = false
        var nextStart = ContinuousClock.now
        var listening: [String] = []
        /// Nil: to be said again.
        var admitted: Set<String>?
        var invited: [NodeID: (member: Member, times: Int)] = [:]
        var nextInvitation = ContinuousClock.now
        /// Newest last.
        var fresh: [Extent] = []
        var turn: ArraySlice<Extent> = []
        var turnDue = ContinuousClock.now
        /// The catalog's number of the content at which the next turn begins.
        var nextNumber: Int64 = 0
        var remembered: [ContentRoot: Remembered] = [:]
    }

    let ways: Set<Configuration.Way>
    private let configuration: Configuration
    private let copies: Int
    private let catalog: Catalog
    private let mesh: Mesh
    private let authority: VolumeAuthority
    private let logger: Logger
    private let state = Mutex(State())

    init(
        _ configuration: Configuration, copies: Int, catalog: Catalog, mesh: Mesh,
        authority: VolumeAuthority, logger: Logger
    ) {
        ways = configuration.ways
        self.configuration = configuration
        self.copies = copies
        self.catalog = catalog
        self.mesh = mesh
        self.authority = authority
        self.logger = logger
    }

    /// The UDP port; 0 while there is none.
    var port: Int { state.withLock { $0.table.map { Int($0.port) } ?? 0 } }

    /// Where it listens.
    var addresses: [String] { state.withLock { $0.table == nil ? [] : $0.listening } }

    // MARK: Finding

    /// Members that say by the DHT that they have the content, and are online.
    func holders(of extent: Extent) async -> [Peer] {
        guard ways.contains(.dht), let table = state.withLock({ $0.table }) else { return [] }
        let places = await places(of: extent.root, table)
        guard !places.isEmpty else { return [] }
        let listening = state.withLock { $0.listening }
        let members = mesh.peers.filter { peer in
            !places.isDisjoint(with: Self.places(of: peer, peer.hello.apiPort, listening))
        }
        return await reached(members)
    }

    private func places(of root: ContentRoot, _ table: DHT) async -> Set<SwarmEndpoint> {
        let known = state.withLock { $0.remembered[root] }
        if let known, known.until > .now { return known.places }
        let places = await table.lookUp(authority.dhtKey(of: root), within: Self.lookUpTime)
        logger.debug(
            "the DHT knows \(places.count) places of \(root): \(places.prefix(Self.toldMax))")
        state.withLock { state in
            let now = ContinuousClock.now
            if state.remembered.count >= Self.rememberedMax {
                state.remembered = state.remembered.filter { $0.value.until > now }
            }
            guard state.remembered.count < Self.rememberedMax else { return }
            state.remembered[root] = Remembered(
                places: places, until: now + Self.rememberedTime)
        }
        return places
    }

    /// Dials members that are not connected.
    private func reached(_ members: [Peer]) async -> [Peer] {
        let nodes = members.map(\.node)
        for peer in members where !peer.isOnline {
            mesh.addCandidate(peer.endpoint, source: .remembered)
        }
        let deadline = ContinuousClock.now + Self.dialTime
        while true {
            let online = nodes.compactMap { mesh.peer($0) }.filter(\.isOnline)
            if !online.isEmpty || nodes.isEmpty || ContinuousClock.now >= deadline { return online }
            try? await Task.sleep(for: Self.dialPoll)
            if Task.isCancelled { return [] }
        }
    }

    /// Where a peer can be, by the address at which it was reached, with some port of it. Of one that
    /// was reached by a name, or by a link-local address, which libtorrent cannot use: what it says.
    private static func places(
        of peer: Peer, _ port: Int, _ listening: [String]
    ) -> [SwarmEndpoint] {
        guard let port = UInt16(exactly: port), port > 0 else { return [] }
        let reached =
            BulkAddress.canonical(peer.endpoint.host).map { [$0] }
            ?? peer.hello.dhtAddresses.compactMap(BulkAddress.canonical)
        // A node of this machine listens where this one does.
        let addresses = reached.flatMap { BulkAddress.isLoopback($0) ? listening : [$0] }
        return addresses.map { SwarmEndpoint(address: $0, port: port) }
    }

    // MARK: Announcing

    /// Something may be stored here from now on.
    func noted(_ extents: [Extent]) {
        guard ways.contains(.dht) else { return }
        state.withLock { state in
            state.fresh += extents.prefix(max(0, Self.freshMax - state.fresh.count))
        }
    }

    private func announce(by table: DHT) async throws {
        let isDue = state.withLock {
            !$0.invited.isEmpty && $0.turn.isEmpty && $0.turnDue <= .now
        }
        if isDue {
            let from = state.withLock { $0.nextNumber }
            let (turn, next) = try await list(from: from)
            state.withLock { state in
                state.turn = turn[...]
                state.nextNumber = next
                state.turnDue = .now + DHT.renewal
            }
        }
        let some = state.withLock { state -> [Extent] in
            guard !state.invited.isEmpty else { return [] }
            // Not all at the cost of what waits for its turn.
            let new = state.fresh.prefix(Self.announcesPerBeat - (state.turn.isEmpty ? 0 : 1))
            state.fresh.removeFirst(new.count)
            let old = state.turn.prefix(Self.announcesPerBeat - new.count)
            state.turn = state.turn.dropFirst(old.count)
            return Array(new) + old
        }
        guard !some.isEmpty, let port = UInt16(exactly: mesh.port) else { return }
        let scarce = try await Blocking.run { [self] in try some.filter(isScarce) }
        for extent in scarce { table.announce(authority.dhtKey(of: extent.root), port: port) }
    }

    /// Whether it is stored here, and few are known to hold it.
    private func isScarce(_ extent: Extent) throws -> Bool {
        try catalog.read { reader in
            guard let content = try reader.content(extent.root), content.state == .stored else {
                return false
            }
            return try reader.holders(of: extent.root).count { $0.state != .cloning } <= copies
        }
    }

    /// What is to be announced in one turn, and where the next one begins.
    private func list(from first: Int64) async throws -> ([Extent], Int64) {
        let last = try await Blocking.run { [catalog] in
            try catalog.read { try $0.lastContentNumber() }
        }
        var found: [Extent] = []
        var next = first > last ? 0 : first
        var covered: Int64 = 0
        for _ in 0..<Self.pagesMax where covered <= last && found.count < Self.announcedMax {
            let page = next..<(next + Self.pageRows)
            found += try await Blocking.run { [catalog, copies] in
                try catalog.read { try $0.stored(in: page, holdersMax: copies) }
            }
            covered += Self.pageRows
            next = page.upperBound > last ? 0 : page.upperBound
        }
        return (found, next)
    }

    // MARK: Taking part

    /// Until it is cancelled.
    func run() async {
        guard ways.contains(.dht) else { return }
        while !Task.isCancelled {
            do {
                if let table = try await takePart() { try await announce(by: table) }
            } catch {
                logger.warning("the private DHT: \(error)")
            }
            try? await Task.sleep(for: Self.beat)
        }
    }

    func stop() async {
        let table = state.withLock { state in
            state.isStopped = true
            return state.table.take()
        }
        await table?.stop()
    }

    /// Begins with enough peers, and goes with the members and with this machine's addresses.
    private func takePart() async throws -> DHT? {
        let peers = mesh.peers
        let addresses = ownAddresses()
        guard peers.count >= Self.peersMin, !addresses.isEmpty,
            let table = try await started(on: addresses)
        else { return nil }
        let isMoved = state.withLock { state in
            guard state.listening != addresses else { return false }
            (state.listening, state.admitted) = (addresses, nil)
            return true
        }
        if isMoved { table.listen(on: addresses) }
        var members: [NodeID: Member] = [:]
        for peer in peers {
            let places = Self.places(of: peer, peer.hello.dhtPort, addresses)
            if places.isEmpty { continue }
            members[peer.node] = Member(
                places: places, isOnline: peer.isOnline, instance: peer.hello.instance)
        }
        let all = members.values.sorted { $0.isOnline && !$1.isOnline }
            .flatMap { $0.places.map(\.address) }
        do { try admit(all, by: table) } catch {
            state.withLock { $0.table = nil }
            await table.stop()
            throw error
        }
        invite(members.filter(\.value.isOnline), to: table)
        return table
    }

    private func admit(_ addresses: [String], by table: DHT) throws {
        var seen: Set<String> = []
        let distinct = addresses.filter { seen.insert($0).inserted }
        guard state.withLock({ $0.admitted != seen }) else { return }
        try table.admit(distinct)
        state.withLock { $0.admitted = seen }
    }

    /// Those that are new, some times, and all of them now and then.
    private func invite(_ members: [NodeID: Member], to table: DHT) {
        let now = ContinuousClock.now
        let guests = state.withLock { state -> [Member] in
            let isForAll = state.nextInvitation <= now
            if isForAll { state.nextInvitation = now + Self.reinvitation }
            var guests: [Member] = []
            var invited: [NodeID: (member: Member, times: Int)] = [:]
            for (node, member) in members {
                let known = state.invited[node].flatMap { $0.member == member ? $0.times : nil }
                let isNew = known ?? 0 < Self.firstInvitations
                if isNew || isForAll { guests.append(member) }
                invited[node] = (member, (known ?? 0) + (isNew ? 1 : 0))
                // Where all nodes keep what is announced, one that is new lacks it.
                if known == nil, members.count <= DHT.replicas {
                    (state.turn, state.turnDue) = ([], now + Self.settling)
                }
            }
            state.invited = invited
            return guests
        }
        for place in guests.flatMap(\.places) { table.add(place) }
    }

    private func ownAddresses() -> [String] {
        switch configuration.listenAddress {
        case nil, "::": BulkAddress.own()
        case "0.0.0.0": BulkAddress.own().filter { !$0.contains(":") }
        case let address?: BulkAddress.canonical(address).map { [$0] } ?? []
        }
    }

    private func started(on addresses: [String]) async throws -> DHT? {
        let (known, isDue) = state.withLock { state in
            if state.table?.isRunning == false { state.table = nil }
            let isDue = state.table == nil && !state.isStopped && state.nextStart <= .now
            if isDue { state.nextStart = .now + Self.startRetry }
            return (state.table, isDue)
        }
        guard isDue else { return known }
        let wanted = configuration.port == 0 ? 0 : configuration.port + 2
        let table = try await Blocking.alone {
            for attempt in 1..<Self.portAttemptsMax {
                // The first choice may be another node's.
                let isFirst = attempt == 1 && wanted > 0 && wanted < 65_536
                let port = isFirst ? UInt16(wanted) : try FreePort.find()
                if isFirst, !FreePort.isFree(port) { continue }
                if let table = try? DHT(addresses: addresses, port: port) { return table }
            }
            return try DHT(addresses: addresses, port: try FreePort.find())
        }
        let isWanted = state.withLock { state in
            guard !state.isStopped else { return false }
            state.table = table
            (state.listening, state.admitted, state.invited) = (addresses, nil, [:])
            return true
        }
        guard isWanted else {
            await table.stop()
            return nil
        }
        logger.info("the private DHT uses UDP port \(table.port)")
        mesh.pokeAll()
        return table
    }
}
