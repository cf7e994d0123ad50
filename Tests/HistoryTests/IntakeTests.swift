import History
import SystemPackage
import Testing
import Volume

/// A peer that sends what no honest one would, made with the stock program.
private struct Forger {
    let scratch: Scratch
    let path: FilePath

    init(_ scratch: Scratch) throws {
        self.scratch = scratch
        path = scratch.path.appending("forger.git")
        try #require(shell("git init -q --bare '\(path)'").status == 0)
    }

    func object(_ kind: String, _ bytes: [UInt8]) throws -> ObjectID {
        let file = scratch.path.appending("object")
        try write(bytes, to: file)
        let result = git(path, "hash-object -t \(kind) --literally -w '\(file)'")
        return try #require(ObjectID(hex: result.output.dropLast()), "\(result.output)")
    }

    func tree(_ entries: [(mode: String, name: String, id: ObjectID)]) throws -> ObjectID {
        try object(
            "tree", entries.flatMap { Array("\($0.mode) \($0.name)\0".utf8) + $0.id.bytes })
    }

    func commit(_ tree: ObjectID, parents: [ObjectID] = []) throws -> ObjectID {
        let commit = try Commit(tree: tree, parents: parents, seconds: 1, message: [])
        return try object("commit", commit.encoded)
    }

    func pack(_ ids: [ObjectID], options: String = "") throws -> [UInt8] {
        let list = scratch.path.appending("list")
        try write(Array(ids.map { "\($0)\n" }.joined().utf8), to: list)
        let file = scratch.path.appending("forged.pack")
        let result = git(path, "pack-objects -q --stdout \(options) <'\(list)' >'\(file)'")
        try #require(result.status == 0, "\(result.output)")
        return try read(file)
    }
}

