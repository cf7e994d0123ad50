import ArgumentParser
import FoundationEssentials
import Glibc
import Node
import SystemPackage

/// `delugefs log`
struct ShowLog: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "log",
        abstract: "Show what happened to a file, a tree or the whole volume, newest first.",
        discussion: """
            A file is followed through its renames; PATH need not exist any more. `delugefs restore \
            PATH --at COMMIT` brings back what a commit shows; what a commit removed is in the one \
            below it.
            """)

    @OptionGroup var node: NodeOptions

    @Option(
        help: ArgumentHelp("Show at most so many commits.", valueName: "n"),
        transform: { try Arguments.number($0, in: 1...1_000_000) })
    var limit = 20

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(
        help: ArgumentHelp("A file or directory. (default: the whole volume)", valueName: "path"))
    var path: String?

    /// Changes of one commit that a person is shown.
    private static let changesMax = 10

    func run() throws {
        let place =
            if let path {
                try node.place(RawArguments.bytes(of: [path])[0], orMissing: true)
            } else { (root: try node.directory(), path: [UInt8(ascii: "/")]) }
        let conversation = NodeConversation(root: place.root)
        var message = ControlMessage.Log(path: place.path, limit: limit, positions: nil)
        var entries: [ControlMessage.LogReply.Entry] = []
        var shown = 0
        repeat {
            message.limit = limit - shown
            let reply: ControlMessage.LogReply = try conversation.post(
                "/v1/log", message, timeout: .seconds(60))
            message.positions = reply.positions
            shown += reply.entries.count
            if json { entries += reply.entries } else { reply.entries.forEach(show) }
        } while shown < limit && message.positions?.isEmpty == false
        if json {
            try Terminal.print(json: entries)
        } else if shown == 0 {
            throw Failure(
                "Nothing is known of \(Terminal.visible(name: place.path)): it was never in the volume."
            )
        }
    }

    private func show(_ entry: ControlMessage.LogReply.Entry) {
        let who = entry.name.map { "node \($0)" } ?? "merge"
        let title = "\(entry.commit.prefix(12))  \(Self.local(entry.time))  \(who)"
        Terminal.print(Terminal.styled(Terminal.visible(title), .bold))
        var table = Table()
        for change in entry.changes.prefix(Self.changesMax) {
            var what = change.path + (change.isDirectory ? "/" : "")
            if let from = change.from {
                what += change.what == "linked" ? ", also \(from)" : " from \(from)"
            }
            if let detail = change.detail { what += ": \(detail)" }
            table.add([change.what, Terminal.visible(what)])
        }
        for line in table.lines { Terminal.print(line) }
        let rest = entry.changes.count - Self.changesMax
        if rest > 0 || entry.isCut {
            Terminal.print("  and \(max(1, rest))\(entry.isCut ? " or more" : "") more")
        }
    }

    /// In this machine's time zone, as `--at` takes it.
    private static func local(_ time: String) -> String {
        guard let date = try? Date(time, strategy: .iso8601) else { return time }
        var seconds = time_t(date.timeIntervalSince1970)
        var local = tm()
        localtime_r(&seconds, &local)
        var buffer = [CChar](repeating: 0, count: 64)
        let count = strftime(&buffer, buffer.count, "%Y-%m-%dT%H:%M:%S", &local)
        return String(decoding: buffer.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// `delugefs restore`
struct Restore: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Bring a file or a whole tree back as it once was.",
        discussion: """
            TIME is 2026-11-26T14:03, with seconds and a zone if need be, 2026-11-26, @SECONDS since \
            1970, or 10min, 2h, 3d, that is so long ago; COMMIT is what `delugefs log` shows.

            What is gone returns, what changed is as it was then; what came since under other names \
            stays. Today's versions stay in the history, so that a restore can be undone by another. \
            No bytes are copied.
            """)

    @OptionGroup var node: NodeOptions

    @Option(
        help: ArgumentHelp("From when.", valueName: "time|commit"))
    var at: String

    @Option(
        help: ArgumentHelp(
            "Where to, in the same mount: a name that is free, or an empty directory. (default: where it was)",
            valueName: "path"))
    var to: String?

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(help: ArgumentHelp("What to restore; it need not exist any more.", valueName: "path"))
    var path: String

    func run() throws {
        let names = RawArguments.bytes(of: [path] + (to.map { [$0] } ?? []))
        let point: String
        do { point = try PastTime.normalised(at) } catch {
            throw ValidationError("--at \(Terminal.visible(at)): \(error)")
        }
        let place = try node.place(names[0], orMissing: true)
        let target = try names.dropFirst().first.map { try node.place($0, orMissing: true) }
        if let target, target.root != place.root {
            throw Failure("--to is in another volume's mount; restore within one, then copy.")
        }
        let conversation = NodeConversation(root: place.root)
        let reply: ControlMessage.RestoreReply = try conversation.post(
            "/v1/restore",
            ControlMessage.Restore(path: place.path, at: point, to: target?.path), timeout: nil)

        if json {
            try Terminal.print(json: reply)
        } else {
            Terminal.print(summary(reply))
        }
        try complain(reply)
    }

    private func summary(_ reply: ControlMessage.RestoreReply) -> String {
        var parts: [String] = []
        if reply.made > 0 { parts.append("\(reply.made) brought back") }
        if reply.changed > 0 { parts.append("\(reply.changed) changed back") }
        if reply.same > 0 { parts.append("\(reply.same) as they were") }
        let counts = parts.isEmpty ? "nothing" : parts.joined(separator: ", ")
        return "Restored as of \(reply.time), commit \(reply.commit.prefix(12)): \(counts)."
    }

    private func complain(_ reply: ControlMessage.RestoreReply) throws {
        let count = reply.missing + reply.blocked
        guard count > 0 else { return }
        for failure in reply.failures {
            Terminal.complain(
                Terminal.visible("\(failure.path): \(failure.reason)"))
        }
        if count > reply.failures.count {
            Terminal.complain("and \(count - reply.failures.count) more")
        }
        var advice: [String] = []
        if reply.missing > 0 {
            advice.append(
                "start the disks that are named, then run the same command again; what was given up is in backups alone"
            )
        }
        if reply.blocked > 0 {
            advice.append("restore what was in the way with --to another place")
        }
        throw Failure(
            "\(Quantity.count(count, "name")) could not be restored, all else was: \(advice.joined(separator: "; "))."
        )
    }
}

