import ArgumentParser
import Node

/// `delugefs wait`
struct Wait: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Wait until what was written is safe elsewhere.",
        discussion: """
            Returns when every file closed on this node before is committed and all peers that are \
            online have taken that in; with --replicated, when every file in the volume has its \
            target copies, confirmed by their holders. Exits with 1 at once if too few disks are \
            online for that, and with 75 when the timeout has passed.
            """)

    @OptionGroup var node: NodeOptions

    @Flag(help: "Wait for every file's target copies.")
    var replicated = false

    @Option(
        help: ArgumentHelp("Give up after this. (default: never)", valueName: "seconds"),
        transform: Arguments.seconds)
    var timeout: Double?

    func run() throws {
        let conversation = NodeConversation(root: try node.directory())
        let progress = StatusProgress(conversation, line)
        progress.start()
        let message = ControlMessage.Wait(replicated: replicated, timeoutSeconds: timeout)
        let reply: ControlMessage.WaitReply
        do {
            reply = try conversation.post("/v1/wait", message, timeout: nil)
            progress.end()
        } catch {
            progress.end()
            throw error
        }
        let text = Terminal.visible(reply.text)
        switch reply.outcome {
        case .done:
            guard Terminal.outputIsTerminal else { return }
            Terminal.print(
                replicated
                    ? "Every file has its copies."
                    : "Everything closed here is committed, and known to all peers online.")
        case .timedOut:
            throw Failure(
                text.isEmpty
                    ? "Not every file has its copies yet; `delugefs status` shows what is missing."
                    : text,
                exitCode: .timedOut)
        case .impossible: throw Failure(text)
        }
    }

    /// What is left, while the wait goes on.
    private func line(_ status: Status) -> String {
        var parts: [String] = []
        if status.unpublished > 0 {
            parts.append("\(Quantity.count(status.unpublished, "file")) to commit")
        }
        let lacking = status.contents.underReplicated
        if lacking.files > 0 {
            parts.append(
                "\(Quantity.count(lacking.files, "file")) (\(Quantity.bytes(lacking.bytes))) with less than \(status.copiesTarget) copies"
            )
        }
        let rate = status.transfers.reduce(0) { $0 + $1.bytesPerSecond }
        if rate > 0 { parts.append("\(Quantity.bytes(rate))/s") }
        if let seconds = status.repair.etaSeconds, seconds > 0 {
            parts.append("about \(Quantity.duration(seconds: seconds)) left")
        }
        guard parts.isEmpty else { return parts.joined(separator: ", ") }
        guard replicated else { return "waiting for the peers to take in the changes" }
        let offline = status.peers.filter { !$0.online }.count
        return "waiting for confirmed copies"
            + (offline > 0
                ? "; \(Quantity.count(offline, "disk")) offline, replaced after the grace time"
                : "")
    }
}
