import Catalog
import Foundation
import History
import Mount
import Volume

// `delugefs log`: what the history says about a path.
extension Node {
    /// A question is answered after so long with what was found, and where to go on.
    static let logMax = Duration.seconds(1)
    /// Changes told of one commit.
    static let logChangesMax = 1000

    func log(_ message: ControlMessage.Log) async throws -> ControlMessage.LogReply {
        let path = try Self.names(of: message.path)
        return try await Blocking.run(.content) { [self] in
            let positions = try message.positions?.map { position in
                guard let commit = ObjectID(hex: position.commit) else {
                    throw NodeError("\(position.commit) is no commit.")
                }
                return LogPosition(commit: commit, path: try Self.names(of: position.path))
            }
            let start = try timeline.history.head().map { [LogPosition(commit: $0, path: path)] }
            var log = try PathLog(positions ?? start ?? [], of: timeline.history)
            let names = try catalog.read { try $0.nodeDescriptions() }.mapValues(\.name)
            let deadline = ContinuousClock.now + Self.logMax
            var entries: [ControlMessage.LogReply.Entry] = []
            while !log.isAtEnd, entries.count < message.limit, ContinuousClock.now < deadline {
                guard let commit = try log.next(), let entry = try entry(commit, names) else {
                    continue
                }
                entries.append(entry)
            }
            return ControlMessage.LogReply(
                entries: entries,
                positions: log.positions.map { position in
                    .init(
                        commit: "\(position.commit)",
                        path: Array(position.path.map(\.bytes).joined(separator: [0x2F])))
                })
        }
    }

    /// Nil: nothing in it is about the path after all.
    private func entry(
        _ commit: LoggedCommit, _ names: [NodeID: String]
    ) throws -> ControlMessage.LogReply.Entry? {
        var changes: [ControlMessage.LogReply.Change] = []
        var isCut = !commit.isWhole
        for change in commit.changes {
            guard changes.count < Self.logChangesMax else {
                isCut = true
                break
            }
            if let told = try tell(change, in: commit.path) { changes.append(told) }
        }
        guard !changes.isEmpty else { return nil }
        return ControlMessage.LogReply.Entry(
            commit: "\(commit.commit)", time: Self.iso8601(milliseconds: commit.milliseconds),
            node: commit.author.map { "\($0)" },
            name: commit.author.map { names[$0] ?? String("\($0)".prefix(12)) },
            changes: changes, isCut: isCut)
    }

    private func tell(
        _ change: TreeChange, in path: [FileName]
    ) throws -> ControlMessage.LogReply.Change? {
        var told = ControlMessage.LogReply.Change(
            what: "", path: "", isDirectory: change.isDirectory)
        if let place = change.path {
            told.path = Self.text(place)
        } else {
            // The names it has today are the best that is known.
            let place = try catalog.read { reader in
                try reader.inode(id: change.id).flatMap { try? reader.path(of: $0.ino) }
            }
            guard let place, place.starts(with: path) else { return nil }
            told.path = Self.text(place)
        }
        switch change.what {
        case .created: told.what = "created"
        case .removed: told.what = "removed"
        case .renamed(let from):
            told.what = "renamed"
            told.from = Self.text(from)
        case .linked(let to):
            told.what = "linked"
            told.from = to.map { Self.text($0) }
        case .edited: told.what = "edited"
        case .touched(let time):
            told.what = "touched"
            told.detail = Self.iso8601(milliseconds: time.seconds * 1000)
        case .mode(let from, let to):
            told.what = "mode"
            told.detail = "\(String(from, radix: 8)) to \(String(to, radix: 8))"
        case .owner(let from, let to):
            told.what = "owner"
            told.detail = "\(from.uid):\(from.gid) to \(to.uid):\(to.gid)"
        case .attributes(let names):
            told.what = "attributes"
            told.detail = names.map { String(decoding: $0, as: UTF8.self) }
                .joined(separator: ", ")
        }
        return told
    }

    static func text(_ path: [FileName]) -> String {
        "/" + path.map(\.description).joined(separator: "/")
    }
}
