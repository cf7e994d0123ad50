import Glibc
import NIOCore
import NIOHTTP1
import Synchronization
public import Volume

/// A request as it reached a server, its body complete and within the route's bound.
public struct PeerRequest: Sendable {
    public enum Origin: Hashable, Sendable {
        /// A member of the volume, by its verified certificate.
        case member(NodeID)
        /// A process of this machine, by the kernel's word.
        case local(uid: UInt32)
    }

    public let origin: Origin
    /// The address that the connection comes from, as digits; nil for local ones.
    public let remoteHost: String?
    /// In upper case.
    public let method: String
    /// Path and query as sent; untrusted.
    public let path: String
    public let body: [UInt8]
    let headers: HTTPHeaders

    /// The member that asks; nil for local requests.
    public var node: NodeID? {
        if case .member(let node) = origin { node } else { nil }
    }

    /// The first value of a header, if any.
    public func header(_ name: String) -> String? { headers.first(name: name) }
}

/// What a server answers.
public struct PeerResponse: Sendable {
    public enum Body: Sendable {
        case bytes([UInt8])
        case file(FileRegion)
        /// Written piece by piece; the connection is cut if the closure throws.
        case stream(@Sendable (BodyWriter) async throws -> Void)
    }

    public var status: Int
    public var headers: [(name: String, value: String)]
    public var body: Body

    public init(
        status: Int = 200, headers: [(name: String, value: String)] = [], body: Body = .bytes([])
    ) {
        self.status = status
        self.headers = headers
        self.body = body
    }

    /// A refusal: one sentence as the body.
    public static func refusal(_ status: Int, _ message: String) -> PeerResponse {
        PeerResponse(status: status, body: .bytes(Array(message.utf8)))
    }
}

/// Answers one request; called concurrently.
public typealias PeerHandler = @Sendable (PeerRequest) async -> PeerResponse

/// The most bytes that a request's body may have; nil when there is no such route (404).
public typealias BodyLimit = @Sendable (_ method: String, _ path: String) -> Int?

/// A part of an open file; the descriptor belongs to it and is closed with it.
public final class FileRegion: Sendable {
    public let descriptor: CInt
    public let offset: Int64
    public let length: Int64

    /// Takes the descriptor over.
    public init(owning descriptor: CInt, offset: Int64, length: Int64) {
        precondition(descriptor >= 0 && offset >= 0 && length >= 0)
        self.descriptor = descriptor
        self.offset = offset
        self.length = length
    }

    deinit { close(descriptor) }

    /// Up to `count` bytes at `position` of the region. Blocks; fewer only at the file's end.
    ///
    /// - Throws: `IOError`.
    func read(at position: Int64, count: Int) throws -> ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: count)
        while buffer.readableBytes < count {
            let done = buffer.readableBytes
            let step = try buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count - done) {
                let step = pread(
                    descriptor, $0.baseAddress, count - done, Int(offset + position) + done)
                guard step >= 0 || errno == EINTR else {
                    throw IOError(errnoCode: errno, reason: "pread")
                }
                return max(step, 0)
            }
            if step == 0 { break }
        }
        return buffer
    }
}

/// Where a streamed response goes.
public struct BodyWriter: Sendable {
    let channel: any Channel
    let stall: TimeAmount

    /// Returns when the kernel has taken the bytes, so that a slow reader slows the writer.
    ///
    /// - Throws: when the connection ended or took nothing for too long.
    public func write(_ bytes: [UInt8]) async throws {
        guard !bytes.isEmpty else { return }
        try await write(ByteBuffer(bytes: bytes))
    }

    func write(_ buffer: ByteBuffer) async throws {
        try await send(.body(.byteBuffer(buffer)))
    }

    func send(_ part: HTTPServerResponsePart) async throws {
        let channel = channel
        let cut = channel.eventLoop.scheduleTask(in: stall) { channel.close(promise: nil) }
        defer { cut.cancel() }
        try await channel.writeAndFlush(part).get()
    }
}

/// What a peer answered.
public struct PeerReply: Sendable {
    /// Who answered, by its certificate.
    public let node: NodeID
    public let status: Int
    public let body: [UInt8]
    /// For downloads: how many bytes went into the file.
    public let fileBytes: Int64
    let headers: HTTPHeaders

    /// The first value of a header, if any.
    public func header(_ name: String) -> String? { headers.first(name: name) }

