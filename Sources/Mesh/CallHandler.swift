import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix
import Volume

/// What a client asks, apart from when and where.
struct ClientCall: Sendable {
    struct Window: Sendable {
        let length: TimeAmount
        let bytesMin: Int
    }

    let head: HTTPRequestHead
    let body: ByteBuffer
    let bytesMax: Int64
    /// Where the body of a 2xx reply goes; nil: into memory.
    let sink: FileSink?
    /// Nil: the deadline holds to the reply's end; else to its head, then each window needs
    /// progress.
    let window: Window?
}

struct PendingCall: Sendable {
    let call: ClientCall
    let deadline: NIODeadline
    let promise: EventLoopPromise<ClientOutcome>
}

struct ClientOutcome: Sendable {
    let status: Int
    let headers: HTTPHeaders
    let body: [UInt8]
    let fileBytes: Int64
    let isReusable: Bool

    func reply(of node: NodeID) -> PeerReply {
        PeerReply(node: node, status: status, body: body, fileBytes: fileBytes, headers: headers)
    }
}

/// Writes pieces to a file on a thread that may block.
struct FileSink: Sendable {
    let descriptor: CInt
    /// Where in the file the body begins.
    var offset: Int64 = 0
    let files: NIOThreadPool

    /// Bytes on their way to the file at a time; beyond, the connection is not read.
    static let bytesInFlightMax = 4 << 20

    func write(_ buffer: ByteBuffer, at offset: Int64, on loop: any EventLoop)
        -> EventLoopFuture<Void>
    {
        let start = Int(self.offset + offset)
        return files.runIfActive(eventLoop: loop) {
            var done = 0
            while done < buffer.readableBytes {
                let step = buffer.withUnsafeReadableBytes {
                    pwrite(
                        descriptor, $0.baseAddress.map { $0 + done }, $0.count - done,
                        start + done)
                }
                guard step >= 0 || errno == EINTR else {
                    throw PeerError.file("\(IOError(errnoCode: errno, reason: "pwrite"))")
                }
                done += max(step, 0)
            }
        }
    }
}

