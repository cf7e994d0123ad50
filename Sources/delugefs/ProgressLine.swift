import Foundation
import Node
import Synchronization

/// How far something is: on a terminal one line that changes, else a line whenever it changed.
final class ProgressLine: Sendable {
    /// The line shown last; nil at the end.
    private let shown = Mutex<String?>("")

    /// - Parameter line: nil: nothing is known now.
    /// - Returns: false after `end`.
    @discardableResult
    func show(_ line: String?) -> Bool {
        shown.withLock { shown in
            guard let before = shown else { return false }
            guard let line, line != before else { return true }
            shown = line
            write(Terminal.outputIsTerminal ? "\r\u{1B}[K\(line)" : "\(line)\n")
            return true
        }
    }

    /// Nothing is printed after this.
    func end() {
        shown.withLock { shown in
            if Terminal.outputIsTerminal, shown?.isEmpty == false { write("\r\u{1B}[K") }
            shown = nil
        }
    }

    private func write(_ text: String) { Terminal.print(bytes: Array(text.utf8)) }
}

/// What is left by the node's status, while a command waits for its answer.
final class StatusProgress: Sendable {
    private let conversation: NodeConversation
    private let text: @Sendable (Status) -> String
    private let line = ProgressLine()

    init(_ conversation: NodeConversation, _ text: @escaping @Sendable (Status) -> String) {
        self.conversation = conversation
        self.text = text
    }

    func start() {
        let thread = Thread { [self] in
            let pause = Terminal.outputIsTerminal ? 0.5 : 5
            repeat { Thread.sleep(forTimeInterval: pause) } while show()
        }
        thread.name = "progress"
        thread.start()
    }

    func end() { line.end() }

    private func show() -> Bool {
        line.show(
            (try? conversation.get("/v1/status"))
                .flatMap { try? conversation.decoded(Status.self, $0) }.map(text))
    }
}
