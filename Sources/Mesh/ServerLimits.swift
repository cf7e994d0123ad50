/// Every bound of a server; the defaults are meant to be used, tests shorten the times.
public struct ServerLimits: Sendable {
    /// From the connection's acceptance to the verified certificate.
    public var handshake: Duration = .seconds(5)
    /// Unfinished handshakes from one address; the oldest makes room.
    public var handshakesPerAddress = 16
    /// Unfinished handshakes in all, from addresses where no member was seen; the oldest makes
    /// room.
    public var handshakesMax = 256
    /// Unfinished handshakes in all, from addresses of members: counted apart, so that silent
    /// strangers do not lock members out.
    public var memberHandshakesMax = 256
    /// Addresses remembered as those of members.
    public var memberAddressesMax = 1024
    /// Connections of one member (or local user) at a time.
    public var connectionsPerMember = 64
    /// Connections at a time.
    public var connectionsMax = 2048
    /// Requests that handlers work on at a time; more are answered with 503.
    public var requestsMax = 512
    /// Bytes of request bodies held at a time, by all connections together.
    public var bodyBytesMax = 256 << 20
    /// A body brings at least `progressBytesMin` in each such window, or ends in it.
    public var progressWindow: Duration = .seconds(10)
    public var progressBytesMin = 16 << 10
    /// A reader of a response takes each piece of it (`pieceBytes`) within this time.
    public var stall: Duration = .seconds(30)
    /// From the end of one request to the complete head of the next.
    public var idle: Duration = .seconds(60)
    /// How long a stopping server waits for handlers, whose tasks it has cancelled.
    public var drain: Duration = .seconds(30)
    /// Bytes of a response in memory at a time.
    static let pieceBytes = 256 << 10
    static let headerBytesMax = 16 << 10
    static let backlog: Int32 = 512

    public init() {}
}
