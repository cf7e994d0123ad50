import ArgumentParser
import Mesh
import SystemPackage

/// `delugefs key`
struct PrintKey: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "key",
        abstract: "Print the volume key, alone on a line; works while the node is stopped.",
        discussion:
            "Whoever has this line can read and change the volume. On another machine pass it with --key-file, not on the command line."
    )

    @OptionGroup var node: NodeOptions

    func run() throws {
        let path = try node.directory().appending("key")
        let key: VolumeKey?
        do { key = try KeyRing.read(path) } catch let error as NotAKey {
            throw Failure(
                "\(Terminal.visible(path.string)) is \(error); copy it from another node's root.")
        } catch { throw Failure(sentenceOf: error) }
        guard let key else {
            throw Failure(
                "There is no key at \(Terminal.visible(path.string)); give the root of a node with --root DIR."
            )
        }
        Terminal.print(key.exportedText)
    }
}
