import Glibc
import Synchronization
public import Volume

/// This node's part in every swarm of the volume: serves complete content, fetches missing content.
///
/// One libtorrent session and one thread of ours that takes its events. It runs until `stop()`.
public final class Swarm: Sendable {
    private struct State {
        var torrents: [UInt64: any LoadedTorrent] = [:]
        var tokens: [Extent: UInt64] = [:]
        var seedCount = 0
        var downloadCount = 0
        var nextToken: UInt64 = 1
        /// Payload of torrents that are no longer loaded.
        var retiredDownload: Int64 = 0
        var retiredUpload: Int64 = 0
        var isStopping = false
        var isStopped = false
        var stoppers: [CheckedContinuation<Void, Never>] = []
        var seedFailed: @Sendable (Extent) -> Void = { _ in }
    }

    public let configuration: SwarmConfiguration
    private let session: TorrentSession
    private let information: InfoDictionary
    private let state = Mutex(State())
    /// libtorrent 2.0.8 refuses every connection while no torrent is active, so this one always is.
    /// Its hash is known to members only and nobody asks for it.
    private static let idleExtent = Extent(
        root: ContentRoot(bytes: [UInt8](repeating: 0xD5, count: 32))!, length: 1)  // 32 bytes

    /// Opens the port and starts the session's thread. Blocks for some milliseconds.
    public init(_ configuration: SwarmConfiguration) throws {
        self.configuration = configuration
        var authority: String?
        if case .tls(let caPEM, _, _) = configuration.transport { authority = caPEM }
        information = InfoDictionary(authorityPEM: authority, salt: configuration.infoSalt)
        session = try TorrentSession(configuration)
        try SwarmThread.start(name: "swarm") { [self] in run() }
        _ = try load(Self.idleExtent, path: "/dev/null", layer: [], lease: .seconds(1 << 40))
    }

    /// The port on which peers reach this session.
    public var port: UInt16 { session.port }

    /// What every node of the volume builds for an extent.
    public func infoDictionary(for extent: Extent) -> [UInt8] { information.encode(extent) }

    // MARK: Serving

    /// Loads complete content to be served; returns when a peer that dials next is served. Content
    /// that is loaded already has its lease renewed; content being downloaded counts as served.
    ///
    /// - Parameters:
    ///   - path: the file with all bytes; it must not change while it is loaded.
    ///   - lease: after this long without a transfer it is unloaded.
    /// - Throws: `invalidLayer`, `invalidExtent`, `stopped`, `torrent`.
    public func seed(
        _ extent: Extent, path: String, layer: [UInt8], lease: Duration
    ) async throws {
        if let seed = try load(extent, path: path, layer: layer, lease: lease) {
            try await seed.untilServing()
        }
    }

    /// Nil when the extent is being downloaded, and thereby served.
    private func load(
        _ extent: Extent, path: String, layer: [UInt8], lease: Duration
    ) throws -> Seed? {
        switch loaded(extent) {
        case let seed as Seed:
            seed.renew(lease: lease)
            return seed
        case .some: return nil
        case nil: break
        }
        try check(extent, layer: layer)
        let info = infoDictionary(for: extent)
        return try state.withLock { state in
            guard !state.isStopping else { throw SwarmError.stopped }
            // Somebody else was faster.
            if let token = state.tokens[extent] { return state.torrents[token] as? Seed }
            if state.seedCount > configuration.maxLoadedSeeds, let seed = leastUsed(state) {
                retire(seed, &state)
            }
            let seed = Seed(
                extent: extent, token: state.nextToken, session: session, lease: lease)
            try session.add(
                token: seed.token, extent: extent, info: info, layer: layer, path: path, have: nil)
            register(seed, &state)
            state.seedCount += 1
            return seed
        }
    }

    /// Stops serving and closes the file; returns when that is done. Downloads are left alone.
    public func unload(_ extent: Extent) async {
        guard let seed = loaded(extent) as? Seed else { return }
        // libtorrent cannot remove what it is still adding; a seed that failed is closed already.
        try? await seed.untilServing()
        state.withLock { retire(seed, &$0) }
        await seed.untilClosed()
    }

    /// - Parameter body: called, perhaps more than once, when the file of a seed cannot be read; on
    ///   the session's thread: must be short.
    public func whenSeedFails(_ body: @escaping @Sendable (Extent) -> Void) {
        state.withLock { $0.seedFailed = body }
    }

    // MARK: Fetching

    /// Begins to fetch content into a sparse file; nothing is transferred until something is
    /// wanted. Blocks for the file's creation only.
    ///
    /// - Parameters:
    ///   - path: created if needed; written in place.
    ///   - layer: as a peer sent it; it is verified here.
    ///   - verified: pieces that an earlier download left in the file.
    /// - Throws: `invalidLayer`, `invalidExtent`, `alreadyLoaded`, `tooManyDownloads`, `stopped`,
    ///   `noSpace`, `file`, `torrent`.
    public func fetch(
        _ extent: Extent, path: String, layer: [UInt8], verified: Bitfield? = nil,
        sources: [SwarmEndpoint]
    ) throws -> Download {
        try check(extent, layer: layer)
        let known = verified ?? Bitfield(count: extent.pieceCount)
        guard known.count == extent.pieceCount else { throw SwarmError.invalidExtent }
        guard loaded(extent) == nil else { throw SwarmError.alreadyLoaded }
        let there = try SparseFile.prepare(
            path: path, extent: extent, layer: layer, verified: known)
        let info = infoDictionary(for: extent)
        return try state.withLock { state in
            guard !state.isStopping else { throw SwarmError.stopped }
            guard state.tokens[extent] == nil else { throw SwarmError.alreadyLoaded }
            guard state.downloadCount < configuration.maxDownloads else {
                throw SwarmError.tooManyDownloads
            }
            let download = Download(
                extent: extent, path: path, token: state.nextToken, session: session,
                verified: there, sources: sources)
            try session.add(
                token: download.token, extent: extent, info: info, layer: layer, path: path,
                have: there)
            register(download, &state)
            state.downloadCount += 1
            return download
        }
    }

