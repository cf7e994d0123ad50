import CTorrent
import Glibc
import Synchronization

/// A private distributed table: under a key of 20 bytes each node finds where others said that they
/// are. A libtorrent session of its own, that has no torrents.
///
/// Nobody is admitted until `admit` names addresses; packets of all others end in the kernel. What
/// is found is what members claim: an address and a port, to be checked by whoever uses them.
public final class DHT: Sendable {
    public static let keyBytes = 20
    /// How many nodes keep what is announced: those whose ids are closest to the key.
    public static let replicas = 8
    /// What was announced is forgotten after 45 minutes; renewed in time it stays.
    public static let renewal = Duration.seconds(15 * 60)
    /// Kept here for others: keys, and places of each. A few hundred bytes each.
    static let keysMax = 20_000
    static let peersPerKeyMax = 32
    static let uploadBytesPerSecondMax = 128 << 10
    /// From one address, at which there may be a machine full of disks.
    static let packetsPerSecondMax = 1000
    public static let lookUpsMax = 64
    /// Of one look-up.
    static let placesMax = 64
    /// After the first answer of a look-up, for others.
    static let gathering = Duration.milliseconds(200)

    private final class LookUp: Sendable {
        let places: AsyncStream<SwarmEndpoint>
        let arrived: AsyncStream<SwarmEndpoint>.Continuation

        init() {
            (places, arrived) = AsyncStream.makeStream(
                bufferingPolicy: .bufferingOldest(DHT.placesMax))
        }
    }

    private struct State {
        var listening: [String]
        var lookUps: [[UInt8]: [LookUp]] = [:]
        var count = 0
        var isStopping = false
        var isStopped = false
        var stoppers: [CheckedContinuation<Void, Never>] = []
    }

    private let session: DHTSession
    private let state: Mutex<State>

    /// Opens the port and starts the session's thread. Blocks for some milliseconds.
    ///
    /// - Parameters:
    ///   - addresses: to listen on, numeric, IPv6 without brackets; at least one.
    ///   - port: 0 takes a free one, for a single address.
    /// - Throws: `SwarmError.torrent`.
    public init(addresses: [String], port: UInt16 = 0) throws {
        state = Mutex(State(listening: addresses))
        session = try DHTSession(addresses: addresses, port: port)
        try SwarmThread.start(name: "dht") { [self] in run() }
    }

    /// False from `stop` on, and when the kernel could not keep others out.
    public var isRunning: Bool { state.withLock { !$0.isStopping } }

    /// The UDP port.
    public var port: UInt16 { session.port }

    /// Listens on these addresses from now on; `admit` is to follow.
    public func listen(on addresses: [String]) {
        state.withLock { $0.listening = addresses }
        session.listen(on: addresses)
    }

    /// Packets of these addresses, numeric, are taken from now on, and of no others but this node's own:
    /// a search asks whoever may know more, itself too, and ends only when all have answered.
    ///
    /// - Parameter addresses: the most important ones first.
    /// - Throws: `SwarmError`; then nobody else can be kept out, and it is to be stopped.
    public func admit(_ addresses: [String]) throws {
        try session.admit(state.withLock { $0.listening } + addresses)
    }

    /// Asks a node, which must have been admitted, to take part.
    public func add(_ node: SwarmEndpoint) { session.add(node) }

    /// Tells that something is to be found at this node's addresses, under `port`, for some time.
    public func announce(_ key: [UInt8], port: UInt16) {
        precondition(key.count == Self.keyBytes)
        session.announce(key, port: port)
    }

    /// Where others said that they are, as far as answers came in time.
    public func lookUp(_ key: [UInt8], within bound: Duration) async -> Set<SwarmEndpoint> {
        precondition(key.count == Self.keyBytes)
        let lookUp = LookUp()
        let isNew = state.withLock { state in
            guard !state.isStopping, state.count < Self.lookUpsMax else { return false }
            state.count += 1
            state.lookUps[key, default: []].append(lookUp)
            return true
        }
        guard isNew else { return [] }
        session.lookUp(key)
        let found = await gather(lookUp, within: bound)
        state.withLock { state in
            state.count -= 1
            state.lookUps[key]?.removeAll { $0 === lookUp }
            if state.lookUps[key]?.isEmpty == true { state.lookUps[key] = nil }
        }
        return found
    }

    private func gather(_ lookUp: LookUp, within bound: Duration) async -> Set<SwarmEndpoint> {
        await withTaskGroup(of: Void.self, returning: Set<SwarmEndpoint>.self) { group in
            defer { group.cancelAll() }
            group.addTask {
                try? await Task.sleep(for: bound)
                lookUp.arrived.finish()
            }
            var found: Set<SwarmEndpoint> = []
            for await place in lookUp.places {
                if found.isEmpty {
                    group.addTask {
                        try? await Task.sleep(for: min(bound, Self.gathering))
                        lookUp.arrived.finish()
                    }
                }
                if found.count < Self.placesMax { found.insert(place) }
            }
            return found
        }
    }

