import FUSE
import Foundation
import Glibc
import Logging
import Mesh
import Mount
import Synchronization
import SystemPackage
import Volume

// `delugefs wait`, and what an `fsync` waits for.
extension Node {
    /// A wait without a timeout ends after this, so that nothing waits for ever.
    static let waitSecondsMax: Double = 7 * 24 * 3600
    static let waitPoll = Duration.milliseconds(50)
    /// How long a successful wait waits for `status` to say the same.
    static let catchUpMax = Duration.seconds(2)
    /// How long an `fsync` waits for copies.
    static let syncPatience = Duration.seconds(60)

    func wait(_ message: ControlMessage.Wait) async throws -> ControlMessage.WaitReply {
        let seconds = min(message.timeoutSeconds ?? Self.waitSecondsMax, Self.waitSecondsMax)
        let deadline = ContinuousClock.now + .seconds(seconds)
        await noticeCloses()
        let (isPublished, isCommitted) = try await Blocking.alone { [publisher, timeline] in
            let isPublished = publisher.settle(until: deadline)
            return (isPublished, isPublished && timeline.commitNow(until: deadline))
        }
        // Not `applied`: that may be a merge which never leaves this node.
        let heads = timeline.announced
        guard isCommitted, !heads.isEmpty else {
            let hasFailed = !isPublished && ContinuousClock.now < deadline
            let reason = hasFailed ? publisher.lastFailure : nil
            return ControlMessage.WaitReply(
                outcome: .timedOut,
                text: reason.map {
                    "Some closed files cannot be published now: \($0). Look after the disk, or write the file anew."
                }
                    ?? "Some closed files are still being published.")
        }
        if let missing = try await peerWithout(heads, until: deadline) {
            return ControlMessage.WaitReply(
                outcome: .timedOut, text: "\(missing) has not acknowledged the latest changes.")
        }
        guard message.replicated else {
            return ControlMessage.WaitReply(outcome: .done, text: "")
        }
        let reply = try await outcome(of: ReplicationWait(self), until: deadline)
        if reply?.outcome == .done { await catchUpStatus() }
        return reply ?? ControlMessage.WaitReply(outcome: .timedOut, text: "")
    }

    /// What an `fsync` waits for that wants more than this disk: the commit, which all online peers
    /// take in, and so many confirmed copies.
    ///
    /// - Throws: ETIMEDOUT when that does not come about, at once when too few disks are online.
    func confirm(_ extents: [Extent], copies: Int) async throws {
        let deadline = ContinuousClock.now + Self.syncPatience
        guard mesh.peers.count(where: \.isOnline) + 1 >= min(copies, settings.copies) else {
            logger.warning("fsync: too few disks are online for \(copies) copies")
            throw Errno.timedOut
        }
        let isCommitted = try await Blocking.alone { [timeline] in
            timeline.commitNow(until: deadline)
        }
        var obstacle = isCommitted ? nil : "the change is not committed"
        if isCommitted, let peer = try await peerWithout(timeline.announced, until: deadline) {
            obstacle = "\(peer) has not acknowledged the change"
        }
        if obstacle == nil {
            let wait = try await ReplicationWait(self, of: extents, copies: copies)
            let reply = try await outcome(of: wait, until: deadline)
            if reply?.outcome == .done { return }
            obstacle = reply?.text ?? "the copies are not made yet"
        }
        logger.warning("fsync: no \(copies) copies: \(obstacle ?? "")")
        throw Errno.timedOut
    }

    /// - Returns: the name of an online peer that has not taken in these commits in time.
    private func peerWithout(
        _ heads: [ObjectID], until deadline: ContinuousClock.Instant
    ) async throws -> String? {
        mesh.pokeAll()
        while let missing = await unacknowledged(heads) {
            guard ContinuousClock.now < deadline else { return missing }
            try await Task.sleep(for: Self.waitPoll)
        }
        return nil
    }

    /// - Returns: nil when it is still open at the deadline.
    private func outcome(
        of wait: ReplicationWait, until deadline: ContinuousClock.Instant
    ) async throws -> ControlMessage.WaitReply? {
        var wait = wait
        while true {
            if let reply = try await wait.outcome() { return reply }
            guard ContinuousClock.now < deadline else { return nil }
            try await Task.sleep(for: ReplicationWait.poll)
        }
    }

    /// A close that has returned may still be on its way: the kernel sends RELEASE without waiting
    /// for it. It is queued by then, so what is asked afterwards is read afterwards, and when all
    /// that was being answered at that moment is answered too, the publisher knows of the close.
    func noticeCloses() async {
        guard let mount = running.withLock({ $0.mount }) else { return }
        let path = mount.path.string
        // Twice: a reader that lost its processor with the RELEASE in hand has it back by then.
        for _ in 0..<2 {
            _ = try? await Blocking.alone {
                var statistics = statvfs()
                _ = statvfs(path, &statistics)
            }
            await withCheckedContinuation { continuation in
                let isKept = mount.session.afterCurrentRequests { continuation.resume() }
                if !isKept { continuation.resume() }
            }
        }
    }

    /// `status` follows the holders' logs, which come a moment after their answers: whoever looks
    /// after a successful wait shall find what he was told.
    private func catchUpStatus() async {
        let deadline = ContinuousClock.now + Self.catchUpMax
        mesh.pokeAll()
        while replicator.lacking.underReplicated.files > 0, ContinuousClock.now < deadline {
            replicator.poke()
            try? await Task.sleep(for: Self.waitPoll)
        }
    }

    /// The name of an online peer that has not taken in these commits; nil when all have.
    func unacknowledged(_ heads: [ObjectID]) async -> String? {
        for peer in mesh.peers where peer.isOnline {
            for head in heads where await !hasTaken(head, peer) {
                if mesh.peer(peer.node)?.isOnline == true { return peer.hello.name }
            }
        }
        return nil
    }

    func hasTaken(_ head: ObjectID, _ peer: Peer) async -> Bool {
        if peer.hello.announced == [head] { return true }
        let body = try? JSONEncoder().encode(PeerMessage.HasCommit(commit: "\(head)"))
        let reply = try? await mesh.request(
            peer.node, path: "/v1/has-commit", body: Array(body ?? Data()),
            timeout: .seconds(2)
        ).successful()
        let has = reply.flatMap {
            try? JSONDecoder().decode(PeerMessage.HasCommitReply.self, from: Data($0.body)).has
        }
        return has == true
    }
}
