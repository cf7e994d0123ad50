import ArgumentParser
import Glibc
import Node

/// The command line: arguments in, output and an exit code out. What a command does is in its file.
@main
struct Delugefs: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delugefs",
        abstract: "One file system over any disks in any machines; every disk is an equal node.",
        usage: """
            delugefs --create --id ID --root DIR [--mount DIR] [<options>]
            delugefs --id ID --root DIR [--mount DIR] [<options>]
            delugefs <subcommand>
            """,
        discussion: """
            The first node of a volume, and a second disk of the same machine:
              delugefs --create --id big --root /mnt/disk1/.big --mount ~/big
              delugefs --id big --root /mnt/disk2/.big
            On another machine add --key-file FILE; `delugefs key` prints the key.

            `delugefs run --help` lists the options. The other commands find the node by \
            --root DIR, or by a path inside its mount (the current directory).

            Exit status: 0 done; 1 failed, with a sentence on standard error; 2 usage; \
            75 timed out.
            """,
        version: "delugefs \(Node.version)",
        subcommands: [
            Run.self, ShowStatus.self, Stop.self, PrintKey.self, WhereIs.self, Wait.self,
            ShowLog.self, Restore.self, Purge.self, Policy.self, Scrub.self, Drain.self,
            Forget.self, Recover.self, Doctor.self,
        ],
        defaultSubcommand: Run.self)

    static func main() {
        // Whatever is made here is for its owner alone, unless its maker says otherwise.
        umask(0o077)
        SecretEnvironment.take()
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let failure as Failure {
            Terminal.complain(failure.sentence)
            failure.exitCode.leave()
        } catch {
            let code = exitCode(for: error)
            let message = fullMessage(for: error)
            if code == .success {
                Terminal.print(message)
                Failure.ExitCode.done.leave()
            }
            Terminal.complain(message)
            (code == .validationFailure ? Failure.ExitCode.usage : .failed).leave()
        }
    }
}

/// How a command ends when it does not succeed.
struct Failure: Error {
    enum ExitCode: CInt {
        case done = 0
        case failed = 1
        case usage = 2
        /// EX_TEMPFAIL
        case timedOut = 75

        func leave() -> Never { Glibc.exit(rawValue) }
    }

    /// What happened and what to do next.
    let sentence: String
    let exitCode: ExitCode

    init(_ sentence: String, exitCode: ExitCode = .failed) {
        self.sentence = sentence
        self.exitCode = exitCode
    }

    /// A node's own sentence as it is; what else comes from below is made one.
    init(sentenceOf error: any Error) { self.init(Self.sentence(of: error)) }

    private static func sentence(of error: any Error) -> String {
        var text = "\(error)"
        if error is NodeError { return text }
        if !text.hasPrefix("/"), let first = text.first {
            text = first.uppercased() + text.dropFirst()
        }
        if let last = text.last, !".!?".contains(last) { text += "." }
        return text
    }
}
