/// When a node merges, and when it tells: the rule that keeps merges from causing merges.
///
/// A node keeps the *announced* heads, reduced to the maximal ones, and applies their merge as a
/// commit of its own that is replaced whenever the set changes. That commit leaves the node only as
/// parent of a local commit, or, when no new head has come for a while that is longer for nodes of
/// a higher rank, to close the round. Others that hold the same set have made the same commit.
///
/// | announced | applied | next |
/// |---|---|---|
/// | one head | that head | wait for an event |
/// | one head | anything else | adopt it |
/// | several | their merge | wait; when the round is over announce the merge, now the one head |
/// | several | anything else | merge them |
///
/// Where many write and all merge, the merges themselves keep nodes from ever agreeing: each is one
/// more head for everybody. So all is paced by the time that a merge takes here:
/// * After a merge there is a rest, before the next one and before a commit that would tell of it.
/// * Nodes of a higher rank begin later, when no new head has come for a while; mostly there is one head
///   then, which has all others in it.
/// * While peers have heads that are on their way here, a merge waits for them, and a round is not closed.
/// * A node makes its next commit when the one before it has been merged, here or elsewhere. So mostly one
///   node merges for all, and what the others commit lies on its merge.
///
/// A local commit is announced before all else. A value without clock or I/O: the caller passes
/// times of one monotonic clock, performs the action of `next` and reports it by `adopted` or
/// `merged`.
public struct HeadConvergence: Hashable, Sendable {
    public enum Action: Hashable, Sendable {
        /// Tell every peer that this is a head here.
        case announce(ObjectID)
        /// Bring the live state to this commit, then call `adopted`.
        case adopt(ObjectID)
        /// Make or find the merge commit with exactly these parents, sorted and maximal, bring the
        /// live state to it, then call `merged`.
        case merge([ObjectID])
        /// Nothing until an event or this time.
        case wait(until: Duration?)
    }

    /// Without a new head for this long the node of the lowest rank closes the round.
    public static let quiet = Duration.milliseconds(300)
    /// For every rank, so that the others have heard of the close before their turn comes.
    public static let quietPerRank = Duration.milliseconds(100)
    /// So long a round stays open for heads on their way, for they may never come.
    public static let awaitedMax = Duration.seconds(10)
    /// What a merge waits for heads on their way, beside a rest.
    public static let awaitedMin = Duration.milliseconds(50)
    /// Of each of the waits that follow from the time that a merge takes.
    public static let restMax = Duration.seconds(5)
    /// So long a commit waits for the merge of the one before it.
    public static let unmergedMax = Duration.seconds(2)
    /// A shorter rest helps nobody.
    public static let restMin = Duration.milliseconds(200)

    /// Sorted, none an ancestor of another. What a peer that asks for heads is told.
    public private(set) var announced: [ObjectID]
    /// The commit that the live state is, and the parent of the next local commit.
    public private(set) var applied: ObjectID
    /// The heads that `applied` merges, as long as it has not left this node.
    private var mergedHeads: [ObjectID]?
    /// A local commit that peers have not been told.
    private var untold: ObjectID?
    private var lastNews: Duration
    /// When there came to be several heads that nothing here merges.
    private var unmergedSince: Duration?
    /// What the last merge took, and the end of the rest after it.
    private var mergeTime = Duration.zero
    private var rested = Duration.zero
    /// The last commit that was made here.
    private var own: Own?

    private struct Own: Hashable {
        let commit: ObjectID
        let time: Duration
    }

    /// A node whose live state is a commit that peers may know.
    public init(applied: ObjectID, at now: Duration) {
        announced = [applied]
        self.applied = applied
        lastNews = now
    }

    /// A node that starts on a merge commit, which perhaps never left it.
    public init(applied: ObjectID, merging heads: [ObjectID], at now: Duration) {
        announced = heads.sorted()
        self.applied = applied
        mergedHeads = announced
        lastNews = now
    }

