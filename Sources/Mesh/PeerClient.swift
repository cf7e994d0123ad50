import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import NIOTLS
import Synchronization
public import Volume

/// Asks peers, over connections that are kept and reused.
///
/// Every request must be safe to repeat: one sent on a kept connection that turns out to be dead
/// before a byte of the reply came is sent again, once, on a new one.
public final class PeerClient: Sendable {
    public struct Configuration: Sendable {
        public var connectTimeout: Duration = .seconds(4)
        public var handshakeTimeout: Duration = .seconds(5)
        /// Connections to one endpoint at a time; further requests wait.
        public var connectionsPerEndpoint = 8
        /// Requests that wait for a connection to one endpoint; further ones fail with `busy`.
        public var waitersPerEndpoint = 256
        /// An unused connection is closed after this time, before the server would.
        public var idle: Duration = .seconds(30)
        /// A download brings at least `progressBytesMin` in each such window, or ends in it.
        public var progressWindow: Duration = .seconds(10)
        public var progressBytesMin = 16 << 10

        public init() {}
    }

    private let configuration: Configuration
    private let tls: NIOSSLContext
    private let threads: MeshThreads
    private let pool: ConnectionPool

    /// - Throws: when the identity's certificate is unusable.
    public init(
        _ configuration: Configuration = Configuration(), identity: NodeIdentity,
        authority: VolumeAuthority, threads: MeshThreads
    ) throws {
        self.configuration = configuration
        self.threads = threads
        tls = try TLSContexts.client(identity: identity, authority: authority)
        pool = ConnectionPool(
            perEndpoint: configuration.connectionsPerEndpoint,
            waiters: configuration.waitersPerEndpoint)
    }

    /// One request and its whole reply, whatever its status.
    ///
    /// - Parameters:
    ///   - expecting: the node that must answer; nil on first contact.
    ///   - timeout: for all of it, connecting included.
    ///   - replyBytesMax: a longer reply is `tooLarge`.
    public func request(
        _ endpoint: Endpoint, expecting: NodeID? = nil, method: String = "POST", path: String,
        headers: [(name: String, value: String)] = [], body: [UInt8] = [],
        timeout: Duration = .seconds(10), replyBytesMax: Int = 1 << 20
    ) async throws(PeerError) -> PeerReply {
        let call = ClientCall(
            head: Self.head(endpoint, method, path, headers, body), body: ByteBuffer(bytes: body),
            bytesMax: Int64(replyBytesMax), sink: nil, window: nil)
        return try await perform(call, endpoint, expecting, timeout: timeout)
    }

    /// Like `request`, but the body of a 2xx reply goes into a file, from `offset` on.
    ///
    /// `timeout` bounds the time to the reply's head; the rest must keep making progress. After an
    /// error the file holds rubbish. The descriptor stays the caller's and must stay open
    /// meanwhile;
    /// nothing is synced.
    public func download(
        _ endpoint: Endpoint, expecting: NodeID? = nil, method: String = "POST", path: String,
        headers: [(name: String, value: String)] = [], body: [UInt8] = [],
        to descriptor: CInt, at offset: Int64 = 0, timeout: Duration = .seconds(10),
        replyBytesMax: Int64
    ) async throws(PeerError) -> PeerReply {
        let window = ClientCall.Window(
            length: configuration.progressWindow.timeAmount,
            bytesMin: configuration.progressBytesMin)
        let call = ClientCall(
            head: Self.head(endpoint, method, path, headers, body), body: ByteBuffer(bytes: body),
            bytesMax: replyBytesMax,
            sink: FileSink(descriptor: descriptor, offset: offset, files: threads.files),
            window: window)
        return try await perform(call, endpoint, expecting, timeout: timeout)
    }

