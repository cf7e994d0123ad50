import NIOCore
import Synchronization
import Volume

/// One authenticated connection; at any time either kept by the pool or leased to one call.
final class PeerConnection: Sendable {
    let endpoint: Endpoint
    let node: NodeID
    let channel: any Channel
    private let uses = Atomic<Int>(0)

    init(endpoint: Endpoint, node: NodeID, channel: any Channel) {
        self.endpoint = endpoint
        self.node = node
        self.channel = channel
    }

    /// Whether a call was made on it before.
    var isReused: Bool { uses.load(ordering: .relaxed) > 0 }

    func wasUsed() { uses.add(1, ordering: .relaxed) }
}

/// The client's connections by endpoint: reused, bounded, with a bounded queue of waiters.
final class ConnectionPool: Sendable {
    enum Lease {
        case kept(PeerConnection)
        /// The caller has the right to open one, and must call `opened` or `dialFailed`.
        case dial
    }

    private struct Lane {
        var kept: [PeerConnection] = []
        /// Kept, leased and being opened.
        var count = 0
        var waiters: [(id: UInt64, promise: EventLoopPromise<Lease>)] = []
    }

    private struct State {
        var lanes: [Endpoint: Lane] = [:]
        var open: [ObjectIdentifier: PeerConnection] = [:]
        var nextWaiter: UInt64 = 0
        var isStopped = false
        var whenClosed: (@Sendable (Endpoint) -> Void)?
    }

    private let perEndpoint: Int
    private let waiters: Int
    private let state = Mutex(State())

    init(perEndpoint: Int, waiters: Int) {
        self.perEndpoint = perEndpoint
        self.waiters = waiters
    }

    func lease(
        _ endpoint: Endpoint, deadline: NIODeadline, on loop: any EventLoop
    ) async throws(PeerError) -> Lease {
        // First of all: after the stop, the event loops may not run any more.
        guard !state.withLock({ $0.isStopped }) else { throw .stopped }
        let promise = loop.makePromise(of: Lease.self)
        let id = state.withLock { state -> UInt64? in
            if state.isStopped {
                promise.fail(PeerError.stopped)
                return nil
            }
            var lane = state.lanes[endpoint, default: Lane()]
            defer { state.lanes[endpoint] = lane }
            while let connection = lane.kept.popLast() {
                if connection.channel.isActive {
                    promise.succeed(.kept(connection))
                    return nil
                }
                // `closed` has not run yet; it will not find it among the kept.
                lane.count -= 1
                state.open[ObjectIdentifier(connection)] = nil
            }
            if lane.count < perEndpoint {
                lane.count += 1
                promise.succeed(.dial)
                return nil
            }
            guard lane.waiters.count < waiters else {
                promise.fail(PeerError.busy)
                return nil
            }
            state.nextWaiter += 1
            lane.waiters.append((state.nextWaiter, promise))
            return state.nextWaiter
        }
        let timer = id.map { id in
            loop.scheduleTask(deadline: deadline) { self.giveUp(id, endpoint) }
        }
        defer { timer?.cancel() }
        do { return try await promise.futureResult.get() } catch {
            throw PeerClient.peerError(error)
        }
    }

    func opened(_ connection: PeerConnection) {
        let isStopped = state.withLock { state in
            state.open[ObjectIdentifier(connection)] = connection
            return state.isStopped
        }
        connection.channel.closeFuture.whenComplete { _ in self.closed(connection) }
        if isStopped { connection.channel.close(promise: nil) }
    }

    func dialFailed(_ endpoint: Endpoint) {
        state.withLock { Self.leave(&$0, endpoint) }
    }

    func give(back connection: PeerConnection, isUsable: Bool) {
        guard isUsable, connection.channel.isActive else {
            // `closed` will count it out.
            return connection.channel.close(promise: nil)
        }
        connection.wasUsed()
        state.withLock { state in
            guard state.open[ObjectIdentifier(connection)] != nil else { return }
            var lane = state.lanes[connection.endpoint, default: Lane()]
            if lane.waiters.isEmpty {
                lane.kept.append(connection)
            } else {
                lane.waiters.removeFirst().promise.succeed(.kept(connection))
            }
            state.lanes[connection.endpoint] = lane
        }
    }

    /// Closes the kept connections of an endpoint.
    func drop(_ endpoint: Endpoint) {
        let kept = state.withLock { $0.lanes[endpoint]?.kept ?? [] }
        for connection in kept { connection.channel.close(promise: nil) }
    }

    /// Closes all connections to an endpoint, leased ones too.
    func cut(_ endpoint: Endpoint) {
        let open = state.withLock { $0.open.values.filter { $0.endpoint == endpoint } }
        for connection in open { connection.channel.close(promise: nil) }
    }

    func whenClosed(_ closed: @escaping @Sendable (Endpoint) -> Void) {
        state.withLock { $0.whenClosed = closed }
    }

    func stop() async {
        let (open, waiting) = state.withLock { state in
            state.isStopped = true
            let waiting = state.lanes.values.flatMap(\.waiters)
            for endpoint in state.lanes.keys { state.lanes[endpoint]?.waiters = [] }
            return (Array(state.open.values), waiting)
        }
        for waiter in waiting { waiter.promise.fail(PeerError.stopped) }
        for connection in open { try? await connection.channel.close().get() }
    }

    private func closed(_ connection: PeerConnection) {
        let whenClosed = state.withLock { state in
            if state.open.removeValue(forKey: ObjectIdentifier(connection)) != nil {
                state.lanes[connection.endpoint]?.kept.removeAll { $0 === connection }
                Self.leave(&state, connection.endpoint)
            }
            return state.whenClosed
        }
        whenClosed?(connection.endpoint)
    }

    /// One connection less: the right to open one passes to the first waiter.
    private static func leave(_ state: inout State, _ endpoint: Endpoint) {
        guard var lane = state.lanes[endpoint] else { return }
        if lane.waiters.isEmpty {
            lane.count -= 1
        } else {
            lane.waiters.removeFirst().promise.succeed(.dial)
        }
        state.lanes[endpoint] = lane.count == 0 ? nil : lane
    }

    private func giveUp(_ id: UInt64, _ endpoint: Endpoint) {
        let promise = state.withLock { state -> EventLoopPromise<Lease>? in
            guard let index = state.lanes[endpoint]?.waiters.firstIndex(where: { $0.id == id })
            else { return nil }
            return state.lanes[endpoint]?.waiters.remove(at: index).promise
        }
        promise?.fail(PeerError.timeout)
    }
}
