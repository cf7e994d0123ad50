import CStore
import Glibc
public import SystemPackage
public import Volume

/// What lies under a file in `staging/` that has the changed blocks only: where a block of that file
/// is a hole, the bytes of a published file show through, as far as they are visible.
///
/// A block is changed exactly when it is data (`SEEK_DATA`), so that a change and the note of it are
/// one step, whatever is killed. Only on disks that keep the two apart (`DiskFacts.supportsOverlays`).
public struct Overlay: Hashable, Sendable {
    /// What is written, or still shows through, as a whole. Of a disk with larger blocks the size of
    /// its own is found by the same look for data.
    public static let blockBytes: UInt64 = 4096
    /// Stretches that show through: where more are needed, zeros are written.
    public static let visibleMax = 1024

    /// One after the other: the published bytes. Their files are hard-linked beside the staging file.
    public let bases: [Extent]
    /// Offsets in the file, ascending, apart from one another.
    public private(set) var visible: [Range<UInt64>]

    /// - Parameter keeping: how many of the bytes are visible.
    public init(over bases: [Extent], keeping: UInt64) {
        self.bases = bases
        visible = [0..<min(keeping, bases.reduce(0) { $0 + $1.length })].filter { !$0.isEmpty }
    }

    /// What was cut off does not come back when the file grows again.
    public mutating func cut(to length: UInt64) {
        // Never more stretches than before.
        _ = hide(length..<UInt64.max)
    }

    /// Zeros instead, where nothing was changed.
    ///
    /// - Returns: false when that would make too many stretches; nothing happened then.
    public mutating func hide(_ range: Range<UInt64>) -> Bool {
        let rest = visible.flatMap { shown in
            [
                shown.clamped(to: 0..<range.lowerBound),
                shown.clamped(to: range.upperBound..<UInt64.max),
            ].filter { !$0.isEmpty }
        }
        guard rest.count <= Self.visibleMax else { return false }
        visible = rest
        return true
    }

    public func shows(_ range: Range<UInt64>) -> Bool {
        visible.contains { $0.overlaps(range) }
    }
}

// MARK: In the catalog

extension Overlay {
    private static let format: UInt8 = 1

    /// `format` (1 byte), the bases: how many, each root and length; the visible ranges: how many, each
    /// begin and end. Numbers of 8 bytes, the least significant first.
    public var encoded: [UInt8] {
        var bytes = [Self.format]
        func append(_ number: UInt64) {
            withUnsafeBytes(of: number.littleEndian) { bytes += $0 }
        }
        append(UInt64(bases.count))
        for base in bases {
            bytes += base.root.bytes
            append(base.length)
        }
        append(UInt64(visible.count))
        for range in visible {
            append(range.lowerBound)
            append(range.upperBound)
        }
        return bytes
    }

    public init?(encoded: [UInt8]) {
        var rest = encoded.dropFirst()
        func take(_ count: Int) -> [UInt8]? {
            guard rest.count >= count else { return nil }
            defer { rest = rest.dropFirst(count) }
            return Array(rest.prefix(count))
        }
        func number() -> UInt64? { take(8)?.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
        guard encoded.first == Self.format, let baseCount = number() else { return nil }
        var bases: [Extent] = []
        while bases.count < baseCount {
            guard let bytes = take(Merkle.hashBytes), let root = ContentRoot(bytes: bytes),
                let length = number()
            else { return nil }
            bases.append(Extent(root: root, length: length))
        }
        guard let visibleCount = number() else { return nil }
        var visible: [Range<UInt64>] = []
        while visible.count < visibleCount {
            guard let lower = number(), let upper = number(), lower < upper,
                lower >= visible.last?.upperBound ?? 0
            else { return nil }
            visible.append(lower..<upper)
        }
        guard rest.isEmpty else { return nil }
        self.bases = bases
        self.visible = visible
    }
}

// MARK: Its files

/// An overlay with its files open; whose descriptors stay the caller's.
public struct OverlaidFile: Sendable {
    public struct Segment: Hashable, Sendable {
        public enum Source: Hashable, Sendable {
            /// The staging file, at the same offset.
            case changed
            case base(Int, offset: UInt64)
            case zeros
        }
        public let source: Source
        public let range: Range<UInt64>
    }

    /// Looked at in one go while composing.
    private static let composedBytes: UInt64 = 64 << 20

    public let overlay: Overlay
    /// The staging file.
    public let changes: FileDescriptor
    public let bases: [FileDescriptor]

    public init(_ overlay: Overlay, changes: FileDescriptor, bases: [FileDescriptor]) {
        self.overlay = overlay
        self.changes = changes
        self.bases = bases
    }

    public var length: UInt64 {
        get throws(StoreError) { try FileStatus(of: changes.rawValue).size }
    }

    /// Where the bytes of a range are, in order.
    public func segments(in range: Range<UInt64>) throws(StoreError) -> [Segment] {
        var found: [Segment] = []
        var position = range.lowerBound
        while position < range.upperBound {
            let data = min(
                try nextData(in: changes.rawValue, from: position), range.upperBound)
            appendUnchanged(position..<data, to: &found)
            guard data < range.upperBound else { break }
            position = try nextHole(in: changes.rawValue, from: data, end: range.upperBound)
            found.append(Segment(source: .changed, range: data..<position))
        }
        return found
    }

