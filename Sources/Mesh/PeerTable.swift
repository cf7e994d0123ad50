public import Volume

/// A peer as this node knows it.
public struct Peer: Hashable, Sendable {
    public let node: NodeID
    /// Where it was reached last.
    public internal(set) var endpoint: Endpoint
    /// Whether its last heartbeat was answered.
    public internal(set) var isOnline: Bool
    /// When it answered last, in milliseconds since 1970.
    public internal(set) var lastSeenMilliseconds: Int64
    public internal(set) var hello: Hello
}

/// Something that a person should know, as long as it lasts.
public struct MeshProblem: Hashable, Sendable {
    public enum Code: String, Sendable {
        /// A peer speaks another format or other merge rules.
        case upgrade
        case wrongVolume = "wrong-volume"
        case wrongAuthority = "wrong-authority"
        /// One node id answers from two running nodes.
        case copiedRoot = "copied-root"
        case tooManyPeers = "too-many-peers"
        case invalidPeer = "invalid-peer"
    }

    public let code: Code
    /// The address or node that it is about.
    public let subject: String
    public let text: String
    /// In milliseconds since 1970.
    public let sinceMilliseconds: Int64
}

/// What changed in the peer table; in the order in which it did.
public enum MeshEvent: Hashable, Sendable {
    case online(Peer)
    case offline(Peer)
    /// The peer says something new of itself.
    case changed(Peer)
}

/// Where a candidate's address comes from, in the order of trust.
public enum CandidateSource: Int, Comparable, Sendable {
    /// A peer or an incoming connection told of it.
    case heard
    /// A peer of an earlier run.
    case remembered
    /// mDNS, until it is withdrawn.
    case discovered
    /// Given by a person: retried for ever.
    case fixed

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// The table of candidates and peers: a value without clock, network or threads.
///
/// | candidate | leaves it by |
/// |---|---|
/// | due | `takeDue`: dialling |
/// | dialling | `failed`: waiting, longer each time; `reached`: settled; `isOurselves`: never
/// again |
/// | waiting | its time, or an `add` that hurries |
/// | settled (leads to an online peer) | the peer going offline: due |
struct PeerTable: Sendable {
    typealias Instant = ContinuousClock.Instant

    struct Bounds: Sendable {
        var peersMax: Int
        var candidatesMax: Int
        var backoffMin: Duration
        var backoffMax: Duration
        /// For addresses that were only heard of.
        var backoffHeardMax: Duration
    }

    private struct Candidate {
        var source: CandidateSource
        var failures = 0
        var due: Instant
        var isDialling = false
        var leadsTo: NodeID?
        var isOurselves = false
    }

    struct Entry {
        var peer: Peer
        var lastSuccess: Instant
    }

    let bounds: Bounds
    private(set) var entries: [NodeID: Entry] = [:]
    private var candidates: [Endpoint: Candidate] = [:]

    init(bounds: Bounds) { self.bounds = bounds }

    var candidateCount: Int { candidates.count }

    // MARK: Candidates

    /// Adds an address or raises its rank; `hurry` makes one that waits due at once.
    ///
    /// - Returns: whether the address is new.
    @discardableResult
    mutating func add(
        _ endpoint: Endpoint, source: CandidateSource, now: Instant, hurry: Bool = false
    ) -> Bool {
        if var candidate = candidates[endpoint] {
            candidate.source = max(candidate.source, source)
            if hurry, !candidate.isOurselves { candidate.due = min(candidate.due, now) }
            candidates[endpoint] = candidate
            return false
        }
        guard candidates.count < bounds.candidatesMax || evictCandidate(below: source) else {
            return false
        }
        candidates[endpoint] = Candidate(source: source, due: now)
        return true
    }

    /// Forgets a discovered address that was withdrawn; one that leads to a peer stays as heard.
    mutating func withdraw(_ endpoint: Endpoint) {
        guard var candidate = candidates[endpoint], candidate.source == .discovered else { return }
        if candidate.leadsTo != nil || candidate.isDialling {
            candidate.source = .heard
            candidates[endpoint] = candidate
        } else {
            candidates[endpoint] = nil
        }
    }

    /// The addresses to dial now, at most `limit`, and when to ask again.
    mutating func takeDue(now: Instant, limit: Int) -> (endpoints: [Endpoint], next: Instant?) {
        var due: [(endpoint: Endpoint, due: Instant)] = []
        var next: Instant?
        for (endpoint, candidate) in candidates
        where !candidate.isDialling && !candidate.isOurselves && !isSettled(candidate) {
            if candidate.due <= now {
                due.append((endpoint, candidate.due))
            } else {
                next = min(next ?? candidate.due, candidate.due)
            }
        }
        let taken = due.sorted { $0.due < $1.due }.prefix(max(limit, 0)).map(\.endpoint)
        for endpoint in taken { candidates[endpoint]?.isDialling = true }
        return (taken, next)
    }

    private func isSettled(_ candidate: Candidate) -> Bool {
        guard let node = candidate.leadsTo, let entry = entries[node] else { return false }
        return entry.peer.isOnline
    }

    /// Makes a settled address due again, because somebody else may be there now.
    mutating func doubt(_ endpoint: Endpoint, now: Instant) {
        candidates[endpoint]?.leadsTo = nil
        candidates[endpoint]?.due = now
    }

    mutating func failed(_ endpoint: Endpoint, now: Instant) {
        guard var candidate = candidates[endpoint] else { return }
        candidate.isDialling = false
        candidate.leadsTo = nil
        let longest = candidate.source == .heard ? bounds.backoffHeardMax : bounds.backoffMax
        let delay = min(longest, bounds.backoffMin * (1 << min(candidate.failures, 10)))
        candidate.failures += 1
        candidate.due = now + delay
        candidates[endpoint] = candidate
    }

