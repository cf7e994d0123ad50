import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

/// What the peer API and the control socket share once it is known who asks: HTTP/1.1, one request
/// at a time on each connection, everything bounded.
final class HTTPService: Sendable {
    let limits: ServerLimits
    let gate: HandshakeGate
    let bodyLimit: BodyLimit
    let handler: PeerHandler
    private let files: NIOThreadPool

    private struct State {
        var channels: [ObjectIdentifier: any Channel] = [:]
        var requests = 0
        var exchanges = 0
        var bodyBytes = 0
        var isStopped = false
    }

    private let state = Mutex(State())
    private let drained = Wakeup()

    init(
        limits: ServerLimits, files: NIOThreadPool, bodyLimit: @escaping BodyLimit,
        handler: @escaping PeerHandler
    ) {
        self.limits = limits
        self.files = files
        self.bodyLimit = bodyLimit
        self.handler = handler
        gate = HandshakeGate(limits: limits)
    }

    /// Makes an authenticated connection an HTTP one; on its event loop.
    func install(
        on channel: any Channel, origin: PeerRequest.Origin, remoteHost: String?
    ) throws {
        guard gate.open(origin) else { return channel.close(promise: nil) }
        let isStopped = state.withLock { state in
            state.channels[ObjectIdentifier(channel)] = channel
            return state.isStopped
        }
        channel.closeFuture.whenComplete { [gate] _ in
            gate.close(origin)
            self.state.withLock { _ = $0.channels.removeValue(forKey: ObjectIdentifier(channel)) }
        }
        if isStopped { return channel.close(promise: nil) }
        try channel.pipeline.syncOperations.configureHTTPServerPipeline(
            withPipeliningAssistance: true, withErrorHandling: true)
        try channel.pipeline.syncOperations.addHandler(
            ExchangeHandler(service: self, origin: origin, remoteHost: remoteHost))
    }

    /// Cuts every connection, which cancels the handlers' tasks, and waits for these to end: they
    /// use the event loops, which may stop afterwards.
    func stop(on loop: any EventLoop) async {
        gate.closeAll()
        let channels = state.withLock { state in
            state.isStopped = true
            return Array(state.channels.values)
        }
        for channel in channels { try? await channel.close().get() }
        // A task of its own: a cancelled caller must wait as well.
        await Task {
            let end = ContinuousClock.now + limits.drain
            while state.withLock({ $0.exchanges > 0 }), ContinuousClock.now < end {
                await drained.wait(atMost: end - .now, on: loop)
            }
        }.value
    }

    /// Every exchange is counted from before its task begins until after its last use of the loop.
    func exchangeBegins() {
        state.withLock { $0.exchanges += 1 }
    }

    func exchangeEnded() {
        let isLast = state.withLock { state in
            state.exchanges -= 1
            return state.isStopped && state.exchanges == 0
        }
        if isLast { drained.signal() }
    }

    /// Room for body bytes in memory; false when there is none.
    func reserveBody(_ count: Int) -> Bool {
        state.withLock { state in
            guard state.bodyBytes + count <= limits.bodyBytesMax else { return false }
            state.bodyBytes += count
            return true
        }
    }

    func releaseBody(_ count: Int) {
        state.withLock { $0.bodyBytes -= count }
    }

    /// Answers one request and writes the answer; throws when the connection is to be cut.
    func exchange(_ request: PeerRequest, on channel: any Channel) async throws {
        let isAdmitted = state.withLock { state in
            guard state.requests < limits.requestsMax else { return false }
            state.requests += 1
            return true
        }
        guard isAdmitted else {
            return try await write(.refusal(503, "too many requests"), on: channel)
        }
        defer { state.withLock { $0.requests -= 1 } }
        try await write(await handler(request), on: channel)
    }

