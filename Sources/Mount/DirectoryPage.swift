import FUSE
import Volume

/// One answer to READDIR or READDIRPLUS, being filled.
struct DirectoryPage: Sendable {
    private(set) var buffer: DirectoryBuffer
    let isPlus: Bool
    /// Cookie of the last entry that the caller has; 0: none.
    private(set) var offset: UInt64

    init(offset: UInt64, size: Int, isPlus: Bool) {
        buffer = DirectoryBuffer(capacity: size)
        self.isPlus = isPlus
        self.offset = offset
    }

    /// - Returns: false when it does not fit.
    mutating func append(_ name: [UInt8], _ entry: EntryOut, cookie: UInt64) -> Bool {
        let attributes = entry.attributes
        let fits =
            isPlus
            ? buffer.append(name: name, entry: entry, cookie: cookie)
            : buffer.append(
                name: name, ino: attributes.ino, mode: attributes.mode, cookie: cookie)
        if fits { offset = cookie }
        return fits
    }

    /// Entries of which the kernel learns no more than name, number and kind, with cookies from 1 on.
    ///
    /// - Returns: false when not all of them fit.
    @discardableResult
    mutating func fill(_ entries: [(name: [UInt8], ino: UInt64, mode: UInt32)]) -> Bool {
        for (name, ino, mode) in entries.dropFirst(Int(clamping: offset)) {
            let entry = EntryOut(nodeid: 0, attributes: Attributes(ino: ino, mode: mode))
            guard append(name, entry, cookie: offset + 1) else { return false }
        }
        return true
    }
}

/// Entries of a directory of the past that were read ahead of what a descriptor was told.
struct PastListing: Sendable {
    typealias Entry = (cookie: UInt64, name: FileName, child: TreeChild)

    /// Entries read at once: a whole directory, or a few shards of it.
    private static let aheadMax = Limits.directoryEntriesUnsplitMax

    private let directory: DirectoryTree
    /// All that stand behind the cookie `start`, up to the last of these.
    private var entries: [Entry] = []
    private var start: UInt64 = 0

    init(_ directory: DirectoryTree) { self.directory = directory }

    /// The first entry behind the cookie; nil at the end.
    mutating func next(after cookie: UInt64, from source: some TreeSource) throws -> Entry? {
        guard let last = entries.last, (start..<last.cookie).contains(cookie) else {
            entries = try directory.children(after: cookie, limit: Self.aheadMax, from: source)
            start = cookie
            return entries.first
        }
        var (low, high) = (0, entries.count - 1)
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].cookie > cookie { high = middle } else { low = middle + 1 }
        }
        return entries[low]
    }
}