    /// The running download of an extent, to be shared by all who want it.
    public func download(of extent: Extent) -> Download? { loaded(extent) as? Download }

    // MARK: Figures

    public var statistics: SwarmStatistics {
        let (torrents, download, upload) = state.withLock {
            (Array($0.torrents.values), $0.retiredDownload, $0.retiredUpload)
        }
        let figures = torrents.filter { $0.extent != Self.idleExtent }.map(\.statistics)
        return SwarmStatistics(
            torrents: figures,
            downloadedBytes: figures.reduce(download) { $0 + $1.downloadedBytes },
            uploadedBytes: figures.reduce(upload) { $0 + $1.uploadedBytes })
    }

    // MARK: Stopping

    /// Closes every connection and file; everybody who waits gets `stopped`. What was verified is
    /// in the files. Returns when the session's threads have ended.
    public func stop() async {
        await withCheckedContinuation { continuation in
            let isStopped = state.withLock {
                $0.isStopping = true
                if !$0.isStopped { $0.stoppers.append(continuation) }
                return $0.isStopped
            }
            if isStopped { return continuation.resume() }
            session.wake()
        }
    }

    // MARK: The table of torrents

    private func check(_ extent: Extent, layer: [UInt8]) throws {
        guard (1...Limits.extentBytesMax).contains(extent.length) else {
            throw SwarmError.invalidExtent
        }
        guard PieceLayer.verify(layer, for: extent) else { throw SwarmError.invalidLayer }
    }

    private func loaded(_ extent: Extent) -> (any LoadedTorrent)? {
        state.withLock { state in state.tokens[extent].flatMap { state.torrents[$0] } }
    }

    private func register(_ torrent: any LoadedTorrent, _ state: inout State) {
        state.torrents[torrent.token] = torrent
        state.tokens[torrent.extent] = torrent.token
        state.nextToken += 1
    }

    /// The seed to give up for another one.
    private func leastUsed(_ state: borrowing State) -> Seed? {
        state.tokens.values.compactMap { state.torrents[$0] as? Seed }
            .filter { $0.extent != Self.idleExtent && $0.isServing }
            .min { $0.lastUse < $1.lastUse }
    }

    /// From now on the extent may be loaded anew: the removal is queued under the same lock as
    /// every addition, and libtorrent keeps their order.
    private func retire(_ seed: Seed, _ state: inout State) {
        guard state.tokens[seed.extent] == seed.token else { return }
        state.tokens[seed.extent] = nil
        seed.unload()
    }

    private func forget(_ torrent: any LoadedTorrent) {
        let figures = torrent.statistics
        state.withLock { state in
            guard state.torrents.removeValue(forKey: torrent.token) != nil else { return }
            if state.tokens[torrent.extent] == torrent.token { state.tokens[torrent.extent] = nil }
            if torrent is Seed { state.seedCount -= 1 } else { state.downloadCount -= 1 }
            state.retiredDownload += figures.downloadedBytes
            state.retiredUpload += figures.uploadedBytes
        }
    }

    // MARK: The session's thread

    private func run() {
        var nextTick = ContinuousClock.now + .seconds(1)
        while !state.withLock({ $0.isStopping }) {
            let wait = max(.zero, nextTick - .now)
            let milliseconds =
                wait.components.seconds * 1000 + wait.components.attoseconds / 1_000_000_000_000_000
            var descriptor = pollfd(
                fd: session.eventDescriptor, events: Int16(POLLIN), revents: 0)
            poll(&descriptor, 1, CInt(milliseconds) + 1)
            drain()
            if ContinuousClock.now >= nextTick {
                tick()
                nextTick = .now + .seconds(1)
            }
        }
        session.stop()
        let torrents = state.withLock { Array($0.torrents.values) }
        for torrent in torrents {
            torrent.close(.stopped)
            forget(torrent)
        }
        let stoppers = state.withLock { state in
            state.isStopped = true
            defer { state.stoppers = [] }
            return state.stoppers
        }
        for stopper in stoppers { stopper.resume() }
    }

    private func drain() {
        var isIncomplete = false
        session.drain { token, event in
            guard let torrent = state.withLock({ $0.torrents[token] }) else { return }
            switch event {
            case .removed, .added(failure: .some):
                // First, so that whoever is told of the end may load the extent again.
                forget(torrent)
            default: break
            }
            torrent.handle(event)
            // libtorrent has paused a seed whose file it cannot read; loaded, it would only lie.
            if let seed = torrent as? Seed, seed.isBroken, seed.extent != Self.idleExtent {
                let tell = state.withLock { state in
                    retire(seed, &state)
                    return state.seedFailed
                }
                tell(seed.extent)
            }
        } lost: {
            isIncomplete = true
        }
        if isIncomplete { resynchronize() }
    }

    private func resynchronize() {
        for torrent in state.withLock({ Array($0.torrents.values) }) {
            torrent.resynchronize()
            if torrent.isClosed { forget(torrent) }
        }
    }

    private func tick() {
        session.requestStatus()
        let now = ContinuousClock.now
        for torrent in state.withLock({ Array($0.torrents.values) }) {
            torrent.tick(now)
            if let seed = torrent as? Seed, seed.isExpired(at: now) {
                state.withLock { retire(seed, &$0) }
            }
        }
    }
}