    private func write(_ response: PeerResponse, on channel: any Channel) async throws {
        var headers = HTTPHeaders(response.headers.map { ($0.name, $0.value) })
        let writer = BodyWriter(channel: channel, stall: limits.stall.timeAmount)
        switch response.body {
        case .bytes(let bytes):
            headers.replaceOrAdd(name: "content-length", value: "\(bytes.count)")
        case .file(let region):
            headers.replaceOrAdd(name: "content-length", value: "\(region.length)")
        case .stream: headers.replaceOrAdd(name: "transfer-encoding", value: "chunked")
        }
        channel.write(
            HTTPServerResponsePart.head(
                HTTPResponseHead(
                    version: .http1_1, status: .init(statusCode: response.status),
                    headers: headers)), promise: nil)
        switch response.body {
        case .bytes(let bytes):
            var rest = ByteBuffer(bytes: bytes)
            while let piece = rest.readSlice(
                length: min(rest.readableBytes, ServerLimits.pieceBytes)), piece.readableBytes > 0
            {
                // The last piece leaves together with the end.
                if rest.readableBytes == 0 {
                    channel.write(HTTPServerResponsePart.body(.byteBuffer(piece)), promise: nil)
                    break
                }
                try await writer.write(piece)
            }
        case .file(let region): try await write(region, to: writer)
        case .stream(let body): try await body(writer)
        }
        try await writer.send(.end(nil))
    }

    private func write(_ region: FileRegion, to writer: BodyWriter) async throws {
        var position: Int64 = 0
        while position < region.length {
            let start = position
            let count = Int(min(region.length - start, Int64(ServerLimits.pieceBytes)))
            let piece = try await files.runIfActive { try region.read(at: start, count: count) }
            // A file that became shorter: the promised length cannot be kept, so cut.
            guard piece.readableBytes == count else {
                throw IOError(errnoCode: EIO, reason: "file is shorter than announced")
            }
            try await writer.write(piece)
            position += Int64(count)
        }
    }
}

