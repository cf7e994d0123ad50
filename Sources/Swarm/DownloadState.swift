import Volume

/// What a download knows: which pieces are there, which are wanted how much, who waits. A value:
/// no I/O, no clock; the download performs what it decides.
struct DownloadState {
    enum Phase {
        /// libtorrent has not finished adding it.
        case loading
        /// Added and paused until something is wanted and there is a source: resuming is what
        /// dials at once instead of at the next tick.
        case ready
        case running
        case paused
        /// The file failed; paused until `resume()`.
        case failed(SwarmError)
        /// To be resumed after a failure, when the writes of before have all had their answer:
        /// a late one would pass for a new failure.
        case recovering
        /// Being flushed and removed.
        case closing
        case closed(SwarmError)
    }

    struct Waiter: Sendable {
        let pieces: Range<Int>
        var missing: Int
        let timeout: Duration?
        let start: ContinuousClock.Instant
        /// When a piece of its own range last arrived.
        var lastPiece: ContinuousClock.Instant
        let body: @Sendable (Result<Void, SwarmError>) -> Void
    }

    /// Bytes flowing for other ranges extend a waiter's patience, but only this many times over;
    /// and so many times shorter it is where nothing flows any more.
    static let patienceFactor = 6
    static let waitersMax = 4096
    static let sourcesMax = 64

    let extent: Extent
    var phase = Phase.loading
    private(set) var verified: Bitfield
    /// By piece, libtorrent's scale: 0 unwanted, 7 first.
    private(set) var priorities: [UInt8]
    /// Pieces with a priority that are not verified.
    private(set) var wantedMissing = 0
    private(set) var sources: [SwarmEndpoint] = []
    private var waiters: [UInt64: Waiter] = [:]
    private var nextWaiter: UInt64 = 1
    var isSequential = false
    /// Replication wants every piece.
    var wantsAll = false
    /// Runs for others even while nothing is wanted.
    var isServing = false
    var status = TransferStatus()
    private(set) var traffic = Traffic()
    var hashFailures = 0
    var lastProgress: ContinuousClock.Instant
    var closers: [CheckedContinuation<Void, Never>] = []

    init(extent: Extent, verified: Bitfield, now: ContinuousClock.Instant) {
        self.extent = extent
        self.verified = verified
        priorities = [UInt8](repeating: 0, count: extent.pieceCount)
        lastProgress = now
    }

    /// The pieces that cover a byte range; what lies beyond the end needs none.
    func pieces(covering range: Range<UInt64>) -> Range<Int> {
        let end = min(range.upperBound, extent.length)
        guard range.lowerBound < end else { return 0..<0 }
        let first = Int(range.lowerBound / extent.pieceBytes)
        return first..<Int((end + extent.pieceBytes - 1) / extent.pieceBytes)
    }

    /// Raises priorities and gives what changed among the missing pieces.
    mutating func want(
        _ range: Range<Int>, _ priority: SwarmPriority
    ) -> (pieces: [UInt32], priorities: [UInt8]) {
        var changed: (pieces: [UInt32], priorities: [UInt8]) = ([], [])
        for piece in range where !verified[piece] {
            let value = level(of: piece, in: range, priority)
            guard value > priorities[piece] else { continue }
            if priorities[piece] == 0 { wantedMissing += 1 }
            priorities[piece] = value
            changed.pieces.append(UInt32(piece))
            changed.priorities.append(value)
        }
        return changed
    }

    /// Lowers what read-ahead and demand asked for to what replication asks for, or to nothing.
    mutating func unwant(_ range: Range<Int>) -> (pieces: [UInt32], priorities: [UInt8]) {
        var changed: (pieces: [UInt32], priorities: [UInt8]) = ([], [])
        let value: UInt8 = wantsAll ? 1 : 0
        for piece in range where !verified[piece] && priorities[piece] > value {
            // A piece somebody waits for stays wanted.
            if waiters.values.contains(where: { $0.pieces.contains(piece) }) { continue }
            if value == 0 { wantedMissing -= 1 }
            priorities[piece] = value
            changed.pieces.append(UInt32(piece))
            changed.priorities.append(value)
        }
        return changed
    }

