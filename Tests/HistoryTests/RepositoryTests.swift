import Glibc
import History
import Synchronization
import SystemPackage
import Testing
import Volume

@Suite struct RepositoryTests {
    let scratch: Scratch
    init() throws { scratch = try Scratch() }

    @Test func stockGitReadsWhatABatchWrote() throws {
        let history = try scratch.repository()
        let first = try history.commit(
            Files(["tree/a": "alpha", "tree/b/c": "gamma", "volume": "format 1\n"]),
            message: "first\n")
        let second = try history.commit(
            Files(["tree/a": "changed", "tree/b/c": "gamma", "volume": "format 1\n"]),
            on: [first], message: "second\n", seconds: 1_700_000_100)

        let fsck = git(history.path, "fsck --strict --full")
        #expect(fsck.status == 0, "\(fsck.output)")
        #expect(!fsck.output.contains("error") && !fsck.output.contains("warning"))
        #expect(
            git(history.path, "log --format='%H %s %ad' --date=unix").output
                == "\(second) second 1700000100\n\(first) first 1700000000\n")
        #expect(
            git(history.path, "ls-tree -r --name-only main").output
                == "tree/a\ntree/b/c\nvolume\n")
        #expect(git(history.path, "cat-file -p main:tree/a").output == "changed")
        #expect(git(history.path, "symbolic-ref HEAD").output == "refs/heads/main\n")
        #expect(git(history.path, "count-objects").output.hasPrefix("0 objects"))
    }

    @Test func idsAreThoseThatStockGitGives() throws {
        let history = try scratch.repository()
        let tree = try history.write { batch in
            let blob = try batch.write(blob: Array("x\n".utf8))
            let empty = try batch.write(tree: [])
            // The order matters: `a.b` stands between the file `a-` and the directory `a`.
            return try batch.write(tree: [
                TreeEntry(name: Array("a".utf8), kind: .tree, id: empty),
                TreeEntry(name: Array("a.b".utf8), kind: .blob, id: blob),
                TreeEntry(name: Array("a-".utf8), kind: .blob, id: blob),
                TreeEntry(name: Array("a0".utf8), kind: .blob, id: blob),
            ])
        }
        let made = git(history.path, "ls-tree \(tree) | git -C '\(history.path)' mktree")
        #expect(made.output == "\(tree)\n")
        #expect(
            try history.tree(tree).map { String(decoding: $0.name, as: UTF8.self) }
                == ["a-", "a.b", "a", "a0"])
    }

    @Test func aBatchBecomesOnePackAndRepeatsNothing() throws {
        let history = try scratch.repository()
        let first = try history.commit(Files(["a": "1", "b": "2"]))
        #expect(try history.packCount() == 1)
        try history.commit(Files(["a": "1", "b": "3"]), on: [first])
        #expect(try history.packCount() == 2)
        // blob 3, the tree, the commit
        #expect(git(history.path, "count-objects -v").output.contains("in-pack: 7\n"))
        try history.write { _ = try $0.write(blob: Array("3".utf8)) }
        #expect(try history.packCount() == 2)
    }

    @Test func aBatchReadsWhatItWroteAndWhatWasThere() throws {
        let history = try scratch.repository()
        let old = try history.write { try $0.write(blob: [1, 2, 3]) }
        try history.write { batch in
            let new = try batch.write(blob: [4])
            let tree = try batch.write(tree: [TreeEntry(name: [0x61], kind: .blob, id: new)])
            #expect(try batch.blob(new) == [4])
            #expect(try batch.blob(old) == [1, 2, 3])
            #expect(try batch.tree(tree).map(\.id) == [new])
            #expect(code { _ = try batch.blob(tree) } == .malformed)
            let commit = try Commit(tree: tree, parents: [], seconds: 0, message: [])
            _ = try batch.write(commit: commit)
            #expect(try batch.commit(commit.id) == commit)
            #expect(try history.commit(commit.id) == nil)
        }
    }

    @Test func aBatchThatThrowsLeavesNothing() throws {
        struct Stop: Error {}
        let history = try scratch.repository()
        #expect(throws: Stop.self) {
            try history.write { batch in
                _ = try batch.write(blob: [1])
                throw Stop()
            }
        }
        #expect(try history.packCount() == 0)
    }

    @Test func aBatchBeyondItsBoundIsWrittenInParts() throws {
        let seed: UInt64 = 7
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let history = try scratch.repository()
        let size = 1 << 20
        let ids = try history.write { batch in
            try (0..<(HistoryLimits.batchBytesMax / size + 2)).map { _ in
                try batch.write(
                    blob: random.bytes(size / 8) + Array(repeating: 0, count: size * 7 / 8))
            }
        }
        #expect(try history.packCount() == 2)
        for id in ids { #expect(try history.blob(id).count == size) }
    }

    @Test func whatIsTooLargeOrNoObjectOfOursIsRefused() throws {
        let history = try scratch.repository()
        #expect(
            code {
                _ = try history.write {
                    try $0.write(blob: Array(repeating: 0, count: Limits.recordBytesMax + 1))
                }
            } == .tooLarge)
        let id = try history.write { try $0.write(blob: []) }
        for names in [["a", "a"], [""], ["."], [".."], ["a/b"], ["a\0b"]] {
            #expect(
                code {
                    _ = try history.write {
                        try $0.write(
                            tree: names.map { TreeEntry(name: Array($0.utf8), kind: .blob, id: id) }
                        )
                    }
                } == .malformed, "\(names)")
        }
        #expect(
            code {
                _ = try history.write {
                    try $0.write(tree: [
                        TreeEntry(name: Array("a".utf8), kind: .blob, id: id),
                        TreeEntry(name: Array("a.b".utf8), kind: .blob, id: id),
                        TreeEntry(name: Array("a".utf8), kind: .tree, id: id),
                    ])
                }
            } == .malformed)
        #expect(code { _ = try history.tree(id) } == .malformed)
        #expect(
            code { _ = try Commit(tree: id, parents: [], seconds: -1, message: []) } == .malformed)
        #expect(
            code { _ = try Commit(tree: id, parents: [], seconds: 1, message: [0]) } == .malformed)
    }

    @Test func noHeadOfAPeerIsForgottenBeforeItIsMerged() throws {
        let history = try scratch.repository()
        let peer = NodeID(high: 1, low: 2)
        let base = try history.commit(Files(["a": "1"]))
        let one = try history.commit(Files(["a": "1", "b": "1"]), on: [base])
        let other = try history.commit(Files(["a": "1", "c": "1"]), on: [base])
        try history.setHead(base)
        for head in [base, one, other] { try history.noteHead(head, of: peer) }
        #expect(try history.peerHeads() == [one, other])
        let again = try History.open(history.path)
        #expect(again.graph.contains(one))
        #expect(try again.peerHeads() == [one, other])
        let merge = try history.commit(Files(["a": "1", "b": "1", "c": "1"]), on: [one, other])
        try history.forgetMerged(into: merge)
        #expect(try history.peerHeads() == [other])
        try history.noteHead(merge, of: peer)
        #expect(try history.peerHeads() == [merge])
    }

    @Test func referencesAreSetListedMovedAndDeleted() throws {
        let history = try scratch.repository()
        #expect(try history.head() == nil)
        let first = try history.commit(Files(["a": "1"]))
        let second = try history.commit(Files(["a": "2"]), on: [first])
        #expect(try history.head() == second)
        try history.setReference("refs/peers/00ff", to: first)
        try history.setReference("refs/peers/11ee", to: second)
        try history.setReference("refs/rejected/x", to: second)
        try history.setReference("refs/peers/00ff", to: second)
        #expect(
            try history.references(below: "refs/peers/")
                == ["refs/peers/00ff": second, "refs/peers/11ee": second])
        try history.deleteReference("refs/peers/00ff")
        try history.deleteReference("refs/peers/11ee")
        try history.deleteReference("refs/peers/11ee")
        #expect(try history.references(below: "refs/peers/").isEmpty)
        #expect(try history.references().keys.sorted() == [History.main, "refs/rejected/x"])
        for name in ["refs/../../x", "main", "refs/a b", "refs/heads/a.lock"] {
            #expect(code { try history.setReference(name, to: first) } == .malformed, "\(name)")
        }
        let tree = try history.graph.tree(of: first)
        #expect(code { try history.setReference("refs/peers/1", to: tree) } == .incomplete)
    }

    @Test func everythingIsThereAfterOpeningAgainWhateverACrashLeft() throws {
        let history = try scratch.repository()
        let path = history.path
        let first = try history.commit(Files(["a": "1", "d/b": "2"]))
        let second = try history.commit(Files(["a": "2", "d/b": "2"]), on: [first])
        let lone = try #require(try history.joinPacks().first)
        shell(
            """
            cd '\(path)' && touch refs/heads/main.lock HEAD.lock packed-refs.lock
            echo x > objects/pack/pack_git2_abcdef
            echo x > objects/pack/pack-0000000000000000000000000000000000000001.idx
            echo x > objects/pack/pack-0000000000000000000000000000000000000002.pack
            rm objects/pack/\(lone.name.dropLast(5)).idx
            mkdir -p quarantine/7/pack && echo x > quarantine/7/pack/x
            """)
        let again = try History.open(path)
        #expect(try again.head() == second)
        #expect(try again.joinPacks().count == 2)
        #expect(again.graph.count == 2)
        #expect(try again.graph.parents(of: second) == [first])
        #expect(try again.blob(again.tree(again.graph.tree(of: first))[0].id) == [0x31])
        try again.setHead(first)
        #expect(git(path, "fsck --strict --full").status == 0)
        #expect(shell("cd '\(path)' && find . -name '*.lock' -o -name 'pack_*'").output == "")
        #expect(shell("ls '\(path)/quarantine'").output == "")
    }

    @Test func creatingIsRefusedWhereSomethingIsAndSurvivesAnEarlierHalf() throws {
        let path = scratch.path.appending("x.git")
        shell("mkdir '\(path).new' && touch '\(path).new/junk'")
        _ = try History.create(path)
        #expect(code { _ = try History.create(path) } == .system)
        #expect(code { _ = try History.open(scratch.path.appending("absent")) } != nil)
    }

    @Test func theUsersGitSettingsChangeNothing() throws {
        let history = try scratch.repository()
        #expect(git(history.path, "config gc.auto").output == "0\n")
        #expect(git(history.path, "config core.bare").output == "true\n")
    }

    @Test func damagedBytesAreAnErrorNeverAWrongAnswer() throws {
        let seed: UInt64 = 11
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let history = try scratch.repository()
        let blob = random.bytes(4000)
        let id = try history.write { try $0.write(blob: blob) }
        let pack = history.path.appending("objects/pack").appending(
            try #require(try history.joinPacks().first).name)
        shell("chmod u+w '\(pack)'; printf 'X' | dd of='\(pack)' bs=1 seek=1000 conv=notrunc")
        let again = try History.open(history.path)
        #expect(throws: HistoryError.self) { try again.blob(id) }
    }

    @Test func aThousandFilesAreOneBatch() throws {
        let seed: UInt64 = 3
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let history = try scratch.repository()
        var files = Files()
        for number in 0..<1000 { files.contents["tree/\(number)"] = random.bytes(300) }
        let clock = ContinuousClock()
        var first: ObjectID?
        print("1000 files, one batch:", try clock.measure { first = try history.commit(files) })
        files.contents["tree/500"] = random.bytes(300)
        let parent = try #require(first)
        print("one file of 1000:", try clock.measure { try history.commit(files, on: [parent]) })
        #expect(try history.packCount() == 2)
        #expect(git(history.path, "fsck --strict --full").status == 0)
    }

    @Test func threadsReadAndWriteAtOnce() throws {
        let history = try scratch.repository()
        let base = try history.commit(Files(["a": "0"]))
        let made = Mutex<[ObjectID]>([])
        let threads = 4
        try onThreads(threads) { thread in
            var parent = base
            for step in 0..<5 {
                let id = try history.write { batch in
                    let tree = try Files(["a": "0", "t\(thread)": "\(step)"]).write(into: &batch)
                    return try batch.write(
                        commit: Commit(tree: tree, parents: [parent], seconds: 1, message: []))
                }
                try history.setReference("refs/peers/\(thread)", to: id)
                let tree = try history.tree(history.graph.tree(of: id))
                #expect(try history.blob(tree[1].id) == Array("\(step)".utf8))
                parent = id
            }
            made.withLock { $0.append(parent) }
        }
        #expect(try history.references(below: "refs/peers/").count == threads)
        #expect(history.graph.count == 1 + 5 * threads)
        for id in made.withLock({ $0 }) {
            #expect(try history.graph.isAncestor(base, of: id))
            #expect(try history.graph.generation(of: id) == 6)
        }
        #expect(git(history.path, "fsck --strict --full").status == 0)
    }

    @Test func theGraphIsTheSameWithItsFileWithoutItAndWithADamagedOne() throws {
        let history = try scratch.repository()
        let base = try history.commit(Files(["a": "1"]))
        let count = 1500
        let head = try history.write { batch in
            let tree = try history.graph.tree(of: base)
            var line = [base]
            for number in 0..<count {
                // Every tenth commit is a merge.
                let parents =
                    number % 10 == 9
                    ? [line[line.count - 1], line[line.count - 5]] : [line[line.count - 1]]
                line.append(
                    try batch.write(
                        commit: Commit(
                            tree: tree, parents: parents, seconds: Int64(number), message: [])))
            }
            return line[count]
        }
        try history.setHead(head)
        let file = history.path.appending("delugefs-graph")
        func compare() throws {
            let again = try History.open(history.path)
            #expect(again.graph.count == count + 1)
            #expect(
                try again.graph.commits(from: [head], excluding: [])
                    == history.graph.commits(from: [head], excluding: []))
            #expect(try again.graph.generation(of: head) == history.graph.generation(of: head))
            #expect(try again.graph.parents(of: head) == history.graph.parents(of: head))
        }
        try compare()
        let bytes = try read(file)
        #expect(bytes.count > count * 42)
        try compare()
        for damaged in [Array(bytes.dropLast()), [], bytes + bytes, Array(bytes.reversed())] {
            try write(damaged, to: file)
            try compare()
        }
        let more = try history.commit(Files(["a": "2"]), on: [head])
        #expect(try History.open(history.path).graph.parents(of: more) == [head])
        try history.setHead(base)
        #expect(try History.open(history.path).graph.count == 1)
        #expect(git(history.path, "fsck --strict --full").status == 0)
    }

    @Test func aCheckFindsWhatIsDamagedAndNothingElse() throws {
        let history = try scratch.repository()
        let first = try history.commit(Files(["a": "1", "d/b": "2"]))
        let packs = try history.joinPacks()
        let second = try history.commit(Files(["a": "3", "d/b": "2"]), on: [first])
        #expect(try history.problems().isEmpty)
        #expect(try history.problems(thoroughly: true).isEmpty)
        let name = try #require(packs.first).name
        let pack = history.path.appending("objects/pack").appending(name)
        let good = try read(pack)
        try write(Array(good.dropLast(5)), to: pack)
        #expect(try history.problems().count == 1)
        var bad = good
        bad[good.count / 2] ^= 0x10
        try write(bad, to: pack)
        #expect(try history.problems().isEmpty)
        #expect(try !history.problems(thoroughly: true).isEmpty)
        try write(good, to: pack)
        #expect(try history.problems(thoroughly: true).isEmpty)
        #expect(try history.head() == second)
    }

    @Test(.enabled(if: getuid() == 0)) func aFullDiskIsAnErrorAndNothingIsLost() throws {
        let disk = scratch.path.appending("disk")
        try #require(
            shell("mkdir '\(disk)' && mount -t tmpfs -o size=28m tmpfs '\(disk)'").status == 0)
        defer { shell("umount -l '\(disk)'") }
        let seed: UInt64 = 13
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let history = try History.create(disk.appending("history.git"))
        let head = try history.commit(Files(["a": "1"]))
        var refused: HistoryError.Code?
        for _ in 0..<40 where refused == nil {
            let bytes = random.bytes(700_000)
            refused = code { _ = try history.write { try $0.write(blob: bytes) } }
        }
        #expect(refused == .noSpace)
        #expect(try history.problems(thoroughly: true).isEmpty)
        #expect(try History.open(history.path).head() == head)
    }
}