    mutating func isOurselves(_ endpoint: Endpoint) {
        candidates[endpoint]?.isDialling = false
        candidates[endpoint]?.isOurselves = true
    }

    mutating func reached(_ endpoint: Endpoint, node: NodeID) {
        candidates[endpoint]?.isDialling = false
        candidates[endpoint]?.failures = 0
        candidates[endpoint]?.leadsTo = node
    }

    func source(of endpoint: Endpoint) -> CandidateSource? { candidates[endpoint]?.source }

    /// Gives up the least promising address of a lower rank; false when there is none.
    private mutating func evictCandidate(below source: CandidateSource) -> Bool {
        let victim = candidates.filter {
            !$0.value.isDialling && !isSettled($0.value)
                && ($0.value.source < source
                    || $0.value.source == source && $0.value.failures > 0 && source != .fixed)
        }.min {
            ($0.value.source, -$0.value.failures) < ($1.value.source, -$1.value.failures)
        }
        guard let victim else { return false }
        candidates[victim.key] = nil
        return true
    }

    // MARK: Peers

    enum Admission: Equatable {
        case admitted([MeshEvent])
        /// Another running node with the same id may be at this address.
        case rival(Endpoint)
        case full
    }

    /// A peer answered at an address. `replacing` says that its other address was asked in vain.
    mutating func admit(
        _ hello: Hello, at endpoint: Endpoint, replacing: Bool, now: Instant, wall: Int64
    ) -> Admission {
        let node = hello.node
        guard var entry = entries[node] else {
            guard entries.count < bounds.peersMax || evictPeer() else { return .full }
            let peer = Peer(
                node: node, endpoint: endpoint, isOnline: true, lastSeenMilliseconds: wall,
                hello: hello)
            entries[node] = Entry(peer: peer, lastSuccess: now)
            reached(endpoint, node: node)
            return .admitted([.online(peer)])
        }
        let isSameInstance = entry.peer.hello.instance == hello.instance
        if entry.peer.isOnline, entry.peer.endpoint != endpoint {
            if isSameInstance {
                reached(endpoint, node: node)
                return .admitted(update(hello, now: now, wall: wall))
            }
            guard replacing else { return .rival(entry.peer.endpoint) }
        }
        reached(endpoint, node: node)
        var events: [MeshEvent] = []
        if entry.peer.isOnline {
            guard !isSameInstance || replacing else {
                return .admitted(update(hello, now: now, wall: wall))
            }
            // It restarted before we noticed that it was gone.
            entry.peer.isOnline = false
            events.append(.offline(entry.peer))
        }
        entry.peer.endpoint = endpoint
        entry.peer.isOnline = true
        entry.peer.hello = hello
        entry.peer.lastSeenMilliseconds = wall
        entry.lastSuccess = now
        entries[node] = entry
        events.append(.online(entry.peer))
        return .admitted(events)
    }

    /// An online peer's hello by a request of its own: no proof that we can reach it.
    ///
    /// - Returns: nil when it is not an online peer's, or another instance's.
    mutating func heard(_ hello: Hello) -> [MeshEvent]? {
        guard let entry = entries[hello.node], entry.peer.isOnline,
            entry.peer.hello.instance == hello.instance
        else { return nil }
        return replaceHello(hello)
    }

    /// A heartbeat was answered; `hello` is nil when nothing changed.
    mutating func answered(
        _ node: NodeID, hello: Hello?, now: Instant, wall: Int64
    ) -> [MeshEvent] {
        guard let entry = entries[node], entry.peer.isOnline else { return [] }
        guard let hello else {
            touch(node, now: now, wall: wall)
            return []
        }
        if hello.instance == entry.peer.hello.instance {
            return update(hello, now: now, wall: wall)
        }
        // It restarted at the same address.
        var gone = entry.peer
        gone.isOnline = false
        touch(node, now: now, wall: wall)
        entries[node]?.peer.hello = hello
        return [.offline(gone)] + (entries[node].map { [.online($0.peer)] } ?? [])
    }

    mutating func lost(_ node: NodeID, now: Instant) -> [MeshEvent] {
        guard var entry = entries[node], entry.peer.isOnline else { return [] }
        entry.peer.isOnline = false
        entries[node] = entry
        // Its last address, and every other that led to it, is worth a try again, soon.
        add(entry.peer.endpoint, source: .remembered, now: now)
        for (endpoint, candidate) in candidates where candidate.leadsTo == node {
            candidates[endpoint]?.leadsTo = nil
            candidates[endpoint]?.due = now + bounds.backoffMin
        }
        return [.offline(entry.peer)]
    }

    private mutating func update(_ hello: Hello, now: Instant, wall: Int64) -> [MeshEvent] {
        touch(hello.node, now: now, wall: wall)
        return replaceHello(hello)
    }

    private mutating func touch(_ node: NodeID, now: Instant, wall: Int64) {
        entries[node]?.lastSuccess = now
        entries[node]?.peer.lastSeenMilliseconds = wall
    }

    private mutating func replaceHello(_ hello: Hello) -> [MeshEvent] {
        guard let entry = entries[hello.node], hello.sequence > entry.peer.hello.sequence else {
            return []
        }
        entries[hello.node]?.peer.hello = hello
        var peer = entry.peer
        peer.hello = hello
        return [.changed(peer)]
    }

    private mutating func evictPeer() -> Bool {
        let victim = entries.filter { !$0.value.peer.isOnline }
            .min { $0.value.lastSuccess < $1.value.lastSuccess }
        guard let victim else { return false }
        entries[victim.key] = nil
        return true
    }
}
