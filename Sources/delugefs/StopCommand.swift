import ArgumentParser
import Glibc
import SystemPackage

/// `delugefs stop`
struct Stop: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stop a node cleanly: publish, unmount, exit.",
        discussion:
            "Returns when the node is gone and its root is free. Exits with 75 if that takes more than two minutes."
    )

    private static let timeout = Duration.seconds(120)

    @OptionGroup var node: NodeOptions

    func run() throws {
        let root = try node.directory()
        try NodeConversation(root: root).post("/v1/stop")
        let deadline = ContinuousClock.now + Self.timeout
        while ContinuousClock.now < deadline {
            usleep(20_000)
            if try !isHeld(root) { return }
        }
        throw Failure(
            "The node at \(Terminal.visible(root.string)) is still stopping after \(Self.timeout.components.seconds) s; wait, or look into its log.",
            exitCode: .timedOut)
    }

    /// Whether a process holds the root's lock, as a node does from its start to its very end.
    private func isHeld(_ root: FilePath) throws -> Bool {
        guard
            let file = try? FileDescriptor.open(
                root.appending("lock"), .readOnly, options: .closeOnExec)
        else { return false }
        defer { try? file.close() }
        // Shared and at once given back by the close.
        return flock(file.rawValue, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }
}