func write(_ bytes: [UInt8], to path: FilePath) throws {
    let file = try FileDescriptor.open(
        path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
    defer { try? file.close() }
    try file.writeAll(bytes)
}

func read(_ path: FilePath) throws -> [UInt8] {
    let file = try FileDescriptor.open(path, .readOnly)
    defer { try? file.close() }
    var bytes = [UInt8](repeating: 0, count: Int(try file.seek(offset: 0, from: .end)))
    let count = try bytes.withUnsafeMutableBytes { try file.read(fromAbsoluteOffset: 0, into: $0) }
    try #require(count == bytes.count)
    return bytes
}

@Suite struct IntakeTests {
    let scratch: Scratch
    private let forger: Forger
    let history: History
    let base: ObjectID

    init() throws {
        scratch = try Scratch()
        forger = try Forger(scratch)
        history = try scratch.repository()
        base = try history.commit(Files(["a": "1", "d/b": "2"]))
    }

    private func listing() -> String {
        shell("cd '\(history.path)' && find objects quarantine refs | sort").output
    }

    /// The code with which a pack is refused, after making sure that nothing of it is left.
    private func refusal(
        _ pack: [UInt8], _ heads: [ObjectID], unrelated: UnrelatedObjects = .refused
    ) -> HistoryError.Code? {
        let before = listing()
        let commits = history.graph.count
        let result = code { try history.receive(pack: pack, heads: heads, unrelated: unrelated) }
        #expect(listing() == before)
        #expect(history.graph.count == commits)
        return result
    }

    /// A sender's repository with one commit on `base`, and its pack.
    private func honest() throws -> (head: ObjectID, pack: [UInt8]) {
        let peer = try scratch.repository("peer.git")
        try peer.receive(pack: #require(try history.pack(wanted: [base], have: [])), heads: [base])
        let head = try peer.commit(
            Files(["a": "1", "d/b": "3", "d/c": String(repeating: "text ", count: 200)]),
            on: [base])
        return (head, try #require(try peer.pack(wanted: [head], have: [base])))
    }

    @Test func aPackThatIsCutOrChangedAnywhereIsRefused() throws {
        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let (head, pack) = try honest()
        for length in [0, 1, 11, 12, 31, 32, pack.count / 2, pack.count - 21, pack.count - 1] {
            #expect(refusal(Array(pack.prefix(length)), [head]) == .malformed, "\(length)")
        }
        #expect(refusal(pack + [0], [head]) == .malformed)
        #expect(refusal(pack, []) == .malformed)
        for round in 0..<25 {
            var changed = pack
            let bit = Int.random(in: 0..<pack.count * 8, using: &random)
            changed[bit / 8] ^= 1 << UInt8(bit % 8)
            #expect(refusal(changed, [head]) != nil, "bit \(bit)")
            guard bit < (pack.count - 20) * 8 else { continue }
            // With the checksum made good it must still not get in as what it is not. A few bits,
            // such as the filling after a compressed object, say nothing.
            try sign(&changed)
            let target = try scratch.repository("\(round).git")
            try target.receive(
                pack: #require(try history.pack(wanted: [base], have: [])), heads: [base])
            if code({ try target.receive(pack: changed, heads: [head]) }) == nil {
                #expect(try target.pack(wanted: [head], have: [base]) == pack, "bit \(bit)")
            }
            #expect(git(target.path, "fsck --strict --full").status == 0, "bit \(bit)")
        }
        _ = try history.receive(pack: pack, heads: [head])
        #expect(try history.commit(head)?.parents == [base])
    }

    /// Replaces the last 20 bytes by the right checksum.
    private func sign(_ pack: inout [UInt8]) throws {
        let file = scratch.path.appending("unsigned")
        try write(Array(pack.dropLast(20)), to: file)
        let sum = try #require(ObjectID(hex: shell("sha1sum '\(file)'").output.prefix(40)))
        pack.replaceSubrange((pack.count - 20)..., with: sum.bytes)
    }

    @Test func whatIsNotThereIsNoticed() throws {
        let blob = try forger.object("blob", [1])
        let sub = try forger.tree([("100644", "x", blob)])
        let top = try forger.tree([("40000", "d", sub)])
        let first = try forger.commit(top)
        let second = try forger.commit(top, parents: [first])
        let all = [second, first, top, sub, blob]
        for missing in all {
            let pack = try forger.pack(all.filter { $0 != missing })
            #expect(refusal(pack, [second]) == .incomplete, "\(missing)")
        }
        #expect(try refusal(forger.pack(all), [base, second, sub]) == .malformed)
        let other = try forger.commit(sub)
        #expect(try refusal(forger.pack(all), [other]) == .incomplete)
        try history.receive(pack: try forger.pack(all), heads: [second])
    }

    @Test func objectsThatNothingNeedsAreRefused() throws {
        let blob = try forger.object("blob", [1])
        let top = try forger.tree([("100644", "x", blob)])
        let head = try forger.commit(top)
        let junk = try forger.object("blob", [2])
        #expect(try refusal(forger.pack([head, top, blob, junk]), [head]) == .unrelated)
        let other = try forger.commit(top, parents: [head])
        #expect(try refusal(forger.pack([other, head, top, blob]), [head]) == .unrelated)
        #expect(try refusal(forger.pack([junk]), [base]) == .unrelated)
    }

    @Test func aDirectoryThatCameWithoutItsFilesIsNeverTakenForWhole() throws {
        let absent = try forger.object("blob", [1])
        let hollow = try forger.tree([("100644", "x", absent)])
        let empty = try forger.tree([])
        let first = try forger.commit(empty)
        try history.receive(
            pack: try forger.pack([first, empty, hollow]), heads: [first], unrelated: .kept)
        #expect(try history.tree(hollow).count == 1)
        let top = try forger.tree([("40000", "d", hollow)])
        let second = try forger.commit(top, parents: [first])
        #expect(try refusal(forger.pack([second, top]), [second]) == .incomplete)
    }

    @Test func objectsOfTheWrongKindAreRefused() throws {
        let blob = try forger.object("blob", [1])
        let empty = try forger.tree([])
        for (mode, id) in [("40000", blob), ("100644", empty)] {
            let top = try forger.tree([(mode, "x", id)])
            let head = try forger.commit(top)
            #expect(try refusal(forger.pack([head, top, id]), [head]) == .malformed, "\(mode)")
        }
        let nested = try forger.tree([("100644", "x", blob), ("40000", "y", blob)])
        let confused = try forger.commit(nested)
        #expect(try refusal(forger.pack([confused, nested, blob]), [confused]) == .malformed)
        let head = try forger.commit(blob)
        #expect(try refusal(forger.pack([head, blob]), [head]) == .malformed)
        let child = try forger.commit(empty, parents: [empty])
        #expect(try refusal(forger.pack([child, empty]), [child]) == .malformed)
        let tag = try forger.object(
            "tag",
            Array("object \(empty)\ntype tree\ntag x\ntagger A <a@b> 1 +0000\n\nx\n".utf8))
        #expect(try refusal(forger.pack([tag, empty]), [tag]) == .malformed)
    }

    @Test func treesInAnyOtherFormAreRefused() throws {
        let blob = try forger.object("blob", [1])
        let empty = try forger.tree([])
        let wrong: [[(String, String, ObjectID)]] = [
            [("100644", "b", blob), ("100644", "a", blob)],
            [("100644", "a", blob), ("100644", "a", blob)],
            [("100644", "a", blob), ("100644", "a.b", blob), ("40000", "a", empty)],
            [("40000", "a", empty), ("100644", "a.b", blob)],
            [("100755", "a", blob)], [("120000", "a", blob)], [("160000", "a", blob)],
            [("040000", "a", empty)], [("100644", "", blob)], [("100644", ".", blob)],
            [("100644", "..", blob)], [("100644", "a/b", blob)],
        ]
        for entries in wrong {
            let top = try forger.tree(entries)
            let head = try forger.commit(top)
            let pack = try forger.pack([head, top, blob, empty])
            #expect(refusal(pack, [head], unrelated: .kept) == .malformed, "\(entries)")
        }
        let cut = try forger.object("tree", Array("100644 a\0123".utf8))
        let head = try forger.commit(cut)
        #expect(try refusal(forger.pack([head, cut]), [head]) == .malformed)
    }

    @Test func commitsInAnyOtherFormAreRefused() throws {
        let empty = try forger.tree([])
        let commit = try Commit(
            tree: empty, parents: [], seconds: 12, message: Array("message\n".utf8))
        let text = String(decoding: commit.encoded, as: UTF8.self)
        for wrong in [
            text.replacing("DelugeFS", with: "Somebody"), text.replacing("+0000", with: "+0100"),
            text.replacing(" 12 ", with: " 012 "), text.replacing(" 12 ", with: " -2 "),
            text.replacing(" 12 ", with: " 7258118400 "),
            text.replacing("\n\n", with: "\nencoding latin1\n\n"),
            text.replacing("\n\n", with: "\ngpgsig x\n\n"), text.replacing("message", with: "\0"),
            String(text.dropFirst(5)), String(text.prefix(60)), "",
            "tree \(empty)\nparent \(base)\nparent \(base)\n" + text.dropFirst(46),
        ] {
            let head = try forger.object("commit", Array(wrong.utf8))
            #expect(try refusal(forger.pack([head, empty]), [head]) == .malformed, "\(wrong)")
        }
        let long = text + String(repeating: "x", count: HistoryLimits.commitBytesMax)
        let head = try forger.object("commit", Array(long.utf8))
        #expect(try refusal(forger.pack([head, empty]), [head]) == .tooLarge)
    }

    @Test func whatIsTooLargeIsRefusedBeforeItIsUnpacked() throws {
        let large = try forger.object(
            "blob", Array(repeating: 0, count: Limits.recordBytesMax + 1))
        let top = try forger.tree([("100644", "x", large)])
        let head = try forger.commit(top)
        #expect(try refusal(forger.pack([head, top, large]), [head]) == .tooLarge)

        // A delta of a few bytes that says it makes a gigabyte, against a base in the same pack.
        var pack = header(objects: 2)
        let base: [UInt8] = [1, 2, 3, 4]
        pack += [0x30 | 4] + stored(base)
        let offset = pack.count - 12
        let delta: [UInt8] = [4, 0x80, 0x80, 0x80, 0x80, 0x04, 0x90, 4]
        pack += [0x60 | UInt8(delta.count), UInt8(offset)] + stored(delta)
        #expect(try refusal(signed(pack), [head]) == .tooLarge)
        // An object that says four bytes and has more; one that has fewer.
        for bytes in [[UInt8](repeating: 7, count: 9), [1]] {
            let lying = header(objects: 1) + [0x30 | 4] + stored(bytes)
            #expect(try refusal(signed(lying), [head]) != nil)
        }
        let endless = header(objects: 1) + [UInt8](repeating: 0xFF, count: 40)
        #expect(try refusal(signed(endless), [head]) == .malformed)
        #expect(try refusal(signed(header(objects: .max)), [head]) == .tooLarge)
        #expect(try refusal(signed(header(objects: 1)), [head]) == .malformed)
        #expect(try refusal(signed(header(objects: 0)), [head]) != nil)
    }

    private func header(objects: UInt32) -> [UInt8] {
        Array("PACK".utf8) + [0, 0, 0, 2]
            + (0..<4).map { UInt8(truncatingIfNeeded: objects >> (24 - 8 * $0)) }
    }

    /// zlib's form of the bytes, not compressed.
    private func stored(_ bytes: [UInt8]) -> [UInt8] {
        let count = UInt8(bytes.count)
        var a: UInt32 = 1
        var b: UInt32 = 0
        for byte in bytes {
            a = (a + UInt32(byte)) % 65521
            b = (b + a) % 65521
        }
        let sum = b << 16 | a
        return [0x78, 0x01, 1, count, 0, ~count, 0xFF] + bytes
            + (0..<4).map { UInt8(truncatingIfNeeded: sum >> (24 - 8 * $0)) }
    }

    private func signed(_ pack: [UInt8]) throws -> [UInt8] {
        var pack = pack + [UInt8](repeating: 0, count: 20)
        try sign(&pack)
        return pack
    }

    @Test func aPackThatLeansOnObjectsOutsideIsRefused() throws {
        let text = (0..<300).map { "line \($0)\n" }.joined()
        let old = try forger.object("blob", Array(text.utf8))
        let before = try forger.commit(try forger.tree([("100644", "x", old)]))
        let new = try forger.object("blob", Array((text + "more\n").utf8))
        let top = try forger.tree([("100644", "x", new)])
        let head = try forger.commit(top, parents: [before])
        _ = git(forger.path, "update-ref refs/heads/x \(head)")
        let file = scratch.path.appending("thin.pack")
        shell(
            "printf '%s\\n^%s\\n' \(head) \(before) | git --git-dir='\(forger.path)'"
                + " pack-objects -q --revs --thin --stdout >'\(file)'")
        #expect(try refusal(read(file), [head]) == .malformed)
    }

    @Test func aTreeOfManyPathsAndFewObjectsIsNoBurden() throws {
        var level = try forger.object("blob", [1])
        var objects = [level]
        for depth in 0..<20 {
            level = try forger.tree(
                (0..<10).map { (depth == 0 ? "100644" : "40000", "\($0)", level) })
            objects.append(level)
        }
        let first = try forger.commit(level)
        let top = try forger.tree([("40000", "moved", level), ("40000", "twice", level)])
        let second = try forger.commit(top, parents: [first])
        try history.receive(
            pack: try forger.pack(objects + [first, second, top]), heads: [second])
        #expect(try history.objectList(wanted: [second], have: []).count == 24)
        #expect(try history.objectList(wanted: [second], have: [first]).count <= 23)
    }

    @Test func whatTheVolumesRulesRefuseLeavesNothing() throws {
        struct Invalid: Error {}
        let (head, pack) = try honest()
        let before = listing()
        #expect(throws: Invalid.self) {
            try history.receive(pack: pack, heads: [head]) { _, _ in throw Invalid() }
        }
        #expect(listing() == before)
        #expect(try history.commit(head) == nil)
        try history.receive(pack: pack, heads: [head])
    }

    @Test func validationSeesTheCommitsBeforeAndTheGraph() throws {
        let blob = try forger.object("blob", [1])
        let top = try forger.tree([("100644", "x", blob)])
        let left = try forger.commit(top)
        let middle = try forger.commit(top, parents: [left])
        let head = try forger.commit(top, parents: [left, middle])
        let pack = try forger.pack([left, middle, head, top, blob])
        var seen: [ObjectID] = []
        try history.receive(pack: pack, heads: [head]) { (commit, intake) throws in
            seen.append(commit.id)
            #expect(try intake.commit(commit.id) == commit)
            #expect(try intake.parents(of: commit.id) == commit.parents)
            #expect(try intake.tree(of: commit.id) == top)
            #expect(try intake.generation(of: commit.id) == seen.count)
            #expect(try intake.tree(top).count == 1)
            #expect(try intake.blob(blob) == [1])
            #expect(try intake.generation(of: base) == 1)
        }
        #expect(seen == [left, middle, head])
    }
}