    private func level(of piece: Int, in range: Range<Int>, _ priority: SwarmPriority) -> UInt8 {
        switch priority {
        case .demand: return 7
        case .background: return 1
        case .readAhead:
            // libtorrent's sequential mode knows only "first" and "in order".
            if isSequential { return 7 }
            let step = (piece - range.lowerBound) * 5 / range.count
            return UInt8(6 - step)
        }
    }

    /// The wanted pieces and their priorities, for a torrent that has just been added.
    var allWanted: (pieces: [UInt32], priorities: [UInt8]) {
        let pieces = priorities.indices.filter { priorities[$0] > 0 && !verified[$0] }
        return (pieces.map { UInt32($0) }, pieces.map { priorities[$0] })
    }

    /// Adds sources that are new, as far as the bound allows, and gives those.
    mutating func addSources(_ new: [SwarmEndpoint]) -> [SwarmEndpoint] {
        var added: [SwarmEndpoint] = []
        for source in new where sources.count < Self.sourcesMax && !sources.contains(source) {
            sources.append(source)
            added.append(source)
        }
        return added
    }

    /// Registers a waiter; nil when everything is there or there are too many.
    mutating func addWaiter(
        _ pieces: Range<Int>, timeout: Duration?, now: ContinuousClock.Instant,
        body: @escaping @Sendable (Result<Void, SwarmError>) -> Void
    ) -> Result<UInt64?, SwarmError> {
        switch phase {
        case .failed(let error), .closed(let error):
            return verified.missing(in: pieces) == 0 ? .success(nil) : .failure(error)
        case .loading, .ready, .running, .paused, .recovering, .closing: break
        }
        let missing = verified.missing(in: pieces)
        if missing == 0 { return .success(nil) }
        if case .closing = phase { return .failure(.cancelled) }
        guard waiters.count < Self.waitersMax else { return .failure(.tooManyWaiters) }
        let id = nextWaiter
        nextWaiter += 1
        waiters[id] = Waiter(
            pieces: pieces, missing: missing, timeout: timeout, start: now, lastPiece: now,
            body: body)
        return .success(id)
    }

    mutating func removeWaiter(_ id: UInt64) -> Waiter? { waiters.removeValue(forKey: id) }

    mutating func removeAllWaiters() -> [Waiter] {
        defer { waiters = [:] }
        return Array(waiters.values)
    }

    /// Notes a verified piece and gives the waiters that have everything now.
    mutating func verify(_ piece: Int, now: ContinuousClock.Instant) -> [Waiter] {
        guard verified.indices.contains(piece), verified.insert(piece) else { return [] }
        if priorities[piece] > 0 { wantedMissing -= 1 }
        lastProgress = now
        var done: [Waiter] = []
        for (id, var waiter) in waiters where waiter.pieces.contains(piece) {
            waiter.missing -= 1
            waiter.lastPiece = now
            waiters[id] = waiter
            if waiter.missing == 0 {
                waiters[id] = nil
                done.append(waiter)
            }
        }
        return done
    }

    /// Arriving bytes are progress, whatever piece they belong to.
    mutating func note(_ traffic: Traffic, now: ContinuousClock.Instant) {
        if traffic.downloadedBytes > self.traffic.downloadedBytes { lastProgress = now }
        self.traffic = traffic
    }

    /// The waiters whose patience has ended. Who comes when nothing has moved for long already
    /// waits a fraction of it: the kernel asks again for what failed, one part after the other.
    mutating func removeImpatient(now: ContinuousClock.Instant) -> [Waiter] {
        var impatient: [Waiter] = []
        for (id, waiter) in waiters {
            guard let timeout = waiter.timeout else { continue }
            let isStarved =
                now - lastProgress > timeout && now - waiter.start > timeout / Self.patienceFactor
            if isStarved || now - waiter.lastPiece > timeout * Self.patienceFactor {
                waiters[id] = nil
                impatient.append(waiter)
            }
        }
        return impatient
    }
}

extension Bitfield {
    fileprivate var indices: Range<Int> { 0..<count }
}