    private func appendUnchanged(_ range: Range<UInt64>, to found: inout [Segment]) {
        var position = range.lowerBound
        func appendZeros(to end: UInt64) {
            guard position < end else { return }
            found.append(Segment(source: .zeros, range: position..<end))
            position = end
        }
        for shown in overlay.visible where shown.overlaps(range) {
            let shown = shown.clamped(to: range)
            appendZeros(to: shown.lowerBound)
            var begin: UInt64 = 0
            for (index, base) in overlay.bases.enumerated() {
                let part = (begin..<begin + base.length).clamped(to: shown)
                if !part.isEmpty {
                    found.append(
                        Segment(
                            source: .base(index, offset: part.lowerBound - begin), range: part))
                }
                begin += base.length
            }
            position = shown.upperBound
        }
        appendZeros(to: range.upperBound)
    }

    /// What a read gets: less at the end of the file, nothing behind it.
    public func bytes(from offset: UInt64, size: Int) throws(StoreError) -> [UInt8] {
        let length = try length
        guard offset < length else { return [] }
        return try bytes(in: offset..<min(offset + UInt64(size), length))
    }

    /// The offset of the next data or hole; what shows through counts as data. Throws ENXIO where
    /// there is none.
    public func seek(from offset: UInt64, toHole: Bool) throws(StoreError) -> UInt64 {
        let length = try length
        if offset < length {
            let found = try segments(in: offset..<length).first { ($0.source == .zeros) == toHole }
            if let found { return found.range.lowerBound }
            if toHole { return length }
        }
        throw StoreError("lseek", .noSuchAddressOrDevice)
    }

    /// The bytes of a range within the file.
    public func bytes(in range: Range<UInt64>) throws(StoreError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: range.count)
        for segment in try segments(in: range) {
            let (file, offset): (FileDescriptor, UInt64)
            switch segment.source {
            case .changed: (file, offset) = (changes, segment.range.lowerBound)
            case .base(let index, let inBase): (file, offset) = (bases[index], inBase)
            case .zeros: continue
            }
            let start = Int(segment.range.lowerBound - range.lowerBound)
            var failure: StoreError?
            bytes.withUnsafeMutableBytes { buffer in
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: buffer[start..<start + segment.range.count])
                do throws(StoreError) {
                    // Less when it was cut off since it was looked at.
                    _ = try read(into: part, from: file.rawValue, at: offset, "overlay")
                } catch { failure = error }
            }
            if let failure { throw failure }
        }
        return bytes
    }

    /// Writes into the file, which becomes longer where that is needed. One at a time.
    ///
    /// - Returns: how much was written: all, unless the disk became full.
    public func change(
        _ data: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(StoreError) -> Int {
        guard !data.isEmpty else { return 0 }
        let end = offset + UInt64(data.count)
        let length = try length
        // What of the first and the last block is not written must be in them all the same.
        try keepBlock(at: offset, besides: offset..<end, length)
        if end / Overlay.blockBytes != offset / Overlay.blockBytes {
            try keepBlock(at: end, besides: offset..<end, length)
        }
        return try Store.writeSome(data, to: changes, at: offset)
    }

    /// Puts what shows through in a block into it: changes nothing that is read.
    private func keepBlock(
        at offset: UInt64, besides written: Range<UInt64>, _ length: UInt64
    ) throws(StoreError) {
        let begin = offset - offset % Overlay.blockBytes
        let block = begin..<min(begin + Overlay.blockBytes, max(length, begin))
        let isCovered =
            written.lowerBound <= block.lowerBound && block.upperBound <= written.upperBound
        guard !block.isEmpty, !isCovered, overlay.shows(block) else { return }
        let isShown = try segments(in: block).contains { segment in
            if case .base = segment.source { true } else { false }
        }
        guard isShown else { return }
        try write(try bytes(in: block), to: changes.rawValue, at: begin, "overlay")
    }

    /// Copies the whole file into an empty one; holes stay holes.
    public func compose(
        into target: FileDescriptor, cancellation: Cancellation? = nil
    ) throws(StoreError) {
        let length = try length
        try system("ftruncate") { cstore_ftruncate(target.rawValue, length) }
        var position: UInt64 = 0
        while position < length {
            let end = min(position + Self.composedBytes, length)
            for segment in try segments(in: position..<end) {
                switch segment.source {
                case .zeros: continue
                case .changed:
                    try Cloning.copy(
                        from: changes.rawValue, segment.range, to: target.rawValue,
                        at: segment.range.lowerBound, isSparse: false, cancellation)
                case .base(let index, let offset):
                    try Cloning.copy(
                        from: bases[index].rawValue,
                        offset..<offset + UInt64(segment.range.count), to: target.rawValue,
                        at: segment.range.lowerBound, isSparse: true, cancellation)
                }
            }
            position = end
        }
    }
}
