import Glibc
import Simulation

/// Draws sequences of operations: a few names, so that they meet; sizes around the bounds where
/// content is kept in another way; single calls, and phrases as programs use them.
struct ModelGenerator {
    /// Of a run's first sequence.
    static let seed = environment("DELUGEFS_TEST_SEED").flatMap { UInt64($0) } ?? 1

    private var random: SeededGenerator
    private(set) var operations: [ModelOperation] = []
    private var actor = 0

    static func sequence(seed: UInt64, count: Int) -> [ModelOperation] {
        var generator = Self(random: SeededGenerator(seed: seed))
        generator.makeFirstNames()
        while generator.operations.count < count { generator.phrase() }
        return generator.operations
    }

    private init(random: SeededGenerator) { self.random = random }

    // MARK: Values

    private mutating func add(_ call: ModelOperation.Call) {
        operations.append(ModelOperation(actor, call))
    }

    private mutating func pick<Value>(_ values: Value...) -> Value {
        values[Int.random(in: values.indices, using: &random)]
    }

    private mutating func once(in times: Int) -> Bool { random.once(in: times) }

    private mutating func path() -> String {
        let name = pick("a", "b", "c", "d", "e", "f")
        switch Int.random(in: 0..<40, using: &random) {
        case 0..<20: return name
        case 20..<30: return pick("x", "y") + "/" + name
        case 30..<33: return pick("x", "y") + "/z/" + name
        case 33..<36: return directory()
        case 36: return name + "/"
        case 37: return directory() + "/../" + name
        case 38: return name + "/" + name
        default: return pick(".", "x/.", "x/..", String(repeating: "n", count: 256), "x/z/")
        }
    }

    private mutating func directory() -> String { pick("x", "y", "x/z", "y/z", "a") }

    /// Content up to 4 KiB is kept in the catalog; a page, a leaf of the tree and a piece follow.
    private mutating func size() -> Int {
        let exact = pick(0, 1, 100, 4095, 4096, 4097, 8192, 10_000, 16_384, 65_536, 70_001, 200_000)
        return once(in: 4) ? Int.random(in: 0...max(1, exact), using: &random) : exact
    }

    private mutating func offset() -> Int {
        once(in: 3) ? Int.random(in: 0..<100_000, using: &random) : pick(0, 0, 1, 50, 4096, 65_536)
    }

    private mutating func fill() -> UInt8 { pick(0, 1, 1, 2, 3) }
    private mutating func slot() -> Int {
        Int.random(in: 0..<ModelOperation.slots, using: &random)
    }
    private mutating func mapping() -> Int {
        Int.random(in: 0..<ModelOperation.mappings, using: &random)
    }

    /// Of something new.
    private mutating func mode() -> Octal {
        once(in: 3) ? pick(0o4755, 0o6777, 0o2775, 0o1777) : changedMode()
    }

    /// Without set-id bits: who has the file open for writing through the kernel would not take
    /// them away again (docs/posix.md).
    private mutating func changedMode() -> Octal {
        pick(0o644, 0o666, 0o666, 0o777, 0o755, 0o600, 0o400, 0o000, 0o1777)
    }

    private mutating func flags() -> OpenFlags {
        var flags: OpenFlags = pick([], .write, .readWrite, .readWrite)
        for flag: OpenFlags in [.create, .create, .truncate, .append, .exclusive]
        where once(in: 4) {
            flags.insert(flag)
        }
        for flag: OpenFlags in [.directory, .noFollow, .pathOnly] where once(in: 20) {
            flags.insert(flag)
        }
        return flags
    }

    // MARK: Phrases

    private mutating func makeFirstNames() {
        for name in ["x", "y", "x/z"] { add(.makeDirectory(path: name, mode: 0o777)) }
        for name in ["x", "y", "x/z"] where !once(in: 3) {
            add(.changeMode(path: name, mode: pick(0o777, 0o777, 0o2777, 0o1777)))
        }
    }

