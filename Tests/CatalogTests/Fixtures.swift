import Catalog
import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing
import Volume

/// SplitMix64: the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}

/// A new seed each run, printed, so that a failure can be repeated by writing it here.
func newSeed(_ test: String = #function) -> UInt64 {
    let given = ProcessInfo.processInfo.environment["DELUGEFS_TEST_SEED"].flatMap { UInt64($0) }
    let seed = given ?? UInt64.random(in: 0...UInt64(UInt32.max))
    print("seed of \(test): \(seed)")
    return seed
}

/// A directory that is gone when the body has ended.
func withDirectory<T>(_ body: (String) throws -> T) throws -> T {
    var template = Array((NSTemporaryDirectory() + "/catalog.XXXXXX").utf8CString)
    guard let made = mkdtemp(&template) else { throw Errno(rawValue: errno) }
    let path = String(cString: made)
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
}

func options(node: UInt64 = 1) -> Catalog.Options {
    var options = Catalog.Options(node: NodeID(high: 0, low: node))
    options.log = { print("catalog: \($0)") }
    return options
}

func openCatalog(_ directory: String, _ options: Catalog.Options = options()) throws -> Catalog {
    try Catalog(path: FilePath(directory + "/catalog.sqlite"), options: options)
}

/// A catalog with a top directory, closed when the body has ended.
func withCatalog<T>(
    _ options: Catalog.Options = options(), _ body: (Catalog) throws -> T
) throws -> T {
    try withDirectory { directory in
        let catalog = try openCatalog(directory, options)
        defer { catalog.close() }
        try makeRoot(catalog)
        return try body(catalog)
    }
}

func makeRoot(_ catalog: Catalog) throws {
    _ = try catalog.perform { try $0.createRoot(mode: 0o755, owner: .root, now: time(0)) }
}

func time(_ seconds: Int64) -> Timestamp {
    Timestamp(seconds: 1_700_000_000 + seconds, nanoseconds: 123_456_789)
}

func name(_ text: String) throws -> FileName { try #require(FileName(text)) }

extension Owner {
    static let root = Owner(uid: 0, gid: 0)
    static let user = Owner(uid: 1000, gid: 1000)
}

extension NewInode {
    static let file = NewInode(body: .file(.empty), mode: 0o644, owner: .user)
    static let directory = NewInode(body: .directory, mode: 0o755, owner: .user)
}

/// Shorthands: one operation each.
extension Catalog {
    @discardableResult
    func make(
        _ text: String, in parent: InodeNumber = .root, _ new: NewInode = .file, at now: Int64 = 1
    ) throws -> InodeRow {
        let name = try name(text)
        return try perform { try $0.create(parent, name, new, now: time(now)) }
    }

    func find(_ text: String, in parent: InodeNumber = .root) throws -> InodeRow {
        let name = try name(text)
        return try read { try $0.lookup(parent, name) }
    }

    func get(_ ino: InodeNumber) throws -> InodeRow { try #require(try read { try $0.inode(ino) }) }

    @discardableResult
    func move(
        _ from: String, in oldParent: InodeNumber = .root, to: String,
        into newParent: InodeNumber = .root, _ mode: RenameMode = .replace, at now: Int64 = 5
    ) throws -> RenameOutcome {
        let (from, to) = (try name(from), try name(to))
        return try perform {
            try $0.rename(oldParent, from, to: newParent, to, mode, now: time(now))
        }
    }

    func names(in directory: InodeNumber = .root) throws -> [String] {
        try read { try $0.list(directory, after: 0, limit: .max) }.map(\.name.description).sorted()
    }
}

/// Calls until true; fails after ten seconds.
func eventually(_ condition: () throws -> Bool) throws {
    for _ in 0..<10_000 {
        if try condition() { return }
        usleep(1000)
    }
    Issue.record("did not come true")
}
