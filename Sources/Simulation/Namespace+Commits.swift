public import Volume

/// How a live state takes over what commits say.
extension Namespace {
    /// Brings a clean state from one commit to another.
    public mutating func apply(_ difference: TreeDifference) {
        precondition(isClean, "commit before applying")
        for place in difference.places.keys {
            if let link = link(at: place) { leave(link.id) }
        }
        for (place, link) in difference.places {
            if let link { enter(Entry(place: place, link: link)) }
        }
        for (id, record) in difference.records { records[id] = record }
        markClean()
    }

    /// Lets the files that editors saved go on as the ones that they replaced.
    public mutating func apply(_ adoptions: [Adoption]) {
        for adoption in adoptions {
            guard let born = records.removeValue(forKey: adoption.newborn) else { continue }
            records[adoption.adopted] = Record(
                id: adoption.adopted, ino: born.ino, content: born.content, mode: born.mode,
                owner: born.owner, xattrs: born.xattrs)
            for entry in entries(of: adoption.newborn) {
                leave(entry.link.id)
                let link =
                    adoption.links[entry.place]
                    ?? Link(id: entry.link.id, stamp: entry.link.stamp, target: adoption.adopted)
                enter(Entry(place: entry.place, link: link))
            }
        }
    }

    /// What its files hold.
    var contents: [LineageID: ContentVersion] {
        records.compactMapValues { record in
            record.isDirectory
                ? nil
                : ContentVersion(
                    id: record.id, stamp: record.content.stamp, body: record.content.value.body)
        }
    }
}

/// A namespace as the committer reads it.
struct CommittedNamespace: LiveState {
    let space: Namespace
    /// As of the commit that is committed onto.
    let trees: [LineageID: ObjectID]

    func record(_ id: LineageID) -> Record? { space.records[id] }

    func links(of id: LineageID) -> [(place: Place, link: Link)] {
        space.entries(of: id).map { ($0.place, $0.link) }
    }

    func link(at place: Place) -> Link? { space.link(at: place) }

    func children(of directory: LineageID) -> [(name: FileName, link: Link)] {
        space.children(of: directory)
    }

    func tree(of directory: LineageID) -> ObjectID? { trees[directory] }
}
