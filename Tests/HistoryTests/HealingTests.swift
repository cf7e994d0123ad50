import Glibc
import History
import SystemPackage
import Testing
import Volume

/// Repositories that were spoiled at random, and what becomes of them with and without a peer.
@Suite struct HealingTests {
    let scratch: Scratch
    let peer: History
    let head: ObjectID

    init() throws {
        scratch = try Scratch()
        peer = try scratch.repository("peer.git")
        var files = Files()
        var last: [ObjectID] = []
        for number in 0..<12 {
            files.contents["d\(number % 5)/f\(number)"] = Array("text \(number) ".utf8)
            files.contents["all"] = (0...number).flatMap { Array("line \($0)\n".utf8) }
            last = [try peer.commit(files, on: last)]
        }
        head = last[0]
    }

    private enum Loss: CaseIterable { case bits, pack, index, cut, reference }

    private func spoil(_ path: FilePath, _ loss: Loss, _ random: inout SeededRandom) throws {
        let packs = path.appending("objects/pack")
        let names = shell("ls '\(packs)' | grep pack$").output.split(separator: "\n")
        let name = String(names[Int.random(in: 0..<names.count, using: &random)])
        let pack = packs.appending(name)
        shell("chmod u+w '\(packs)'/*")
        var bytes = try read(pack)
        switch loss {
        case .bits:
            for _ in 0..<3 {
                let at = Int.random(in: 0..<bytes.count, using: &random)
                bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            }
            try write(bytes, to: pack)
        case .pack: shell("rm '\(pack)'")
        case .index: shell("rm '\(packs)'/*.idx")
        case .cut: try write(Array(bytes.dropLast(bytes.count / 2)), to: pack)
        case .reference: try write(Array("nothing".utf8), to: path.appending("refs/heads/main"))
        }
    }

    /// All that the graph says is here is here, as stock git sees it.
    private func check(_ history: History) throws {
        if let main = try history.head() {
            #expect(try peer.graph.isAncestor(main, of: head))
            #expect(git(history.path, "rev-list --objects main").status == 0)
        }
    }

    private func completed(_ history: History) throws {
        let have = Array(try history.references().values)
        if let pack = try peer.pack(wanted: [head], have: have), !history.graph.contains(head) {
            try history.receive(packs: [file(pack)], heads: [head])
        }
        if !history.graph.contains(head) { try history.restore(head) }
        try history.setHead(head)
        #expect(history.graph.count == peer.graph.count)
        #expect(git(history.path, "fsck --full --strict --no-dangling").status == 0)
        #expect(git(history.path, "log --format=%H main").output.split(separator: "\n").count == 12)
    }

    private func file(_ pack: [UInt8]) throws -> FilePath {
        let path = scratch.path.appending("received.pack")
        try write(pack, to: path)
        return path
    }

    @Test func whatIsLeftIsWholeAndAPeerCompletesIt() throws {
        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let rounds = getenv("DELUGEFS_TEST_LONG") == nil ? 1 : 40
        for round in 0..<rounds {
            for loss in Loss.allCases {
                let old = scratch.path.appending("old-\(round)-\(loss).git")
                shell("cp -a '\(peer.path)' '\(old)'")
                try spoil(old, loss, &random)
                let path = scratch.path.appending("new-\(round)-\(loss).git")
                let (history, found) = try History.restore(from: old, to: path)
                #expect(found.commits == history.graph.count)
                try check(history)
                try completed(history)
            }
        }
    }

    @Test func aRepositoryInUseIsHealedInPlace() throws {
        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let path = scratch.path.appending("used.git")
        shell("cp -a '\(peer.path)' '\(path)'")
        var history = try History.open(path)
        #expect(try history.heal() == nil)
        for loss in [Loss.pack, .bits, .reference] {
            try spoil(path, loss, &random)
            let found = try history.heal()
            #expect(found != nil, "\(loss)")
            try check(history)
            try completed(history)
            #expect(try history.heal() == nil, "\(loss)")
            history = try History.open(path)
        }
    }

    @Test func whatIsBeforeALostCommitIsFound() throws {
        let parent = try #require(try peer.graph.parents(of: head).first)
        let other = try scratch.repository("other.git")
        let pack = try #require(try peer.pack(wanted: [parent], have: []))
        try other.receive(packs: [file(pack)], heads: [parent])
        #expect(try other.knownAncestor(of: [head]) == nil)
        #expect(try other.knownAncestor(of: [head, parent]) == parent)
        #expect(try peer.knownAncestor(of: [parent]) == parent)
    }
}
