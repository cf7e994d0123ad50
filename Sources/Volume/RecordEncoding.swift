/// A blob in a directory, as its `%dir`, or in `inode/`: one text for every state.
///
/// ```
/// record 1                          kind of blob and version
/// content <stamp>                   the group of kind, content and mtime
/// device <major> <minor>            device nodes only
/// extent <root> <length>            in the order of the file
/// id <16 hex>
/// ino <16 hex>                      absent: as `id`
/// kind directory|symlink|…          absent: file
/// link <16 hex> <stamp>             its one link: absent in `inode/` and for the top directory
/// links <count>                     in `inode/` only
/// mode <octal> [<stamp>]            absent stamps: as that of the content
/// mtime <seconds>.<nanoseconds>
/// owner <uid> <gid> [<stamp>]
/// xattr <name> =<value hex> [<stamp>]
///
/// <inline bytes, or a symlink's target>
/// ```
///
/// The place of a link to a record that lies in `inode/` holds `place 1`, `id` and `link`.
public enum EntryBlob: Hashable, Sendable {
    /// A file, symlink or special file at the place of its only link, or the `%dir` of a directory.
    /// The link's target is the record.
    case single(Record, Link)
    /// The `%dir` of the top directory, which has no link.
    case top(Record)
    /// In `inode/`: what has more than one link. Never a directory.
    case shared(Record, links: Int)
    /// At each place of a shared record.
    case reference(Link)

    public var record: Record? {
        switch self {
        case .single(let record, _), .top(let record), .shared(let record, _): record
        case .reference: nil
        }
    }

    public var link: Link? {
        switch self {
        case .single(_, let link), .reference(let link): link
        case .top, .shared: nil
        }
    }

    /// The canonical bytes.
    ///
    /// Throws when a limit of the format is exceeded, so that no node writes what others refuse.
    public func encoded() throws(InvalidTree) -> [UInt8] {
        try validate()
        let bytes = text()
        guard bytes.count <= Limits.recordBytesMax else {
            throw InvalidTree("a record of \(bytes.count) bytes")
        }
        return bytes
    }

    /// Accepts exactly what `encoded` gives.
    public init(decoding bytes: [UInt8]) throws(InvalidTree) {
        guard bytes.count <= Limits.recordBytesMax else {
            throw InvalidTree("a record of \(bytes.count) bytes")
        }
        var reader = LineReader(bytes)
        if reader.optional("place") != nil {
            self = try Self.parseReference(&reader)
        } else {
            self = try Self.parseRecord(&reader)
        }
        try validate()
        guard text() == bytes else { throw InvalidTree("a record that is not in canonical form") }
    }
}

// MARK: - Encoding

extension EntryBlob {
    private func text() -> [UInt8] {
        var out = LineWriter()
        switch self {
        case .reference(let link):
            out.key("place 1\nid")
            out.identity(link.target.rawValue)
            out.end()
            Self.write(link, to: &out)
        case .single(let record, let link):
            Self.write(record, to: &out) { Self.write(link, to: &$0) }
        case .top(let record):
            Self.write(record, to: &out) { _ in }
        case .shared(let record, let links):
            Self.write(record, to: &out) {
                $0.key("links")
                $0.decimal(links)
                $0.end()
            }
        }
        return out.bytes
    }

    private static func write(_ link: Link, to out: inout LineWriter) {
        out.key("link")
        out.identity(link.id.rawValue)
        out.stamp(link.stamp)
        out.end()
    }

    private static func write(
        _ record: Record, to out: inout LineWriter, links: (inout LineWriter) -> Void
    ) {
        let content = record.content
        out.key("record 1\ncontent")
        out.stamp(content.stamp)
        out.end()
        let (kind, body) = writeBody(content.value.body, to: &out)
        out.key("id")
        out.identity(record.id.rawValue)
        if record.ino.rawValue != record.id.rawValue {
            out.key("\nino")
            out.identity(record.ino.rawValue)
        }
        if let kind {
            out.key("\nkind")
            out.word(kind)
        }
        out.end()
        links(&out)
        writeAttributes(record, to: &out)
        if !body.isEmpty {
            out.end()
            out.raw(body)
        }
    }