    /// The `ca16` that a server shows, for telling a person which volume answers there.
    ///
    /// Nothing of ours is shown to it, and nothing it shows is verified.
    public func presentedAuthority(_ endpoint: Endpoint) async -> String? {
        guard let tls = try? TLSContexts.anonymousClient() else { return nil }
        let found = threads.group.next().makePromise(of: String?.self)
        let bootstrap = ClientBootstrap(group: threads.group)
            .connectTimeout(configuration.connectTimeout.timeAmount)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(
                        try NIOSSLClientHandler(
                            context: tls, serverHostname: nil,
                            customVerificationCallback: { chain, verdict in
                                let root = chain.count > 1 ? chain.last : nil
                                found.succeed(
                                    (try? root?.toDERBytes()).map(VolumeAuthority.shortName))
                                verdict.succeed(.failed)
                            }))
                }
            }
        do {
            let channel = try await bootstrap.connect(host: endpoint.host, port: endpoint.port)
                .get()
            channel.closeFuture.whenComplete { _ in found.succeed(nil) }
            let cut = channel.eventLoop.scheduleTask(
                in: configuration.handshakeTimeout.timeAmount
            ) { channel.close(promise: nil) }
            defer { cut.cancel() }
            let name = try await found.futureResult.get()
            channel.close(promise: nil)
            return name
        } catch {
            found.succeed(nil)
            return nil
        }
    }

    /// Closes kept connections to an endpoint, so that the next request makes a new one.
    public func disconnect(_ endpoint: Endpoint) { pool.drop(endpoint) }

    /// Closes all connections to an endpoint; requests under way fail.
    public func cut(_ endpoint: Endpoint) { pool.cut(endpoint) }

    /// Called with the endpoint whenever a connection has ended. Set it before the first request.
    func whenClosed(_ closed: @escaping @Sendable (Endpoint) -> Void) { pool.whenClosed(closed) }

    /// Cuts everything; later requests fail with `stopped`.
    public func stop() async { await pool.stop() }

    // MARK: - One call

    private static func head(
        _ endpoint: Endpoint, _ method: String, _ path: String,
        _ extra: [(name: String, value: String)], _ body: [UInt8]
    ) -> HTTPRequestHead {
        var headers = HTTPHeaders(extra.map { ($0.name, $0.value) })
        headers.replaceOrAdd(name: "host", value: endpoint.description)
        headers.replaceOrAdd(name: "content-length", value: "\(body.count)")
        return HTTPRequestHead(
            version: .http1_1, method: .init(rawValue: method), uri: path, headers: headers)
    }

    private func perform(
        _ call: ClientCall, _ endpoint: Endpoint, _ expecting: NodeID?, timeout: Duration
    ) async throws(PeerError) -> PeerReply {
        let deadline = NIODeadline.now() + timeout.timeAmount
        // A kept connection may have died unnoticed: every one that there may be, then a new one.
        for _ in 0...configuration.connectionsPerEndpoint {
            let connection = try await connection(to: endpoint, deadline: deadline)
            if let expecting, connection.node != expecting {
                pool.give(back: connection, isUsable: true)
                throw .wrongNode(expected: expecting, found: connection.node)
            }
            let wasUsed = connection.isReused
            do throws(PeerError) {
                let outcome = try await send(call, on: connection, deadline: deadline)
                pool.give(back: connection, isUsable: outcome.isReusable)
                return outcome.reply(of: connection.node)
            } catch {
                pool.give(back: connection, isUsable: false)
                guard wasUsed, case .disconnected(Self.beforeReply) = error else { throw error }
            }
        }
        throw .disconnected(Self.beforeReply)
    }

    /// Marks the one failure after which a request is repeated.
    static let beforeReply = "before the reply"

    private func send(
        _ call: ClientCall, on connection: PeerConnection, deadline: NIODeadline
    ) async throws(PeerError) -> ClientOutcome {
        let channel = connection.channel
        let promise = channel.eventLoop.makePromise(of: ClientOutcome.self)
        let pending = PendingCall(call: call, deadline: deadline, promise: promise)
        channel.writeAndFlush(pending).whenFailure { error in
            promise.fail(PeerError.disconnected(Self.beforeReply))
        }
        let result = await withTaskCancellationHandler {
            await Result { try await promise.futureResult.get() }
        } onCancel: {
            channel.close(promise: nil)
        }
        switch result {
        case .success(let outcome): return outcome
        case .failure(let error): throw Self.peerError(error)
        }
    }

    private func connection(
        to endpoint: Endpoint, deadline: NIODeadline
    ) async throws(PeerError) -> PeerConnection {
        switch try await pool.lease(endpoint, deadline: deadline, on: threads.group.next()) {
        case .kept(let connection): return connection
        case .dial:
            do throws(PeerError) {
                let connection = try await dial(endpoint, deadline: deadline)
                pool.opened(connection)
                return connection
            } catch {
                pool.dialFailed(endpoint)
                throw error
            }
        }
    }

    private func dial(
        _ endpoint: Endpoint, deadline: NIODeadline
    ) async throws(PeerError) -> PeerConnection {
        let left = deadline - .now()
        guard left > .nanoseconds(0) else { throw .timeout }
        let tls = tls
        let idle = configuration.idle.timeAmount
        let loop = threads.group.next()
        let verified = loop.makePromise(of: NodeID.self)
        let handshake = min(configuration.handshakeTimeout.timeAmount, left)
        let bootstrap = ClientBootstrap(group: loop)
            .connectTimeout(min(configuration.connectTimeout.timeAmount, left))
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(
                        try NIOSSLClientHandler(context: tls, serverHostname: nil))
                    try pipeline.addHandler(IdleStateHandler(allTimeout: idle))
                    try pipeline.addHTTPClientHandlers()
                    try pipeline.addHandler(CallHandler())
                    try pipeline.addHandler(IntroductionHandler(verified, timeout: handshake))
                }
            }
        let opened = bootstrap.connect(host: endpoint.host, port: endpoint.port)
        // Without this the promise would leak, which NIO treats as a bug in debug builds.
        opened.whenFailure { verified.fail($0) }
        // Whatever becomes of the channel: who waits for a connection hears of it.
        let timer = loop.scheduleTask(in: left) { verified.fail(PeerError.timeout) }
        let result = await withTaskCancellationHandler {
            await Result {
                let node = try await verified.futureResult.get()
                return PeerConnection(
                    endpoint: endpoint, node: node, channel: try await opened.get())
            }
        } onCancel: {
            verified.fail(CancellationError())
        }
        timer.cancel()
        if case .failure = result { opened.whenSuccess { $0.close(promise: nil) } }
        switch result {
        case .success(let connection): return connection
        case .failure(let error): throw Self.peerError(error)
        }
    }

    /// The one place where foreign errors become ours.
    static func peerError(_ error: any Error) -> PeerError {
        switch error {
        case let error as PeerError: return error
        case is CancellationError: return .stopped
        case ChannelError.connectTimeout: return .timeout
        case let error as IOError where error.errnoCode == ETIMEDOUT: return .timeout
        case let error as NIOConnectionError:
            let causes = error.connectionErrors.map(\.error)
            if !causes.isEmpty, causes.allSatisfy({ peerError($0) == .timeout }) { return .timeout }
            let reasons = causes.map { PeerError.printable("\($0)".utf8) }
            return .refused(reasons.first ?? "cannot resolve \(error.host)")
        case let error as IOError
        where [ECONNRESET, EPIPE, ENOTCONN].contains(error.errnoCode):
            return .disconnected(beforeReply)
        case let error as IOError: return .refused("\(error)")
        case HTTPParserError.invalidEOFState: return .disconnected("in the middle of the reply")
        case is HTTPParserError: return .invalidReply("\(error)")
        default:
            return TLSContexts.isAboutCertificates(error)
                ? .wrongAuthority : .disconnected(PeerError.printable("\(error)".utf8))
        }
    }
}

