/// One field group as the merge compares it: a value under one stamp.
protocol MergeField: Equatable {
    var stamp: Stamp { get }
    /// Breaks a tie between equal stamps; different values have different bytes.
    var tieBytes: [UInt8] { get }
}

/// Which of two field groups a merge keeps.
struct MergeChoice<Field: MergeField> {
    let kept: Field
    /// The other one, if both sides changed the group to different values.
    let overruled: Field?
}

/// The rule for one field group: stamps tell what changed, never values.
struct MergeFieldRule {
    let defects: MergeDefects

    /// A side has changed a field if and only if its stamp differs from that field's stamp in
    /// *every* base; a missing one counts as different.
    func isChanged<Field: MergeField>(_ field: Field, since bases: [Field?]) -> Bool {
        bases.allSatisfy { base in
            guard let base else { return true }
            return defects.contains(.valuesForStamps) ? base != field : base.stamp != field.stamp
        }
    }

    func choose<Field: MergeField>(_ a: Field, _ b: Field, bases: [Field?]) -> MergeChoice<Field> {
        if a == b { return MergeChoice(kept: a, overruled: nil) }
        switch (isChanged(a, since: bases), isChanged(b, since: bases)) {
        case (true, false): return MergeChoice(kept: a, overruled: nil)
        case (false, true): return MergeChoice(kept: b, overruled: nil)
        case (true, true):
            let later = Self.later(a, b)
            return MergeChoice(kept: later, overruled: later == a ? b : a)
        case (false, false):
            // A merge changed the value and kept the stamp (a conflict name, an undone move), or
            // the bases disagree. What no base has is the younger decision.
            switch (bases.contains(a), bases.contains(b)) {
            case (true, false): return MergeChoice(kept: b, overruled: nil)
            case (false, true): return MergeChoice(kept: a, overruled: nil)
            default: return MergeChoice(kept: Self.later(a, b), overruled: nil)
            }
        }
    }

    /// The later stamp, on a tie the greater bytes.
    static func later<Field: MergeField>(_ a: Field, _ b: Field) -> Field {
        if a.stamp != b.stamp { return a.stamp < b.stamp ? b : a }
        return a.tieBytes.lexicographicallyPrecedes(b.tieBytes) ? b : a
    }
}

extension PlacedLink: MergeField {
    var tieBytes: [UInt8] { mostSignificantFirst(place.directory.rawValue) + place.name.bytes }
}

/// The `content` group; the inode number travels with it, because an editor's save by replacement
/// brings both.
struct ContentField: MergeField {
    var content: Stamped<BodyGroup>
    var ino: InodeNumber

    init(_ record: Record) {
        content = record.content
        ino = record.ino
    }

    var stamp: Stamp { content.stamp }

    var tieBytes: [UInt8] {
        content.value.body.tieBytes
            + mostSignificantFirst(UInt64(bitPattern: content.value.modified.seconds))
            + mostSignificantFirst(UInt64(content.value.modified.nanoseconds))
            + mostSignificantFirst(ino.rawValue)
    }
}

extension Stamped: MergeField where Value: MergeTied {
    var tieBytes: [UInt8] { value.tieBytes }
}

/// A value that stands under a stamp of its own.
protocol MergeTied {
    var tieBytes: [UInt8] { get }
}

extension UInt16: MergeTied {
    var tieBytes: [UInt8] { mostSignificantFirst(UInt64(self)) }
}

extension Owner: MergeTied {
    var tieBytes: [UInt8] { mostSignificantFirst(UInt64(uid) << 32 | UInt64(gid)) }
}

extension [UInt8]: MergeTied {
    var tieBytes: [UInt8] { self }
}

extension Body: MergeTied {
    var tieBytes: [UInt8] {
        switch self {
        case .file(.inline(let bytes)): [0, 0] + bytes
        case .file(.extents(let extents)):
            [0, 1] + extents.flatMap { $0.root.bytes + mostSignificantFirst($0.length) }
        case .directory: [1]
        case .symlink(let target): [2] + target
        case .fifo: [3]
        case .socket: [4]
        case .characterDevice(let major, let minor):
            [5] + mostSignificantFirst(UInt64(major) << 32 | UInt64(minor))
        case .blockDevice(let major, let minor):
            [6] + mostSignificantFirst(UInt64(major) << 32 | UInt64(minor))
        }
    }
}

func mostSignificantFirst(_ value: UInt64) -> [UInt8] {
    stride(from: 56, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> UInt64($0)) }
}
