import Glibc
public import SystemPackage

/// Why the node at a root could not be asked.
public enum ControlError: Error, Hashable, CustomStringConvertible {
    /// No node runs at this root.
    case notRunning(FilePath)
    /// The root belongs to somebody else.
    case denied(FilePath)
    case timeout
    case tooLarge(limit: Int)
    /// The node stopped, or does not speak the protocol.
    case broken(String)

    public var description: String {
        switch self {
        case .notRunning(let root): "no node is running at \(root); start it with delugefs run"
        case .denied(let root): "\(root) belongs to another user; ask as its owner or as root"
        case .timeout: "the node did not answer in time"
        case .tooLarge(let limit): "the answer is larger than \(limit) bytes"
        case .broken(let reason): "the node's answer broke off: \(reason)"
        }
    }
}

/// Asks the node at a root, blocking: for command lines.
///
/// A connection per request, on a plain socket; no event loop and no thread.
public struct ControlClient: Sendable {
    public struct Reply: Sendable {
        public let status: Int
        public let body: [UInt8]
    }

    public let root: FilePath

    public init(root: FilePath) { self.root = root }

    /// One request and its whole reply, whatever its status.
    ///
    /// - Parameter timeout: the longest silence; nil waits for ever.
    /// - Throws: `ControlError`.
    public func request(
        method: String = "GET", path: String, body: [UInt8] = [], timeout: Duration? = .seconds(30),
        replyBytesMax: Int = 64 << 20
    ) throws(ControlError) -> Reply {
        var collected: [UInt8] = []
        var isTooLarge = false
        let status = try stream(method: method, path: path, body: body, timeout: timeout) { piece in
            isTooLarge = collected.count + piece.count > replyBytesMax
            if !isTooLarge { collected += piece }
            return !isTooLarge
        }
        if isTooLarge { throw .tooLarge(limit: replyBytesMax) }
        return Reply(status: status, body: collected)
    }

    /// One request whose reply is handed over as it arrives, for progress.
    ///
    /// - Parameter piece: gets the bytes as they come; false ends the request.
    /// - Returns: the status.
    public func stream(
        method: String = "GET", path: String, body: [UInt8] = [], timeout: Duration?,
        piece: ([UInt8]) -> Bool
    ) throws(ControlError) -> Int {
        let connection = try connect(timeout: timeout)
        let head =
            "\(method) \(path) HTTP/1.1\r\nhost: control\r\nconnection: close\r\n"
            + "content-length: \(body.count)\r\n\r\n"
        try connection.write(Array(head.utf8) + body)
        var reader = ReplyReader(connection: connection)
        return try reader.read(piece: piece)
    }

    private func connect(timeout: Duration?) throws(ControlError) -> ControlConnection {
        let descriptor = socket(
            AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw .broken("\(Errno(rawValue: errno))") }
        let connection = ControlConnection(descriptor: descriptor, timeout: timeout)
        do throws(Errno) {
            let address = try ControlSocketAddress(root: root)
            try address.use { Glibc.connect(descriptor, $0, $1) }
            return connection
        } catch {
            switch error {
            case .noSuchFileOrDirectory, .connectionRefused, .notDirectory: throw .notRunning(root)
            case .permissionDenied, .notPermitted: throw .denied(root)
            case .resourceTemporarilyUnavailable: throw .timeout
            default: throw .broken("\(error)")
            }
        }
    }
}

/// A connected socket, closed at the end of its life.
private final class ControlConnection {
    private let descriptor: CInt

    init(descriptor: CInt, timeout: Duration?) {
        self.descriptor = descriptor
        guard let timeout else { return }
        let (seconds, attoseconds) = timeout.components
        var value = timeval(
            tv_sec: Int(seconds), tv_usec: max(1, Int(attoseconds / 1_000_000_000_000)))
        let size = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &value, size)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &value, size)
    }

    deinit { close(descriptor) }

    func write(_ bytes: [UInt8]) throws(ControlError) {
        var done = 0
        while done < bytes.count {
            let step = bytes.withUnsafeBytes {
                send(
                    descriptor, $0.baseAddress.map { $0 + done }, $0.count - done,
                    Int32(MSG_NOSIGNAL))
            }
            guard step >= 0 else {
                if errno == EINTR { continue }
                // The node may have refused the request already; its answer says why.
                if errno == EPIPE { return }
                throw Self.error(errno)
            }
            done += step
        }
    }

    /// The next bytes; empty at the end.
    func read() throws(ControlError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = bytes.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress, $0.count, 0)
            }
            if count >= 0 { return Array(bytes.prefix(count)) }
            if errno != EINTR { throw Self.error(errno) }
        }
    }

    private static func error(_ code: CInt) -> ControlError {
        code == EAGAIN ? .timeout : .broken("\(Errno(rawValue: code))")
    }
}

/// Reads one HTTP/1.1 reply from our own server: a length or chunks.
private struct ReplyReader {
    private let connection: ControlConnection
    private var buffer: [UInt8] = []
    private var position = 0

    private static let lineBytesMax = 16_384
    private static let headLinesMax = 100

    init(connection: ControlConnection) { self.connection = connection }

    mutating func read(piece: ([UInt8]) -> Bool) throws(ControlError) -> Int {
        let parts = try line().split(separator: " ", maxSplits: 2)
        guard parts.count >= 2, parts[0].hasPrefix("HTTP/1."), let status = Int(parts[1]) else {
            throw .broken("no HTTP reply")
        }
        var length = 0
        var isChunked = false
        for _ in 0...Self.headLinesMax {
            let line = try line()
            if line.isEmpty { break }
            guard let colon = line.firstIndex(of: ":") else { throw .broken("no HTTP header") }
            let value = line[line.index(after: colon)...].drop { $0 == " " }.lowercased()
            switch line[..<colon].lowercased() {
            case "content-length": length = Int(value) ?? -1
            case "transfer-encoding": isChunked = value == "chunked"
            default: break
            }
        }
        guard length >= 0 else { throw .broken("no length") }
        guard isChunked else {
            _ = try pass(length, to: piece)
            return status
        }
        while true {
            guard let size = Int(try line(), radix: 16), size >= 0 else {
                throw .broken("no chunk")
            }
            if size == 0 { return status }
            guard try pass(size, to: piece) else { return status }
            guard try line().isEmpty else { throw .broken("no end of a chunk") }
        }
    }

    /// False when the receiver has had enough.
    private mutating func pass(_ count: Int, to piece: ([UInt8]) -> Bool) throws(ControlError)
        -> Bool
    {
        var left = count
        while left > 0 {
            if position == buffer.count { try refill() }
            let end = min(buffer.count, position + left)
            let bytes = Array(buffer[position..<end])
            left -= bytes.count
            position = end
            guard piece(bytes) else { return false }
        }
        return true
    }

    private mutating func line() throws(ControlError) -> String {
        var line: [UInt8] = []
        while true {
            if position == buffer.count { try refill() }
            let byte = buffer[position]
            position += 1
            if byte == 0x0A { break }
            line.append(byte)
            guard line.count <= Self.lineBytesMax else { throw .broken("a line is too long") }
        }
        if line.last == 0x0D { line.removeLast() }
        return String(decoding: line, as: UTF8.self)
    }

    private mutating func refill() throws(ControlError) {
        buffer = try connection.read()
        position = 0
        guard !buffer.isEmpty else { throw .broken("the connection ended") }
    }
}
