import Glibc
import Synchronization
public import Volume

/// Content on its way into a sparse file, piece by piece, in the order that readers want it.
///
/// A piece counts as verified only when its bytes match the hash **and** are in the file: from
/// then on any descriptor of the file reads them. Other peers are served what is verified.
///
/// Methods never block; callbacks run on the session's thread or, when nothing is missing, on the
/// caller's, with no lock held. They must be short.
public final class Download: LoadedTorrent {
    public let extent: Extent
    /// The file being filled.
    public let path: String
    let token: UInt64
    private let session: TorrentSession
    private let state: Mutex<DownloadState>

    init(
        extent: Extent, path: String, token: UInt64, session: TorrentSession,
        verified: Bitfield, sources: [SwarmEndpoint]
    ) {
        self.extent = extent
        self.path = path
        self.token = token
        self.session = session
        var initial = DownloadState(extent: extent, verified: verified, now: .now)
        _ = initial.addSources(sources)
        state = Mutex(initial)
    }

    // MARK: What is there

    /// The pieces that are in the file.
    public var verifiedPieces: Bitfield { state.withLock { $0.verified } }

    public var isComplete: Bool { state.withLock { $0.verified.isComplete } }

    /// Whether every byte of the range (as far as the content reaches) can be read from the file.
    public func isVerified(_ range: Range<UInt64>) -> Bool {
        state.withLock { $0.verified.missing(in: $0.pieces(covering: range)) == 0 }
    }

    public var progress: TorrentStatistics { statistics }

    // MARK: What is wanted

    /// Asks for the pieces that cover a byte range.
    public func want(_ range: Range<UInt64>, priority: SwarmPriority) {
        state.withLock { state in
            let changed = state.want(state.pieces(covering: range), priority)
            apply(changed, &state)
        }
    }

    /// Takes back what was wanted, as when a reader seeks away. Ranges that are waited for, and
    /// what `fetchAll` asked for, stay wanted.
    public func unwant(_ range: Range<UInt64>) {
        state.withLock { state in
            let changed = state.unwant(state.pieces(covering: range))
            apply(changed, &state)
        }
    }

    /// Asks for everything, in order, so that a source's disk reads forward.
    public func fetchAll() {
        state.withLock { state in
            state.isSequential = true
            state.wantsAll = true
            session.setSequential(token, true)
            let changed = state.want(0..<extent.pieceCount, .background)
            apply(changed, &state)
        }
    }

    /// What is rare among the peers comes first from now on, so that those who fetch the same have
    /// something to give each other.
    public func fetchRarestFirst() {
        state.withLock { state in
            guard state.isSequential else { return }
            state.isSequential = false
            session.setSequential(token, false)
        }
    }

    /// Adds peers to ask; at most 64 in all are kept.
    public func addSources(_ sources: [SwarmEndpoint]) {
        state.withLock { state in
            let added = state.addSources(sources)
            guard case .running = state.phase, !added.isEmpty else {
                return startIfPossible(&state)
            }
            for source in added { session.connect(token, to: source) }
            // Nobody to lose: resuming dials at once, the tick would take up to a second.
            if state.status.connections == 0 {
                session.pause(token)
                session.resume(token)
            }
        }
    }

    /// Lets peers fetch what is verified although nothing is wanted here at the moment.
    public func serve() {
        state.withLock { state in
            state.isServing = true
            startIfPossible(&state)
        }
    }

    /// Under the lock, so that two threads' changes reach libtorrent in the order in which the
    /// state took them. The calls only queue a message.
    private func apply(
        _ changed: (pieces: [UInt32], priorities: [UInt8]), _ state: inout DownloadState
    ) {
        switch state.phase {
        case .loading, .closing, .closed: break
        case .ready: startIfPossible(&state)
        case .running, .paused, .failed, .recovering:
            session.setPriorities(token, pieces: changed.pieces, priorities: changed.priorities)
        }
    }

    private func startIfPossible(_ state: inout DownloadState) {
        let canFetch = state.wantedMissing > 0 && !state.sources.isEmpty
        guard case .ready = state.phase, canFetch || state.isServing else { return }
        state.phase = .running
        // Priorities first: with nothing wanted the torrent counts as finished and does not dial.
        if state.isSequential { session.setSequential(token, true) }
        let wanted = state.allWanted
        session.setPriorities(token, pieces: wanted.pieces, priorities: wanted.priorities)
        for source in state.sources { session.connect(token, to: source) }
        session.resume(token)
    }

