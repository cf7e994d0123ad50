public import Volume

/// Everything a node is told from outside; the executable alone reads argv and the environment.
public struct Configuration: Sendable {
    public enum Transport: String, Sendable { case tls, plain }

    /// A way to find who has content: the holder logs, asking all peers, the private DHT.
    public enum Way: String, Sendable, CaseIterable { case logs, ask, dht }

    /// The volume's id.
    public var volume: String
    /// The directory on the disk that this node is.
    public var root: String
    public var mountPoint: String?
    public var create = false
    /// The volume key's text as given on the command line's key file or in the environment.
    public var keyText: String?
    /// Target copies of a new volume.
    public var copies = 2
    public var name: String?
    public var machine: String?
    /// Most bytes this node may store; nil: the disk less 5 %.
    public var capacityBytes: UInt64?
    public var listenAddress: String?
    /// 0: any free port. Bulk content uses the port after it.
    public var port = 0
    public var peers: [(host: String, port: Int)] = []
    public var discovery = true
    /// Seconds of absence before a disk's copies are replaced.
    public var graceSeconds = 600
    /// At most so much of the disk is read by a scrub that begins by itself; 0: none does.
    public var scrubBytesPerSecond: UInt64 = 20 << 20
    public var transport = Transport.tls
    /// All of them, but for tests of one.
    public var ways = Set(Way.allCases)
    public var passthrough = true
    public var allowOther = false
    public var honourSetID = false
    public var mapOwner: Owner?
    public var newNode = false
    /// Where keys and known roots are kept for this user: `${XDG_CONFIG_HOME:-$HOME/.config}/delugefs`.
    public var configurationDirectory: String

    public init(volume: String, root: String, configurationDirectory: String) {
        self.volume = volume
        self.root = root
        self.configurationDirectory = configurationDirectory
    }
}

/// A failure with the sentence that a person reads: what happened and what to do next.
public struct NodeError: Error, Sendable, CustomStringConvertible {
    public let description: String

    public init(_ sentence: String) { description = sentence }
}
