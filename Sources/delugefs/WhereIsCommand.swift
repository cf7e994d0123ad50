import ArgumentParser
import Glibc
import Node
import SystemPackage

/// `delugefs whereis`
struct WhereIs: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "whereis",
        abstract: "Show which disks hold a file, offline ones by name too.",
        discussion:
            "With --root a PATH that is not in the node's mount is taken as a path in the volume.")

    @OptionGroup var node: NodeOptions

    @Flag(help: "Print JSON.")
    var json = false

    @Argument(help: ArgumentHelp("Files or directories.", valueName: "path"))
    var paths: [String]

    func run() throws {
        let names = RawArguments.bytes(of: paths)
        let places = try names.map { try node.place($0) }
        var found: [Whereabouts] = []
        var start = 0
        // One question for every run of paths of one node.
        while start < places.count {
            let root = places[start].root
            let end = places[start...].firstIndex { $0.root != root } ?? places.count
            let conversation = NodeConversation(root: root)
            let part: [Whereabouts] = try conversation.post(
                "/v1/whereis", ControlMessage.WhereIs(paths: places[start..<end].map(\.path)),
                timeout: .seconds(30))
            found += part
            start = end
        }
        if json {
            try Terminal.print(json: found)
        } else {
            for (name, whereabouts) in zip(names, found) { show(whereabouts, name) }
        }
    }

    private func show(_ whereabouts: Whereabouts, _ name: [UInt8]) {
        let copies = "\(whereabouts.copies) of \(whereabouts.target) copies"
        let isEnough = whereabouts.copies >= whereabouts.target
        Terminal.print(
            "\(Terminal.styled(Terminal.visible(name: name), .bold)): \(Quantity.bytes(whereabouts.length)), "
                + Terminal.styled(copies, isEnough ? .green : .yellow))
        var table = Table()
        for holder in whereabouts.holders {
            let what = holder.stored ? "copy" : "cache"
            table.add(
                [
                    holder.name, "on \(holder.machine)",
                    holder.complete ? what : "partial \(what)",
                    holder.online ? "online" : "offline",
                ].map { Terminal.visible($0) }, holder.online ? nil : .yellow)
        }
        for line in table.lines { Terminal.print(line) }
        if whereabouts.holders.isEmpty { Terminal.print("  no disk has it") }
    }
}

/// The command line's bytes: `CommandLine.arguments` repairs what is not UTF-8.
enum RawArguments {
    /// The bytes behind arguments, in the order of argv.
    static func bytes(of arguments: [String]) -> [[UInt8]] {
        var raw: [[UInt8]] = []
        for index in 1..<max(1, Int(CommandLine.argc)) {
            guard let argument = CommandLine.unsafeArgv[index] else { break }
            raw.append(
                Array(UnsafeRawBufferPointer(start: argument, count: strlen(argument))))
        }
        return arguments.map { argument in
            let text = Array(argument.utf8)
            // Compared as bytes: two spellings that Swift finds equal are two files.
            guard
                let index = raw.firstIndex(where: {
                    Array(String(decoding: $0, as: UTF8.self).utf8) == text
                })
            else { return text }
            return raw.remove(at: index)
        }
    }
}
