/// A link and where it stands.
struct PlacedLink: Hashable, Sendable {
    var place: Place
    var link: Link

    var stamp: Stamp { link.stamp }
}

/// One inode as one commit has it: its record and the links to it.
///
/// The top directory alone has no link. Every other directory has exactly one.
struct Inode: Hashable, Sendable {
    var record: Record
    var links: [LinkID: PlacedLink]

    init(_ record: Record, links: some Sequence<PlacedLink>) {
        self.record = record
        self.links = [:]
        for placed in links { self.links[placed.link.id] = placed }
    }

    var id: LineageID { record.id }
    var isDirectory: Bool { record.isDirectory }

    /// The lowest link id: the one choice of "the" link that every node makes alike.
    var firstLink: PlacedLink? { links.values.min { $0.link.id < $1.link.id } }

    /// The greatest by stamp, then by id and place: the one that survives when only one may.
    var newestLink: PlacedLink? { links.values.max(by: PlacedLink.isOlder) }

    static func isOlder(_ a: Inode, _ b: Inode) -> Bool {
        (a.record.content.stamp, a.id) < (b.record.content.stamp, b.id)
    }
}

extension PlacedLink {
    static func isOlder(_ a: PlacedLink, _ b: PlacedLink) -> Bool {
        (a.stamp, a.link.id, a.place) < (b.stamp, b.link.id, b.place)
    }
}

/// The part of a commit's tree that a merge looks at, by lineage id.
///
/// Closed in two directions: whoever is here in one of the commits merged is here in each of them
/// that has it, and with a link every directory above it is here too.
typealias Fragment = [LineageID: Inode]

/// What the fragments leave out: the inodes that are the same in both sides and in every base.
///
/// Asked only where a merge reaches beyond what changed: when two directories become one, when a
/// name must be free, when the visible links of an inode are not all there are.
protocol MergeSurroundings {
    /// The entry of that name whose link is in no fragment, nil if there is none.
    mutating func entry(at place: Place) throws -> (record: Record, link: PlacedLink)?
    /// The entries of a directory whose links are in no fragment, in any order.
    mutating func entries(of directory: LineageID) throws -> [(record: Record, link: PlacedLink)]
    /// How many links in no fragment there are to an inode that is in the fragments.
    func otherLinkCount(of id: LineageID) -> Int
    /// Those links.
    mutating func otherLinks(of id: LineageID) throws -> [PlacedLink]
    /// Whether an inode that is not in the fragments lives, given what the bases say about the
    /// inode it would be a copy of.
    mutating func lives(_ id: LineageID, copyOf original: LineageID, losing: Stamp) throws -> Bool
}

/// Fragments that leave nothing out.
struct NoSurroundings: MergeSurroundings {
    func entry(at place: Place) -> (record: Record, link: PlacedLink)? { nil }
    func entries(of directory: LineageID) -> [(record: Record, link: PlacedLink)] { [] }
    func otherLinkCount(of id: LineageID) -> Int { 0 }
    func otherLinks(of id: LineageID) -> [PlacedLink] { [] }
    func lives(_ id: LineageID, copyOf original: LineageID, losing: Stamp) -> Bool { false }
}

/// Deliberate mistakes, none in production: the property tests must notice each of them.
package struct MergeDefects: OptionSet, Sendable {
    package let rawValue: Int
    package init(rawValue: Int) { self.rawValue = rawValue }
    package static let onlyOneBase = MergeDefects(rawValue: 1)
    package static let valuesForStamps = MergeDefects(rawValue: 2)
    package static let lastLinkNotKept = MergeDefects(rawValue: 4)
    package static let copiesDependOnSide = MergeDefects(rawValue: 8)
    package static let directoriesReturnFromBase = MergeDefects(rawValue: 16)
    package static let cyclesIgnored = MergeDefects(rawValue: 32)
}
