/// The result of a merge in the making: living inodes, and who stands where.
struct MergedState {
    /// One holder of a name.
    struct Holder: Hashable, Comparable {
        let id: LineageID
        let link: LinkID

        static func < (a: Self, b: Self) -> Bool { (a.id, a.link) < (b.id, b.link) }
    }

    var inodes: Fragment = [:]
    /// Kept by `indexNames` and the methods below; before it steps 2 to 5 work on `inodes` alone.
    private var holders: [LineageID: [FileName: [Holder]]] = [:]
    /// Places held more than once, greatest first: some may have been settled since.
    private var clashes: [Place] = []

    mutating func indexNames() {
        for inode in inodes.values {
            for placed in inode.links.values { hold(placed, by: inode.id) }
        }
        clashes = holders.flatMap { directory, names in
            names.compactMap { $1.count > 1 ? Place(directory: directory, name: $0) : nil }
        }
        clashes.sort(by: >)
    }

    func holders(of place: Place) -> [Holder] { holders[place.directory]?[place.name] ?? [] }

    func names(in directory: LineageID) -> [FileName] {
        holders[directory].map { $0.keys.sorted() } ?? []
    }

    /// The smallest place that more than one link holds.
    mutating func nextClash() -> Place? {
        while let place = clashes.last {
            if holders(of: place).count > 1 { return place }
            clashes.removeLast()
        }
        return nil
    }

    mutating func add(_ inode: Inode) {
        precondition(inodes[inode.id] == nil, "an id lives once")
        inodes[inode.id] = inode
        for placed in inode.links.values { enter(placed, of: inode.id) }
    }

    /// Adds a link to an inode that lives.
    mutating func add(_ placed: PlacedLink, to id: LineageID) {
        inodes[id]?.links[placed.link.id] = placed
        enter(placed, of: id)
    }

    /// Removes a link; an inode that loses its last one this way is removed by the caller.
    mutating func remove(_ holder: Holder) {
        guard let placed = inodes[holder.id]?.links.removeValue(forKey: holder.link) else { return }
        holders[placed.place.directory]?[placed.place.name]?.removeAll { $0 == holder }
    }

    mutating func removeInode(_ id: LineageID) {
        for link in inodes[id]?.links.keys.sorted() ?? [] { remove(Holder(id: id, link: link)) }
        inodes[id] = nil
    }

    mutating func move(_ holder: Holder, to place: Place) {
        guard var placed = inodes[holder.id]?.links[holder.link] else { return }
        remove(holder)
        placed.place = place
        add(placed, to: holder.id)
    }

    private mutating func enter(_ placed: PlacedLink, of id: LineageID) {
        hold(placed, by: id)
        guard holders(of: placed.place).count > 1 else { return }
        let at = clashes.partitioningIndex { $0 <= placed.place }
        if at == clashes.count || clashes[at] != placed.place {
            clashes.insert(placed.place, at: at)
        }
    }

    private mutating func hold(_ placed: PlacedLink, by id: LineageID) {
        let place = placed.place
        holders[place.directory, default: [:]][place.name, default: []]
            .append(Holder(id: id, link: placed.link.id))
    }
}

extension [Place] {
    /// The first index whose element fulfils a condition that holds for a suffix.
    fileprivate func partitioningIndex(where isInSuffix: (Place) -> Bool) -> Int {
        var low = 0
        var high = count
        while low < high {
            let middle = (low + high) / 2
            if isInSuffix(self[middle]) { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
