import FoundationEssentials
public import Volume

/// How far a node has read one holder log.
public struct HolderLogHead: Hashable, Sendable {
    public var node: NodeID
    public var epoch: UInt64
    /// Records so far.
    public var count: UInt64
    /// The chain's hash after them.
    public var hash: [UInt8]

    public init(node: NodeID, epoch: UInt64, count: UInt64, hash: [UInt8]) {
        self.node = node
        self.epoch = epoch
        self.count = count
        self.hash = hash
    }
}

/// What a node says of itself, to every peer, every second and at every change.
public struct Hello: Hashable, Sendable {
    /// The formats that this program speaks.
    public static let formatSpoken = 1
    public static let rulesSpoken = 1

    /// Another node that the sender reaches, and where.
    public struct Neighbour: Hashable, Sendable {
        public var node: NodeID
        public var endpoint: Endpoint
    }

    // Filled in by `Mesh`.
    public internal(set) var format = Hello.formatSpoken
    public internal(set) var rules = Hello.rulesSpoken
    public internal(set) var volume = ""
    public internal(set) var node = NodeID(high: 0, low: 0)
    /// Drawn at each start: tells a restarted node from a copied one.
    public internal(set) var instance: UInt64 = 0
    /// Grows with each change within an instance: an older hello never replaces a newer one.
    public internal(set) var sequence: UInt64 = 0
    public internal(set) var apiPort = 0
    public internal(set) var neighbours: [Neighbour] = []

    // Given by the node.
    public var name: String
    public var machine: String
    public var version: String
    /// Where libtorrent listens; 0: nowhere.
    public var bulkPort: Int
    /// UDP, of the private DHT; 0: it takes no part in it.
    public var dhtPort: Int
    /// Numeric, where it was reached by an address that only its own link has.
    public var dhtAddresses: [String]
    /// The commit of this node's own branch.
    public var head: ObjectID?
    /// Heads whose packs it can give.
    public var announced: [ObjectID]
    public var freeBytes: UInt64
    public var capacityBytes: UInt64
    /// Content that only history holds: what is free as soon as it is needed.
    public var historyBytes: UInt64
    public var holderLogs: [HolderLogHead]

    public init(
        name: String, machine: String, version: String, bulkPort: Int = 0, dhtPort: Int = 0,
        dhtAddresses: [String] = [],
        head: ObjectID? = nil,
        announced: [ObjectID] = [], freeBytes: UInt64 = 0, capacityBytes: UInt64 = 0,
        historyBytes: UInt64 = 0, holderLogs: [HolderLogHead] = []
    ) {
        self.name = name
        self.machine = machine
        self.version = version
        self.bulkPort = bulkPort
        self.dhtPort = dhtPort
        self.dhtAddresses = dhtAddresses
        self.head = head
        self.announced = announced
        self.freeBytes = freeBytes
        self.capacityBytes = capacityBytes
        self.historyBytes = historyBytes
        self.holderLogs = holderLogs
    }

    /// Names this state of this node in two headers, so that an unchanged hello need not be sent.
    var tag: String { "\(String(instance, radix: 16)).\(sequence)" }
}

// MARK: - On the wire

extension Hello {
    /// Bounds of what peers send; a node that says more is refused.
    static let bytesMax = 2 << 20
    static let announcedMax = 256
    static let holderLogsMax = 4096
    static let hashBytesMax = 64
    static let dhtAddressesMax = 8
    static let addressBytesMax = 45
    static let neighboursMax = 64
    /// More than any disk has, and the sum over all peers does not overflow.
    static let diskBytesMax: UInt64 = 1 << 55
    private static let nameBytesMax = 63

    /// The part that every format has and will have.
    private struct Preamble: Decodable {
        var format: Int
        var rules: Int
        var volume: String
        var node: String
        var name: String?
        var version: String?
    }

    private struct Wire: Codable {
        struct Log: Codable {
            var node: String
            var epoch: UInt64
            var n: UInt64
            var hash: String
        }

        struct Neighbour: Codable {
            var node: String
            var host: String
            var port: Int
        }

        var format: Int
        var rules: Int
        var volume: String
        var node: String
        var instance: UInt64
        var sequence: UInt64
        var name: String
        var machine: String
        var version: String
        var apiPort: Int
        var bulkPort: Int
        /// Absent in what earlier versions send.
        var dhtPort: Int?
        var dhtAddresses: [String]?
        var head: String?
        var announced: [String]
        var freeBytes: UInt64
        var capacityBytes: UInt64
        /// Absent in what earlier versions send.
        var historyBytes: UInt64?
        var holderLogs: [Log]
        var neighbours: [Neighbour]
    }

