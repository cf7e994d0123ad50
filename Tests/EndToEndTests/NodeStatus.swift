/// The part of `status --json` that these tests read.
struct NodeStatus: Codable, Sendable {
    struct Problem: Codable, Sendable {
        var code: String
        var text: String
    }

    struct Peer: Codable, Sendable {
        var node: String
        var name: String
        var machine: String
        var address: String
        var online: Bool
        var head: String
    }

    struct Contents: Codable, Sendable {
        var files: Int
        var localFiles: Int
        var localBytes: Int
    }

    struct Transfer: Codable, Sendable {
        var root: String
        var direction: String
        var doneBytes: Int
        var totalBytes: Int
    }

    struct Scrub: Codable, Sendable {
        var lastCompleted: String?
        var bytesChecked: Int
        var errorsFound: Int
        var errorsRepaired: Int
    }

    var volume: String
    var node: String
    var name: String
    var machine: String
    var state: String
    var mount: String?
    var passthrough: Bool
    var transport: String
    var head: String
    var unpublished: Int
    var copiesTarget: Int
    var problems: [Problem]
    var peers: [Peer]
    var contents: Contents
    var transfers: [Transfer]
    var scrub: Scrub

    var onlinePeers: Set<String> { Set(peers.filter(\.online).map(\.name)) }
}

/// One file of `whereis --json`.
struct FileHolders: Codable, Sendable {
    struct Holder: Codable, Sendable {
        var name: String
        var machine: String
        var online: Bool
        var complete: Bool
        var stored: Bool
    }

    var path: String
    var length: Int
    var roots: [String]
    var target: Int
    var copies: Int
    var holders: [Holder]

    var stored: [Holder] { holders.filter { $0.stored && $0.complete } }
    var onlineMachines: Set<String> { Set(stored.filter(\.online).map(\.machine)) }
}