    // MARK: Events

    /// Peers told heads; they and all their ancestors are in the graph, and valid.
    public mutating func received(
        _ heads: some Sequence<ObjectID>, at now: Duration, graph: some CommitGraph
    ) throws {
        let reduced = try graph.reduceToMaximal(announced + Array(heads))
        if reduced == announced { return }
        announced = reduced
        lastNews = now
        unmergedSince = unmergedSince ?? now
    }

    /// The committer made a commit on `applied`.
    public mutating func committed(
        _ commit: ObjectID, at now: Duration, graph: some CommitGraph
    ) throws {
        announced = try graph.reduceToMaximal(announced + [commit])
        applied = commit
        mergedHeads = nil
        own = Own(commit: commit, time: now)
        untold = commit
        lastNews = now
        unmergedSince = unmergedSince ?? now
    }

    /// What this node is was committed anew, beside a commit that peers refuse.
    public mutating func recommitted(
        as commit: ObjectID, insteadOf refused: ObjectID, at now: Duration,
        graph: some CommitGraph
    ) throws {
        announced = try announced.filter { try !graph.isAncestor(refused, of: $0) }
        try committed(commit, at: now, graph: graph)
    }

    /// Commits that came are not valid, nor is what has them in its past.
    public mutating func rejected(
        _ commits: Set<ObjectID>, graph: some CommitGraph
    ) throws {
        announced = try announced.filter { head in
            try !commits.contains { try graph.isAncestor($0, of: head) }
        }
        if announced.isEmpty { announced = [applied] }
        if mergedHeads != announced { mergedHeads = nil }
    }

    public mutating func adopted(_ commit: ObjectID) {
        applied = commit
        mergedHeads = nil
        unmergedSince = nil
    }

    /// - Parameter time: since `next` said so; 0 for one that was found.
    public mutating func merged(
        _ heads: [ObjectID], into commit: ObjectID, at now: Duration, taking time: Duration
    ) {
        applied = commit
        mergedHeads = heads
        unmergedSince = nil
        mergeTime = time
        rested = rest < Self.restMin ? .zero : now + rest
    }

    private var rest: Duration { min(mergeTime * 2, Self.restMax) }

    /// Before it no commit ought to be made for the sake of peers: while one of this node is among heads
    /// that nobody has merged, another would only have to be merged once more.
    public var commitDue: Duration {
        guard announced.count > 1, mergedHeads != announced, let own,
            announced.contains(own.commit)
        else { return rested }
        return max(rested, own.time + Self.unmergedMax)
    }

    // MARK: What to do

    /// - Parameters:
    ///   - rank: this node's place among the ids of the nodes online, itself included, from 0.
    ///   - isAwaiting: peers have heads that are on their way here.
    public mutating func next(
        at now: Duration, rank: Int, isAwaiting: Bool = false
    ) -> Action {
        if let commit = untold {
            untold = nil
            return .announce(commit)
        }
        if announced.count == 1 {
            unmergedSince = nil
            // The close of a round, ours or another's: nothing more to tell.
            if announced[0] == applied { mergedHeads = nil }
            return announced[0] == applied ? .wait(until: nil) : .adopt(announced[0])
        }
        guard mergedHeads == announced else {
            let since = unmergedSince ?? now
            let awaited = isAwaiting ? Self.awaitedMin + rest : .zero
            // Others are to have the time to merge, and to tell, before it is this node's turn.
            let turn = min(mergeTime * 2 * rank, Self.restMax * 2)
            let due = max(rested, since + awaited, min(lastNews + turn, since + turn * 3))
            return due > now ? .wait(until: due) : .merge(announced)
        }
        let end =
            lastNews
            + (isAwaiting ? Self.awaitedMax : Self.quiet + Self.quietPerRank * rank)
        if now < end { return .wait(until: end) }
        announced = [applied]
        mergedHeads = nil
        unmergedSince = nil
        return .announce(applied)
    }
}
