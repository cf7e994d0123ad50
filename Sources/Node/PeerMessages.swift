import FoundationEssentials
import Volume

/// The bodies of the peer API, JSON unless said otherwise. Numbers and ids are checked where they
/// are used: a member is trusted not to be malicious, never to be correct.
enum PeerMessage {
    /// `POST /v1/pack`: answered with a Git pack of what `want` needs beyond `have`.
    struct Pack: Codable {
        var want: [String]
        var have: [String]
    }

    /// `POST /v1/packs`: what a joiner copies, and a head that is whole in it.
    struct PacksReply: Codable {
        var head: String
        var packs: [PackName]
    }
    struct PackName: Codable {
        var name: String
        var bytes: Int64
    }

    /// `POST /v1/pack-part`: answered with bytes of the pack from `from` on, perhaps not to its end.
    struct PackPart: Codable {
        var name: String
        var from: Int64
    }

    /// `POST /v1/has-commit`
    struct HasCommit: Codable { var commit: String }
    struct HasCommitReply: Codable { var has: Bool }

    /// `POST /v1/refused`: tells that a commit is not valid, and why.
    struct Refused: Codable {
        var commit: String
        var reason: String
    }

    struct ExtentName: Codable {
        var root: String
        var length: UInt64

        init(_ extent: Extent) {
            root = extent.root.description
            length = extent.length
        }

        var extent: Extent? {
            guard let root = ContentRoot(hex: root), length > 0, length <= Limits.extentBytesMax
            else { return nil }
            return Extent(root: root, length: length)
        }
    }

    /// `POST /v1/open`: answered with an `OpenReply` line, then bytes (layer or content).
    struct OpenReply: Codable {
        enum Form: String, Codable { case content, swarm }
        var form: Form
        /// Port of the bulk transport, for form `swarm`.
        var bulkPort: Int
        /// Where that port is, for an asker who knows the holder by an address that cannot be
        /// dialled for content.
        var addresses: [String]?
    }

    /// `POST /v1/who-has`
    struct WhoHas: Codable { var extents: [ExtentName] }
    struct WhoHasReply: Codable {
        enum State: String, Codable { case none, cached, stored }
        var states: [State]
        /// Bytes that the node can still take on, what is under way paid for.
        var roomBytes: UInt64
        /// Places in `states` of what is on its way there to be stored.
        var coming: [Int]

        func hasRoom(for extent: Extent, at index: Int) -> Bool {
            roomBytes >= extent.length || coming.contains(index)
        }
    }

    /// `POST /v1/clone`: asks the node to store copies.
    struct Clone: Codable { var extents: [ExtentName] }
    struct CloneReply: Codable {
        enum Answer: String, Codable { case accepted, stored, full, busy, draining }
        var answers: [Answer]
    }

    /// `POST /v1/expire`: asks the node to give up old content now, if it may.
    struct Expire: Codable { var extents: [ExtentName] }

    /// `POST /v1/holders`: a node's log from behind entry `after`.
    struct Holders: Codable {
        var node: String
        var epoch: UInt64
        var after: UInt64
    }

    /// Entries up to one that the log's node has signed.
    struct HoldersReply: Codable {
        var entries: [[UInt8]]
        var publicKey: [UInt8]
        var signature: [UInt8]
    }

    /// A JSON header in one line, then a payload.
    static func frame(_ header: some Encodable, payload: [UInt8]) throws -> [UInt8] {
        try JSONEncoder().encode(header) + [0x0A] + payload
    }

    static func unframe<Header: Decodable>(
        _ bytes: [UInt8], as type: Header.Type
    ) throws -> (Header, [UInt8]) {
        guard let end = bytes.firstIndex(of: 0x0A) else {
            throw NodeError("A peer's reply has no header.")
        }
        let header = try JSONDecoder().decode(type, from: Data(bytes[..<end]))
        return (header, Array(bytes[(end + 1)...]))
    }
}