/// One connection's calls, one at a time; confined to its event loop.
final class CallHandler: ChannelDuplexHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias OutboundIn = PendingCall
    typealias OutboundOut = HTTPClientRequestPart

    private struct Reply {
        var head: HTTPResponseHead?
        var body: [UInt8] = []
        var received: Int64 = 0
        var windowBytes = 0
        var inFlight = 0
        var hasEnded = false
    }

    private var pending: PendingCall?
    private var reply = Reply()
    private var timer: Scheduled<Void>?
    private var heldRead = false
    /// A failed call whose last pieces are still being written.
    private var lingering: (promise: EventLoopPromise<ClientOutcome>, error: PeerError)?

    /// A refusal's sentence is kept even when the caller wants a file.
    private static let refusalBytesMax: Int64 = 4096

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        let next = unwrapOutboundIn(data)
        precondition(pending == nil, "a connection is leased to one call at a time")
        guard context.channel.isActive else {
            next.promise.fail(PeerError.disconnected(PeerClient.beforeReply))
            promise?.succeed(())
            return
        }
        pending = next
        reply = Reply()
        startTimer(context, at: next.deadline)
        context.write(wrapOutboundOut(.head(next.call.head)), promise: nil)
        if next.call.body.readableBytes > 0 {
            context.write(wrapOutboundOut(.body(.byteBuffer(next.call.body))), promise: nil)
        }
        context.write(wrapOutboundOut(.end(nil)), promise: promise)
    }

    func read(context: ChannelHandlerContext) {
        if reply.inFlight > FileSink.bytesInFlightMax { heldRead = true } else { context.read() }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let pending else {
            // A reply that nobody asked for.
            return context.close(promise: nil)
        }
        switch unwrapInboundIn(data) {
        case .head(let head):
            reply.head = head
            guard let window = pending.call.window else { return }
            startTimer(context, at: .now() + window.length)
        case .body(let buffer): receive(buffer, pending, context)
        case .end:
            reply.hasEnded = true
            finishIfComplete(context)
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if event is IdleStateHandler.IdleStateEvent, pending == nil { context.close(promise: nil) }
        context.fireUserInboundEventTriggered(event)
    }

    func channelInactive(context: ChannelHandlerContext) {
        fail(disconnection, context)
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        let error = PeerClient.peerError(error)
        // A peer that was killed ends TLS uncleanly: the same as any other end.
        if case .disconnected = error {
            fail(disconnection, context)
        } else {
            fail(error, context)
        }
        context.fireErrorCaught(error)
        context.close(promise: nil)
    }

    private var disconnection: PeerError {
        .disconnected(
            reply.head == nil ? PeerClient.beforeReply : "in the middle of the reply")
    }

    private func receive(
        _ buffer: ByteBuffer, _ pending: PendingCall, _ context: ChannelHandlerContext
    ) {
        let isSuccess = reply.head.map { (200..<300).contains($0.status.code) } ?? false
        let offset = reply.received
        let sink = isSuccess ? pending.call.sink : nil
        let limit =
            isSuccess || pending.call.sink == nil
            ? pending.call.bytesMax : max(pending.call.bytesMax, Self.refusalBytesMax)
        reply.received += Int64(buffer.readableBytes)
        reply.windowBytes += buffer.readableBytes
        guard reply.received <= limit else {
            return fail(.tooLarge(limit: limit), context)
        }
        guard let sink else {
            reply.body.append(contentsOf: buffer.readableBytesView)
            return
        }
        let count = buffer.readableBytes
        reply.inFlight += count
        let handler = NIOLoopBound(self, eventLoop: context.eventLoop)
        let boundContext = NIOLoopBound(context, eventLoop: context.eventLoop)
        sink.write(buffer, at: offset, on: context.eventLoop).whenComplete { result in
            handler.value.wrote(count, result, boundContext.value)
        }
    }

    private func wrote(
        _ count: Int, _ result: Result<Void, any Error>, _ context: ChannelHandlerContext
    ) {
        reply.inFlight -= count
        if let lingering {
            guard reply.inFlight == 0 else { return }
            self.lingering = nil
            return lingering.promise.fail(lingering.error)
        }
        if case .failure(let error) = result {
            return fail(error as? PeerError ?? .file("\(error)"), context)
        }
        if heldRead, reply.inFlight <= FileSink.bytesInFlightMax {
            heldRead = false
            context.read()
        }
        finishIfComplete(context)
    }

    private func finishIfComplete(_ context: ChannelHandlerContext) {
        guard reply.hasEnded, reply.inFlight == 0, let pending, let head = reply.head else {
            return
        }
        timer?.cancel()
        self.pending = nil
        pending.promise.succeed(
            ClientOutcome(
                status: Int(head.status.code), headers: head.headers, body: reply.body,
                fileBytes: pending.call.sink != nil && reply.body.isEmpty ? reply.received : 0,
                isReusable: head.isKeepAlive))
    }

    /// Ends the call and the connection; while pieces are being written the caller's descriptor is
    /// in use, so it hears of the failure only after them.
    private func fail(_ error: PeerError, _ context: ChannelHandlerContext) {
        timer?.cancel()
        guard let pending else { return }
        self.pending = nil
        context.close(promise: nil)
        guard reply.inFlight > 0 else { return pending.promise.fail(error) }
        lingering = (pending.promise, error)
    }

    private func startTimer(_ context: ChannelHandlerContext, at deadline: NIODeadline) {
        timer?.cancel()
        reply.windowBytes = 0
        let handler = NIOLoopBound(self, eventLoop: context.eventLoop)
        let boundContext = NIOLoopBound(context, eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleTask(deadline: deadline) {
            handler.value.timeUp(boundContext.value)
        }
    }

    private func timeUp(_ context: ChannelHandlerContext) {
        guard let pending else { return }
        if reply.head != nil, let window = pending.call.window,
            reply.windowBytes >= window.bytesMin || reply.inFlight > 0
        {
            return startTimer(context, at: .now() + window.length)
        }
        fail(.timeout, context)
    }
}
