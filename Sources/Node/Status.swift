/// The JSON of `status --json`, field for field as other programs rely on it.
public struct Status: Codable, Sendable {
    public struct Problem: Codable, Sendable, Equatable {
        public var code: String
        /// ISO 8601
        public var since: String
        public var text: String
    }

    public struct Peer: Codable, Sendable {
        public var node: String
        public var name: String
        public var machine: String
        public var address: String
        public var online: Bool
        public var lastSeen: String
        public var head: String
        public var freeBytes: UInt64
        public var capacityBytes: UInt64
    }

    public struct Amount: Codable, Sendable {
        public var files: Int
        public var bytes: UInt64
    }

    public struct Contents: Codable, Sendable {
        public var files: Int
        public var bytes: UInt64
        public var localFiles: Int
        public var localBytes: UInt64
        public var underReplicated: Amount
        public var unavailable: Amount
    }

    public struct Transfer: Codable, Sendable {
        public var root: String
        public var path: String
        /// `in` or `out`
        public var direction: String
        public var doneBytes: UInt64
        public var totalBytes: UInt64
        public var bytesPerSecond: UInt64
    }

    public struct Repair: Codable, Sendable {
        public var bytesLeft: UInt64
        /// nil: not known yet.
        @ExplicitNull public var etaSeconds: Double?
    }

    public struct Scrub: Codable, Sendable {
        @ExplicitNull public var lastCompleted: String?
        public var bytesChecked: UInt64
        public var errorsFound: Int
        public var errorsRepaired: Int
        /// What the pass that is under way has to read; nil: none is.
        @ExplicitNull public var bytesTotal: UInt64?
    }

    public var volume: String
    public var node: String
    public var name: String
    public var machine: String
    public var state: String
    public var version: String
    @ExplicitNull public var mount: String?
    public var passthrough: Bool
    public var transport: String
    public var head: String
    public var unpublished: Int
    public var capacityBytes: UInt64
    public var usedBytes: UInt64
    public var freeBytes: UInt64
    public var historyBytes: UInt64
    public var copiesTarget: Int
    public var problems: [Problem]
    public var peers: [Peer]
    public var contents: Contents
    public var transfers: [Transfer]
    public var repair: Repair
    public var scrub: Scrub
}

/// One file of `whereis --json`.
public struct Whereabouts: Codable, Sendable {
    public struct Holder: Codable, Sendable {
        public var node: String
        public var name: String
        public var machine: String
        public var online: Bool
        public var complete: Bool
        public var stored: Bool
    }

    public var path: String
    public var ino: UInt64
    public var length: UInt64
    public var roots: [String]
    public var target: Int
    public var copies: Int
    public var holders: [Holder]
}

/// An optional that is written as `null` instead of being left out: readers rely on the field.
@propertyWrapper
public struct ExplicitNull<Value: Codable & Sendable>: Codable, Sendable {
    public var wrappedValue: Value?

    public init(wrappedValue: Value?) { self.wrappedValue = wrappedValue }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        wrappedValue = container.decodeNil() ? nil : try container.decode(Value.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        if let wrappedValue {
            try container.encode(wrappedValue)
        } else {
            try container.encodeNil()
        }
    }
}
