import Synchronization
import Volume

/// Complete content that is loaded to be served, for as long as somebody uses it.
final class Seed: LoadedTorrent {
    private enum Phase {
        case loading
        case serving
        case closed(SwarmError)
    }

    private struct State {
        var phase = Phase.loading
        var isUnloading = false
        var failure: SwarmError?
        var status = TransferStatus()
        var traffic = Traffic()
        var hashFailures = 0
        var lease: Duration
        var leaseEnd: ContinuousClock.Instant
        var lastUse: ContinuousClock.Instant
        var loaders: [CheckedContinuation<Void, any Error>] = []
        var closers: [CheckedContinuation<Void, Never>] = []
    }

    let extent: Extent
    let token: UInt64
    private let session: TorrentSession
    private let started: ContinuousClock.Instant
    private let state: Mutex<State>
    /// Adding a torrent takes about a millisecond; one that takes this long never will.
    private static let loadingTimeMax = Duration.seconds(30)

    init(extent: Extent, token: UInt64, session: TorrentSession, lease: Duration) {
        self.extent = extent
        self.token = token
        self.session = session
        started = .now
        state = Mutex(State(lease: lease, leaseEnd: started + lease, lastUse: started))
    }

    var lastUse: ContinuousClock.Instant { state.withLock { $0.lastUse } }

    func renew(lease: Duration) {
        let now = ContinuousClock.now
        state.withLock {
            $0.lease = max($0.lease, lease)
            $0.leaseEnd = max($0.leaseEnd, now + lease)
            $0.lastUse = now
        }
    }

    func isExpired(at now: ContinuousClock.Instant) -> Bool {
        state.withLock {
            if case .loading = $0.phase { return now - started > Self.loadingTimeMax }
            return now > $0.leaseEnd
        }
    }

    /// Returns once a peer that dials is served.
    func untilServing() async throws {
        try await withCheckedThrowingContinuation { continuation in
            let outcome: Result<Void, any Error>? = state.withLock {
                if let failure = $0.failure { return .failure(failure) }
                switch $0.phase {
                case .loading:
                    $0.loaders.append(continuation)
                    return nil
                case .serving: return .success(())
                case .closed(let error): return .failure(error)
                }
            }
            if let outcome { continuation.resume(with: outcome) }
        }
    }

    func untilClosed() async {
        await withCheckedContinuation { continuation in
            let isClosed = state.withLock {
                if case .closed = $0.phase { return true }
                $0.closers.append(continuation)
                return false
            }
            if isClosed { continuation.resume() }
        }
    }

    func handle(_ event: TorrentEvent) {
        switch event {
        case .checked:
            if state.withLock({ $0.isUnloading }) {
                session.remove(token)
            } else {
                // The certificate goes in while nobody can connect yet.
                session.setCertificate(token)
                session.resume(token)
            }
        case .resumed:
            let loaders = state.withLock { state -> [CheckedContinuation<Void, any Error>] in
                guard case .loading = state.phase else { return [] }
                state.phase = .serving
                defer { state.loaders = [] }
                return state.loaders
            }
            for loader in loaders { loader.resume() }
        case .added(let failure?): close(.torrent(failure))
        case .removed:
            noteTraffic()
            close(.cancelled)
        case .status(let status): state.withLock { $0.status = status }
        case .hashFailed: state.withLock { $0.hashFailures += 1 }
        case .fileFailed(let code, let message): fail(.file(errno: code, message: message))
        case .failed(let message): fail(.torrent(message))
        case .added, .piece, .flushed: break
        }
    }

    private func fail(_ error: SwarmError) {
        let loaders = state.withLock { state in
            state.failure = error
            defer { state.loaders = [] }
            return state.loaders
        }
        for loader in loaders { loader.resume(throwing: error) }
    }

    var isBroken: Bool { state.withLock { $0.failure != nil } }

    func tick(_ now: ContinuousClock.Instant) { noteTraffic() }

    /// Serving renews the lease.
    private func noteTraffic() {
        guard let traffic = session.traffic(token) else { return }
        state.withLock {
            if traffic.uploadedBytes > $0.traffic.uploadedBytes {
                $0.lastUse = .now
                $0.leaseEnd = max($0.leaseEnd, $0.lastUse + $0.lease)
            }
            $0.traffic = traffic
        }
    }

    func resynchronize() {
        // A lost answer to an unload; a torrent that is still there takes no harm.
        let isUnloading = state.withLock { $0.isUnloading }
        if isUnloading && !session.remove(token) { close(.cancelled) }
    }

    /// Begins to unload: no more peers, files closed. `untilClosed` tells the end.
    func unload() {
        state.withLock { $0.isUnloading = true }
        // Unknown means that it is still being added: `checked` comes back to it.
        session.remove(token)
    }

    var isServing: Bool {
        state.withLock { if case .serving = $0.phase { true } else { false } }
    }

    var isClosed: Bool {
        state.withLock { if case .closed = $0.phase { true } else { false } }
    }

    func close(_ error: SwarmError) {
        let (loaders, closers) = state.withLock { state in
            if case .closed = state.phase {} else { state.phase = .closed(error) }
            defer { (state.loaders, state.closers) = ([], []) }
            return (state.loaders, state.closers)
        }
        for loader in loaders { loader.resume(throwing: error) }
        for closer in closers { closer.resume() }
    }

    var statistics: TorrentStatistics {
        noteTraffic()
        return state.withLock {
            TorrentStatistics(
                extent: extent, kind: .seed, downloadedBytes: $0.traffic.downloadedBytes,
                uploadedBytes: $0.traffic.uploadedBytes, downloadRate: $0.status.downloadRate,
                uploadRate: $0.status.uploadRate, peers: $0.status.peers,
                verifiedPieces: extent.pieceCount, hashFailures: $0.hashFailures)
        }
    }
}
