import Catalog
import Foundation
import History
import Logging
import Mesh
import Mount
import Synchronization
import SystemPackage
import Volume

// `delugefs restore`: what was at a path becomes again what it was, as an edit of today.
extension Node {
    /// How long a restore waits for what was closed before to be published and committed.
    static let restorePatience = Duration.seconds(30)

    func restore(_ message: ControlMessage.Restore) async throws -> ControlMessage.RestoreReply {
        let path = try Self.names(of: message.path)
        let target = try message.to.map { try Self.names(of: $0) }
        let point = try PastPoint(message.at, now: Int64(Monotonic.wallMilliseconds))
        // Today's versions stay in the history: they have to be there first.
        await noticeCloses()
        return try await Blocking.alone { [self] in
            // From the first look on nothing that may be wanted is given up here.
            collector.hold()
            defer { collector.release() }
            let deadline = ContinuousClock.now + Self.restorePatience
            _ = publisher.settle(until: deadline)
            guard timeline.commitNow(until: deadline) else {
                throw NodeError(
                    "The present state could not be committed, so nothing was restored. `delugefs status` says why."
                )
            }
            let commit = try timeline.history.commit(
                at: point, now: Int64(Monotonic.wallMilliseconds))
            let restoration = try Restoration(self, commit)
            return try restoration.run(path, to: target)
        }
    }

    /// The names of a path in the volume. Throws for what is no path, and for `.delugefs`.
    static func names(of path: [UInt8]) throws -> [FileName] {
        let names = try path.split(separator: 0x2F).map { part in
            guard let name = FileName(Array(part)) else {
                throw NodeError("\(String(decoding: path, as: UTF8.self)) is no path in a volume.")
            }
            return name
        }
        guard names.first != FileName(".delugefs") else {
            throw NodeError(
                ".delugefs is not a part of the volume; give the path that the file has, or had, in the volume itself."
            )
        }
        return names
    }
}

/// One run, on a thread that it may block.
///
/// The past is read first, then names are restored in operations of a few milliseconds: requests
/// of the mount go on in between. What was restored when a run ends early stays, and the next run
/// finds it as it should be.
private final class Restoration {
    /// Requests wait no longer than this, or for one entry.
    static let operationMax = Duration.milliseconds(10)
    /// Entries read from the past at once.
    static let batchMax = 512
    static let failuresShownMax = 1000
    /// Commits of what is being changed under our hands, for one part.
    static let busyMax = 20

    private struct Wanted {
        let path: [FileName]
        let name: FileName
        let item: Past.Item
        var isShared: Bool {
            if case .other(_, let links) = item { links > 1 } else { false }
        }
    }

    private struct Directory {
        let path: [FileName]
        let past: Past.Directory
        let ino: InodeNumber
    }

    private let node: Node
    private let past: Past
    private var restoring = Restoring()
    private var reply: ControlMessage.RestoreReply
    /// Directories whose attributes are still to be restored, parents first.
    private var unfinished: [(ino: InodeNumber, record: Record)] = []

    init(_ node: Node, _ commit: ObjectID) throws {
        self.node = node
        past = try Past(commit, of: node.timeline.history)
        reply = ControlMessage.RestoreReply(
            commit: "\(commit)",
            time: Node.iso8601(milliseconds: try node.timeline.history.milliseconds(of: commit)))
    }

    // MARK: The whole

    func run(_ path: [FileName], to target: [FileName]?) throws -> ControlMessage.RestoreReply {
        guard let item = try past.item(at: path) else {
            throw NodeError(
                "There was no \(Node.text(path)) in the volume then (commit \(reply.commit.prefix(12)), \(reply.time)). `delugefs log` shows when there was."
            )
        }
        if let target {
            try restoreElsewhere(item, target)
        } else {
            try restoreInPlace(item, path)
        }
        try finishDirectories()
        try node.catalog.flush()
        _ = node.timeline.commitNow(until: .now + Node.restorePatience)
        node.logger.notice(
            "restored \(Node.text(path)) as of \(reply.time): \(reply.made) made, \(reply.changed) changed, \(reply.missing) without content, \(reply.blocked) blocked"
        )
        return reply
    }

