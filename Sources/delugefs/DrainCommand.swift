import ArgumentParser
import Glibc
import Node

/// `delugefs drain`
struct Drain: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prepare this disk to be taken away: its copies are made elsewhere.",
        discussion: """
            The node goes on running and its mount stays usable; what is stored here counts as no \
            copy any more, so other disks get one. The bytes stay on this disk, for `delugefs \
            recover`. With --wait the command ends when the disk can be pulled. Refused where the \
            other disks could never hold the copies. --cancel: the disk stays after all.
            """)

    @OptionGroup var node: NodeOptions

    @Flag(help: "Show progress, and end when the disk can be taken away.")
    var wait = false

    @Flag(help: "Let what is stored here count again.")
    var cancel = false

    func validate() throws {
        if wait, cancel { throw ValidationError("--wait and --cancel exclude each other.") }
    }

    func run() throws {
        let conversation = NodeConversation(root: try node.directory())
        var state = try ask(conversation, cancel ? .cancel : .begin)
        if cancel { return Terminal.print("This disk's copies count again.") }
        guard wait else {
            guard !state.isDone else { return Terminal.print(Self.end) }
            return Terminal.print(
                "Draining: \(amount(state)) to be copied elsewhere. `delugefs drain --wait` shows how far it is."
            )
        }
        let progress = ProgressLine()
        let begin = (time: ContinuousClock.now, bytes: state.bytes)
        while !state.isDone {
            guard state.isDraining else {
                progress.end()
                throw Failure("Draining was canceled.")
            }
            progress.show(line(state, begin.bytes, ContinuousClock.now - begin.time))
            usleep(Self.pause)
            state = try ask(conversation, .ask)
        }
        progress.end()
        Terminal.print(Self.end)
    }

    /// Microseconds between looks.
    private static let pause: UInt32 = 500_000

    private static let end =
        "This disk can be taken away: `delugefs stop`, then `delugefs forget` with its name on another node."

    private func ask(
        _ conversation: NodeConversation, _ wish: ControlMessage.Drain.Wish
    ) throws -> ControlMessage.DrainReply {
        try conversation.post("/v1/drain", ControlMessage.Drain(wish), timeout: .seconds(60))
    }

    private func amount(_ state: ControlMessage.DrainReply) -> String {
        "\(Quantity.count(state.files, "content")) (\(Quantity.bytes(state.bytes)))"
    }

    private func line(
        _ state: ControlMessage.DrainReply, _ bytes: UInt64, _ elapsed: Duration
    ) -> String {
        guard state.files > 0 else { return "waiting for the peers to take in the last changes" }
        var line = "\(amount(state)) left"
        let done = Double(bytes - min(bytes, state.bytes))
        if done > 0 {
            let rate = done / max(elapsed / .seconds(1), 0.001)
            line +=
                ", \(Quantity.bytes(UInt64(rate)))/s, about \(Quantity.duration(seconds: Double(state.bytes) / rate)) left"
        }
        return line
    }
}
