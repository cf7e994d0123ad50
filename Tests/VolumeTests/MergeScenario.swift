import Simulation
import Testing

@testable import Volume

/// Two sides that start from the same volume, by path. What `b` does has later stamps than what `a`
/// does. Every merge is made on whole states and on trees, both ways round, and must agree.
struct MergeScenario {
    struct Side {
        var space: Namespace
        var clock: HybridClock
        private var identities: UInt64

        init(space: Namespace, node: UInt64, milliseconds: UInt64) {
            self.space = space
            clock = HybridClock(node: NodeID(high: 7, low: node), floor: milliseconds)
            identities = node << 32
        }

        private mutating func next() -> (id: UInt64, stamp: Stamp) {
            identities += 1
            return (identities, clock.next(wall: clock.milliseconds + 1))
        }

        func place(_ path: String) -> Place {
            let names = path.split(separator: "/").map(String.init)
            var directory = LineageID.root
            for name in names.dropLast() {
                let place = Place(directory: directory, name: .init(name) ?? .placeholder)
                directory = space.link(at: place)?.target ?? LineageID(rawValue: 0)
            }
            return Place(directory: directory, name: .init(names.last ?? "") ?? .placeholder)
        }

        func id(_ path: String) -> LineageID {
            space.link(at: place(path))?.target ?? LineageID(rawValue: 0)
        }

        private func expect(_ done: Bool, _ path: String) { #expect(done, "\(path)") }

        mutating func file(_ path: String, _ text: String) {
            let (id, stamp) = next()
            let body = Body.file(.inline(Array(text.utf8)))
            expect(space.create(body, at: place(path), id: id, link: id, stamp: stamp), path)
        }

        mutating func directory(_ path: String, id chosen: UInt64? = nil) {
            let (id, stamp) = next()
            let number = chosen ?? id
            let done = space.create(
                .directory, at: place(path), id: number, link: number, stamp: stamp)
            expect(done, path)
        }

        /// Directories of one name, each in the one before.
        mutating func chain(_ name: String, depth: Int) {
            var at = place(name)
            for _ in 0..<depth {
                let (id, stamp) = next()
                expect(space.create(.directory, at: at, id: id, link: id, stamp: stamp), name)
                at = Place(directory: LineageID(rawValue: id), name: at.name)
            }
        }

        mutating func edit(_ path: String, _ text: String) {
            let content = Content.inline(Array(text.utf8))
            expect(space.write(content, to: id(path), stamp: next().stamp), path)
        }

        mutating func mode(_ path: String, _ mode: UInt16) {
            let stamp = next().stamp
            expect(space.change(id(path)) { $0.mode = Stamped(mode, stamp) }, path)
        }

        mutating func xattr(_ path: String, _ name: String, _ value: String?) {
            let stamp = next().stamp
            let done = space.change(id(path)) { record in
                record.xattrs[Array(name.utf8)] = value.map { Stamped(Array($0.utf8), stamp) }
            }
            expect(done, path)
        }

        mutating func rename(_ from: String, _ to: String) {
            expect(space.rename(place(from), to: place(to), stamp: next().stamp), from)
        }

        mutating func link(_ from: String, _ to: String) {
            let (id, stamp) = next()
            expect(space.link(self.id(from), at: place(to), link: id, stamp: stamp), to)
        }

        mutating func remove(_ path: String) { expect(space.remove(place(path)), path) }

        mutating func removeTree(_ path: String) { space.removeTree(place(path)) }
    }

    let base: Namespace

    init(_ prepare: (inout Side) -> Void = { _ in }) {
        let birth = Stamp(milliseconds: 1, counter: 0, node: NodeID(high: 0, low: 0))
        var side = Side(space: Namespace(born: birth), node: 1, milliseconds: 1000)
        prepare(&side)
        base = side.space
    }

    func a(_ change: (inout Side) -> Void) -> Fragment { side(2, 1_000_000, change) }

    func b(_ change: (inout Side) -> Void) -> Fragment { side(3, 2_000_000, change) }

    private func side(_ node: UInt64, _ time: UInt64, _ change: (inout Side) -> Void) -> Fragment {
        var side = Side(space: base, node: node, milliseconds: time)
        change(&side)
        return Fragment(side.space)
    }

    /// Merges what the sides did and lists the result.
    func merge(
        _ doneByA: (inout Side) -> Void, _ doneByB: (inout Side) -> Void
    ) throws -> [String: String] {
        try Self.merge(a(doneByA), b(doneByB), bases: [Fragment(base)]).listing
    }

    static func merge(
        _ a: Fragment, _ b: Fragment, bases: [Fragment], horizon: Stamp? = nil
    ) throws -> Fragment {
        let merged = try mergeWhole(a, b, bases: bases, horizon: horizon)
        #expect(MergeInvariants.violations(in: merged).isEmpty)
        #expect(try mergeWhole(b, a, bases: bases.reversed(), horizon: horizon) == merged)
        var objects = MemoryObjects()
        let one = try tree(of: a, &objects, horizon: horizon)
        let other = try tree(of: b, &objects)
        let ancestors = try bases.map { try tree(of: $0, &objects) }
        let expected = try tree(of: merged, &objects, horizon: horizon)
        let there = try mergeTrees(one, other, bases: ancestors, source: objects, sink: &objects)
        let back = try mergeTrees(other, one, bases: ancestors, source: objects, sink: &objects)
        #expect(there == expected, "the trees do not agree with the states")
        #expect(back == expected, "the trees depend on the side")
        return merged
    }
}

extension FileName {
    /// For paths that are no paths.
    static let placeholder = FileName("?") ?? { preconditionFailure("a name") }()
}

extension Fragment {
    /// Paths with content; a directory's path ends in a slash; modes only where they are not the
    /// usual ones.
    var listing: [String: String] {
        var listing: [String: String] = [:]
        let space = Namespace(self)
        func list(_ directory: LineageID, _ path: String) {
            for (name, link) in space.children(of: directory) {
                let path = path + name.description
                guard let record = space.records[link.target] else { continue }
                let mode = record.mode.value == 0o644 ? "" : String(record.mode.value, radix: 8)
                if case .file(.inline(let bytes)) = record.content.value.body {
                    listing[path] = String(decoding: bytes, as: UTF8.self) + mode
                } else {
                    listing[path + "/"] = mode
                    list(link.target, path + "/")
                }
            }
        }
        list(.root, "")
        return listing
    }
}
