public import Volume

/// What a swarm session is started with.
public struct SwarmConfiguration: Sendable {
    /// How bytes travel. Nodes of one volume must agree: it is part of the info-hash.
    public enum Transport: Sendable {
        case plain
        /// PEM texts. The authority's is part of the info dictionary, byte for byte: 64 columns
        /// and a final newline. The certificate must be signed by it and carry SAN `DNS:*`.
        case tls(caPEM: String, certificatePEM: String, keyPEM: String)
    }

    /// Numeric address to listen on, IPv6 without brackets; `0.0.0.0` or `::` for every one.
    public var listenAddress: String
    /// 0 takes a free port.
    public var port: UInt16
    public var transport: Transport
    /// 32 bytes that only members know: without them an info-hash says nothing about content.
    public var infoSalt: [UInt8]
    /// Seeds kept loaded; beyond, the least recently used is unloaded. A TLS seed costs 33 KB.
    public var maxLoadedSeeds: Int
    /// Downloads at a time; beyond, `fetch` throws.
    public var maxDownloads: Int
    /// Peer connections and file descriptors, before they are scaled down to RLIMIT_NOFILE.
    public var maxConnections: Int
    public var maxOpenFiles: Int

    public init(
        listenAddress: String, port: UInt16 = 0, transport: Transport, infoSalt: [UInt8],
        maxLoadedSeeds: Int = 1000, maxDownloads: Int = 1000, maxConnections: Int = 1500,
        maxOpenFiles: Int = 4096
    ) {
        precondition(infoSalt.count == 32, "the salt has 32 bytes")
        precondition(maxLoadedSeeds > 0 && maxDownloads > 0)
        self.listenAddress = listenAddress
        self.port = port
        self.transport = transport
        self.infoSalt = infoSalt
        self.maxLoadedSeeds = maxLoadedSeeds
        self.maxDownloads = maxDownloads
        self.maxConnections = maxConnections
        self.maxOpenFiles = maxOpenFiles
    }
}

/// Where a peer's swarm session listens.
public struct SwarmEndpoint: Hashable, Sendable {
    /// Numeric, IPv6 without brackets.
    public let address: String
    public let port: UInt16

    public init(address: String, port: UInt16) {
        self.address = address
        self.port = port
    }
}

/// How urgently a range is wanted. A want only ever raises what an earlier one asked for.
public enum SwarmPriority: Sendable, Comparable {
    /// Replication: whenever nothing else is wanted.
    case background
    /// Ahead of a reader; nearer pieces first.
    case readAhead
    /// Somebody waits.
    case demand
}

public enum SwarmError: Error, Hashable, Sendable {
    /// The piece layer does not fold to the content's root, or has the wrong length.
    case invalidLayer
    /// The length is 0 or beyond `Limits.extentBytesMax`, or a bitfield does not fit it.
    case invalidExtent
    /// The extent is loaded already: as a seed or as another download.
    case alreadyLoaded
    case tooManyDownloads
    case tooManyWaiters
    /// The disk or the quota is full. The download is paused until `resume()`.
    case noSpace
    /// The file could not be opened, read or written.
    case file(errno: Int32, message: String)
    /// Nothing arrived for as long as the caller was willing to wait.
    case noProgress
    case cancelled
    case stopped
    /// What libtorrent said.
    case torrent(String)
}

/// Figures of one loaded torrent.
public struct TorrentStatistics: Sendable {
    public enum Kind: Sendable { case seed, download }
    public let extent: Extent
    public let kind: Kind
    /// Payload bytes since it was loaded.
    public let downloadedBytes: Int64
    public let uploadedBytes: Int64
    /// Bytes per second.
    public let downloadRate: Int
    public let uploadRate: Int
    public let peers: Int
    public let verifiedPieces: Int
    /// Pieces received that did not match their hash.
    public let hashFailures: Int
}

/// Figures of the session. Refreshed once a second.
public struct SwarmStatistics: Sendable {
    public let torrents: [TorrentStatistics]
    /// Payload bytes since the session began, unloaded torrents included.
    public let downloadedBytes: Int64
    public let uploadedBytes: Int64
}
