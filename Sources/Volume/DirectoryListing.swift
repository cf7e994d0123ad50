// Listing a directory of a commit in parts.
extension DirectoryTree {
    /// The least cookie of an entry; lower ones are the caller's.
    public static let firstCookie: UInt64 = 16

    /// Entries behind the cookie (0: from the start), in the order of their cookies: at least `limit`
    /// if there are so many.
    ///
    /// A cookie is made from the hash of the name, by which large directories are split: so a list
    /// goes on in any process, and reads no more than the shards that it shows.
    public func children(
        after cookie: UInt64, limit: Int, from source: some TreeSource
    ) throws -> [(cookie: UInt64, name: FileName, child: TreeChild)] {
        var found: [(cookie: UInt64, name: FileName, child: TreeChild)] = []
        try shard.list(after: cookie, limit: limit, into: &found, source)
        guard found.count > limit, limit > 0 else { return found }
        // Names whose cookies are equal stay together: nobody could go on between them.
        let end = found[limit...].firstIndex { $0.cookie != found[limit - 1].cookie }
        return Array(found[..<(end ?? found.count)])
    }

    static func cookie(of name: FileName) -> UInt64 {
        let hash = PureSHA256.digest(name.bytes)
        return max(hash[..<8].reduce(0) { $0 << 8 | UInt64($1) } >> 1, firstCookie)
    }
}

extension Shard {
    fileprivate func list(
        after cookie: UInt64, limit: Int,
        into found: inout [(cookie: UInt64, name: FileName, child: TreeChild)],
        _ source: some TreeSource
    ) throws {
        switch form {
        case .flat(let entries):
            let named = try entries.map { entry in
                let name = try DirectoryTree.name(of: entry)
                return (DirectoryTree.cookie(of: name), name, TreeChild(entry))
            }
            found += named.filter { $0.0 > cookie }.sorted { ($0.0, $0.1) < ($1.0, $1.1) }
        case .split(let shards):
            for (index, id) in shards.sorted(by: { $0.key < $1.key }) {
                guard found.count < limit else { return }
                if greatestCookie(below: index) <= cookie { continue }
                try subshard(index, id, source).list(
                    after: cookie, limit: limit, into: &found, source)
            }
        }
    }

    /// The greatest that a name in this subshard can have.
    private func greatestCookie(below index: UInt8) -> UInt64 {
        let bytes = (prefix + [index]).prefix(8)
        let missing = 8 * (8 - bytes.count)
        let start = bytes.reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return max((start << missing | (1 << missing - 1)) >> 1, DirectoryTree.firstCookie)
    }
}
