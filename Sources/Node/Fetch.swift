import Catalog
import Glibc
import Logging
import Mesh
import Mount
import Store
import Swarm
import Synchronization
import SystemPackage
import Volume

/// One extent on its way here: asks holders, joins their swarm, hands ranges to readers as they are
/// verified, becomes an object when it is whole.
///
/// | phase | readers |
/// |---|---|
/// | searching | wait in `pending`; EIO when nobody was found for `progressTimeout` |
/// | loading | ask the download for their range and wait there |
/// | complete | read the object |
/// | failed | get the error |
final class Fetch: Sendable {
    /// Between looks for further holders and renewals of leases; the same for nodes that are fetching
    /// the extent, too, and have parts of it to give.
    static let refresh = Duration.seconds(5)
    static let partialRefresh = Duration.milliseconds(500)
    /// Between saves of what is verified: a restart fetches what came since the last one again.
    static let saveInterval = Duration.seconds(2)
    /// Between looks at a running download: how late its refresh, its save or its end may come.
    static let attendInterval = Duration.milliseconds(250)
    static let searchPause = Duration.milliseconds(500)
    /// A clone to which nothing comes for this long is given up, so that it blocks no other.
    static let cloneIdleMax = Duration.seconds(120)
    /// Read ahead of a sequential reader: doubles from the first to the second.
    static let readAheadBytesMin: UInt64 = 1 << 20
    static let readAheadBytesMax: UInt64 = 32 << 20
    /// Readers told apart; a player reads the tail first and then the head.
    static let cursorsMax = 4

    let extent: Extent
    /// Strong: a transfer that is ending may outlive its place in the exchange. The exchange lets go
    /// of it in `ended`.
    let exchange: ContentExchange
    private let state = Mutex(State())

    /// A reader's wait; ends by `body` or by `cancel`.
    private final class Waiter: Sendable {
        let range: Range<UInt64>
        let body: @Sendable (Result<SharedDescriptor, Errno>) -> Void
        private let state = Mutex<(isCancelled: Bool, download: VerifiedWait?)>((false, nil))

        init(
            _ range: Range<UInt64>,
            _ body: @escaping @Sendable (Result<SharedDescriptor, Errno>) -> Void
        ) {
            self.range = range
            self.body = body
        }

        func cancel() {
            let wait = state.withLock { state in
                state.isCancelled = true
                return state.download
            }
            _ = wait?.cancel()
        }

        func waits(by wait: VerifiedWait) {
            let isCancelled = state.withLock { state in
                state.download = wait
                return state.isCancelled
            }
            if isCancelled { _ = wait.cancel() }
        }
    }

    private enum Phase {
        case searching
        case loading(Download, SharedDescriptor)
        case complete(SharedDescriptor)
        case failed(Errno)
    }

    private struct Cursor {
        var end: UInt64
        var window: UInt64
    }

    private struct State {
        var phase = Phase.searching
        var interests = 0
        var keepsWhole = false
        var stopping = false
        /// Replies whose bytes were not the content.
        var mismatches = 0
        var pending: [Waiter] = []
        /// While searching: what is here already, from an earlier fetch or of a damaged object.
        var part: (file: SharedDescriptor, pieces: Bitfield)?
        var completions: [@Sendable (Result<Void, Errno>) -> Void] = []
        /// Most recently used last.
        var cursors: [Cursor] = []
        var task: Task<Void, Never>?
    }

    init(extent: Extent, exchange: ContentExchange) {
        self.extent = extent
        self.exchange = exchange
    }

    // MARK: Interest

    /// - Returns: false when the fetch is over and a new one must be made.
    func join() -> Bool {
        state.withLock { state in
            if state.stopping { return false }
            switch state.phase {
            case .failed, .complete: return false
            case .searching, .loading: break
            }
            state.interests += 1
            return true
        }
    }

    func leave() {
        let isIdle = state.withLock { state in
            state.interests -= 1
            return state.interests == 0 && !state.keepsWhole
        }
        if isIdle { Task { await self.stopIfIdle() } }
    }

    var isCloning: Bool { state.withLock { $0.keepsWhole } }

    /// Bytes that have not arrived.
    var missingBytes: UInt64 {
        state.withLock { state in
            switch state.phase {
            case .searching, .failed: return extent.length
            case .complete: return 0
            case .loading(let download, _):
                let verified = UInt64(download.verifiedPieces.setCount) * extent.pieceBytes
                return extent.length - min(verified, extent.length)
            }
        }
    }