    func encoded() -> [UInt8] {
        let wire = Wire(
            format: format, rules: rules, volume: volume, node: node.description,
            instance: instance, sequence: sequence, name: name, machine: machine, version: version,
            apiPort: apiPort, bulkPort: bulkPort, dhtPort: dhtPort,
            dhtAddresses: dhtAddresses, head: head?.description,
            announced: announced.prefix(Self.announcedMax).map(\.description),
            freeBytes: freeBytes, capacityBytes: capacityBytes, historyBytes: historyBytes,
            holderLogs: holderLogs.prefix(Self.holderLogsMax).map {
                Wire.Log(
                    node: $0.node.description, epoch: $0.epoch, n: $0.count,
                    hash: Hex.encode($0.hash))
            },
            neighbours: neighbours.map {
                Wire.Neighbour(
                    node: $0.node.description, host: $0.endpoint.host, port: $0.endpoint.port)
            })
        guard let data = try? JSONEncoder().encode(wire) else {
            preconditionFailure("strings and integers always have a JSON form")
        }
        return Array(data)
    }

    /// - Throws: `HelloError`; `otherFormat` for a sender that we must not talk to.
    init(parsing bytes: [UInt8]) throws(HelloError) {
        guard bytes.count <= Self.bytesMax else { throw .invalid("too long") }
        let data = Data(bytes)
        guard let preamble = try? JSONDecoder().decode(Preamble.self, from: data) else {
            throw .invalid("not a hello")
        }
        guard preamble.format == Self.formatSpoken, preamble.rules == Self.rulesSpoken else {
            throw .otherFormat(
                format: preamble.format, rules: preamble.rules,
                version: PeerError.printable((preamble.version ?? "").utf8))
        }
        guard let wire = try? JSONDecoder().decode(Wire.self, from: data) else {
            throw .invalid("not a hello of format \(Self.formatSpoken)")
        }
        try self.init(wire)
    }

    private init(_ wire: Wire) throws(HelloError) {
        guard [wire.volume, wire.name, wire.machine].allSatisfy(Self.isName) else {
            throw .invalid("a name that is none")
        }
        guard let node = NodeID(hex: wire.node), (1...65_535).contains(wire.apiPort),
            (0...65_535).contains(wire.bulkPort), (0...65_535).contains(wire.dhtPort ?? 0),
            max(wire.freeBytes, wire.capacityBytes, wire.historyBytes ?? 0) <= Self.diskBytesMax,
            wire.dhtAddresses?.count ?? 0 <= Self.dhtAddressesMax,
            wire.dhtAddresses?.allSatisfy({ $0.utf8.count <= Self.addressBytesMax }) ?? true,
            wire.announced.count <= Self.announcedMax,
            wire.holderLogs.count <= Self.holderLogsMax,
            wire.neighbours.count <= Self.neighboursMax
        else { throw .invalid("a field out of bounds") }
        self.init(
            name: wire.name, machine: wire.machine,
            version: String(PeerError.printable(wire.version.utf8).prefix(64)),
            bulkPort: wire.bulkPort, dhtPort: wire.dhtPort ?? 0,
            dhtAddresses: wire.dhtAddresses ?? [], freeBytes: wire.freeBytes,
            capacityBytes: wire.capacityBytes,
            historyBytes: wire.historyBytes ?? 0)
        volume = wire.volume
        self.node = node
        instance = wire.instance
        sequence = wire.sequence
        apiPort = wire.apiPort
        for text in wire.announced + (wire.head.map { [$0] } ?? []) {
            guard let commit = ObjectID(hex: text) else { throw .invalid("no commit id") }
            announced.append(commit)
        }
        if wire.head != nil { head = announced.removeLast() }
        for log in wire.holderLogs {
            guard let node = NodeID(hex: log.node), let hash = Hex.decode(log.hash.utf8),
                hash.count <= Self.hashBytesMax
            else { throw .invalid("a holder log's head") }
            holderLogs.append(
                HolderLogHead(node: node, epoch: log.epoch, count: log.n, hash: hash))
        }
        for neighbour in wire.neighbours {
            guard let node = NodeID(hex: neighbour.node),
                let endpoint = Endpoint(host: neighbour.host, port: neighbour.port)
            else { throw .invalid("a neighbour") }
            neighbours.append(Neighbour(node: node, endpoint: endpoint))
        }
    }

    /// ID, NAME and MACHINE of the command line: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
    static func isName(_ text: String) -> Bool {
        func isAlphanumeric(_ byte: UInt8) -> Bool {
            (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte)
                || (0x61...0x7A).contains(byte)
        }
        guard let first = text.utf8.first, text.utf8.count <= nameBytesMax else { return false }
        return isAlphanumeric(first)
            && text.utf8.allSatisfy { isAlphanumeric($0) || ".-_".utf8.contains($0) }
    }
}

/// Why a peer's hello was refused.
enum HelloError: Error, Hashable {
    case invalid(String)
    case otherFormat(format: Int, rules: Int, version: String)
    case otherVolume(String)
    /// Its certificate names another node.
    case otherNode
}
