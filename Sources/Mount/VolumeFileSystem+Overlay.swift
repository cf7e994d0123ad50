import Catalog
import Glibc
import Store
import SystemPackage
import Volume

/// The blocks of a staged file that were changed, over files that are published.
///
/// **Invariant:** the row never shows more of the bases than the file has had since: what was cut off
/// or punched out stays so. A cut alone needs no row, for the staging file's length says it.
struct StagedOverlay {
    var map: Overlay
    /// The bases' objects are not given to a writer: their files are ours too.
    let uses: [ObjectUse]
    /// Open while the daemon serves from them.
    var bases: [SharedDescriptor] = []
    /// The row shows more than `map`, and the staging file ends before that.
    var isRowWider = false
}

/// An overlay with its files, which stay open as long as this.
struct OpenOverlay: Sendable {
    private let file: OverlaidFile
    private let descriptors: [SharedDescriptor]

    init(_ map: Overlay, changes: SharedDescriptor, bases: [SharedDescriptor]) {
        file = OverlaidFile(
            map, changes: changes.descriptor, bases: bases.map(\.descriptor))
        descriptors = bases + [changes]
    }

    func look<T, Failure: Error>(
        _ body: (OverlaidFile) throws(Failure) -> T
    ) throws(Failure) -> T {
        defer { withExtendedLifetime(descriptors) {} }
        return try body(file)
    }

    func read(from offset: UInt64, size: Int) throws(Errno) -> [UInt8] {
        do throws(StoreError) {
            return try look { file throws(StoreError) in try file.bytes(from: offset, size: size) }
        } catch { throw error.errno }
    }

    func seek(from offset: UInt64, toHole: Bool) throws(Errno) -> UInt64 {
        do throws(StoreError) {
            return try look { file throws(StoreError) in
                try file.seek(from: offset, toHole: toHole)
            }
        } catch { throw error.errno }
    }
}

extension Store {
    /// What shows through an overlay.
    func openBases(
        of name: StagingName, _ overlay: Overlay
    ) throws(StoreError) -> [SharedDescriptor] {
        var bases: [SharedDescriptor] = []
        for index in overlay.bases.indices {
            bases.append(SharedDescriptor(try openBase(of: name, overlay, index)))
        }
        return bases
    }
}

// Large files on disks that cannot share blocks: a writer's private version has the changed blocks
// only, and the daemon serves it, until the publisher puts the two together.
extension VolumeFileSystem {
    /// A staging file over published content, instead of a copy. Under the vnode's lock.
    func newOverlay(
        _ vnode: Vnode, _ extents: [Extent], keeping: UInt64
    ) throws(Errno) -> StagedFile {
        guard !options.isFull() else { throw .noSpace }
        let map = Overlay(over: extents, keeping: keeping)
        let uses = extents.map { publisher.users.use($0.root, for: vnode.nodeid) }
        let name = publisher.stagingName(for: vnode.ino)
        do throws(StoreError) {
            let file = SharedDescriptor(try store.createOverlay(name, map))
            var staged = StagedFile(name: name, file: file, isWritable: true)
            staged.overlay = StagedOverlay(map: map, uses: uses)
            return staged
        } catch { throw error.errno }
    }

    /// Whether a writer's copy of so much is to be an overlay.
    func isOverlaid(_ length: UInt64) -> Bool {
        length > Self.copiedLengthMax && !sharesBlocks && makesOverlays
    }

    // MARK: Its bytes

    /// nil for a vnode without an overlay. Under its lock.
    func openOverlay(_ vnode: Vnode, writing: Bool) throws(Errno) -> OpenOverlay? {
        guard var staged = vnode.state.staged, var overlay = staged.overlay else { return nil }
        let changes = try writing ? writable(staged) : readable(staged)
        if overlay.bases.isEmpty {
            do throws(StoreError) {
                overlay.bases = try store.openBases(of: staged.name, overlay.map)
            } catch { throw error.errno }
            staged.overlay = overlay
            // Closed again with the staging file.
            if vnode.state.opens > 0 { vnode.state.bytes = .staging(staged) }
        }
        return OpenOverlay(overlay.map, changes: changes, bases: overlay.bases)
    }

    /// Changes an overlay, one after the other.
    ///
    /// - Returns: nil for a vnode without one.
    private func change<T>(
        _ vnode: Vnode, _ what: StaticString, _ body: (OverlaidFile) throws -> T
    ) throws(Errno) -> T? {
        do {
            return try vnode.locked {
                try openOverlay(vnode, writing: true)?.look(body)
            }
        } catch { throw errno(error, what) }
    }

    /// - Returns: how much was written; nil for a vnode without an overlay.
    func writeOverlaid(
        _ vnode: Vnode, _ data: UnsafeRawBufferPointer, offset: UInt64
    ) throws(Errno) -> Int? {
        try change(vnode, "write") { file in
            if try offset + UInt64(data.count) > file.length { try beforeGrowing(vnode) }
            return try file.change(data, at: offset)
        }
    }

