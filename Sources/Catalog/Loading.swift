internal import SystemPackage
public import Volume

extension Catalog {
    /// Entries that one operation writes: there is nobody yet who could wait for it.
    private static let loadedAtOnce = 4096

    /// Makes the rows of a catalog without settings represent `commit`, whose tree was validated. The
    /// settings are the caller's to set, last of all: rows that a start left which ended before that are
    /// removed first.
    ///
    /// Faster than `apply` and in bounded memory: nothing is here yet that could contradict.
    ///
    /// - Throws: EEXIST when the rows represent a commit already; EIO when the tree has an id twice, or a name leads to what is not in it.
    public func load<Source: TreeSource>(
        _ tree: VolumeTree, commit: ObjectID, from source: Source
    ) throws {
        try perform { transaction in
            guard try transaction.settings() == nil else { throw Errno.fileExists }
            try transaction.removeNamespace()
        }
        var portion: [ListedEntry] = []
        func write() throws {
            try perform { transaction in
                var application = Application(transaction) { _ in false }
                for entry in portion { try application.load(entry) }
            }
            portion.removeAll(keepingCapacity: true)
        }
        try listTree(tree, from: source) { entry in
            portion.append(entry)
            if portion.count == Self.loadedAtOnce { try write() }
        }
        try write()
        let nodes = try tree.nodes(from: source)
        try perform { transaction in
            for (node, description) in nodes.sorted(by: { $0.key < $1.key }) {
                try transaction.setNode(node, description)
            }
            if let horizon = tree.horizon { try transaction.setHorizon(horizon) }
            try transaction.setApplied(commit)
        }
    }
}

extension Application {
    fileprivate mutating func load(_ entry: ListedEntry) throws {
        var loaded: InodeNumber?
        if let record = entry.record {
            guard try transaction.inode(id: record.id) == nil else {
                throw Errno.ioError
            }
            let parent = try entry.name.map { try known($0.place.directory) }
            loaded = try insert(record, links: entry.links, parent: parent)
            if let tree = entry.tree { try transaction.setTrees([record.id: tree]) }
        }
        guard let (place, link) = entry.name else { return }
        try transaction.observe(link.stamp)
        let parent = try known(place.directory)
        let target = try loaded ?? transaction.inode(id: link.target)?.ino
        guard let target else { throw Errno.ioError }
        try transaction.writeEntry(
            parent, place.name, target, link.id, link.stamp, cookie: try transaction.cookie())
        if entry.tree != nil { try transaction.addSubdirectory(to: parent) }
    }

    private mutating func known(_ directory: LineageID) throws -> InodeNumber {
        guard let ino = try self.directory(directory) else { throw Errno.ioError }
        return ino
    }
}

extension Transaction {
    fileprivate func addSubdirectory(to directory: InodeNumber) throws(Errno) {
        try connection.run("UPDATE inode SET nlink = nlink + 1 WHERE ino = ?", directory)
    }

    fileprivate func removeNamespace() throws(Errno) {
        try connection.run("DELETE FROM inode")
        try connection.run("DELETE FROM body")
        try connection.run("DELETE FROM dentry")
        try connection.run("DELETE FROM xattr")
        try connection.run("DELETE FROM extent")
        try connection.run("DELETE FROM staging")
        try connection.run("DELETE FROM dirty_place")
        try connection.run("DELETE FROM dirty_record")
        try recount()
    }
}
