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
}
