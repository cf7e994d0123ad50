import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import NIOTLS
import Volume

/// Why a stranger's handshake ended.
public enum HandshakeRefusal: Hashable, Sendable {
    /// No certificate, one of another authority, or the other side refused ours.
    case wrongAuthority
    /// Not finished in time, or made room for a newer one.
    case unfinished
    /// No TLS 1.3, or no TLS at all.
    case protocolError(String)
}

/// Why a server could not start.
public enum ServerError: Error, CustomStringConvertible {
    case portInUse(host: String, port: Int)
    case cannotListen(host: String, port: Int, reason: String)
    case socket(path: String, reason: String)

    public var description: String {
        switch self {
        case .portInUse(let host, let port):
            "port \(port) is in use on \(host.isEmpty ? "this machine" : host); "
                + "choose another with --port"
        case .cannotListen(let host, let port, let reason):
            "cannot listen on \(host.isEmpty ? "all addresses" : host) port \(port): \(reason)"
        case .socket(let path, let reason): "cannot listen on \(path): \(reason)"
        }
    }
}

/// The threads that all servers and clients of a node share; blocking file work has its own.
public final class MeshThreads: Sendable {
    let group: MultiThreadedEventLoopGroup
    let files: NIOThreadPool

    private static let fileThreads = 2

    public init(eventLoops: Int = 2) {
        group = MultiThreadedEventLoopGroup(numberOfThreads: eventLoops)
        files = NIOThreadPool(numberOfThreads: Self.fileThreads)
        files.start()
    }

    /// Call after everything that uses them has stopped.
    public func stop() async {
        try? await group.shutdownGracefully()
        try? await files.shutdownGracefully()
    }
}

/// The peer API: HTTP/1.1 over mutual TLS 1.3. Only members' requests reach the handler.
public final class PeerServer: Sendable {
    public struct Configuration: Sendable {
        /// An address to bind to; nil means all, IPv4 and IPv6.
        public var host: String?
        /// 0: any free one.
        public var port = 0
        public var limits = ServerLimits()
        /// Called for each refused handshake, with the stranger's address. Must return at once.
        public var refused: (@Sendable (String, HandshakeRefusal) -> Void)?

        public init() {}
    }

    /// The TCP port that the server listens on.
    public let port: Int
    private let service: HTTPService
    private let channel: any Channel

    private init(channel: any Channel, service: HTTPService) {
        self.channel = channel
        self.service = service
        port = channel.localAddress?.port ?? 0
    }

    /// Listens and serves until `stop()`.
    ///
    /// - Throws: `ServerError`.
    public static func start(
        _ configuration: Configuration, identity: NodeIdentity, authority: VolumeAuthority,
        threads: MeshThreads, bodyLimit: @escaping BodyLimit, handler: @escaping PeerHandler
    ) async throws -> PeerServer {
        let tls = try TLSContexts.server(identity: identity, authority: authority)
        let service = HTTPService(
            limits: configuration.limits, files: threads.files, bodyLimit: bodyLimit,
            handler: handler)
        let gate = service.gate
        let bootstrap = ServerBootstrap(group: threads.group)
            .serverChannelOption(.backlog, value: ServerLimits.backlog)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .serverChannelInitializer { channel in
                // Out of descriptors, accept fails at once: without a pause it would spin.
                channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(AcceptBackoffHandler(shouldForwardIOErrorCaught: false))
                    try pipeline.addHandler(OrderHandler(gate: gate))
                }
            }
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let address = channel.remoteAddress?.hostText ?? "unknown"
                    let ticket = gate.begin(ObjectIdentifier(channel), address: address) {
                        channel.close(promise: nil)
                    }
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(NIOSSLServerHandler(context: tls))
                    try pipeline.addHandler(
                        AcceptanceHandler(
                            service: service, ticket: ticket, address: address,
                            refused: configuration.refused))
                }
            }
        let channel = try await bind(bootstrap, configuration)
        return PeerServer(channel: channel, service: service)
    }

    /// Handshakes in progress.
    var pendingHandshakes: Int { service.gate.pendingCount }

    /// Stops listening, cuts every connection, and waits for the handlers, whose tasks are
    /// cancelled.
    public func stop() async {
        try? await channel.close().get()
        await service.stop(on: channel.eventLoop)
    }

    private static func bind(
        _ bootstrap: ServerBootstrap, _ configuration: Configuration
    ) async throws -> any Channel {
        let port = configuration.port
        do {
            if let host = configuration.host {
                return try await bootstrap.bind(host: host, port: port).get()
            }
            do {
                // NIO clears IPV6_V6ONLY, so this takes IPv4 as well.
                return try await bootstrap.bind(host: "::", port: port).get()
            } catch let error as IOError
                where error.errnoCode == EAFNOSUPPORT || error.errnoCode == EADDRNOTAVAIL
            {
                // A machine without IPv6.
                return try await bootstrap.bind(host: "0.0.0.0", port: port).get()
            }
        } catch let error as IOError where error.errnoCode == EADDRINUSE {
            throw ServerError.portInUse(host: configuration.host ?? "", port: port)
        } catch {
            throw ServerError.cannotListen(
                host: configuration.host ?? "", port: port, reason: "\(error)")
        }
    }
}

/// Numbers connections as they are accepted.
private final class OrderHandler: ChannelInboundHandler {
    typealias InboundIn = any Channel

    private let gate: HandshakeGate

    init(gate: HandshakeGate) { self.gate = gate }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let connection = unwrapInboundIn(data)
        gate.accept(ObjectIdentifier(connection))
        connection.closeFuture.whenComplete { [gate] _ in
            // For one that ended before its event loop took it up.
            gate.forget(ObjectIdentifier(connection))
        }
        context.fireChannelRead(data)
    }
}

/// Waits for the verified certificate, then installs HTTP and leaves.
private final class AcceptanceHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer

    private let service: HTTPService
    private let ticket: HandshakeGate.Ticket
    private let address: String
    private let refused: (@Sendable (String, HandshakeRefusal) -> Void)?
    private var deadline: Scheduled<Void>?
    private var isDone = false

    init(
        service: HTTPService, ticket: HandshakeGate.Ticket, address: String,
        refused: (@Sendable (String, HandshakeRefusal) -> Void)?
    ) {
        self.service = service
        self.ticket = ticket
        self.address = address
        self.refused = refused
    }

    func handlerAdded(context: ChannelHandlerContext) {
        let channel = context.channel
        deadline = context.eventLoop.scheduleTask(in: service.limits.handshake.timeAmount) {
            channel.close(promise: nil)
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard case .handshakeCompleted? = event as? TLSUserEvent, !isDone else {
            context.fireUserInboundEventTriggered(event)
            return
        }
        do {
            guard let node = try TLSContexts.peer(of: context) else {
                return finish(context, refusal: .wrongAuthority)
            }
            isDone = true
            deadline?.cancel()
            service.gate.end(ticket, memberAt: address)
            try service.install(
                on: context.channel, origin: .member(node), remoteHost: address)
            context.pipeline.syncOperations.removeHandler(self, promise: nil)
        } catch {
            finish(context, refusal: .protocolError("\(error)"))
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        finish(context, refusal: TLSContexts.refusal(error))
    }

    func channelInactive(context: ChannelHandlerContext) {
        finish(context, refusal: .unfinished)
        context.fireChannelInactive()
    }

    private func finish(_ context: ChannelHandlerContext, refusal: HandshakeRefusal) {
        guard !isDone else { return }
        isDone = true
        deadline?.cancel()
        service.gate.end(ticket, memberAt: nil)
        refused?(address, refusal)
        context.close(promise: nil)
    }
}