    /// Ends the session; look-ups end with what they have. Returns when its threads have ended.
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

    private func run() {
        while !state.withLock({ $0.isStopping }) {
            var descriptor = pollfd(
                fd: session.eventDescriptor, events: Int16(POLLIN), revents: 0)
            poll(&descriptor, 1, -1)
            let isSecure = session.drain { key, place in
                for lookUp in state.withLock({ $0.lookUps[key] ?? [] }) {
                    lookUp.arrived.yield(place)
                }
            }
            // A socket that takes packets of strangers is worse than none.
            if !isSecure { break }
        }
        state.withLock { $0.isStopping = true }
        session.stop()
        let (lookUps, stoppers) = state.withLock { state in
            state.isStopped = true
            defer { state.stoppers = [] }
            return (state.lookUps.values.flatMap(\.self), state.stoppers)
        }
        for lookUp in lookUps { lookUp.arrived.finish() }
        for stopper in stoppers { stopper.resume() }
    }
}

/// The libtorrent session of a `DHT`. Calls are safe on any thread, and do nothing once it is stopped.
private final class DHTSession: @unchecked Sendable {
    // Unchecked: the pointer never changes and the shim locks inside; it is freed in deinit, when
    // nobody can call any more.
    private let pointer: OpaquePointer

    let port: UInt16
    let eventDescriptor: CInt

    /// Blocks until the port is open.
    init(addresses: [String], port: UInt16) throws {
        precondition(!addresses.isEmpty)
        var created: OpaquePointer?
        try TorrentSession.explained { message, bytes in
            Self.withTexts(addresses) { texts in
                var options = ctorrent_dht_options(
                    listen_addresses: texts.baseAddress, listen_address_count: texts.count,
                    port: port, upload_bytes_per_second: Int32(DHT.uploadBytesPerSecondMax),
                    keys_max: Int32(DHT.keysMax), peers_per_key_max: Int32(DHT.peersPerKeyMax),
                    packets_per_second_max: Int32(DHT.packetsPerSecondMax))
                return ctorrent_dht_create(&options, &created, message, bytes)
            }
        }
        guard let created else { throw SwarmError.torrent("no session") }
        pointer = created
        self.port = ctorrent_dht_port(created)
        eventDescriptor = ctorrent_dht_event_descriptor(created)
    }

    deinit {
        ctorrent_dht_stop(pointer)
        ctorrent_dht_free(pointer)
    }

    private static func withTexts<Result>(
        _ texts: [String], _ body: (UnsafeBufferPointer<UnsafePointer<CChar>?>) -> Result
    ) -> Result {
        let copies = texts.map { strdup($0) }
        defer { for copy in copies { free(copy) } }
        return copies.map { UnsafePointer($0) }.withUnsafeBufferPointer(body)
    }

    /// Ends libtorrent's threads; blocks for as long as they take.
    func stop() { ctorrent_dht_stop(pointer) }

    func wake() { ctorrent_dht_wake(pointer) }

    func listen(on addresses: [String]) {
        _ = Self.withTexts(addresses) { ctorrent_dht_listen(pointer, $0.baseAddress, $0.count) }
    }

    func admit(_ addresses: [String]) throws {
        switch Self.withTexts(
            addresses, { ctorrent_dht_admit(pointer, $0.baseAddress, $0.count) })
        {
        case CTORRENT_OK: break
        case CTORRENT_STOPPED: throw SwarmError.stopped
        default: throw SwarmError.torrent("the kernel takes no packet filter")
        }
    }

    func add(_ node: SwarmEndpoint) {
        _ = ctorrent_dht_add_node(pointer, node.address, node.port)
    }

    func announce(_ key: [UInt8], port: UInt16) { _ = ctorrent_dht_announce(pointer, key, port) }

    func lookUp(_ key: [UInt8]) { _ = ctorrent_dht_look_up(pointer, key) }

    /// Hands over what was found since the last call. One thread only.
    /// - Returns: false when a socket has no filter.
    func drain(_ body: ([UInt8], SwarmEndpoint) -> Void) -> Bool {
        withoutActuallyEscaping(body) { body in
            let receiver = Receiver(body)
            defer { withExtendedLifetime(receiver) {} }
            return ctorrent_dht_drain(
                pointer,
                { context, key, address, port in
                    guard let context, let key, let address, port > 0 else { return }
                    Unmanaged<Receiver>.fromOpaque(context).takeUnretainedValue().body(
                        Array(UnsafeBufferPointer(start: key, count: DHT.keyBytes)),
                        SwarmEndpoint(address: String(cString: address), port: port))
                }, Unmanaged.passUnretained(receiver).toOpaque()) != CTORRENT_FAILED
        }
    }

    /// Carries a Swift closure through the C callback of one drain.
    private final class Receiver {
        let body: ([UInt8], SwarmEndpoint) -> Void

        init(_ body: @escaping ([UInt8], SwarmEndpoint) -> Void) { self.body = body }
    }
}
