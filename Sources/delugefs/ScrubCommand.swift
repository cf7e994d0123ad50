import ArgumentParser
import Foundation
import Node
import Synchronization

/// `delugefs scrub`
struct Scrub: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Read all content of this disk again, and repair what is damaged.",
        discussion: """
            Begins at full speed and returns at once; with --wait when all was read and what was \
            found is repaired, or cannot be: then it exits with 1 and names the files. A node \
            also scrubs by itself once a month, at the rate of `run --scrub-rate`.
            """)

    @OptionGroup var node: NodeOptions

    @Flag(help: "Show progress, and wait for the end.")
    var wait = false

    func run() throws {
        let conversation = NodeConversation(root: try node.directory())
        let progress = wait ? StatusProgress(conversation, ScrubRate().line) : nil
        progress?.start()
        let reply: ControlMessage.ScrubReply
        do {
            reply = try conversation.post(
                "/v1/scrub", ControlMessage.Scrub(waits: wait),
                timeout: wait ? nil : .seconds(30))
            progress?.end()
        } catch {
            progress?.end()
            throw error
        }
        guard wait else {
            guard Terminal.outputIsTerminal else { return }
            return Terminal.print("Begun; `delugefs status` tells how far it is.")
        }
        let scrub = reply.scrub
        if let problem = reply.problem { throw Failure(Terminal.visible(problem)) }
        Terminal.print(
            "\(Quantity.bytes(scrub.bytesChecked)) checked, \(Quantity.count(scrub.errorsFound, "error")) found, \(scrub.errorsRepaired) repaired."
        )
    }
}

/// What a pass has read, how fast, and how long it will take.
private final class ScrubRate: Sendable {
    private let before = Mutex<(bytes: UInt64, time: ContinuousClock.Instant)?>(nil)

    func line(_ status: Status) -> String {
        let scrub = status.scrub
        guard let total = scrub.bytesTotal else { return "repairing what was found" }
        let now = ContinuousClock.now
        let rate = before.withLock { before -> Double in
            defer { before = (scrub.bytesChecked, now) }
            guard let (bytes, time) = before, scrub.bytesChecked > bytes else { return 0 }
            return Double(scrub.bytesChecked - bytes) / ((now - time) / .seconds(1))
        }
        let left = total - min(total, scrub.bytesChecked)
        var parts = ["\(Quantity.bytes(scrub.bytesChecked)) of \(Quantity.bytes(total)) checked"]
        if rate > 0 {
            parts.append("\(Quantity.bytes(UInt64(rate)))/s")
            parts.append("about \(Quantity.duration(seconds: Double(left) / rate)) left")
        }
        if scrub.errorsFound > 0 {
            parts.append("\(Quantity.count(scrub.errorsFound, "error")) found")
        }
        return parts.joined(separator: ", ")
    }
}