    /// - Returns: false when it is to be kept already.
    func keepWhole() -> Bool {
        let (isNew, download) = state.withLock { state -> (Bool, Download?) in
            defer { state.keepsWhole = true }
            guard case .loading(let download, _) = state.phase else {
                return (!state.keepsWhole, nil)
            }
            return (!state.keepsWhole, download)
        }
        download?.fetchAll()
        return isNew
    }

    /// It is not to be stored here any more; who reads it goes on.
    func endKeeping() {
        let (wasKept, isIdle) = state.withLock { state in
            // A writer waits for all of it.
            guard state.keepsWhole, state.completions.isEmpty else { return (false, false) }
            state.keepsWhole = false
            return (true, state.interests == 0)
        }
        guard wasKept else { return }
        if isIdle { Task { await self.stopIfIdle() } }
        exchange.gaveUp(extent)
    }

    /// - Parameter previous: a fetch of the same extent that is ending: both would write one file.
    func start(after previous: Fetch?) {
        let task = Task {
            await previous?.stop()
            await run()
        }
        state.withLock { $0.task = task }
    }

    private func stopIfIdle() async {
        // Decided in one step: who joins afterwards is told to make a new fetch.
        let isIdle = state.withLock { state in
            guard state.interests == 0, !state.keepsWhole else { return false }
            state.stopping = true
            return true
        }
        if isIdle { await stop() }
    }

    /// Ends the transfer; verified pieces stay for a later fetch.
    func stop() async {
        let task = state.withLock { state in
            state.stopping = true
            return state.task
        }
        task?.cancel()
        await task?.value
    }

    // MARK: Readers

    func whenReadable(
        _ range: Range<UInt64>,
        _ body: @escaping @Sendable (Result<SharedDescriptor, Errno>) -> Void
    ) -> ContentWait {
        let waiter = Waiter(range, body)
        wait(waiter)
        return ContentWait { [weak self, waiter] in
            waiter.cancel()
            self?.state.withLock { $0.pending.removeAll { $0 === waiter } }
        }
    }

    private func wait(_ waiter: Waiter) {
        let ready = state.withLock { state -> Phase? in
            guard case .searching = state.phase else { return state.phase }
            if let part = state.part, isVerified(waiter.range, part.pieces) {
                return .complete(part.file)
            }
            state.pending.append(waiter)
            return nil
        }
        if let ready { serve(waiter, ready) }
    }

    func whenComplete(_ body: @escaping @Sendable (Result<Void, Errno>) -> Void) {
        let result = state.withLock { state -> Result<Void, Errno>? in
            switch state.phase {
            case .complete: return .success(())
            case .failed(let error): return .failure(error)
            default:
                state.completions.append(body)
                return nil
            }
        }
        if let result { body(result) }
    }

    private func serve(_ waiter: Waiter, _ phase: Phase) {
        switch phase {
        case .searching: wait(waiter)
        case .complete(let file): waiter.body(.success(file))
        case .failed(let error): waiter.body(.failure(error))
        case .loading(let download, let file):
            let ahead = readAhead(waiter.range)
            download.want(waiter.range, priority: .demand)
            if let ahead { download.want(ahead, priority: .readAhead) }
            waiter.waits(
                by: download.whenVerified(
                    waiter.range, timeoutWithoutProgress: ContentExchange.progressTimeout
                ) { [exchange, extent] result in
                    if case .failure(.noProgress) = result {
                        exchange.starved(extent, hashFailures: download.progress.hashFailures)
                    }
                    waiter.body(result.map { file }.mapError(\.errno))
                })
        }
    }

    /// What to fetch behind a read: more, the longer a reader goes on. The kernel's own read-ahead
    /// arrives out of order, so near counts as next.
    private func readAhead(_ range: Range<UInt64>) -> Range<UInt64>? {
        let near: UInt64 = 4 << 20
        let window = state.withLock { state -> UInt64 in
            let index = state.cursors.firstIndex {
                range.lowerBound + near >= $0.end && range.lowerBound <= $0.end + near
            }
            guard let index else {
                if state.cursors.count == Self.cursorsMax { state.cursors.removeFirst() }
                state.cursors.append(Cursor(end: range.upperBound, window: 0))
                return 0
            }
            var cursor = state.cursors.remove(at: index)
            cursor.end = max(cursor.end, range.upperBound)
            cursor.window = min(
                max(cursor.window * 2, Self.readAheadBytesMin), Self.readAheadBytesMax)
            state.cursors.append(cursor)
            return cursor.window
        }
        let end = min(range.upperBound + window, extent.length)
        return window > 0 && range.upperBound < end ? range.upperBound..<end : nil
    }

