public import Volume

/// Draws operations on a namespace: few names and few directories, so that nodes collide often.
public struct RandomOperations: Sendable {
    public var generator: SeededGenerator
    /// Different content so far: every write differs, but for the few that are drawn from a pool.
    private var written: UInt64 = 0

    public init(seed: UInt64) { generator = SeededGenerator(seed: seed) }

    /// Performs one operation; some draws are refused and change nothing.
    public mutating func perform(on space: inout Namespace, clock: inout HybridClock, wall: UInt64)
    {
        let stamp = clock.next(wall: wall)
        switch Int.random(in: 0..<100, using: &generator) {
        case 0..<18:
            space.create(
                newBody(), at: newPlace(space), id: identity(), link: identity(), stamp: stamp)
        case 18..<30:
            space.create(
                .directory, at: newPlace(space), id: identity(), link: identity(), stamp: stamp)
        case 30..<46: edit(&space, stamp)
        case 46..<54: attributes(&space, stamp)
        case 54..<60: nest(&space, stamp)
        case 60..<76:
            if let from = anyPlace(space) { space.rename(from, to: newPlace(space), stamp: stamp) }
        case 76..<84:
            if let from = anyPlace(space), let target = space.link(at: from)?.target {
                space.link(target, at: newPlace(space), link: identity(), stamp: stamp)
            }
        case 84..<96:
            if let place = anyPlace(space) { space.remove(place) }
        default:
            if let place = anyPlace(space) { space.removeTree(place) }
        }
    }

    /// Moves one directory into another: two nodes that do it make cycles.
    private mutating func nest(_ space: inout Namespace, _ stamp: Stamp) {
        let directories = space.entries.values.filter { space.isDirectory($0.link.target) }
            .sorted { $0.place < $1.place }
        guard let moved = directories.randomElement(using: &generator),
            let target = directories.randomElement(using: &generator)
        else { return }
        let place = Place(directory: target.link.target, name: moved.place.name)
        space.rename(moved.place, to: place, stamp: stamp)
    }

    private mutating func edit(_ space: inout Namespace, _ stamp: Stamp) {
        guard let id = anyFile(space) else { return }
        // An editor that saves by replacement brings another inode number.
        let ino = generator.once(in: 4) ? InodeNumber(rawValue: identity()) : nil
        if case .file(let content) = newBody() {
            space.write(content, to: id, ino: ino, stamp: stamp)
        }
    }

    private mutating func attributes(_ space: inout Namespace, _ stamp: Stamp) {
        guard let id = space.records.keys.sorted().randomElement(using: &generator) else { return }
        let value = UInt16.random(in: 0..<0o777, using: &generator)
        let name = Array("user.\(value % 3)".utf8)
        switch Int.random(in: 0..<4, using: &generator) {
        case 0: space.change(id) { $0.mode = Stamped(value, stamp) }
        case 1: space.change(id) { $0.owner = Stamped(Owner(uid: UInt32(value), gid: 0), stamp) }
        case 2:
            space.change(id) {
                $0.xattrs[name] = Stamped([UInt8(truncatingIfNeeded: value)], stamp)
            }
        default: space.change(id) { $0.xattrs[name] = nil }
        }
    }

    private mutating func newBody() -> Body {
        if generator.once(in: 6) {
            return .file(.inline([UInt8.random(in: 0..<3, using: &generator)]))
        }
        written += 1
        let mark = UInt64.random(in: 0...UInt64.max, using: &generator)
        return .file(.inline(Array("\(written) \(mark)".utf8)))
    }

    private mutating func identity() -> UInt64 {
        UInt64.random(in: 16..<1 << 62, using: &generator)
    }

    private mutating func newPlace(_ space: Namespace) -> Place {
        let directories = space.records.values.filter(\.isDirectory).map(\.id).sorted()
        // Every second time at the top, so that nodes meet there however large the volume is.
        let isAtTop = generator.once(in: 2)
        let directory = isAtTop ? .root : directories.randomElement(using: &generator) ?? .root
        let letter = UInt8.random(in: 0x61..<0x67, using: &generator)
        guard let name = FileName([letter]) else { preconditionFailure("a letter is a name") }
        return Place(directory: directory, name: name)
    }

    private mutating func anyPlace(_ space: Namespace) -> Place? {
        space.entries.values.map(\.place).sorted().randomElement(using: &generator)
    }

    private mutating func anyFile(_ space: Namespace) -> LineageID? {
        space.records.values.filter { !$0.isDirectory }.map(\.id).sorted()
            .randomElement(using: &generator)
    }
}
