import Testing

@testable import Mount

struct PublishQueueTests {
    private typealias Queue = PublishQueue<Int>

    private func take(_ queue: inout Queue, now: UInt64 = 0) throws -> Queue.Entry {
        try #require(queue.take(.small, now: now, filesMax: 1, bytesMax: 1 << 20).batch.first)
    }

    private func finishNext(_ queue: inout Queue) throws { queue.done([try take(&queue)]) }

    private func add(_ key: UInt64, _ queue: inout Queue) {
        let isNew = queue.add(key, 0, size: 1, .small)
        #expect(isNew)
    }

    @Test func whatComesAfterwardsDoesNotHoldUpWhoWaits() throws {
        var queue = Queue()
        add(1, &queue)
        let inWork = try take(&queue)
        add(2, &queue)
        let round = queue.hurry()
        add(3, &queue)
        #expect(queue.progress(of: round) == .busy)
        queue.done([inWork])
        #expect(queue.progress(of: round) == .busy)
        let second = try take(&queue)
        #expect(second.key == 2)
        queue.done([second])
        #expect(queue.progress(of: round) == .settled)
        #expect(queue.unpublished == 1)
    }

    @Test func whatIsPutOffIsDoneAtOnceWhenSomebodyWaits() throws {
        var queue = Queue()
        add(1, &queue)
        let quiet = try take(&queue)
        _ = queue.postpone(quiet, .small, until: 1000, .quiet)
        queue.done([quiet])
        let early = queue.take(.small, now: 0, filesMax: 1, bytesMax: 1)
        #expect(early.batch.isEmpty)
        let round = queue.hurry()
        let held = try take(&queue)
        #expect(held.isHurried)
        _ = queue.postpone(held, .small, until: 1000, .held(isCopied: false))
        queue.done([held])
        #expect(queue.progress(of: round) == .busy)
        let copied = try take(&queue)
        _ = queue.postpone(copied, .small, until: 1000, .held(isCopied: true))
        queue.done([copied])
        #expect(queue.progress(of: round) == .settled)
        #expect(queue.unpublished == 0)
    }

    @Test func aFailureEndsTheWaitThatItHappenedInAndIsTriedAgainInTheNext() throws {
        var queue = Queue()
        add(1, &queue)
        add(2, &queue)
        let first = queue.hurry()
        let failed = try take(&queue)
        _ = queue.postpone(failed, .small, until: 1000, .failed)
        queue.done([failed])
        #expect(queue.progress(of: first) == .busy)
        try finishNext(&queue)
        #expect(queue.progress(of: first) == .failed)
        let second = queue.hurry()
        #expect(queue.progress(of: second) == .busy)
        try finishNext(&queue)
        #expect(queue.progress(of: second) == .settled)
        #expect(queue.progress(of: first) == .failed)
        queue.endHurry(first)
        queue.endHurry(second)
    }

    @Test func whatWasAddedAgainIsWaitedForToo() throws {
        var queue = Queue()
        add(1, &queue)
        let entry = try take(&queue)
        let round = queue.hurry()
        add(1, &queue)
        queue.done([entry])
        #expect(queue.progress(of: round) == .busy)
        try finishNext(&queue)
        #expect(queue.progress(of: round) == .settled)
    }
}