    // MARK: The transfer

    private func run() async {
        let clock = ContinuousClock()
        var lastProgress = clock.now
        while !state.withLock({ $0.stopping }) {
            do {
                switch try await begin() {
                // If it was just being removed, it is fetched after all.
                case .object: if await complete() { return }
                case .download(let download):
                    let end = try await attend(download, lastProgress)
                    if end.isWhole, await complete() { return }
                    lastProgress = end.lastProgress
                    await abandon()
                    return await fail(.ioError)
                case .nobody: break
                }
            } catch {
                exchange.logger.warning("fetching \(extent.root): \(error)")
                if (error as? StoreError)?.reason == .mismatch {
                    state.withLock { $0.mismatches += 1 }
                }
                await abandon()
                if let errno = (error as? SwarmError)?.errno, errno == .noSpace {
                    return await fail(.noSpace)
                }
            }
            let waits = state.withLock { !$0.pending.isEmpty }
            if clock.now - lastProgress > ContentExchange.progressTimeout {
                return await fail(waits || !isCloning ? .ioError : .timedOut)
            }
            try? await Task.sleep(for: Self.searchPause)
        }
        await fail(.ioError)
    }

    private enum Beginning {
        case object
        case download(Download)
        case nobody
    }

    /// Asks holders, the first that answers decides the form.
    private func begin() async throws -> Beginning {
        let isHere = try await Blocking.run { [exchange, extent] in
            try exchange.confirmedState(of: extent) != .none
        }
        if isHere { return .object }
        try await serveVerified()
        switch await exchange.offer(of: extent) {
        case nil: return .nobody
        case .content(let bytes):
            try await exchange.intake.store(extent, bytes: bytes)
            return .object
        // The first source is enough to begin; `attend` adds others.
        case .swarm(let endpoints, let layer): return try await load(layer, endpoints)
        }
    }

    /// Who waits for what is here already need not wait for holders.
    private func serveVerified() async throws {
        guard state.withLock({ !$0.pending.isEmpty }) else { return }
        let found = try await Blocking.run { [self] in try verifiedPart() }
        guard let part = found else { return }
        let ready = state.withLock { state in
            state.part = part
            let isReady = { (waiter: Waiter) in self.isVerified(waiter.range, part.pieces) }
            defer { state.pending.removeAll(where: isReady) }
            return state.pending.filter(isReady)
        }
        for waiter in ready { waiter.body(.success(part.file)) }
    }

    private func isVerified(_ range: Range<UInt64>, _ pieces: Bitfield) -> Bool {
        let size = extent.pieceBytes
        let end = min(range.upperBound, extent.length)
        return pieces.missing(
            in: Int(range.lowerBound / size)..<Int((end + size - 1) / size)) == 0
    }

    private func load(_ layer: [UInt8], _ endpoints: [SwarmEndpoint]) async throws -> Beginning {
        let isUnchecked = try await Blocking.run { [self] in try hasUnchecked() }
        if isUnchecked {
            try await Blocking.run(.content) { [self] in try check(layer) }
        }
        // An object that was lost may still be loaded, to be served.
        await exchange.swarm.unload(extent)
        let loaded = try await Blocking.run { [self] in try prepare(layer, endpoints) }
        guard let (download, file) = loaded else { return .object }
        layers.withLock { $0 = layer }
        let (waiters, keepsWhole) = state.withLock { state in
            defer { state.pending = [] }
            state.phase = .loading(download, file)
            return (state.pending, state.keepsWhole)
        }
        for waiter in waiters { serve(waiter, .loading(download, file)) }
        if keepsWhole { download.fetchAll() }
        return .download(download)
    }

    /// The partial file, its record, and its torrent.
    /// - Returns: nil when the object is here: published, or kept by another fetch, while holders
    ///   were asked.
    private func prepare(
        _ layer: [UInt8], _ endpoints: [SwarmEndpoint]
    ) throws -> (Download, SharedDescriptor)? {
        guard try preparePartial() else { return nil }
        let store = exchange.store
        let path = String(decoding: try store.partialPath, as: UTF8.self) + "/\(extent.root)"
        let known = try exchange.catalog.read { try $0.content(extent.root) }
        let verified = known?.verified.flatMap { Bitfield(count: extent.pieceCount, bytes: $0) }
        let download = try exchange.swarm.fetch(
            extent, path: path, layer: layer, verified: verified, sources: endpoints)
        guard let file = try store.openPartial(extent.root) else {
            throw Errno.noSuchFileOrDirectory
        }
        return (download, SharedDescriptor(file))
    }

