/// Steps 4 and 5: every living link hangs from the top directory, and nothing hangs from itself.
extension Merge {
    /// The inode of an id in either side; where both have it, it already lives.
    private func inSides(_ id: LineageID) -> Inode? {
        let one = input.a[id] ?? input.b[id]
        guard input.defects.contains(.directoriesReturnFromBase) else { return one }
        return inBases(id).lazy.compactMap(\.self).first ?? one
    }

    func isKnown(_ id: LineageID) -> Bool {
        input.a[id] != nil || input.b[id] != nil || inBases(id).contains { $0 != nil }
    }

    /// A directory that holds something living lives, its record alone: deleting a directory
    /// against adding inside it brings it back with the additions only.
    mutating func returnDirectories() {
        var missing = state.inodes.values.flatMap { $0.links.values.map(\.place.directory) }
        while let id = missing.popLast() {
            guard state.inodes[id] == nil, let directory = inSides(id), directory.isDirectory,
                let link = directory.newestLink
            else { continue }
            state.inodes[id] = Inode(directory.record, links: [link])
            missing.append(link.place.directory)
        }
    }

    /// Two moves that put directories into each other: the later one is undone. Cycles are taken by
    /// their lowest member, for where one goes may depend on where another one went.
    mutating func undoCycles() {
        var undone: Set<LineageID> = []
        var rooted: Set<LineageID> = []
        for id in state.inodes.values.filter(\.isDirectory).map(\.id).sorted() {
            while let cycle = cycle(above: id, rooted: &rooted), cycle.contains(id) {
                // A cycle has members, each with its one link: the walk followed it.
                guard let latest = cycle.max(by: { isEarlierMove($0, $1) }),
                    let link = state.inodes[latest]?.newestLink
                else { break }
                var place = Place(directory: .root, name: link.place.name)
                if undone.insert(latest).inserted, let earlier = placeInBases(latest) {
                    place = earlier
                }
                state.inodes[latest]?.links[link.link.id]?.place = place
                arrivals.append(place)
            }
        }
    }

    /// Moves that are fine each may put directories deeper than any commit may have them: the
    /// latest on the way up goes to the top. A merge of valid commits never fails.
    mutating func limitDepth() {
        var depths: [LineageID: Int] = [.root: 0]
        for id in state.inodes.values.filter(\.isDirectory).map(\.id).sorted() {
            while true {
                let path = pathToTop(of: id, until: depths)
                let known = path.last.flatMap { parent(of: $0) }.flatMap { depths[$0] } ?? 0
                if known + path.count <= Limits.directoryDepthMax {
                    for (height, id) in path.reversed().enumerated() {
                        depths[id] = known + height + 1
                    }
                    break
                }
                let whole = pathToTop(of: id, until: [.root: 0])
                let movable = whole.filter { parent(of: $0) != .root }
                guard let latest = movable.max(by: { isEarlierMove($0, $1) }),
                    let link = state.inodes[latest]?.newestLink
                else { break }
                let place = Place(directory: .root, name: link.place.name)
                state.inodes[latest]?.links[link.link.id]?.place = place
                arrivals.append(place)
                depths = [.root: 0]
            }
        }
    }

    private func parent(of directory: LineageID) -> LineageID? {
        state.inodes[directory]?.newestLink?.place.directory
    }

    /// A directory and those above it, as far as the first whose depth is known.
    private func pathToTop(
        of id: LineageID, until depths: [LineageID: Int]
    ) -> [LineageID] {
        var path: [LineageID] = []
        var at = id
        while depths[at] == nil, let parent = parent(of: at) {
            path.append(at)
            at = parent
        }
        return path
    }

    private func isEarlierMove(_ a: LineageID, _ b: LineageID) -> Bool {
        guard let first = state.inodes[a]?.newestLink, let second = state.inodes[b]?.newestLink
        else { return a < b }
        return (first.stamp, a) < (second.stamp, b)
    }

    /// The members of the cycle that the way up from a directory runs into, nil if it reaches the
    /// top. What is not in the merged state is unchanged, and so are all directories above it.
    private func cycle(above id: LineageID, rooted: inout Set<LineageID>) -> [LineageID]? {
        var path: [LineageID] = []
        var positions: [LineageID: Int] = [:]
        var at = id
        while let parent = state.inodes[at]?.newestLink?.place.directory, !rooted.contains(at) {
            if let start = positions[at] { return Array(path[start...]) }
            positions[at] = path.count
            path.append(at)
            at = parent
        }
        rooted.formUnion(path)
        return nil
    }

    private func placeInBases(_ id: LineageID) -> Place? {
        let links = inBases(id).compactMap { base -> PlacedLink? in
            base.flatMap { $0.isDirectory ? $0.newestLink : nil }
        }
        return links.sorted { PlacedLink.isOlder($1, $0) }.map(\.place).first { place in
            lives(place.directory) && !isBelow(place.directory, id)
        }
    }

    private func lives(_ directory: LineageID) -> Bool {
        state.inodes[directory]?.isDirectory ?? !isKnown(directory)
    }

    /// Whether the way up from `directory` passes `ancestor`, which may itself be in a cycle.
    private func isBelow(_ directory: LineageID, _ ancestor: LineageID) -> Bool {
        var seen: Set<LineageID> = []
        var at = directory
        while seen.insert(at).inserted {
            if at == ancestor { return true }
            guard let parent = state.inodes[at]?.newestLink?.place.directory else { return false }
            at = parent
        }
        return false
    }
}
