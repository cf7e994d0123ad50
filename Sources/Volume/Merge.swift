/// The three-way merge of two fragments over a set of bases: steps 2 to 7 of the rules, on values
/// alone. What goes in and out of trees is the business of the extraction and the encoding.
///
/// Deterministic and symmetric: every loop runs in id order, every choice is a total order, the
/// sides enter alike. A merge changes values and never invents stamps.
struct Merge<Surroundings: MergeSurroundings> {
    struct Input {
        var a: Fragment
        var b: Fragment
        /// The inode in each base, in any order, but always the same.
        var inBases: (LineageID) -> [Inode?]
        /// Content below it that only a rename or link would keep alive stays deleted.
        var horizon: Stamp?
        /// (name, losing stamp, is this name taken) -> the name of a conflict copy.
        var conflictName: (FileName, ConflictOrigin, (FileName) throws -> Bool) throws -> FileName
        var defects: MergeDefects = []
    }

    let input: Input
    let fields: MergeFieldRule
    var surroundings: Surroundings
    var state = MergedState()
    /// Content that lost against a concurrent edit, by the id that the two edits share.
    var overruled: [(winner: LineageID, record: Record)] = []
    /// Where step 5 put directories without a side having had them there.
    var arrivals: [Place] = []
    /// What came in from the surroundings: links, and the inodes that came with them.
    var admitted: Set<LinkID> = []
    var unchanged: Set<LineageID> = []

    /// The merged fragment: every inode of the fragments that lives, and every one from the
    /// surroundings that had to move.
    static func run(_ input: Input, surroundings: inout Surroundings) throws -> Fragment {
        var merge = Merge(input: input, surroundings: surroundings)
        try merge.decideSurvival()
        merge.returnDirectories()
        if !input.defects.contains(.cyclesIgnored) {
            merge.undoCycles()
            merge.limitDepth()
        }
        merge.state.indexNames()
        for place in merge.arrivals { try merge.admitEntry(at: place) }
        try merge.placeCopies()
        try merge.resolveNames()
        merge.separateInodeNumbers()
        surroundings = merge.surroundings
        return merge.state.inodes
    }

    private init(input: Input, surroundings: Surroundings) {
        self.input = input
        self.surroundings = surroundings
        fields = MergeFieldRule(defects: input.defects)
    }

    func inBases(_ id: LineageID) -> [Inode?] {
        let all = input.inBases(id)
        return input.defects.contains(.onlyOneBase) ? Array(all.prefix(1)) : all
    }

    // MARK: Steps 2 and 3

    private mutating func decideSurvival() throws {
        for id in Set(input.a.keys).union(input.b.keys).sorted() {
            switch (input.a[id], input.b[id]) {
            case (let a?, let b?):
                state.inodes[id] = a == b ? a : try united(a, b, bases: inBases(id))
            case (let one?, nil), (nil, let one?):
                if outlives(one, bases: inBases(id)) { state.inodes[id] = one }
            case (nil, nil):
                preconditionFailure("the id came from one of the sides")
            }
        }
    }

    /// Whether an inode that the other side does not have lives. Changed attributes alone do not
    /// revive, else a recursive chmod against a recursive removal would bring all back.
    private func outlives(_ one: Inode, bases: [Inode?]) -> Bool {
        if bases.allSatisfy({ $0 == nil }) { return true }
        if one.isDirectory { return false }
        let content = ContentField(one.record)
        if fields.isChanged(content, since: bases.map { $0.map { ContentField($0.record) } }) {
            return true
        }
        if let horizon = input.horizon, content.stamp < horizon { return false }
        return one.links.values.contains { link in
            fields.isChanged(link, since: bases.map { $0?.links[link.link.id] })
        }
    }

    private mutating func united(_ a: Inode, _ b: Inode, bases: [Inode?]) throws -> Inode {
        let records = bases.map { $0?.record }
        let record = unitedRecord(a.record, b.record, bases: records)
        var links = unitedLinks(a, b, bases: bases)
        if record.isDirectory, links.count > 1 {
            links = links.max(by: PlacedLink.isOlder).map { [$0] } ?? []
        }
        if links.isEmpty, record.id != .root, !input.defects.contains(.lastLinkNotKept),
            surroundings.otherLinkCount(of: record.id) == 0
        {
            // Each side removed another name of a hard link; neither wanted the content gone.
            let candidates = Array(a.links.values) + Array(b.links.values)
            links = candidates.max(by: PlacedLink.isOlder).map { [$0] } ?? []
        }
        return Inode(record, links: links)
    }

    private mutating func unitedRecord(_ a: Record, _ b: Record, bases: [Record?]) -> Record {
        var content = fields.choose(
            ContentField(a), ContentField(b), bases: bases.map { $0.map(ContentField.init) })
        if let loser = content.overruled, content.kept.content.value.body != .directory,
            loser.content.value.body == .directory
        {
            // Two births under one id; entries below the directory need it.
            content = MergeChoice(kept: loser, overruled: content.kept)
        }
        if let loser = content.overruled,
            loser.content.value.body != content.kept.content.value.body
        {
            overruled.append((a.id, ContentField(a) == loser ? a : b))
        }
        return Record(
            id: a.id, ino: content.kept.ino, content: content.kept.content,
            mode: fields.choose(a.mode, b.mode, bases: bases.map { $0?.mode }).kept,
            owner: fields.choose(a.owner, b.owner, bases: bases.map { $0?.owner }).kept,
            xattrs: unitedXattrs(a, b, bases: bases))
    }

    private func unitedXattrs(
        _ a: Record, _ b: Record, bases: [Record?]
    ) -> [[UInt8]: Stamped<[UInt8]>] {
        var united: [[UInt8]: Stamped<[UInt8]>] = [:]
        for name in Set(a.xattrs.keys).union(b.xattrs.keys) {
            united[name] = survivor(
                a.xattrs[name], b.xattrs[name], bases: bases.map { $0?.xattrs[name] })
        }
        // Each side is within the limits of a record; together they may not be.
        let bytes = united.reduce(0) { $0 + 3 * $1.key.count + 2 * $1.value.value.count + 64 }
        if bytes > Limits.recordBytesMax / 2, united != a.xattrs, united != b.xattrs {
            let isLater = (a.newestStamp, a.mode.stamp) > (b.newestStamp, b.mode.stamp)
            return isLater ? a.xattrs : b.xattrs
        }
        return united
    }

    private func unitedLinks(_ a: Inode, _ b: Inode, bases: [Inode?]) -> [PlacedLink] {
        Set(a.links.keys).union(b.links.keys).sorted().compactMap { id in
            survivor(a.links[id], b.links[id], bases: bases.map { $0?.links[id] })
        }
    }

    /// The rule for groups that may be absent, which leaves no stamp: on both sides, the later
    /// change; on one side only, it stays if that side has changed it, else the other removed it.
    private func survivor<Field: MergeField>(_ a: Field?, _ b: Field?, bases: [Field?]) -> Field? {
        switch (a, b) {
        case (let a?, let b?): fields.choose(a, b, bases: bases).kept
        case (let one?, nil), (nil, let one?): fields.isChanged(one, since: bases) ? one : nil
        case (nil, nil): nil
        }
    }
}

/// Who lost a name or a conflict, and when: what the name of the copy tells.
struct ConflictOrigin {
    let stamp: Stamp
    let id: LineageID
}