    // MARK: Pause and end

    /// Stops all traffic, served peers included, until `resume()`.
    public func pause() {
        state.withLock { state in
            switch state.phase {
            case .ready, .running, .recovering:
                state.phase = .paused
                session.pause(token)
            case .loading, .paused, .failed, .closing, .closed: break
            }
        }
    }

    /// Goes on after `pause()`, or tries again after the file failed (a full disk).
    public func resume() {
        state.withLock { state in
            switch state.phase {
            case .paused:
                state.phase = .ready
                startIfPossible(&state)
            case .failed:
                state.phase = .recovering
                session.flush(token)
            case .loading, .ready, .running, .recovering, .closing, .closed: break
            }
        }
    }

    /// Fetches what is missing, then unloads: afterwards every byte is in the file and nothing
    /// writes to it any more. The caller still has to fsync and to publish it.
    ///
    /// - Throws: `noProgress`, `noSpace`, …; the download then stays and can be resumed.
    public func finish(timeoutWithoutProgress: Duration = .seconds(600)) async throws {
        fetchAll()
        try await wait(for: 0..<extent.length, timeoutWithoutProgress: timeoutWithoutProgress)
        await unload()
    }

    /// Gives up: everybody who waits gets `cancelled`; afterwards nothing writes to the file.
    ///
    /// - Parameter keepFile: verified pieces stay for a later `fetch`; otherwise it is deleted.
    public func cancel(keepFile: Bool) async {
        await unload()
        if !keepFile { Glibc.unlink(path) }
    }