/// `delugefs purge`
struct Purge: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Drop the old bytes of a file or tree now, on all disks.",
        discussion: """
            What a file has today stays, and so do names and times of the past; what was replaced or \
            removed at PATH cannot be restored any more. Files of up to 4 KiB lie in the history \
            itself and stay. Each disk waits until every other one is known to have heard that no \
            file has the bytes; disks that are offline are named and have to be told when they are \
            back, by running this again.
            """)

    @OptionGroup var node: NodeOptions

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(
        help: ArgumentHelp("A file or directory; it need not exist any more.", valueName: "path"))
    var path: String

    func run() throws {
        let place = try node.place(RawArguments.bytes(of: [path])[0], orMissing: true)
        let conversation = NodeConversation(root: place.root)
        let reply: ControlMessage.PurgeReply = try conversation.post(
            "/v1/purge", ControlMessage.Purge(path: place.path), timeout: nil)
        if json {
            try Terminal.print(json: reply)
        } else {
            show(reply)
        }
    }

    private func show(_ reply: ControlMessage.PurgeReply) {
        Terminal.print(
            "\(Quantity.count(reply.gone, "old content")) given up here, \(Quantity.bytes(reply.goneBytes))."
        )
        if reply.waiting > 0 {
            Terminal.print(
                "\(Quantity.bytes(reply.waitingBytes)) more go when every disk has heard that no file has them."
            )
        }
        func list(_ names: [String]) -> String {
            Terminal.visible(names.joined(separator: ", "))
        }
        if !reply.told.isEmpty { Terminal.print("Told: \(list(reply.told)).") }
        if !reply.untold.isEmpty {
            Terminal.print(
                "Not told, because offline: \(list(reply.untold)). Run this again when they are back."
            )
        }
    }
}
