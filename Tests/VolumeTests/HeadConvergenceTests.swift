import Testing

@testable import Volume

@Suite struct HeadConvergenceTests {
    /// 0 below 1, 2 and 3; 4 merges 1 and 2; 5 is a change on 4; 6 merges 1, 2 and 3.
    private let graph = NumberedGraph(
        parents: [[], [], [], [0], [0], [0], [3, 4], [], [], [6], [], [], [3, 4, 5]])
    private let base = NumberedGraph.id(0)
    private let one = NumberedGraph.id(3)
    private let two = NumberedGraph.id(4)
    private let three = NumberedGraph.id(5)
    private let merge = NumberedGraph.id(6)
    private let onMerge = NumberedGraph.id(9)
    private let mergeOfThree = NumberedGraph.id(12)

    @Test("One head is adopted, and nothing is told")
    func adopt() throws {
        var heads = HeadConvergence(applied: base, at: .zero)
        #expect(heads.next(at: .zero, rank: 0) == .wait(until: nil))
        try heads.received([one], at: .zero, graph: graph)
        #expect(heads.next(at: .zero, rank: 0) == .adopt(one))
        heads.adopted(one)
        #expect(heads.next(at: .zero, rank: 0) == .wait(until: nil))
        try heads.received([base], at: .zero, graph: graph)
        #expect(heads.announced == [one])
    }

    /// A node that holds 1 and 2 and has merged them at time zero.
    private func merged() throws -> HeadConvergence {
        var heads = HeadConvergence(applied: base, at: .zero)
        try heads.committed(one, at: .zero, graph: graph)
        #expect(heads.next(at: .zero, rank: 0) == .announce(one))
        try heads.received([two], at: .zero, graph: graph)
        #expect(heads.next(at: .zero, rank: 0) == .merge([one, two].sorted()))
        heads.merged([one, two].sorted(), into: merge, at: .zero, taking: .zero)
        return heads
    }

    @Test("A merge stays at home until the round is over, longer for a higher rank")
    func close() throws {
        var heads = try merged()
        #expect(heads.next(at: .milliseconds(299), rank: 0) == .wait(until: .milliseconds(300)))
        #expect(heads.next(at: .milliseconds(300), rank: 2) == .wait(until: .milliseconds(500)))
        #expect(heads.announced == [one, two].sorted())
        #expect(heads.next(at: .milliseconds(300), rank: 0) == .announce(merge))
        #expect(heads.announced == [merge])
        #expect(heads.next(at: .milliseconds(300), rank: 0) == .wait(until: nil))
    }

    @Test("Another node's close ends the round without a word")
    func closedElsewhere() throws {
        var heads = try merged()
        try heads.received([merge], at: .milliseconds(200), graph: graph)
        #expect(heads.next(at: .milliseconds(900), rank: 3) == .wait(until: nil))
        #expect(heads.announced == [merge] && heads.applied == merge)
    }

    @Test("A merge is replaced when another head comes, and the round begins anew")
    func replaced() throws {
        var heads = try merged()
        try heads.received([three], at: .milliseconds(250), graph: graph)
        let all = [one, two, three].sorted()
        #expect(heads.next(at: .milliseconds(400), rank: 0) == .merge(all))
        heads.merged(all, into: mergeOfThree, at: .milliseconds(400), taking: .zero)
        #expect(heads.next(at: .milliseconds(400), rank: 0) == .wait(until: .milliseconds(550)))
        #expect(heads.next(at: .milliseconds(550), rank: 0) == .announce(mergeOfThree))
    }

    @Test("A merge leaves as the parent of a local commit")
    func parent() throws {
        var heads = try merged()
        try heads.committed(onMerge, at: .milliseconds(10), graph: graph)
        #expect(heads.next(at: .milliseconds(10), rank: 4) == .announce(onMerge))
        #expect(heads.announced == [onMerge])
        #expect(heads.next(at: .milliseconds(10), rank: 4) == .wait(until: nil))
    }

    @Test("After a merge that took long the next waits, longer on nodes of a higher rank")
    func paced() throws {
        var heads = try merged()
        let time = Duration.milliseconds(100)
        heads.merged([one, two].sorted(), into: merge, at: time, taking: time)
        #expect(heads.commitDue == time * 3)
        try heads.received([three], at: time * 2, graph: graph)
        #expect(heads.next(at: time * 2, rank: 0) == .wait(until: time * 3))
        #expect(heads.next(at: time * 2, rank: 5) == .wait(until: time * 12))
        #expect(heads.next(at: time * 3, rank: 0) == .merge([one, two, three].sorted()))
        let hour = Duration.seconds(3600)
        heads.merged([one, two].sorted(), into: merge, at: time, taking: hour)
        #expect(heads.commitDue == time + HeadConvergence.restMax)
    }

    @Test(
        "The next commit waits until the one before it is merged, here or elsewhere, but not for long"
    )
    func unmerged() throws {
        var heads = HeadConvergence(applied: base, at: .zero)
        #expect(heads.commitDue == .zero)
        let time = Duration.milliseconds(100)
        try heads.committed(one, at: time, graph: graph)
        #expect(heads.commitDue == .zero)
        try heads.received([two], at: time, graph: graph)
        #expect(heads.commitDue == time + HeadConvergence.unmergedMax)
        var here = heads
        here.merged([one, two].sorted(), into: merge, at: time, taking: .zero)
        #expect(here.commitDue == .zero)
        try heads.received([onMerge, three], at: time, graph: graph)
        #expect(heads.commitDue == .zero)
    }

    @Test("A merge waits for heads on their way, and a round stays open for them, neither for ever")
    func awaiting() throws {
        var heads = try merged()
        #expect(
            heads.next(at: .milliseconds(900), rank: 0, isAwaiting: true)
                == .wait(until: HeadConvergence.awaitedMax))
        #expect(
            heads.next(at: HeadConvergence.awaitedMax, rank: 0, isAwaiting: true)
                == .announce(merge))
        heads = try merged()
        try heads.received([three], at: .milliseconds(250), graph: graph)
        #expect(
            heads.next(at: .milliseconds(250), rank: 0, isAwaiting: true)
                == .wait(until: .milliseconds(250) + HeadConvergence.awaitedMin))
        #expect(
            heads.next(at: .milliseconds(300), rank: 0, isAwaiting: true)
                == .merge([one, two, three].sorted()))
    }

    @Test("A node that starts on a merge closes its round like any other")
    func restart() {
        var heads = HeadConvergence(applied: merge, merging: [two, one], at: .zero)
        #expect(heads.next(at: .zero, rank: 0) == .wait(until: .milliseconds(300)))
        #expect(heads.next(at: .milliseconds(300), rank: 0) == .announce(merge))
    }
}