    /// - Returns: false when the object is here.
    private func preparePartial() throws -> Bool {
        let (catalog, store) = (exchange.catalog, exchange.store)
        return try exchange.partials.withLock { _ in
            let known = try catalog.read { try $0.content(extent.root) }
            // A record without its file, say after a repair of the disk, verifies nothing: the new
            // file is all hole.
            let old = try store.openPartial(extent.root)
            try old?.close()
            let verified =
                old == nil
                ? nil : known?.verified.flatMap { Bitfield(count: extent.pieceCount, bytes: $0) }
            let created = try store.createPartial(extent)
            try created.close()
            let isHere = try catalog.perform { tx in
                if let known = try tx.content(extent.root), known.extent == extent,
                    [.cached, .stored, .dropping].contains(known.state)
                {
                    return true
                }
                try tx.setContentState(
                    extent, .partial, verified: verified?.bytes, at: Monotonic.wallMilliseconds)
                return false
            }
            return !isHere
        }
    }

    private let layers = Mutex<[UInt8]>([])

    /// Stays with a running download: adds holders, renews leases, saves progress.
    ///
    /// - Returns: whether it is an object; if not it is to be given up.
    /// - Throws: what makes the download useless; another may be begun.
    private func attend(
        _ download: Download, _ lastProgress: ContinuousClock.Instant
    ) async throws -> (isWhole: Bool, lastProgress: ContinuousClock.Instant) {
        try await withThrowingTaskGroup(of: Void.self) { group in
            defer { group.cancelAll() }
            // Apart: a holder that is slow to answer must not delay the end.
            group.addTask { await self.addSources(to: download) }
            return try await self.watch(download, lastProgress)
        }
    }

    /// Until it is cancelled.
    private func addSources(to download: Download) async {
        let clock = ContinuousClock()
        var refreshDue = clock.now
        while !Task.isCancelled {
            if clock.now >= refreshDue {
                let sources = await exchange.sources(of: extent)
                await add(sources.prefix(ContentExchange.sourcesMax), to: download)
                refreshDue = clock.now + Self.refresh
            }
            let partial = await exchange.partialSources(of: extent)
            if !partial.isEmpty { download.fetchRarestFirst() }
            await add(
                partial.filter { $0.node > exchange.mesh.node }.prefix(ContentExchange.sourcesMax),
                to: download)
            try? await Task.sleep(for: Self.partialRefresh)
        }
    }

    private func add(_ peers: some Sequence<Peer>, to download: Download) async {
        for peer in peers {
            if case .swarm(let endpoints, _)? = try? await exchange.open(extent, at: peer) {
                download.addSources(endpoints)
            }
        }
    }

    /// The piece layer, while parts of the content can be given to others.
    var servedLayer: [UInt8]? {
        let isLoading = state.withLock { state in
            if case .loading = state.phase { true } else { false }
        }
        return isLoading ? layers.withLock { $0 } : nil
    }

    private func watch(
        _ download: Download, _ lastProgress: ContinuousClock.Instant
    ) async throws -> (isWhole: Bool, lastProgress: ContinuousClock.Instant) {
        let clock = ContinuousClock()
        var lastProgress = lastProgress
        var saveDue = clock.now + Self.saveInterval
        var saved = download.verifiedPieces.setCount
        var arrived = download.progress.downloadedBytes
        while !state.withLock({ $0.stopping }) {
            if download.isComplete { return (try await finish(download), lastProgress) }
            let bytes = download.progress.downloadedBytes
            if bytes != arrived || !isCloning {
                arrived = bytes
                lastProgress = clock.now
            }
            guard clock.now - lastProgress < Self.cloneIdleMax else { throw SwarmError.noProgress }
            if clock.now >= saveDue {
                let verified = download.verifiedPieces.setCount
                if verified != saved { await save(download, cancelling: false) }
                saved = verified
                saveDue = clock.now + Self.saveInterval
            }
            try await pause(until: download)
        }
        return (false, lastProgress)
    }

