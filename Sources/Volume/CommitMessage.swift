/// The message of a commit: what is not in its tree and must be the same on every node.
///
/// ```
/// change            or: merge 1
///
/// node <32 hex>     changes only: a merge is the same whoever makes it
/// stamp <stamp>     the greatest of the whole ancestry, so that a rebuilt catalog regains its clock
/// ```
public struct CommitMessage: Hashable, Sendable {
    public enum Kind: Hashable, Sendable {
        case change(NodeID)
        /// With the number of the rules.
        case merge(rules: Int)
    }

    public let kind: Kind
    public let newestStamp: Stamp

    public init(kind: Kind, newestStamp: Stamp) {
        self.kind = kind
        self.newestStamp = newestStamp
    }

    public var encoded: [UInt8] {
        var out = LineWriter()
        switch kind {
        case .change(let node):
            out.key("change\n\nnode")
            out.word(node.description)
        case .merge(let rules):
            out.key("merge")
            out.decimal(rules)
            out.end()
        }
        out.key("\nstamp")
        out.stamp(newestStamp)
        out.end()
        return out.bytes
    }

    /// Accepts exactly what `encoded` gives. Throws `InvalidTree`, or `UpgradeNeeded` for a merge by
    /// later rules.
    public init(decoding bytes: [UInt8]) throws {
        var reader = LineReader(bytes)
        if var line = reader.optional("merge") {
            let rules: Int = try line.decimal()
            guard rules >= 1 else { throw InvalidTree("a merge without rules") }
            guard rules <= VolumeSettings.rules else {
                throw UpgradeNeeded(format: VolumeSettings.format, rules: rules)
            }
            kind = .merge(rules: rules)
            reader = LineReader(try reader.body())
        } else {
            let subject = Array("change\n\n".utf8)
            guard bytes.starts(with: subject) else { throw InvalidTree("a commit of no kind") }
            reader = LineReader(Array(bytes.dropFirst(subject.count)))
            var line = try reader.required("node")
            guard let node = Hex.decode(try line.word()).flatMap({ NodeID(bytes: $0) }) else {
                throw InvalidTree("a node id that is none")
            }
            kind = .change(node)
        }
        var line = try reader.required("stamp")
        newestStamp = try line.stamp()
        guard newestStamp.milliseconds < Limits.stampMillisecondsEnd, encoded == bytes else {
            throw InvalidTree("a commit message that is not in canonical form")
        }
    }
}
