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
