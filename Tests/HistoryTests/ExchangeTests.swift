import History
import SystemPackage
import Testing
import Volume

@Suite struct ExchangeTests {
    let scratch: Scratch
    init() throws { scratch = try Scratch() }

    /// The ids that stock git lists for the same question.
    private func expected(_ history: History, _ range: String) -> Set<String> {
        Set(
            git(history.path, "rev-list --objects --no-object-names \(range)").output
                .split(separator: "\n").map(String.init))
    }

    @Test func theObjectListIsWhatStockGitWouldSend() throws {
        let history = try scratch.repository()
        let first = try history.commit(Files(["a": "1", "d/x": "2", "d/e/y": "3", "k/z": "4"]))
        let second = try history.commit(
            Files(["a": "1", "d/x": "2", "d/e/y": "5", "k/z": "4"]), on: [first])
        let third = try history.commit(
            Files(["a": "6", "d/x": "2", "d/e/y": "5", "k/z": "4", "n/new": "1"]), on: [second])
        for (wanted, have, range) in [
            ([third], [], "\(third)"), ([third], [first], "\(third) ^\(first)"),
            ([third], [second], "\(third) ^\(second)"), ([second], [third], "\(second) ^\(third)"),
        ] {
            let list = try history.objectList(wanted: wanted, have: have).map(\.description)
            #expect(Set(list).count == list.count)
            #expect(expected(history, range).isSubset(of: list), "\(range)")
            #expect(Set(list).isSubset(of: expected(history, "\(third)")))
        }
        // Commit, three trees, one blob; d/x, a and k are not listed.
        #expect(try history.objectList(wanted: [second], have: [first]).count == 5)
        #expect(try history.objectList(wanted: [first], have: [third]).isEmpty)
        #expect(try history.pack(wanted: [first], have: [third]) == nil)
    }

    @Test func aDirectoryThatMovesIsNotSentAgainEvenIfChangedInside() throws {
        let history = try scratch.repository()
        var files = Files()
        for number in 0..<300 { files.contents["old/sub/\(number)"] = Array("\(number)".utf8) }
        let first = try history.commit(files)
        var moved = Files()
        for (path, bytes) in files.contents { moved.contents["new/" + path.dropFirst(4)] = bytes }
        let second = try history.commit(moved, on: [first])
        #expect(try history.objectList(wanted: [second], have: [first]).count == 2)
        moved.contents["new/more"] = [1]
        var changed = Files()
        for (path, bytes) in moved.contents {
            changed.contents["third/" + path.dropFirst(4)] = bytes
        }
        changed.contents["third/sub/7"] = Array("seven".utf8)
        let third = try history.commit(changed, on: [second])
        // Commit, top, third, sub, two blobs.
        #expect(try history.objectList(wanted: [third], have: [second]).count == 6)
    }