    /// The lines that stand before `id`; returns the kind (nil for a file) and what follows at the end.
    private static func writeBody(_ body: Body, to out: inout LineWriter) -> (String?, [UInt8]) {
        func device(_ major: UInt32, _ minor: UInt32) {
            out.key("device")
            out.decimal(major)
            out.decimal(minor)
            out.end()
        }
        switch body {
        case .file(.inline(let bytes)): return (nil, bytes)
        case .file(.extents(let extents)):
            for extent in extents {
                out.key("extent")
                out.hexBytes(extent.root.bytes)
                out.decimal(extent.length)
                out.end()
            }
            return (nil, [])
        case .directory: return ("directory", [])
        case .symlink(let target): return ("symlink", target)
        case .fifo: return ("fifo", [])
        case .socket: return ("socket", [])
        case .characterDevice(let major, let minor):
            device(major, minor)
            return ("character", [])
        case .blockDevice(let major, let minor):
            device(major, minor)
            return ("block", [])
        }
    }

    private static func writeAttributes(_ record: Record, to out: inout LineWriter) {
        func end(_ stamp: Stamp) {
            if stamp != record.content.stamp { out.stamp(stamp) }
            out.end()
        }
        out.key("mode")
        out.octal(record.mode.value)
        end(record.mode.stamp)
        out.key("mtime")
        out.time(record.content.value.modified)
        out.end()
        out.key("owner")
        out.decimal(record.owner.value.uid)
        out.decimal(record.owner.value.gid)
        end(record.owner.stamp)
        let names = record.xattrs.keys.sorted { $0.lexicographicallyPrecedes($1) }
        for name in names {
            guard let xattr = record.xattrs[name] else { continue }
            out.key("xattr")
            out.escaped(name)
            out.hexBytes(xattr.value, prefix: "=")
            end(xattr.stamp)
        }
    }
}

// MARK: - Decoding

extension EntryBlob {
    private static func parseReference(_ reader: inout LineReader) throws(InvalidTree) -> Self {
        var line = try reader.required("id")
        let id = LineageID(rawValue: try line.identity())
        line = try reader.required("link")
        return .reference(try parseLink(&line, target: id))
    }

    private static func parseLink(
        _ line: inout LineFields, target: LineageID
    ) throws(InvalidTree) -> Link {
        Link(
            id: LinkID(rawValue: try line.identity()), stamp: try line.stamp(), target: target)
    }

    private static func parseRecord(_ reader: inout LineReader) throws(InvalidTree) -> Self {
        _ = try reader.required("record")
        var line = try reader.required("content")
        let stamp = try line.stamp()
        var device: (UInt32, UInt32)?
        if var line = reader.optional("device") {
            device = (try line.decimal(), try line.decimal())
        }
        var extents: [Extent] = []
        while var line = reader.optional("extent") {
            guard let root = ContentRoot(bytes: try line.hexBytes()) else {
                throw InvalidTree("a content root of another length")
            }
            extents.append(Extent(root: root, length: try line.decimal()))
        }
        line = try reader.required("id")
        let id = try line.identity()
        var ino = id
        if var line = reader.optional("ino") { ino = try line.identity() }
        var kind: [UInt8] = []
        if var line = reader.optional("kind") { kind = Array(try line.word()) }
        var link: Link?
        if var line = reader.optional("link") {
            link = try parseLink(&line, target: LineageID(rawValue: id))
        }
        var count: Int?
        if var line = reader.optional("links") { count = try line.decimal() }
        line = try reader.required("mode")
        let mode = Stamped(try line.octal(), try line.stamp(default: stamp))
        line = try reader.required("mtime")
        let modified = try line.time()
        line = try reader.required("owner")
        let owner = Owner(uid: try line.decimal(), gid: try line.decimal())
        let owned = Stamped(owner, try line.stamp(default: stamp))
        let xattrs = try parseXattrs(&reader, default: stamp)
        let body = try parseBody(kind, device, extents, try reader.body())
        let record = Record(
            id: LineageID(rawValue: id), ino: InodeNumber(rawValue: ino),
            content: Stamped(BodyGroup(body: body, modified: modified), stamp), mode: mode,
            owner: owned, xattrs: xattrs)
        return switch (link, count) {
        case (let link?, _): .single(record, link)
        case (nil, let count?): .shared(record, links: count)
        case (nil, nil): .top(record)
        }
    }

