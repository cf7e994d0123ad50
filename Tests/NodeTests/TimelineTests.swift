import Catalog
import Foundation
import History
import Synchronization
import Testing
import Volume

@testable import Node

struct TimelineTests {
    @Test func aCrashBetweenTheRowsAndTheBranchIsMadeGood() throws {
        try withDirectory { path in
            let disk = try Disk.create(path + "/a", node: 1)
            try disk.make("one")
            let first = try disk.commit()
            try disk.make("two")
            let second = try disk.commit()
            #expect(first != second)
            disk.timeline.stop()
            try disk.history.setHead(first)

            let again = try disk.reopened()
            defer { again.close() }
            #expect(again.timeline.applied == second)
            #expect(try again.history.head() == second)
            try again.make("three")
            let third = try again.commit()
            #expect(try again.history.commit(third)?.parents == [second])
        }
    }

    @Test func whatWasFetchedAndNotAppliedIsAppliedAfterARestart() throws {
        try withDirectory { path in
            let a = try Disk.create(path + "/a", node: 1)
            defer { a.close() }
            let b = try Disk.join(a, path + "/b", node: 2)
            try b.make("theirs")
            let head = try b.commit()
            b.close()
            let c = try Disk.join(a, path + "/c", node: 3)
            c.timeline.stop()
            try c.fetch(head, from: b)

            let again = try c.reopened()
            defer { again.close() }
            try eventually("the fetched head is applied") { again.timeline.applied == head }
            #expect(try again.has("theirs"))
        }
    }

    @Test func aMergeIsMadeWhileThingsGoOnHere() throws {
        try withDirectory { path in
            let a = try Disk.create(path + "/a", node: 1)
            defer { a.close() }
            let b = try Disk.join(a, path + "/b", node: 2)
            defer { b.close() }
            try b.make("theirs")
            let head = try b.commit()
            let isOver = Atomic(false)
            let writing = Thread {
                var number = 0
                while !isOver.load(ordering: .relaxed) {
                    number += 1
                    try? a.make("ours \(number)")
                    usleep(3000)
                }
            }
            writing.start()
            defer { isOver.store(true, ordering: .relaxed) }
            try a.fetch(head, from: b)
            a.timeline.received(head)
            try eventually("the merge is applied") { try a.has("theirs") }
            isOver.store(true, ordering: .relaxed)
            while !writing.isFinished { usleep(1000) }
            try a.commit()
        }
    }

    @Test func whatPeersRefuseIsCommittedAnewOnItsLastValidAncestor() throws {
        try withDirectory { path in
            let a = try Disk.create(path + "/a", node: 1)
            try a.make("good")
            let good = try a.commit()
            let b = try Disk.join(a, path + "/b", node: 2)
            defer { b.close() }
            try a.make("later")
            try a.commit()
            a.timeline.stop()
            let bad = try a.commitRubbish(on: good)
            try a.catalog.perform { try $0.setApplied(bad) }
            try a.history.setHead(bad)

            let again = try a.reopened()
            try again.make("latest")
            let child = try again.commit()
            #expect(try again.history.commit(child)?.parents == [bad])
            let refusal = #expect(throws: Gossip.InvalidCommit.self) {
                try b.fetch(child, from: again)
            }
            #expect(refusal?.commit == bad)
            #expect(refusal?.author == again.node)

            try again.timeline.refused(bad, by: b.node, "rubbish")
            try eventually("it is committed anew") {
                try again.timeline.applied.map {
                    try !again.history.graph.isAncestor(bad, of: $0)
                } == true
            }
            let new = try #require(again.timeline.applied)
            #expect(again.timeline.announced == [new])
            #expect(again.timeline.problems.isEmpty)
            #expect(try again.history.commit(new)?.parents == [good])
            #expect(try again.history.reference("refs/rejected/\(bad)") == bad)
            try b.fetch(new, from: again)
            b.timeline.received(new)
            try eventually("the peer has it") { b.timeline.applied == new }
            for text in ["good", "later", "latest"] { #expect(try b.has(text)) }

            // What has the refused commit is not taken in again, also after a restart.
            let last = try again.reopened()
            defer { last.close() }
            last.timeline.received(child)
            try last.make("last")
            let tip = try last.commit()
            #expect(try last.history.commit(tip)?.parents == [new])
            #expect(last.timeline.announced == [tip])
        }
    }

    @Test func aValidCommitThatAPeerRefusesIsAProblemAndStays() throws {
        try withDirectory { path in
            let a = try Disk.create(path + "/a", node: 1)
            defer { a.close() }
            try a.make("good")
            let good = try a.commit()
            let peer = NodeID(high: 0, low: 2)
            try a.timeline.refused(good, by: peer, "it is from tomorrow")
            try a.make("more")
            let tip = try a.commit()
            #expect(try a.history.commit(tip)?.parents == [good])
            #expect(a.timeline.problems.map(\.code) == ["commit-refused"])
            a.timeline.accepted(tip, by: peer)
            #expect(a.timeline.problems.isEmpty)
        }
    }
}