extension Result where Failure == any Error {
    /// Like `init(catching:)`, for an async body.
    fileprivate init(_ body: () async throws -> Success) async {
        do { self = .success(try await body()) } catch { self = .failure(error) }
    }
}

/// Completes when the server has shown a member's certificate; then leaves.
private final class IntroductionHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = HTTPClientResponsePart

    private let verified: EventLoopPromise<NodeID>
    private let timeout: TimeAmount
    private var timer: Scheduled<Void>?

    init(_ verified: EventLoopPromise<NodeID>, timeout: TimeAmount) {
        self.verified = verified
        self.timeout = timeout
    }

    func channelActive(context: ChannelHandlerContext) {
        let channel = context.channel
        timer = context.eventLoop.scheduleTask(in: timeout) { [verified] in
            verified.fail(PeerError.timeout)
            channel.close(promise: nil)
        }
        context.fireChannelActive()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case .handshakeCompleted? = event as? TLSUserEvent {
            timer?.cancel()
            if let node = try? TLSContexts.peer(of: context) {
                verified.succeed(node)
                context.pipeline.syncOperations.removeHandler(self, promise: nil)
            } else {
                verified.fail(PeerError.wrongAuthority)
                context.close(promise: nil)
            }
        }
        context.fireUserInboundEventTriggered(event)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        timer?.cancel()
        verified.fail(error)
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        timer?.cancel()
        verified.fail(PeerError.disconnected("during the handshake"))
        context.fireChannelInactive()
    }
}
