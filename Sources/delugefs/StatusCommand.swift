import ArgumentParser
import Node

/// `delugefs status`
struct ShowStatus: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status",
        abstract: "Show a node: problems first, then peers, copies and transfers.",
        discussion: "Exits with 1 if no node runs there; with --check also if there is any problem."
    )

    @OptionGroup var node: NodeOptions

    @Flag(help: "Print JSON.")
    var json = false

    @Flag(help: "Exit with 1 if there is any problem.")
    var check = false

    func run() throws {
        let conversation = NodeConversation(root: try node.directory())
        let reply = try conversation.get("/v1/status")
        let status = try conversation.decoded(Status.self, reply)
        if json {
            Terminal.print(bytes: Terminal.visible(json: reply))
        } else {
            for line in StatusReport(status).lines { Terminal.print(line) }
        }
        if check, let first = status.problems.first {
            let count = status.problems.count
            throw Failure(
                (count > 1 ? "\(count) problems, of which the first: " : "")
                    + Terminal.visible(first.text))
        }
    }
}