    /// Until the download completes or fails, at most `attendInterval`.
    private func pause(until download: Download) async throws {
        do {
            try await withThrowingTaskGroup(of: Void.self) { [extent] group in
                defer { group.cancelAll() }
                group.addTask {
                    try await download.wait(
                        for: 0..<extent.length, timeoutWithoutProgress: Self.cloneIdleMax)
                }
                group.addTask { try await Task.sleep(for: Self.attendInterval) }
                try await group.next()
            }
        } catch SwarmError.tooManyWaiters {
            try? await Task.sleep(for: Self.attendInterval)
        } catch SwarmError.noProgress {
        } catch is CancellationError {}
    }

    private func finish(_ download: Download) async throws -> Bool {
        try await download.finish()
        exchange.arrived(extent, hashFailures: download.progress.hashFailures)
        let hashed = HashedExtent(extent: extent, layer: layers.withLock { $0 })
        try await Blocking.run(.content) { [exchange] in
            try exchange.store.adoptPartial(hashed)
        }
        return true
    }

    /// Unloads what is loaded, so that it can be begun anew; readers that come now wait again.
    private func abandon() async {
        let download = state.withLock { state -> Download? in
            guard case .loading(let download, _) = state.phase else { return nil }
            state.phase = .searching
            return download
        }
        if let download { await save(download, cancelling: true) }
    }

    private func save(_ download: Download, cancelling: Bool) async {
        if cancelling { await download.cancel(keepFile: true) }
        let verified = download.verifiedPieces
        try? await Blocking.run(.content) { [exchange, extent] in
            // Bytes before the record of them.
            try exchange.store.synchronizePartial(extent.root)
            try exchange.catalog.perform { try $0.setVerified(extent.root, verified.bytes) }
        }
    }

    // MARK: The end

    /// - Returns: false when the object could not be kept.
    private func complete() async -> Bool {
        do {
            var (shared, kind) = try await Blocking.run { [self] in
                guard let file = try exchange.store.openObject(extent.root) else {
                    throw Errno.noSuchFileOrDirectory
                }
                return (SharedDescriptor(file), try keep(isCloning ? .stored : .cached))
            }
            let (waiters, completions, keepsWhole) = state.withLock { state in
                defer {
                    state.pending = []
                    state.completions = []
                }
                state.phase = .complete(shared)
                return (state.pending, state.completions, state.keepsWhole)
            }
            for waiter in waiters { waiter.body(.success(shared)) }
            kind = try await Blocking.run { [self, kind] in
                // Asked for while it was being kept as a cached copy.
                let final = keepsWhole && kind == .cached ? (try? keep(.stored)) ?? kind : kind
                exchange.arrived(extent, final)
                return final
            }
            exchange.ended(self)
            exchange.failures.clear(extent)
            for completion in completions { completion(.success(())) }
            exchange.catalog.afterDurable { [store = exchange.store, root = extent.root] failure in
                if failure == nil { try? store.removePartial(root) }
            }
            return true
        } catch {
            exchange.logger.error("keeping \(extent.root): \(error)")
            return false
        }
    }

    /// - Returns: as what it is here now: a copy that counts stays one.
    private func keep(_ kind: ContentState) throws -> ContentState {
        try exchange.catalog.perform { tx in
            if let known = try tx.content(extent.root), known.extent == extent,
                known.state == .stored || known.state == kind
            {
                return known.state
            }
            // Removal of one root and keeping it are decided one after the other.
            guard try exchange.store.objectLength(extent.root) == extent.length else {
                throw Errno.noSuchFileOrDirectory
            }
            try tx.setContentState(extent, kind, at: Monotonic.wallMilliseconds)
            return kind
        }
    }

    private func fail(_ error: Errno) async {
        let (waiters, completions, wasCloning) = state.withLock { state in
            defer {
                state.pending = []
                state.completions = []
            }
            state.phase = .failed(error)
            state.stopping = true
            return (state.pending, state.completions, state.keepsWhole)
        }
        if error == .ioError, !waiters.isEmpty {
            exchange.starved(extent, hashFailures: state.withLock { $0.mismatches })
        }
        for waiter in waiters { waiter.body(.failure(error)) }
        exchange.ended(self)
        if wasCloning {
            _ = try? await Blocking.run { [exchange, extent] in exchange.gaveUp(extent) }
        }
        for completion in completions { completion(.failure(error)) }
    }
}

extension SwarmError {
    var errno: Errno {
        switch self {
        case .noSpace: .noSpace
        case .file(let errno, _): Errno(rawValue: errno)
        default: .ioError
        }
    }
}