    /// The reply itself if its status is 2xx.
    ///
    /// - Throws: `PeerError.status` with the peer's sentence.
    public func successful() throws(PeerError) -> PeerReply {
        guard (200..<300).contains(status) else {
            throw .status(status, PeerError.printable(body))
        }
        return self
    }
}

/// Why a peer could not be asked.
public enum PeerError: Error, Hashable, CustomStringConvertible {
    /// Nobody listens there, or there is no way to it.
    case refused(String)
    /// The peer's certificate, or ours in its eyes, is not from the same volume authority.
    case wrongAuthority
    /// A member answered, but another one.
    case wrongNode(expected: NodeID, found: NodeID)
    case timeout
    /// The reply is larger than the caller wants.
    case tooLarge(limit: Int64)
    /// The peer refused; the message is its own, made printable.
    case status(Int, String)
    /// The connection ended before the reply did.
    case disconnected(String)
    /// Too many requests wait for this peer already.
    case busy
    /// The peer does not speak the protocol.
    case invalidReply(String)
    /// Writing a download to its file failed.
    case file(String)
    /// No such peer, or it is not online.
    case offline(NodeID)
    case stopped

    public var description: String {
        switch self {
        case .refused(let reason): "no connection: \(reason)"
        case .wrongAuthority: "the peer belongs to another volume authority"
        case .wrongNode(let expected, let found): "node \(found) answers where \(expected) was"
        case .timeout: "no answer in time"
        case .tooLarge(let limit): "the reply is larger than \(limit) bytes"
        case .status(let code, let message): "refused with \(code): \(message)"
        case .disconnected(let reason): "disconnected: \(reason)"
        case .busy: "too many requests to this peer"
        case .invalidReply(let reason): "invalid reply: \(reason)"
        case .file(let reason): "cannot write the download: \(reason)"
        case .offline(let node): "node \(node) is not online"
        case .stopped: "this node is stopping"
        }
    }

    /// The longest sentence taken from a peer.
    private static let messageBytesMax = 512

    /// A peer's bytes as one line that cannot command a terminal.
    static func printable(_ bytes: some Collection<UInt8>) -> String {
        let text = String(decoding: bytes.prefix(messageBytesMax), as: UTF8.self)
        var out = ""
        for scalar in text.unicodeScalars {
            let plain =
                !scalar.properties.isDefaultIgnorableCodePoint
                && ![
                    .control, .format, .lineSeparator, .paragraphSeparator, .surrogate,
                    .privateUse, .unassigned,
                ].contains(scalar.properties.generalCategory)
            out.unicodeScalars.append(plain ? scalar : " ")
        }
        return out
    }
}

/// Where a peer API is.
public struct Endpoint: Hashable, Sendable, CustomStringConvertible {
    /// A name or the digits of an address, without brackets; may end in `%scope`.
    public let host: String
    public let port: Int

    private static let hostBytesMax = 255

    /// Nil for an impossible host or port.
    public init?(host: String, port: Int) {
        guard (1...65_535).contains(port), !host.isEmpty, host.utf8.count <= Self.hostBytesMax,
            host.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F && !"[]/@".utf8.contains($0) })
        else { return nil }
        self.host = host
        self.port = port
    }

    /// Reads `HOST:PORT` or `[ADDRESS]:PORT`; nil for anything else.
    public init?(parsing text: String) {
        guard let colon = text.lastIndex(of: ":"),
            let port = Int(text[text.index(after: colon)...]),
            text[text.index(after: colon)...].utf8.allSatisfy({ (0x30...0x39).contains($0) })
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
        } else if host.contains(":") {
            return nil
        }
        self.init(host: String(host), port: port)
    }

    public var description: String {
        host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
}

extension Duration {
    /// NIO's measure of the same time.
    var timeAmount: TimeAmount {
        let (seconds, attoseconds) = components
        return .nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
    }
}

extension SocketAddress {
    /// The digits of the address: IPv4 also when mapped, with the interface when it is link-local.
    var hostText: String? {
        guard let digits = ipAddress else { return nil }
        let mapped = "::ffff:"
        if digits.hasPrefix(mapped), digits.contains(".") {
            return String(digits.dropFirst(mapped.count))
        }
        if digits.hasPrefix("fe80:") {
            // sin6_scope_id; the field's own module (CNIOLinux) cannot be imported.
            let scope = withSockAddr { address, size in
                size < 28
                    ? 0
                    : UnsafeRawPointer(address).loadUnaligned(fromByteOffset: 24, as: UInt32.self)
            }
            if scope != 0 { return "\(digits)%\(scope)" }
        }
        return digits
    }
}
