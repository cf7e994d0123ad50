/// Why a commit's tree, or a record, settings or log entry in it, is not valid.
///
/// Validity is a function of bytes alone; a commit that throws this is never a parent.
public struct InvalidTree: Error, Hashable, Sendable, CustomStringConvertible {
    public let reason: String

    public init(_ reason: String) { self.reason = reason }

    public var description: String { "invalid tree: " + reason }
}

/// The volume is written in a format, or merged by rules, that this program does not know yet.
public struct UpgradeNeeded: Error, Hashable, Sendable, CustomStringConvertible {
    public let format: Int
    public let rules: Int

    public init(format: Int, rules: Int) {
        self.format = format
        self.rules = rules
    }

    public var description: String {
        "this volume uses format \(format) and merge rules \(rules): upgrade delugefs on this node"
    }
}

extension TreeEntry {
    /// Git's order: by bytes, a tree's name counting as if it ended in `/`.
    public static func precedesInGit(_ a: TreeEntry, _ b: TreeEntry) -> Bool {
        a.precedesInGit(b.name, b.kind)
    }

    func precedesInGit(_ other: [UInt8], _ otherKind: Kind) -> Bool {
        let common = min(name.count, other.count)
        for i in 0..<common where name[i] != other[i] { return name[i] < other[i] }
        let left = name.count > common ? name[common] : kind == .tree ? 0x2F : 0
        let right = other.count > common ? other[common] : otherKind == .tree ? 0x2F : 0
        return left < right
    }

    /// Visits what two lists in Git's order do not have in common, both ends of a name together where
    /// they are of one kind.
    static func eachDifference(
        _ old: [TreeEntry], _ new: [TreeEntry],
        _ visit: (_ earlier: TreeEntry?, _ later: TreeEntry?) throws -> Void
    ) rethrows {
        var (i, j) = (0, 0)
        while i < old.count || j < new.count {
            if i < old.count, j < new.count, old[i].name == new[j].name, old[i].kind == new[j].kind
            {
                if old[i].id != new[j].id { try visit(old[i], new[j]) }
                (i, j) = (i + 1, j + 1)
            } else if j == new.count || i < old.count && precedesInGit(old[i], new[j]) {
                try visit(old[i], nil)
                i += 1
            } else {
                try visit(nil, new[j])
                j += 1
            }
        }
    }
}
