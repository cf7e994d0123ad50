import ArgumentParser
import Node

/// `delugefs policy`
struct Policy: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show or set how many copies the files below a directory are to have.",
        discussion: """
            What a directory says counts for all below it that say nothing themselves; where none \
            does it is the volume's number. A file with names in several places has the most that \
            any of them asks for. The same as the attribute user.delugefs.copies.
            """)

    @OptionGroup var node: NodeOptions

    @Option(
        help: ArgumentHelp("So many copies from now on.", valueName: "n"),
        transform: { try Arguments.number($0, in: 1...64) })
    var copies: Int?

    @Flag(help: "As the directory above says from now on.")
    var inherit = false

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(help: ArgumentHelp("A directory.", valueName: "path"))
    var path: String

    func validate() throws {
        if copies != nil, inherit {
            throw ValidationError("--copies and --inherit exclude each other.")
        }
    }

    func run() throws {
        let place = try node.place(RawArguments.bytes(of: [path])[0])
        let conversation = NodeConversation(root: place.root)
        let wish: ControlMessage.Policy.Wish =
            inherit ? .inherit : copies.map { .copies($0) } ?? .ask
        let reply: ControlMessage.PolicyReply = try conversation.post(
            "/v1/policy", ControlMessage.Policy(path: place.path, wish: wish),
            timeout: .seconds(30))
        if json {
            return try Terminal.print(json: reply)
        }
        let copies = reply.copies == 1 ? "1 copy" : "\(reply.copies) copies"
        Terminal.print(
            "\(Terminal.visible(reply.path)): \(copies), "
                + (reply.isSetHere ? "as set here" : "as set above or for the volume"))
    }
}