    private static func parseXattrs(
        _ reader: inout LineReader, default stamp: Stamp
    ) throws(InvalidTree) -> [[UInt8]: Stamped<[UInt8]>] {
        var xattrs: [[UInt8]: Stamped<[UInt8]>] = [:]
        while var line = reader.optional("xattr") {
            let name = try line.escaped()
            let value = try line.hexBytes(prefix: "=")
            xattrs[name] = Stamped(value, try line.stamp(default: stamp))
        }
        return xattrs
    }

    private static func parseBody(
        _ kind: [UInt8], _ device: (UInt32, UInt32)?, _ extents: [Extent], _ rest: [UInt8]
    ) throws(InvalidTree) -> Body {
        func named(_ name: String) -> Bool { kind.elementsEqual(name.utf8) }
        if kind.isEmpty { return .file(extents.isEmpty ? .inline(rest) : .extents(extents)) }
        if named("directory") { return .directory }
        if named("symlink") { return .symlink(rest) }
        if named("fifo") { return .fifo }
        if named("socket") { return .socket }
        if let (major, minor) = device {
            if named("character") { return .characterDevice(major: major, minor: minor) }
            if named("block") { return .blockDevice(major: major, minor: minor) }
        }
        throw InvalidTree("a kind of inode that is none")
    }
}

// MARK: - Limits

extension EntryBlob {
    private func validate() throws(InvalidTree) {
        if let link {
            try Self.validate(identity: link.id.rawValue)
            try Self.validate(identity: link.target.rawValue)
            try Self.validate(link.stamp)
        }
        guard let record else { return }
        try record.validate()
        switch self {
        case .single(_, let link):
            guard link.target == record.id else { throw InvalidTree("a link to another record") }
            guard record.id != .root else { throw InvalidTree("a link to the top directory") }
        case .top:
            guard record.id == .root, record.isDirectory else {
                throw InvalidTree("a record without a link")
            }
        case .shared(_, let links):
            guard links > 1, !record.isDirectory else {
                throw InvalidTree("a shared record with \(links) links")
            }
        case .reference: break
        }
    }

    fileprivate static func validate(identity: UInt64) throws(InvalidTree) {
        guard identity > 0, identity < 1 << 63 else { throw InvalidTree("an id beyond 63 bits") }
    }

    fileprivate static func validate(_ stamp: Stamp) throws(InvalidTree) {
        guard stamp.milliseconds < Limits.stampMillisecondsEnd else {
            throw InvalidTree("a stamp beyond the year 2200")
        }
    }
}

extension Record {
    /// Throws when a limit of the format is exceeded.
    func validate() throws(InvalidTree) {
        try EntryBlob.validate(identity: id.rawValue)
        try EntryBlob.validate(identity: ino.rawValue)
        try EntryBlob.validate(content.stamp)
        try EntryBlob.validate(mode.stamp)
        try EntryBlob.validate(owner.stamp)
        guard mode.value <= 0o7777 else { throw InvalidTree("a mode beyond 7777") }
        guard content.value.modified.nanoseconds < 1_000_000_000 else {
            throw InvalidTree("a time of more than 999,999,999 ns")
        }
        for (name, xattr) in xattrs {
            try EntryBlob.validate(xattr.stamp)
            guard !name.isEmpty, name.count <= Limits.xattrNameBytesMax, !name.contains(0),
                xattr.value.count <= Limits.xattrValueBytesMax
            else { throw InvalidTree("an xattr beyond its limits") }
        }
        try content.value.body.validate()
    }
}

extension Body {
    fileprivate func validate() throws(InvalidTree) {
        switch self {
        case .file(.inline(let bytes)):
            guard bytes.count <= Limits.inlineBytesMax else {
                throw InvalidTree("\(bytes.count) inline bytes")
            }
        case .file(.extents(let extents)):
            guard !extents.isEmpty else { throw InvalidTree("no extents") }
            var total: UInt64 = 0
            for extent in extents {
                guard extent.length > 0, extent.length <= Limits.extentBytesMax else {
                    throw InvalidTree("an extent of \(extent.length) bytes")
                }
                total += extent.length
                guard total <= Limits.fileBytesMax else { throw InvalidTree("a file too large") }
            }
        case .symlink(let target):
            guard !target.isEmpty, target.count <= Limits.symlinkBytesMax, !target.contains(0)
            else { throw InvalidTree("a symlink's target beyond its limits") }
        case .directory, .fifo, .socket, .characterDevice, .blockDevice: break
        }
    }
}