/// One connection's requests; confined to its event loop.
///
/// | state | leaves it by | bounded by |
/// |---|---|---|
/// | waiting | a complete head | `idle` |
/// | receiving | the end of the body | route's limit; `progressBytesMin` in each `progressWindow` |
/// | answering | the answer's last byte taken by the kernel | `stall` for each piece |
/// | closing | the connection's end | |
private final class ExchangeHandler: ChannelInboundHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart

    private enum State {
        case waiting
        case receiving(head: HTTPRequestHead, body: [UInt8], limit: Int)
        case answering(Task<Void, Never>)
        case closing
    }

    private let service: HTTPService
    private let origin: PeerRequest.Origin
    private let remoteHost: String?
    private var state = State.waiting
    private var timer: Scheduled<Void>?
    private var windowBytes = 0
    private var reserved = 0
    private var exchanges = 0

    init(service: HTTPService, origin: PeerRequest.Origin, remoteHost: String?) {
        self.service = service
        self.origin = origin
        self.remoteHost = remoteHost
    }

    func handlerAdded(context: ChannelHandlerContext) { startIdleTimer(context) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head(let head): begin(head, context)
        case .body(let buffer): receive(buffer, context)
        case .end: answer(context)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        if case .answering(let task) = state { task.cancel() }
        state = .closing
        timer?.cancel()
        releaseBody()
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // TLS or HTTP is broken: nothing that follows on this connection can be trusted.
        context.close(promise: nil)
    }

    private func begin(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
        switch state {
        case .waiting: break
        // The pipeline handler passes the next request on as soon as the answer's end is written,
        // which may be before `finished` ran.
        case .answering: releaseBody()
        case .receiving, .closing: return
        }
        timer?.cancel()
        guard let limit = service.bodyLimit(head.method.rawValue, head.uri) else {
            return refuse(404, "no such route", context)
        }
        let length = head.headers.first(name: "content-length").flatMap { Int($0) } ?? 0
        guard length <= limit else {
            return refuse(413, "a body here has at most \(limit) bytes", context)
        }
        state = .receiving(head: head, body: [], limit: limit)
        startWindow(context)
    }

    private func receive(_ buffer: ByteBuffer, _ context: ChannelHandlerContext) {
        guard case .receiving(let head, var body, let limit) = state else { return }
        // Out of the state first, so that the array is appended to in place.
        state = .closing
        windowBytes += buffer.readableBytes
        guard body.count + buffer.readableBytes <= limit else {
            return refuse(413, "a body here has at most \(limit) bytes", context)
        }
        guard service.reserveBody(buffer.readableBytes) else {
            return refuse(503, "too many requests", context)
        }
        reserved += buffer.readableBytes
        body.append(contentsOf: buffer.readableBytesView)
        state = .receiving(head: head, body: body, limit: limit)
    }

    private func answer(_ context: ChannelHandlerContext) {
        guard case .receiving(let head, let body, _) = state else { return }
        timer?.cancel()
        let request = PeerRequest(
            origin: origin, remoteHost: remoteHost, method: head.method.rawValue, path: head.uri,
            body: body, headers: head.headers)
        let channel = context.channel
        let service = service
        let isLast = !head.isKeepAlive
        exchanges += 1
        let number = exchanges
        let handler = NIOLoopBound(self, eventLoop: context.eventLoop)
        let boundContext = NIOLoopBound(context, eventLoop: context.eventLoop)
        service.exchangeBegins()
        state = .answering(
            Task {
                defer { service.exchangeEnded() }
                var keeps = !isLast
                do { try await service.exchange(request, on: channel) } catch { keeps = false }
                let keepsConnection = keeps
                channel.eventLoop.execute {
                    handler.value.finished(number, keeps: keepsConnection, boundContext.value)
                }
            })
    }

    private func finished(_ number: Int, keeps: Bool, _ context: ChannelHandlerContext) {
        guard keeps else {
            state = .closing
            releaseBody()
            return context.close(promise: nil)
        }
        guard case .answering = state, number == exchanges else { return }
        releaseBody()
        state = .waiting
        startIdleTimer(context)
    }

    /// Answers without reading the rest, then closes.
    private func refuse(_ status: Int, _ message: String, _ context: ChannelHandlerContext) {
        state = .closing
        timer?.cancel()
        releaseBody()
        let body = ByteBuffer(string: message)
        let headers: HTTPHeaders = [
            "content-length": "\(body.readableBytes)", "connection": "close",
        ]
        let head = HTTPResponseHead(
            version: .http1_1, status: .init(statusCode: status), headers: headers)
        context.write(wrapOutboundOut(.head(head)), promise: nil)
        context.write(wrapOutboundOut(.body(.byteBuffer(body))), promise: nil)
        context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        // Closing with unread input would send a reset that overtakes the answer: linger a little,
        // discarding what still comes.
        let channel = context.channel
        context.eventLoop.scheduleTask(in: Self.linger) { channel.close(promise: nil) }
    }

    private static let linger = TimeAmount.seconds(1)

    private func releaseBody() {
        guard reserved > 0 else { return }
        service.releaseBody(reserved)
        reserved = 0
    }

    private func startIdleTimer(_ context: ChannelHandlerContext) {
        let channel = context.channel
        timer?.cancel()
        timer = context.eventLoop.scheduleTask(in: service.limits.idle.timeAmount) {
            channel.close(promise: nil)
        }
    }

    private func startWindow(_ context: ChannelHandlerContext) {
        windowBytes = 0
        let handler = NIOLoopBound(self, eventLoop: context.eventLoop)
        let boundContext = NIOLoopBound(context, eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleTask(in: service.limits.progressWindow.timeAmount) {
            handler.value.windowEnded(boundContext.value)
        }
    }

    private func windowEnded(_ context: ChannelHandlerContext) {
        guard case .receiving = state else { return }
        if windowBytes < service.limits.progressBytesMin {
            return refuse(408, "the body came too slowly", context)
        }
        startWindow(context)
    }
}