    private func restoreInPlace(_ item: Past.Item, _ path: [FileName]) throws {
        guard let name = path.last else {
            if case .directory(let directory) = item {
                try restoreTree(Directory(path: [], past: directory, ino: .root))
            }
            return
        }
        let parent = try ancestors(Array(path.dropLast()))
        try restore(Wanted(path: path, name: name, item: item), in: parent)
    }

    private func restoreElsewhere(_ item: Past.Item, _ target: [FileName]) throws {
        let text = Node.text(target)
        guard let name = target.last else {
            throw NodeError("--to must name a new place inside the mount.")
        }
        let parent = try node.catalog.read { reader in
            var ino = InodeNumber.root
            for name in target.dropLast() {
                guard let row = try reader.find(name, in: ino), row.isDirectory else {
                    throw NodeError(
                        "The directory that \(text) is to be in does not exist; make it.")
                }
                ino = row.ino
            }
            if let row = try reader.find(name, in: ino) {
                guard item.record.isDirectory, row.isDirectory, try reader.hasNoEntries(row.ino)
                else {
                    throw NodeError(
                        "There is a \(text) already; --to takes a name that is free\(item.record.isDirectory ? ", or an empty directory" : "")."
                    )
                }
            }
            return ino
        }
        try restore(Wanted(path: target, name: name, item: item), in: parent)
    }

    /// The directories that lead there; those that are gone come back, without what they held.
    private func ancestors(_ path: [FileName]) throws -> InodeNumber {
        var ino = InodeNumber.root
        for depth in path.indices {
            let name = path[depth]
            let here = Array(path[...depth])
            if let row = try node.catalog.read({ try $0.find(name, in: ino) }) {
                guard row.isDirectory else {
                    throw NodeError(
                        "\(Node.text(here)) is no directory today; restore with --to another place."
                    )
                }
                ino = row.ino
                continue
            }
            guard let item = try past.item(at: here), case .directory(let directory) = item,
                let made = try restore([Wanted(path: here, name: name, item: item)], in: ino).first
            else { throw NodeError("\(Node.text(here)) could not be made again.") }
            unfinished.append((made.ino, directory.record))
            ino = made.ino
        }
        return ino
    }

    private func restore(_ wanted: Wanted, in parent: InodeNumber) throws {
        let directories = try restore([wanted], in: parent)
        for directory in directories { try restoreTree(directory) }
    }

    private func restoreTree(_ top: Directory) throws {
        var waiting = [top]
        while let directory = waiting.popLast() {
            unfinished.append((directory.ino, directory.past.record))
            var cookie: UInt64 = 0
            while true {
                let part = try past.list(directory.past, after: cookie, limit: Self.batchMax)
                guard let last = part.last else { break }
                cookie = last.cookie
                let wanted = try part.map { entry in
                    Wanted(
                        path: directory.path + [entry.name], name: entry.name,
                        item: try past.item(entry.child))
                }
                waiting += try restore(wanted, in: directory.ino)
            }
        }
    }

    // MARK: Parts

    /// - Returns: the directories among them, to be filled.
    private func restore(_ all: [Wanted], in parent: InodeNumber) throws -> [Directory] {
        let wanted = try withContent(all, in: parent)
        var directories: [Directory] = []
        try inOperations(wanted) { wanted, transaction throws(Errno) in
            try self.restoring.restore(
                wanted.item.record, isShared: wanted.isShared, at: wanted.name, in: parent,
                transaction, now: .now)
        } done: { wanted, outcome in
            switch outcome {
            case .made: self.reply.made += 1
            case .changed: self.reply.changed += 1
            case .same: self.reply.same += 1
            case .blocked:
                self.fail(wanted.path, "a directory with entries stands there today")
                self.reply.blocked += 1
            }
            if case .directory(let past) = wanted.item, let ino = outcome.ino {
                directories.append(Directory(path: wanted.path, past: past, ino: ino))
            }
        } failed: { wanted, error in
            self.fail(
                wanted.path,
                error == .resourceBusy ? "it is being changed all the time" : "\(error)")
            self.reply.blocked += 1
        }
        return directories
    }

