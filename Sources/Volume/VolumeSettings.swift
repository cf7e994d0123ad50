/// What all nodes of a volume agree on; `volume/settings` in every commit's tree.
public struct VolumeSettings: Hashable, Sendable {
    public enum Transport: String, Hashable, Sendable { case tls, plain }

    /// The highest numbers that this program understands.
    public static let format = 1
    public static let rules = 1

    /// Of the layout of trees and records.
    public var format: Int
    /// Of the merge.
    public var rules: Int
    /// The volume's id as users type it.
    public var volume: String
    /// Target copies where no directory says otherwise; 1 ... 64.
    public var copies: Int
    /// Of bulk content between nodes.
    public var transport: Transport
    /// Who created the volume.
    public var owner: Owner
    /// Chooses the trust roots, so that a later rotation of the key needs no new format.
    public var authorityGeneration: Int

    public init(
        volume: String, copies: Int, transport: Transport, owner: Owner, format: Int = Self.format,
        rules: Int = Self.rules, authorityGeneration: Int = 1
    ) {
        self.format = format
        self.rules = rules
        self.volume = volume
        self.copies = copies
        self.transport = transport
        self.owner = owner
        self.authorityGeneration = authorityGeneration
    }

    /// The canonical bytes.
    public func encoded() throws(InvalidTree) -> [UInt8] {
        try validate()
        return text()
    }

    /// Accepts exactly what `encoded` gives.
    ///
    /// Throws `UpgradeNeeded` when the numbers are higher than ours, whatever else is there, else
    /// `InvalidTree`.
    public init(decoding bytes: [UInt8]) throws {
        let (format, rules) = try Self.numbers(in: bytes)
        guard format <= Self.format, rules <= Self.rules else {
            throw UpgradeNeeded(format: format, rules: rules)
        }
        var reader = LineReader(bytes)
        var line = try reader.required("authority")
        authorityGeneration = try line.decimal()
        line = try reader.required("copies")
        copies = try line.decimal()
        line = try reader.required("format")
        self.format = try line.decimal()
        line = try reader.required("owner")
        owner = Owner(uid: try line.decimal(), gid: try line.decimal())
        line = try reader.required("rules")
        self.rules = try line.decimal()
        line = try reader.required("transport")
        guard let transport = Transport(rawValue: Text.lossy(Array(try line.word()))) else {
            throw InvalidTree("a transport that is none")
        }
        self.transport = transport
        line = try reader.required("volume")
        volume = Text.lossy(Array(try line.word()))
        try validate()
        guard text() == bytes else { throw InvalidTree("settings that are not in canonical form") }
    }

    private func text() -> [UInt8] {
        var out = LineWriter()
        out.key("authority")
        out.decimal(authorityGeneration)
        out.key("\ncopies")
        out.decimal(copies)
        out.key("\nformat")
        out.decimal(format)
        out.key("\nowner")
        out.decimal(owner.uid)
        out.decimal(owner.gid)
        out.key("\nrules")
        out.decimal(rules)
        out.key("\ntransport")
        out.word(transport.rawValue)
        out.key("\nvolume")
        out.word(volume)
        out.end()
        return out.bytes
    }

    private func validate() throws(InvalidTree) {
        guard format >= 1, rules >= 1, authorityGeneration >= 1 else {
            throw InvalidTree("settings with a number below 1")
        }
        guard (1...Limits.copiesMax).contains(copies) else {
            throw InvalidTree("settings with \(copies) copies")
        }
        guard DisplayName.isValid(volume) else { throw InvalidTree("a volume id that is none") }
    }

    /// Wherever the lines stand: a later format may have others before them.
    private static func numbers(in bytes: [UInt8]) throws(InvalidTree) -> (format: Int, rules: Int)
    {
        var format: Int?
        var rules: Int?
        for line in bytes.split(separator: 0x0A) {
            var reader = LineReader(Array(line) + [0x0A])
            if var line = reader.optional("format") { format = try line.decimal() }
            if var line = reader.optional("rules") { rules = try line.decimal() }
        }
        guard let format, let rules else { throw InvalidTree("settings without format or rules") }
        return (format, rules)
    }
}

/// How a node is called and on which machine it is; `volume/nodes/<id>` in every commit's tree.
public struct NodeDescription: Hashable, Sendable {
    public var name: String
    public var machine: String

    public init(name: String, machine: String) {
        self.name = name
        self.machine = machine
    }

    /// The canonical bytes.
    public func encoded() throws(InvalidTree) -> [UInt8] {
        guard DisplayName.isValid(name), DisplayName.isValid(machine) else {
            throw InvalidTree("a node's name or machine that is none")
        }
        return Array("machine \(machine)\nname \(name)\n".utf8)
    }

    /// Accepts exactly what `encoded` gives.
    public init(decoding bytes: [UInt8]) throws(InvalidTree) {
        var reader = LineReader(bytes)
        var line = try reader.required("machine")
        machine = Text.lossy(Array(try line.word()))
        line = try reader.required("name")
        name = Text.lossy(Array(try line.word()))
        guard try encoded() == bytes else {
            throw InvalidTree("a node's description that is not in canonical form")
        }
    }
}

/// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`: ids of volumes, names of nodes and machines.
public enum DisplayName {
    public static func isValid(_ text: String) -> Bool {
        func letterOrDigit(_ byte: UInt8) -> Bool {
            switch byte {
            case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: true
            default: false
            }
        }
        let bytes = text.utf8
        guard let first = bytes.first, letterOrDigit(first), bytes.count <= 63 else { return false }
        return bytes.allSatisfy { letterOrDigit($0) || $0 == 0x2E || $0 == 0x5F || $0 == 0x2D }
    }
}
