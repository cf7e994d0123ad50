import ArgumentParser
import Node

/// `delugefs forget`
struct Forget: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Give up a disk that will not come back.",
        discussion: """
            Its copies count no longer, from now on, and nothing waits for it. This shuts nobody \
            out: whoever has that disk has the volume's key and what was stored on it. If it is \
            started again it is a member again. Refused while the disk is online, and where it \
            alone has files.
            """)

    @OptionGroup var node: NodeOptions

    @Flag(help: "Also when no other disk has some of the files.")
    var acceptLoss = false

    @Argument(
        help: ArgumentHelp("The node's name or id, as in `delugefs status`.", valueName: "node"))
    var name: String

    func run() throws {
        let conversation = NodeConversation(root: try node.directory())
        let reply: ControlMessage.ForgetReply = try conversation.post(
            "/v1/forget", ControlMessage.Forget(node: name, acceptsLoss: acceptLoss),
            timeout: .seconds(60))
        Terminal.print(
            "\(Terminal.visible(reply.name)) is forgotten: its copies count no longer, and others are made. This shuts nobody out: whoever has that disk has the volume's key."
        )
        if reply.lostFiles > 0 {
            Terminal.print(
                "\(Quantity.count(reply.lostFiles, "content")) (\(Quantity.bytes(reply.lostBytes))) that only this disk had can be read no more."
            )
        }
    }
}