    private func finishDirectories() throws {
        try inOperations(unfinished.reversed()) { directory, transaction throws(Errno) in
            try self.restoring.finish(
                directory.ino, as: directory.record, transaction, now: .now)
        } done: { _, _ in
        } failed: { directory, error in
            self.node.logger.error("restoring directory \(directory.ino.rawValue): \(error)")
        }
    }

    private func fail(_ path: [FileName], _ reason: String) {
        guard reply.failures.count < Self.failuresShownMax else { return }
        reply.failures.append(.init(path: Node.text(path), reason: reason))
    }

    /// Runs the body for each item, as many in one operation as fit into its time; after an error
    /// for one at a time, so that it is known whose it is.
    private func inOperations<Item, Outcome>(
        _ items: [Item], _ body: (Item, Transaction) throws(Errno) -> Outcome,
        done: (Item, Outcome) -> Void, failed: (Item, Errno) -> Void
    ) throws {
        let clock = ContinuousClock()
        var index = 0
        var together = items.count
        var busy = 0
        while index < items.count {
            try requireRunning()
            let deadline = clock.now + Self.operationMax
            do {
                let outcomes = try node.catalog.perform { transaction in
                    var outcomes: [Outcome] = []
                    repeat {
                        outcomes.append(try body(items[index + outcomes.count], transaction))
                    } while outcomes.count < min(together, items.count - index)
                        && clock.now < deadline
                    return outcomes
                }
                for (item, outcome) in zip(items[index...], outcomes) { done(item, outcome) }
                index += outcomes.count
                together = items.count
                busy = 0
                tell()
            } catch let error as Errno {
                restoring.takeBack()
                switch error {
                case .noSpace, .diskQuotaExceeded, .readOnlyFileSystem, .ioError: throw error
                case .resourceBusy where busy < Self.busyMax:
                    busy += 1
                    _ = node.timeline.commitNow(
                        until: .now + Node.restorePatience)
                case _ where together > 1: together = 1
                default:
                    failed(items[index], error)
                    index += 1
                    together = items.count
                    busy = 0
                }
            }
        }
    }

    private func requireRunning() throws {
        guard node.running.withLock({ $0.state }) == "ready" else {
            throw NodeError("The node is stopping; run the same command again when it runs.")
        }
        guard !node.space.isFull else {
            throw NodeError(
                "The disk of this node is full. Make room on it, then run the same command again: it goes on."
            )
        }
    }

    private func tell() {
        node.timeline.changed()
        node.applied(restoring.keep())
    }

    // MARK: Content

    /// Leaves out files whose content no online disk has: what is readable today is not exchanged
    /// for what is not.
    private func withContent(_ wanted: [Wanted], in parent: InodeNumber) throws -> [Wanted] {
        try wanted.filter { wanted in
            let body = wanted.item.record.content.value.body
            guard case .file(.extents(let extents)) = body else { return true }
            let (absent, isThere) = try node.catalog.read { reader in
                let absent = try extents.filter { extent in
                    let state = try reader.content(extent.root)?.state ?? .absent
                    return state == .absent || state == .partial
                }
                guard !absent.isEmpty, let row = try reader.find(wanted.name, in: parent),
                    row.kind == .file
                else { return (absent, false) }
                return (absent, try reader.content(of: row.ino) == .extents(extents))
            }
            if absent.isEmpty || isThere { return true }
            guard let reason = try reason(for: absent) else { return true }
            fail(wanted.path, reason)
            reply.missing += 1
            return false
        }
    }

    /// Why content cannot be had; nil: it can.
    private func reason(for extents: [Extent]) throws -> String? {
        for extent in extents {
            let holders = try node.holders(of: [extent]).filter { $0.complete && !isMe($0) }
            if holders.contains(where: \.online) { continue }
            return holders.isEmpty
                ? "its content was given up"
                : "its content is on \(holders.map(\.name).joined(separator: ", ")), which is offline"
        }
        return nil
    }

    private func isMe(_ holder: Whereabouts.Holder) -> Bool {
        holder.node == "\(node.identity.node)"
    }
}
