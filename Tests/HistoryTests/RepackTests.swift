import History
import SystemPackage
import Testing
import Volume

@Suite struct RepackTests {
    let scratch: Scratch
    init() throws { scratch = try Scratch() }

    /// A line of commits, one pack each.
    private func commits(_ history: History, _ count: Int, on start: ObjectID? = nil) throws
        -> [ObjectID]
    {
        var result: [ObjectID] = []
        var parent = start
        for number in 0..<count {
            let id = try history.commit(
                Files(["same": "x", "n\(number % 7)": "\(number) \(start?.description ?? "")"]),
                on: parent.map { [$0] } ?? [], message: "\(number)")
            result.append(id)
            parent = id
        }
        return result
    }

    @Test func manyPacksBecomeOneAndEverythingIsStillThere() throws {
        let history = try scratch.repository()
        let ids = try commits(history, HistoryLimits.packsMax)
        #expect(try !history.repackIfNeeded())
        let last = try #require(ids.last)
        let more = try commits(history, 1, on: last)
        let list = Set(try history.objectList(wanted: more, have: []))
        let open = try history.openPack(#require(try history.joinPacks().first).name)
        defer { try? open.close() }
        #expect(try history.repackIfNeeded())
        #expect(try history.packCount() == 1)
        #expect(try !history.repackIfNeeded())
        #expect(git(history.path, "fsck --strict --full").status == 0)
        #expect(Set(try history.objectList(wanted: more, have: [])) == list)
        for id in ids { #expect(try history.tree(history.graph.tree(of: id)).count >= 2) }
        #expect(try open.seek(offset: 0, from: .end) > 0)
        // No descriptor or mapping keeps a removed pack alive.
        let kept = shell("ls -l /proc/$PPID/fd; cat /proc/$PPID/maps").output
        #expect(
            !kept.split(separator: "\n").contains {
                $0.contains("\(history.path)") && $0.contains("deleted") && $0.contains(".idx")
            })
        let again = try History.open(history.path)
        #expect(again.graph.count == ids.count + 1)
    }

    @Test func writersAndReadersGoOnDuringARepack() throws {
        let history = try scratch.repository()
        let ids = try commits(history, HistoryLimits.packsMax + 5)
        let last = try #require(ids.last)
        try onThreads(3) { thread in
            if thread == 0 {
                #expect(try history.repackIfNeeded())
            } else {
                for step in 0..<10 {
                    let blob = try history.write {
                        try $0.write(blob: [UInt8(thread), UInt8(step)])
                    }
                    #expect(try history.blob(blob) == [UInt8(thread), UInt8(step)])
                    let pack = try history.pack(wanted: [last], have: [ids[step * 3]])
                    #expect(pack != nil)
                    for id in ids { _ = try history.tree(history.graph.tree(of: id)) }
                }
            }
        }
        #expect(try history.packCount() <= 21)
        #expect(git(history.path, "fsck --strict --full").status == 0)
    }

    @Test func aCrashAnywhereInARepackLosesNothing() throws {
        let history = try scratch.repository()
        let ids = try commits(history, HistoryLimits.packsMax + 1)
        let copy = scratch.path.appending("before.git")
        shell("cp -r '\(history.path)' '\(copy)'")
        #expect(try history.repackIfNeeded())
        let combined = try #require(try history.joinPacks().first).name
        // The new pack is there, the old ones are not gone, gone by half, or some of them.
        for removal in ["true", "rm $1.pack", "rm $1.pack $1.idx", "rm $1.idx"] {
            let state = scratch.path.appending("state.git")
            shell(
                """
                cp -r '\(copy)' '\(state)' && cd '\(state)/objects/pack'
                cp '\(history.path)/objects/pack/\(combined.dropLast(5))'.* .
                set -- $(ls pack-*.pack | grep -v \(combined) | head -1 | sed 's/.pack$//')
                \(removal)
                """)
            let again = try History.open(state)
            #expect(again.graph.count == ids.count)
            #expect(try again.repackIfNeeded())
            #expect(try again.packCount() == 1, "\(removal)")
            #expect(git(state, "fsck --strict --full").status == 0)
            shell("rm -rf '\(state)'")
        }
    }

    @Test func aLargePackIsLeftAlone() throws {
        let seed: UInt64 = 5
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        let history = try scratch.repository()
        let large = try history.write { try $0.write(blob: random.bytes(2_000_000)) }
        let name = try #require(try history.joinPacks().first).name
        _ = try commits(history, HistoryLimits.packsMax)
        #expect(try history.repackIfNeeded())
        #expect(try history.joinPacks().count == 2)
        #expect(try history.joinPacks().contains { $0.name == name })
        #expect(try history.blob(large).count == 2_000_000)
    }
}
