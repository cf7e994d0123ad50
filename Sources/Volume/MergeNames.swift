/// Steps 6 and 7: content that lost gets a name of its own, and every name has one holder.
extension Merge {
    // MARK: Step 6

    /// Puts what lost against a concurrent edit beside the winner.
    mutating func placeCopies() throws {
        let copies = overruled.map { winner, loser in
            let identity = MergeIdentity.copy(of: winner, losing: loser.content.stamp)
            return (id: LineageID(rawValue: identity), winner: winner, loser: loser)
        }
        for copy in copies.sorted(by: {
            ($0.loser.content.stamp, $0.id) < ($1.loser.content.stamp, $1.id)
        }) {
            try place(copy.loser, as: copy.id, beside: copy.winner)
        }
    }

    private mutating func place(
        _ loser: Record, as id: LineageID, beside winner: LineageID
    ) throws {
        let stamp = loser.content.stamp
        guard state.inodes[id] == nil,
            try isKnown(id) || !surroundings.lives(id, copyOf: winner, losing: stamp),
            let inode = state.inodes[winner]
        else { return }
        var links = inode.links
        for other in try surroundings.otherLinks(of: winner) where links[other.link.id] == nil {
            links[other.link.id] = other
        }
        guard let beside = links.values.min(by: { $0.link.id < $1.link.id })?.place else { return }
        let origin = ConflictOrigin(stamp: stamp, id: id)
        let name = try freeName(for: beside, origin)
        var ino = MergeIdentity.inodeNumberBits(id.rawValue)
        if input.defects.contains(.copiesDependOnSide), input.a[winner]?.record == loser {
            ino ^= 1
        }
        let record = Record(
            id: id, ino: InodeNumber(rawValue: ino), content: loser.content, mode: loser.mode,
            owner: loser.owner, xattrs: loser.xattrs)
        let link = Link(id: LinkID(rawValue: id.rawValue), stamp: stamp, target: id)
        let placed = PlacedLink(
            place: Place(directory: beside.directory, name: name), link: link)
        state.add(Inode(record, links: [placed]))
    }

    /// A conflict name beside `place` that nobody holds.
    private mutating func freeName(for place: Place, _ origin: ConflictOrigin) throws -> FileName {
        try input.conflictName(place.name, origin) { name in
            let candidate = Place(directory: place.directory, name: name)
            try admitEntry(at: candidate)
            return !state.holders(of: candidate).isEmpty
        }
    }

    // MARK: The unchanged

    /// Brings the unchanged holder of a place into the merged state, for something came there.
    mutating func admitEntry(at place: Place) throws {
        if let entry = try surroundings.entry(at: place) { admit(entry.record, entry.link) }
    }

    private mutating func admit(_ record: Record, _ link: PlacedLink) {
        // Once only: since then it may have been moved, or have become one with another.
        guard admitted.insert(link.link.id).inserted else { return }
        if state.inodes[record.id] != nil {
            state.add(link, to: record.id)
        } else {
            unchanged.insert(record.id)
            state.add(Inode(record, links: [link]))
        }
    }

    // MARK: Step 7

    mutating func resolveNames() throws {
        while let place = state.nextClash() {
            dropDoubleLinks(at: place)
            try uniteDirectories(at: place)
            uniteTwins(at: place)
            try renameLosers(at: place)
        }
    }

    private func inodes(at place: Place) -> [Inode] {
        Set(state.holders(of: place).map(\.id)).sorted().compactMap { state.inodes[$0] }
    }

    private mutating func dropDoubleLinks(at place: Place) {
        var previous: LineageID?
        for holder in state.holders(of: place).sorted() {
            if holder.id == previous { state.remove(holder) }
            previous = holder.id
        }
    }

    /// Directories of one name become the one with the lowest id.
    private mutating func uniteDirectories(at place: Place) throws {
        let directories = inodes(at: place).filter(\.isDirectory).map(\.id)
        guard let kept = directories.first else { return }
        for directory in directories.dropFirst() {
            for entry in try surroundings.entries(of: directory) { admit(entry.record, entry.link) }
            for name in state.names(in: directory) {
                let target = Place(directory: kept, name: name)
                for holder in state.holders(of: Place(directory: directory, name: name)).sorted() {
                    try admitEntry(at: target)
                    state.move(holder, to: target)
                }
            }
            absorb(directory, into: kept)
        }
    }

    /// The same bytes created twice under one name are one file.
    private mutating func uniteTwins(at place: Place) {
        let newborn = inodes(at: place).filter { inode in
            !inode.isDirectory && inode.links.count == 1 && !unchanged.contains(inode.id)
                && inBases(inode.id).allSatisfy { $0 == nil }
        }
        var kept: [Inode] = []
        for inode in newborn.sorted(by: Inode.isOlder) {
            let body = inode.record.content.value.body
            if let older = kept.first(where: { $0.record.content.value.body == body }) {
                absorb(inode.id, into: older.id)
            } else {
                kept.append(inode)
            }
        }
    }

    /// Ends one inode in favour of another at the same place, which takes the later of each group
    /// but keeps its id and number.
    private mutating func absorb(_ ended: LineageID, into kept: LineageID) {
        guard let other = state.inodes[ended]?.record, var record = state.inodes[kept]?.record
        else {
            return
        }
        let stamp = state.inodes[ended]?.newestLink?.stamp
        state.removeInode(ended)
        if record.content.stamp < other.content.stamp { record.content = other.content }
        record.mode = MergeFieldRule.later(record.mode, other.mode)
        record.owner = MergeFieldRule.later(record.owner, other.owner)
        record.xattrs.merge(other.xattrs) { MergeFieldRule.later($0, $1) }
        state.inodes[kept]?.record = record
        if let link = state.inodes[kept]?.firstLink, let stamp, link.stamp < stamp {
            state.inodes[kept]?.links[link.link.id]?.link.stamp = stamp
        }
    }

    /// One keeps the name, a directory before all others, else the one written or put there last.
    private mutating func renameLosers(at place: Place) throws {
        var claims = state.holders(of: place).compactMap { holder in
            state.inodes[holder.id].flatMap { inode in
                inode.links[holder.link].map { link in
                    Claim(
                        isDirectory: inode.isDirectory, holder: holder,
                        stamp: max(link.stamp, inode.record.content.stamp))
                }
            }
        }
        claims.sort(by: Claim.isWeaker)
        for claim in claims.dropLast() {
            let origin = ConflictOrigin(stamp: claim.stamp, id: claim.holder.id)
            let name = try freeName(for: place, origin)
            state.move(claim.holder, to: Place(directory: place.directory, name: name))
        }
    }

    // MARK: Numbers

    /// Two creations that drew the same inode number: the later one is renumbered.
    mutating func separateInodeNumbers() {
        var owners: [InodeNumber: [LineageID]] = [:]
        for inode in state.inodes.values { owners[inode.record.ino, default: []].append(inode.id) }
        for ids in owners.values where ids.count > 1 {
            let claimants = ids.compactMap { state.inodes[$0] }.sorted(by: Inode.isOlder)
            for inode in claimants.dropFirst() {
                state.inodes[inode.id]?.record.ino = MergeIdentity.renumbered(
                    inode.id, stamp: inode.record.content.stamp)
            }
        }
    }
}

/// One inode's title to a name that several hold.
private struct Claim {
    let isDirectory: Bool
    let holder: MergedState.Holder
    let stamp: Stamp

    static func isWeaker(_ a: Claim, _ b: Claim) -> Bool {
        if a.isDirectory != b.isDirectory { return b.isDirectory }
        return (a.stamp, a.holder) < (b.stamp, b.holder)
    }
}