    // MARK: Its length and holes

    /// Gives a staged file another length. Under the vnode's lock.
    func resize(_ vnode: Vnode, to length: UInt64) throws(Errno) {
        guard let staged = vnode.state.staged else { throw .ioError }
        let file = try writable(staged)
        if staged.overlay != nil {
            do {
                if try store.facts(of: file.descriptor).size < length { try beforeGrowing(vnode) }
            } catch { throw errno(error, "truncate") }
        }
        guard ftruncate(file.descriptor.rawValue, off_t(length)) == 0 else {
            throw Errno(rawValue: Glibc.errno)
        }
        changeMap(vnode) { $0.cut(to: length) }
    }

    /// - Returns: whether anything was changed.
    @discardableResult
    private func changeMap(_ vnode: Vnode, _ body: (inout Overlay) -> Void) -> Bool {
        guard var staged = vnode.state.staged, var overlay = staged.overlay else { return false }
        let before = overlay.map
        body(&overlay.map)
        guard overlay.map != before else { return false }
        overlay.isRowWider = true
        staged.overlay = overlay
        vnode.state.bytes = .staging(staged)
        return true
    }

    /// What was cut off earlier must not show through again, whatever is killed. Under the lock.
    private func beforeGrowing(_ vnode: Vnode) throws {
        guard vnode.state.staged?.overlay?.isRowWider == true else { return }
        try recordOverlay(vnode)
    }

    /// The row shows what the vnode's overlay does, and survives a kill. Under the lock.
    private func recordOverlay(_ vnode: Vnode) throws {
        guard var staged = vnode.state.staged, let map = staged.overlay?.map else { return }
        // After a power cut too: then the file's own length must be on the disk first.
        store.oweSync(staged.name)
        vnode.state.isUncommitted = true
        try perform("overlay") { tx throws(Errno) in
            guard var row = try tx.staging(of: vnode.ino) else { throw .ioError }
            row.overlay = map.encoded
            try tx.setStaging(row)
        }
        try commitRows(of: vnode, "overlay")
        staged.overlay?.isRowWider = false
        vnode.state.bytes = .staging(staged)
    }

    /// fallocate(2) on an overlay; nil for a vnode without one.
    func allocateOverlaid(
        _ vnode: Vnode, mode: Int32, range: Range<UInt64>
    ) throws(Errno) -> Void? {
        try change(vnode, "fallocate") { file in
            let length = try file.length
            let isZeroing = mode & (AllocationMode.punchHole | AllocationMode.zeroRange) != 0
            let block = Overlay.blockBytes
            // A block that is given room is data: what shows through would not any more.
            let blocks =
                range.lowerBound / block * block..<(range.upperBound + block - 1) / block * block
            guard isZeroing || !file.overlay.shows(blocks) else { throw Errno.notSupported }
            let isGrowing = mode & AllocationMode.keepSize == 0 && range.upperBound > length
            if isGrowing { try beforeGrowing(vnode) }
            guard isZeroing else {
                return try store.allocate(
                    file.changes, mode: mode, offset: range.lowerBound,
                    length: UInt64(range.count))
            }
            if isGrowing { try resize(vnode, to: range.upperBound) }
            if range.lowerBound < length {
                try zero(range.clamped(to: 0..<length), vnode, file)
            }
        }
    }

    /// Whole blocks become holes, parts of blocks are written. Within the file.
    private func zero(_ range: Range<UInt64>, _ vnode: Vnode, _ file: OverlaidFile) throws {
        let block = Overlay.blockBytes
        let first = (range.lowerBound + block - 1) / block * block
        let isAtEnd = try range.upperBound == file.length
        let last = isAtEnd ? range.upperBound : range.upperBound / block * block
        var fits = true
        guard first < last else { return try writeZeros(range, file) }
        let isNews = changeMap(vnode) { fits = $0.hide(first..<last) }
        guard fits else { return try writeZeros(range, file) }
        try writeZeros(range.lowerBound..<first, file)
        try writeZeros(last..<range.upperBound, file)
        if isNews { try recordOverlay(vnode) }
        try store.allocate(
            file.changes, mode: AllocationMode.punchHole | AllocationMode.keepSize, offset: first,
            length: last - first)
    }

    private func writeZeros(_ range: Range<UInt64>, _ file: OverlaidFile) throws {
        let zeros = [UInt8](repeating: 0, count: min(range.count, 1 << 20))
        var position = range.lowerBound
        while position < range.upperBound {
            let count = Int(min(UInt64(zeros.count), range.upperBound - position))
            position += try zeros.withUnsafeBytes { buffer in
                UInt64(
                    try file.change(
                        UnsafeRawBufferPointer(rebasing: buffer[..<count]), at: position))
            }
        }
    }
}

/// Of `fallocate(2)`.
private enum AllocationMode {
    static let keepSize: Int32 = 0x01
    static let punchHole: Int32 = 0x02
    static let zeroRange: Int32 = 0x10
}
