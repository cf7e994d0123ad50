/// `volume/` of a merged commit: what the nodes agree on, who they are, what was given up.
///
/// Nothing here carries a stamp; values tell what changed, and a tie is broken by bytes.
struct VolumeMerge {
    let settings: VolumeSettings
    let nodes: [NodeID: NodeDescription]
    /// The greatest of both sides.
    let horizon: Stamp?

    init(
        _ a: VolumeTree, _ b: VolumeTree, bases: [VolumeTree], source: some TreeSource
    ) throws {
        settings = try Self.settings(a.settings, b.settings, bases: bases.map(\.settings))
        nodes = try Self.nodes(
            a.nodes(from: source), b.nodes(from: source),
            bases: bases.map { try $0.nodes(from: source) })
        horizon = [a.horizon, b.horizon].compactMap(\.self).max()
    }

    /// Format, rules and authority only ever rise. The rest goes field by field.
    static func settings(
        _ a: VolumeSettings, _ b: VolumeSettings, bases: [VolumeSettings]
    ) throws -> VolumeSettings {
        func merged<Value: Hashable>(
            _ field: KeyPath<VolumeSettings, Value>, _ bytes: (Value) -> [UInt8]
        ) -> Value {
            changed(
                a[keyPath: field], b[keyPath: field], bases: bases.map { $0[keyPath: field] },
                bytes: bytes)
        }
        return VolumeSettings(
            volume: merged(\.volume) { Array($0.utf8) },
            copies: merged(\.copies) { mostSignificantFirst(UInt64($0)) },
            transport: merged(\.transport) { Array($0.rawValue.utf8) },
            owner: merged(\.owner) { $0.tieBytes },
            format: max(a.format, b.format), rules: max(a.rules, b.rules),
            authorityGeneration: max(a.authorityGeneration, b.authorityGeneration))
    }

    /// The union, but for what one side removed and the other did not change.
    static func nodes(
        _ a: [NodeID: NodeDescription], _ b: [NodeID: NodeDescription],
        bases: [[NodeID: NodeDescription]]
    ) throws -> [NodeID: NodeDescription] {
        var nodes: [NodeID: NodeDescription] = [:]
        for id in Set(a.keys).union(b.keys) {
            nodes[id] = changed(a[id], b[id], bases: bases.map { $0[id] }) { node in
                node.map { Array("\($0.name)\n\($0.machine)".utf8) } ?? []
            }
        }
        return nodes
    }

    /// The side that differs from every base; of two, or of none, the greater bytes.
    private static func changed<Value: Hashable>(
        _ a: Value, _ b: Value, bases: [Value], bytes: (Value) -> [UInt8]
    ) -> Value {
        if a == b { return a }
        switch (bases.contains(a), bases.contains(b)) {
        case (true, false): return b
        case (false, true): return a
        default: return bytes(a).lexicographicallyPrecedes(bytes(b)) ? b : a
        }
    }
}