    /// Flush, remove, done: each step is the answer to the one before.
    private func unload() async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let waiters: [DownloadState.Waiter] = state.withLock { state in
                switch state.phase {
                case .closed:
                    continuation.resume()
                    return []
                case .closing: break
                // The answer to the add begins the closing.
                case .loading: state.phase = .closing
                case .ready, .running, .paused, .failed, .recovering:
                    state.phase = .closing
                    session.flush(token)
                }
                state.closers.append(continuation)
                return state.removeAllWaiters()
            }
            for waiter in waiters { waiter.body(.failure(.cancelled)) }
        }
    }

    // MARK: Waiting

    /// Calls `body` exactly once when every byte of the range can be read from the file, or when
    /// that failed; at once if nothing is missing. Not at all after a `cancel()` that was in time.
    ///
    /// - Parameter timeoutWithoutProgress: how long nothing may arrive before `noProgress`;
    ///   nil waits for as long as the download exists.
    @discardableResult
    public func whenVerified(
        _ range: Range<UInt64>, timeoutWithoutProgress: Duration?,
        _ body: @escaping @Sendable (Result<Void, SwarmError>) -> Void
    ) -> VerifiedWait {
        let outcome = state.withLock {
            $0.addWaiter(
                $0.pieces(covering: range), timeout: timeoutWithoutProgress, now: .now, body: body)
        }
        switch outcome {
        case .success(let id?): return VerifiedWait(download: self, id: id)
        case .success(nil): body(.success(()))
        case .failure(let error): body(.failure(error))
        }
        return VerifiedWait(download: nil, id: 0)
    }

    /// Returns when every byte of the range can be read from the file. It does not ask for the
    /// range: `want` does.
    public func wait(
        for range: Range<UInt64>, timeoutWithoutProgress: Duration
    ) async throws {
        let cancellation = WaitCancellation()
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                let pending = whenVerified(range, timeoutWithoutProgress: timeoutWithoutProgress) {
                    continuation.resume(with: $0)
                }
                cancellation.arm {
                    if pending.cancel() { continuation.resume(throwing: CancellationError()) }
                }
            }
        } onCancel: {
            cancellation.cancel()
        }
    }

    /// Calls `body` exactly once: when everything is in the file, or when that can no longer be.
    public func onFinished(_ body: @escaping @Sendable (Result<Void, SwarmError>) -> Void) {
        whenVerified(0..<extent.length, timeoutWithoutProgress: nil, body)
    }

    fileprivate func cancelWait(_ id: UInt64) -> Bool {
        state.withLock { $0.removeWaiter(id) != nil }
    }

    // MARK: The session's thread

    func handle(_ event: TorrentEvent) {
        switch event {
        case .added(let failure?): close(.torrent(failure))
        case .checked: loaded()
        case .piece(let piece): verified(piece)
        case .hashFailed: state.withLock { $0.hashFailures += 1 }
        case .flushed: flushed()
        case .removed:
            noteTraffic()
            close(.cancelled)
        case .fileFailed(let code, let message):
            fail(
                code == ENOSPC || code == EDQUOT
                    ? .noSpace : .file(errno: code, message: message))
        case .failed(let message): fail(.torrent(message))
        case .status(let status): state.withLock { $0.status = status }
        case .added, .resumed: break
        }
    }

    private func loaded() {
        state.withLock { state in
            session.setCertificate(token)
            switch state.phase {
            case .loading:
                state.phase = .ready
                startIfPossible(&state)
            case .closing: session.flush(token)
            case .ready, .running, .paused, .failed, .recovering, .closed: break
            }
        }
    }

    private func flushed() {
        state.withLock { state in
            switch state.phase {
            case .closing: session.remove(token)
            case .recovering:
                state.phase = .ready
                startIfPossible(&state)
            case .loading, .ready, .running, .paused, .failed, .closed: break
            }
        }
    }

    private func verified(_ piece: Int) {
        let done = state.withLock { $0.verify(piece, now: .now) }
        for waiter in done { waiter.body(.success(())) }
    }

    private func fail(_ error: SwarmError) {
        let waiters: [DownloadState.Waiter] = state.withLock { state in
            switch state.phase {
            case .ready, .running, .paused:
                state.phase = .failed(error)
                session.pause(token)
                return state.removeAllWaiters()
            case .loading, .failed, .recovering, .closing, .closed: return []
            }
        }
        for waiter in waiters { waiter.body(.failure(error)) }
    }

    private func noteTraffic() {
        guard let traffic = session.traffic(token) else { return }
        state.withLock { $0.note(traffic, now: .now) }
    }

    func tick(_ now: ContinuousClock.Instant) {
        noteTraffic()
        let impatient = state.withLock { state in
            if case .running = state.phase, state.wantedMissing > 0,
                state.status.connections < state.sources.count
            {
                // A source that went away is dialled again: it may be back.
                for source in state.sources { session.connect(token, to: source) }
            }
            return state.removeImpatient(now: now)
        }
        for waiter in impatient { waiter.body(.failure(.noProgress)) }
    }

    func resynchronize() {
        let awaitsFlush = state.withLock {
            switch $0.phase {
            case .closing, .recovering: true
            case .loading, .ready, .running, .paused, .failed, .closed: false
            }
        }
        if awaitsFlush && !session.flush(token) { close(.cancelled) }
        guard let pieces = session.pieces(token, count: extent.pieceCount) else { return }
        for piece in 0..<extent.pieceCount where pieces[piece] { verified(piece) }
    }

    var isClosed: Bool {
        state.withLock { if case .closed = $0.phase { true } else { false } }
    }

    func close(_ error: SwarmError) {
        let (waiters, closers) = state.withLock { state in
            if case .closed = state.phase {} else { state.phase = .closed(error) }
            defer { state.closers = [] }
            return (state.removeAllWaiters(), state.closers)
        }
        for waiter in waiters { waiter.body(.failure(error)) }
        for closer in closers { closer.resume() }
    }

    var statistics: TorrentStatistics {
        noteTraffic()
        return state.withLock {
            TorrentStatistics(
                extent: extent, kind: .download,
                downloadedBytes: $0.traffic.downloadedBytes,
                uploadedBytes: $0.traffic.uploadedBytes, downloadRate: $0.status.downloadRate,
                uploadRate: $0.status.uploadRate, peers: $0.status.peers,
                verifiedPieces: $0.verified.setCount, hashFailures: $0.hashFailures)
        }
    }
}

/// A pending `whenVerified`.
public struct VerifiedWait: Sendable {
    fileprivate let download: Download?
    fileprivate let id: UInt64

    /// True when the callback has not run and never will.
    @discardableResult
    public func cancel() -> Bool { download?.cancelWait(id) ?? false }
}

/// Lets a task's cancellation come before, while or after the wait is registered.
private final class WaitCancellation: Sendable {
    private enum State {
        case idle
        case cancelled
        case armed(@Sendable () -> Void)
    }

    private let state = Mutex(State.idle)

    func arm(_ body: @escaping @Sendable () -> Void) {
        let isCancelled = state.withLock {
            if case .cancelled = $0 { return true }
            $0 = .armed(body)
            return false
        }
        if isCancelled { body() }
    }

    func cancel() {
        let body: (@Sendable () -> Void)? = state.withLock { state in
            defer { state = .cancelled }
            if case .armed(let body) = state { return body }
            return nil
        }
        body?()
    }
}