    @Test func aMergeIsToldFromAllItsParents() throws {
        let history = try scratch.repository()
        let base = try history.commit(Files(["a": "1", "b": "1", "c": "1"]))
        let left = try history.commit(Files(["a": "2", "b": "1", "c": "1"]), on: [base])
        let right = try history.commit(Files(["a": "1", "b": "2", "c": "1"]), on: [base])
        let merge = try history.commit(
            Files(["a": "2", "b": "2", "c": "1"]), on: [left, right])
        #expect(try history.objectList(wanted: [merge], have: [left, right]).count == 2)
        #expect(try history.objectList(wanted: [merge], have: [left]).count == 5)
        #expect(
            try history.graph.commits(from: [merge], excluding: [left]) == [right, merge])
    }

    @Test func peersExchangeWhatTheOtherLacks() throws {
        let a = try scratch.repository("a.git")
        let b = try scratch.repository("b.git")
        let first = try a.commit(Files(["a": "1", "d/b": "2"]))
        let pack = try #require(try a.pack(wanted: [first], have: []))
        #expect(try b.receive(pack: pack, heads: [first]).map(\.id) == [first])
        try b.setHead(first)

        let second = try a.commit(Files(["a": "1", "d/b": "3"]), on: [first])
        let third = try a.commit(Files(["a": "4", "d/b": "3"]), on: [second])
        let mine = try b.commit(Files(["a": "1", "d/b": "2", "e": "b's"]), on: [first])
        // The peer may name heads that are unknown here.
        let next = try #require(try a.pack(wanted: [third], have: [mine, first]))
        var seen: [ObjectID] = []
        let got = try b.receive(pack: next, heads: [third]) { commit, intake in
            seen.append(commit.id)
            for parent in commit.parents { _ = try intake.tree(intake.tree(of: parent)) }
            #expect(try intake.generation(of: commit.id) == seen.count + 1)
        }
        #expect(got.map(\.id) == [second, third])
        #expect(seen == [second, third])
        try b.setReference("refs/peers/a", to: third)
        #expect(try b.graph.isAncestor(first, of: third))
        #expect(try !b.graph.isAncestor(mine, of: third))
        #expect(git(b.path, "fsck --strict --full").status == 0)
        // A second time is nothing new.
        let packs = try b.packCount()
        #expect(try b.receive(pack: next, heads: [third]).isEmpty)
        #expect(try b.packCount() == packs)
    }

    @Test func aPackThatOverlapsWithWhatIsHereIsFine() throws {
        let a = try scratch.repository("a.git")
        let b = try scratch.repository("b.git")
        let first = try a.commit(Files(["a": "1"]))
        let second = try a.commit(Files(["a": "2"]), on: [first])
        _ = try b.receive(
            pack: try #require(try a.pack(wanted: [first], have: [])), heads: [first])
        let all = try #require(try a.pack(wanted: [second], have: []))
        #expect(try b.receive(pack: all, heads: [second]).map(\.id) == [second])
    }

    @Test func aLargePackGoesThroughAFile() throws {
        let a = try scratch.repository("a.git")
        let b = try scratch.repository("b.git")
        let first = try a.commit(Files(["a": "1"]))
        let file = scratch.path.appending("out.pack")
        #expect(code { _ = try a.pack(wanted: [first], have: [], limit: 10) } == .tooLarge)
        #expect(try a.pack(wanted: [first], have: [], into: file) > 0)
        #expect(try b.receive(packs: [file], heads: [first]).count == 1)
        let none = scratch.path.appending("none.pack")
        #expect(try a.pack(wanted: [first], have: [first], into: none) == 0)
        #expect(shell("test -e '\(none)'").status != 0)
    }

    @Test func aJoinerCopiesPackFilesGivenUpCommitsIncluded() throws {
        let a = try scratch.repository("a.git")
        let b = try scratch.repository("b.git")
        let first = try a.commit(Files(["a": "1"]))
        _ = try a.commit(Files(["a": "given up"]), on: [first])
        let second = try a.commit(Files(["a": "2"]), on: [first])
        let files = try a.joinPacks().map { pack in
            let copy = scratch.path.appending(pack.name)
            let source = try a.openPack(pack.name)
            defer { try? source.close() }
            var bytes = [UInt8](repeating: 0, count: pack.bytes)
            #expect(try bytes.withUnsafeMutableBytes { try source.read(into: $0) } == pack.bytes)
            let target = try FileDescriptor.open(
                copy, .writeOnly, options: .create, permissions: .ownerReadWrite)
            try target.writeAll(bytes)
            try target.close()
            return copy
        }
        #expect(code { try b.receive(packs: files, heads: [second]) } == .unrelated)
        #expect(try b.packCount() == 0)
        #expect(try b.receive(packs: files, heads: [second], unrelated: .kept).count == 2)
        try b.setHead(second)
        #expect(try History.open(b.path).graph.count == 2)
        #expect(git(b.path, "fsck --strict --full").status == 0)
        #expect(code { _ = try a.openPack("../../config") } == .notFound)
        #expect(
            code { _ = try a.openPack("pack-" + String(repeating: "0", count: 40) + ".pack") }
                == .notFound)
    }

    @Test func randomHistoriesReachAPeerWholeInAnyOrderOfPulls() throws {
        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let nodes = try (0..<3).map { try scratch.repository("\($0).git") }
        var heads: [(id: ObjectID, files: Files)?] = [nil, nil, nil]
        for step in 0..<40 {
            let node = Int.random(in: 0..<3, using: &random)
            if Bool.random(using: &random) || heads[node] == nil {
                var files = heads[node]?.files ?? Files()
                for _ in 0..<3 {
                    let path = (0..<Int.random(in: 1...3, using: &random))
                        .map { _ in "n\(Int.random(in: 0..<3, using: &random))" }
                    // Directories and files never share a name.
                    let name = (path + ["f\(Int.random(in: 0..<4, using: &random))"])
                        .joined(separator: "/")
                    files.contents[name] = random.bytes(Int.random(in: 0..<40, using: &random))
                }
                let id = try nodes[node].commit(
                    files, on: heads[node].map { [$0.id] } ?? [], message: "\(step)")
                heads[node] = (id, files)
            } else {
                let from = (node + Int.random(in: 1...2, using: &random)) % 3
                guard let theirs = heads[from], let mine = heads[node] else { continue }
                guard
                    let pack = try nodes[from].pack(wanted: [theirs.id], have: [mine.id])
                else { continue }
                try nodes[node].receive(pack: pack, heads: [theirs.id])
                guard try !nodes[node].graph.isAncestor(theirs.id, of: mine.id) else { continue }
                var files = mine.files
                files.contents.merge(theirs.files.contents) { $1 }
                let id = try nodes[node].commit(files, on: [mine.id, theirs.id], message: "merge")
                heads[node] = (id, files)
            }
        }
        for node in nodes {
            let fsck = git(node.path, "fsck --strict --full")
            #expect(fsck.status == 0, "\(fsck.output)")
            let again = try History.open(node.path)
            let all = git(node.path, "rev-list --all --count").output
            #expect(all == "\(again.graph.count)\n")
        }
    }
}