    private mutating func phrase() {
        actor =
            once(in: 3) ? Int.random(in: ModelOperation.actors.indices, using: &random) : actor
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<16: writeFile()
        case 16..<22: copyFile()
        case 22..<28: changeFile()
        case 28..<31: replaceFile()
        case 31..<34: mapFile()
        case 34..<36: temporaryFile()
        // A file is published at once the first time, later after 200 ms.
        case 36..<38: add(.pause(milliseconds: pick(1, 3, 10, 30, 199, 203, 210, 250)))
        case 38..<68: onOpen()
        case 68..<90: onNames()
        default: onAttributes()
        }
    }

    private mutating func writeFile() {
        let slot = slot()
        let flags: OpenFlags = pick([.create, .write, .truncate], [.create, .readWrite])
        add(.open(slot: slot, path: path(), flags: flags, mode: mode()))
        add(.write(slot: slot, count: size(), fill: fill()))
        if once(in: 3) { add(.writeAt(slot: slot, offset: offset(), count: size(), fill: fill())) }
        if !once(in: 4) { add(.close(slot: slot)) }
    }

    private mutating func copyFile() {
        let (from, to) = (0, 1)
        add(.open(slot: from, path: path(), flags: [], mode: 0))
        add(.open(slot: to, path: path(), flags: [.create, .write, .truncate], mode: mode()))
        if once(in: 2) {
            add(.transfer(from: from, to: to))
        } else {
            add(.copy(from: from, at: -1, to: to, target: -1, count: 1 << 20))
        }
        if !once(in: 3) { add(.close(slot: from)) }
        if !once(in: 4) { add(.close(slot: to)) }
    }

    private mutating func changeFile() {
        let slot = slot()
        let flags: OpenFlags = pick(.readWrite, .write, [.write, .append])
        add(.open(slot: slot, path: path(), flags: flags, mode: 0))
        if once(in: 2) {
            add(.write(slot: slot, count: size(), fill: fill()))
        } else {
            add(.writeAt(slot: slot, offset: offset(), count: size(), fill: fill()))
        }
        if !once(in: 3) { add(.close(slot: slot)) }
    }

    private mutating func replaceFile() {
        let (slot, name) = (slot(), path())
        add(.open(slot: slot, path: "new", flags: [.create, .write, .exclusive], mode: 0o666))
        add(.write(slot: slot, count: size(), fill: fill()))
        if once(in: 4) { add(.synchronize(slot: slot, dataOnly: false)) }
        if !once(in: 4) { add(.close(slot: slot)) }
        add(.rename(path: "new", to: name, flags: 0))
        add(.readFile(path: name))
    }

    private mutating func mapFile() {
        let (slot, mapping, name) = (slot(), mapping(), path())
        add(.open(slot: slot, path: name, flags: .readWrite, mode: 0))
        add(.map(slot: slot, mapping: mapping, count: pick(4096, 65_536, 100_000)))
        if once(in: 2) { add(.close(slot: slot)) }
        add(.store(mapping: mapping, offset: offset(), count: size(), fill: fill()))
        add(.readFile(path: name))
    }

    private mutating func temporaryFile() {
        let slot = slot()
        add(
            .open(
                slot: slot, path: pick(".", "x", "y", "a"),
                flags: [.temporary, .directory, .readWrite, once(in: 5) ? .exclusive : []],
                mode: mode()))
        add(.write(slot: slot, count: size(), fill: fill()))
        if !once(in: 3) { add(.linkOpen(slot: slot, path: path())) }
        if once(in: 2) { add(.close(slot: slot)) }
    }

    // MARK: Single calls

    private mutating func onOpen() {
        let slot = slot()
        switch Int.random(in: 0..<20, using: &random) {
        case 0..<3: add(.open(slot: slot, path: path(), flags: flags(), mode: mode()))
        case 3: add(.close(slot: slot))
        case 4: add(.read(slot: slot, count: size()))
        case 5: add(.readAt(slot: slot, offset: offset(), count: size()))
        case 6: add(.write(slot: slot, count: size(), fill: fill()))
        case 7: add(.writeAt(slot: slot, offset: offset(), count: size(), fill: fill()))
        case 8: add(.truncateOpen(slot: slot, size: size()))
        case 9:
            let whence = pick(SEEK_SET, SEEK_CUR, SEEK_END)
            add(.seek(slot: slot, offset: pick(0, 10, -10, 4096, 100_000), whence: whence))
        case 10: add(.seekHole(slot: slot, offset: offset(), isHole: once(in: 2)))
        case 11:
            // KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
            let mode: Int32 = pick(0, 0x01, 0x01 | 0x02, 0x10, 0x10 | 0x01)
            add(.allocate(slot: slot, mode: mode, offset: offset(), length: size()))
        case 12:
            add(
                .copy(
                    from: slot, at: pick(-1, offset()), to: self.slot(), target: pick(-1, offset()),
                    count: size()))
        case 13: add(.transfer(from: slot, to: self.slot()))
        case 14: add(.synchronize(slot: slot, dataOnly: once(in: 2)))
        case 15: add(.statusOpen(slot: slot))
        case 16: add(pick(.changeModeOpen(slot: slot, mode: changedMode()), .listOpen(slot: slot)))
        case 17: add(.linkOpen(slot: slot, path: path()))
        case 18:
            add(
                pick(
                    .load(mapping: mapping(), offset: offset(), count: size()),
                    .unmap(mapping: mapping())))
        default:
            add(.store(mapping: mapping(), offset: offset(), count: size(), fill: fill()))
        }
    }

    private mutating func onNames() {
        switch Int.random(in: 0..<22, using: &random) {
        case 0..<2: add(.makeDirectory(path: pick(path(), directory()), mode: mode()))
        case 2: add(.removeDirectory(path: pick(path(), directory())))
        case 3..<5: add(.unlink(path: path()))
        case 5..<9: add(.rename(path: path(), to: path(), flags: 0))
        case 9: add(.rename(path: directory(), to: pick(path(), directory()), flags: 0))
        case 10..<12:
            // NOREPLACE, EXCHANGE, and both, which is nothing
            add(.rename(path: path(), to: path(), flags: pick(1, 1, 2, 2, 2, 3)))
        case 12..<15: add(.link(path: path(), to: path()))
        case 15:
            add(.symlink(path: path(), target: pick("a", "b", "x", "x/c", "../d", "missing", "e")))
        case 16: add(.readLink(path: path()))
        case 17:
            let node = pick(S_IFIFO, S_IFSOCK, S_IFREG, S_IFCHR, S_IFDIR, 0)
            add(.makeNode(path: path(), mode: Octal(node | 0o644)))
        case 18: add(.list(path: pick(".", "x", "y", "x/z", path())))
        case 19: add(.truncate(path: path(), size: size()))
        default: add(.readFile(path: path()))
        }
    }

    private mutating func onAttributes() {
        let name = pick("user.one", "user.two", "user.three")
        switch Int.random(in: 0..<12, using: &random) {
        case 0..<2: add(.status(path: path(), followsLinks: once(in: 2)))
        case 2..<4: add(.changeMode(path: path(), mode: changedMode()))
        case 4..<6:
            // Of neither: the kernel does not tell a FUSE server of it, so set-id bits stay.
            let (uid, gid): (UInt32, UInt32) = pick(
                (0, 0), (1000, 1000), (1001, .max), (0, .max), (.max, 0), (.max, 1000))
            add(.changeOwner(path: path(), uid: uid, gid: gid))
        case 6..<8:
            let (accessed, modified): (Int64, Int64) = (pick(-1, 1, 900_000_000), pick(-1, 2, 999))
            add(.setTimes(path: path(), accessed: accessed, modified: modified))
        case 8..<10:
            add(
                .setXattr(
                    path: path(), name: name, count: pick(0, 1, 100, 600), fill: fill(),
                    flags: pick(0, 0, 1, 2)))
        case 10: add(.getXattr(path: path(), name: name))
        default: add(.removeXattr(path: path(), name: name))
        }
    }
}
