/// A POSIX access control list, as Linux passes it in `system.posix_acl_access` and
/// `system.posix_acl_default`: a version and entries of tag, permissions and id, little-endian
/// (linux/posix_acl_xattr.h).
///
/// The mode's group bits are the mask where there is one: the two are kept in step here.
public struct AccessControlList: Hashable, Sendable {
    public static let accessName = Array("system.posix_acl_access".utf8)
    public static let defaultName = Array("system.posix_acl_default".utf8)

    /// In the order in which entries stand.
    enum Tag: UInt16, Comparable {
        case owner = 0x01
        case user = 0x02
        case owningGroup = 0x04
        case group = 0x08
        case mask = 0x10
        case other = 0x20

        static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    }

    struct Entry: Hashable, Sendable {
        let tag: Tag
        /// Read 4, write 2, execute 1.
        var permissions: UInt16
        /// Of `user` and `group`; otherwise all ones.
        let id: UInt32
    }

    private static let version: UInt32 = 2
    private static let headerBytes = 4
    private static let entryBytes = 8

    private(set) var entries: [Entry]

    /// nil for anything that is no valid list: entries in order and none twice, one each of owner,
    /// owning group and other, and a mask where users or groups are named.
    public init?(_ bytes: [UInt8]) {
        guard bytes.count >= Self.headerBytes,
            (bytes.count - Self.headerBytes) % Self.entryBytes == 0,
            Self.number(bytes[0..<4]) == Self.version
        else { return nil }
        entries = []
        for start in stride(from: Self.headerBytes, to: bytes.count, by: Self.entryBytes) {
            let tag = Tag(rawValue: UInt16(Self.number(bytes[start..<start + 2])))
            let permissions = UInt16(Self.number(bytes[start + 2..<start + 4]))
            guard let tag, permissions <= 7 else { return nil }
            entries.append(
                Entry(
                    tag: tag, permissions: permissions,
                    id: Self.number(bytes[start + 4..<start + 8])))
        }
        let isOrdered = zip(entries, entries.dropFirst()).allSatisfy { a, b in
            a.tag < b.tag || a.tag == b.tag && [.user, .group].contains(a.tag)
        }
        let named = Set(entries.filter(\.isNamed).map { [UInt32($0.tag.rawValue), $0.id] })
        guard isOrdered, named.count == entries.count(where: \.isNamed),
            self[.owner] != nil, self[.owningGroup] != nil, self[.other] != nil,
            named.isEmpty || self[.mask] != nil
        else { return nil }
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt32 {
        bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    public var bytes: [UInt8] {
        func little(_ value: UInt32, _ count: Int) -> [UInt8] {
            (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * UInt32($0))) }
        }
        return entries.reduce(into: little(Self.version, 4)) { result, entry in
            result += little(UInt32(entry.tag.rawValue), 2)
            result += little(UInt32(entry.permissions), 2) + little(entry.id, 4)
        }
    }

    /// The permissions of the entry that occurs at most once.
    private subscript(tag: Tag) -> UInt16? {
        get { entries.first { $0.tag == tag }?.permissions }
        set {
            guard let newValue, let index = entries.firstIndex(where: { $0.tag == tag }) else {
                return
            }
            entries[index].permissions = newValue
        }
    }

    /// What stands for the mode's group bits.
    private var groupClass: Tag { self[.mask] == nil ? .owningGroup : .mask }

    /// The nine permission bits that go with this list.
    public var mode: UInt16 {
        (self[.owner] ?? 0) << 6 | (self[groupClass] ?? 0) << 3 | (self[.other] ?? 0)
    }

    /// Says no more than the nine bits do.
    public var isMinimal: Bool { entries.count == 3 }

    /// After `chmod`.
    public func changed(to mode: UInt16) -> Self {
        var result = self
        result[.owner] = mode >> 6 & 7
        result[groupClass] = mode >> 3 & 7
        result[.other] = mode & 7
        return result
    }

    /// The list of something that is created with this mode in a directory with this default list.
    /// The umask does not count there.
    public func inherited(by mode: UInt16) -> Self { changed(to: self.mode & mode) }
}

extension AccessControlList.Entry {
    fileprivate var isNamed: Bool { tag == .user || tag == .group }
}
