import ArgumentParser
import Foundation
import Glibc
import Node
import Synchronization
import SystemPackage

/// `delugefs recover`
struct Recover: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Bring back names and bytes from one disk alone, with no node running.",
        discussion: """
            Copies the latest state of the volume that this disk knows to --to, a new or empty \
            directory, and names what it does not have, or not whole: other disks of the volume may. \
            The root is only read, so it may be on a disk that is read-only or fails, and the catalog \
            may be gone. What was being written at the end lies beside the files it belongs to, as \
            `NAME (conflict NODE DATE)`.

            Exits with 1 when something was not recovered; all else was.
            """)

    @Option(
        help: ArgumentHelp("The root on the disk.", valueName: "dir"),
        transform: Arguments.directory)
    var root: String

    @Option(
        help: ArgumentHelp("Where to: a new or empty directory.", valueName: "dir"),
        transform: Arguments.directory)
    var to: String

    @Flag(
        help:
            "Set owners, set-id bits, capabilities and access control lists too, and make devices; needs root."
    )
    var privileged = false

    @Flag(help: "Print JSON.")
    var json = false

    /// Losses that a person is shown.
    private static let lossesMax = 20

    func run() throws {
        let paths = RawArguments.bytes(of: [root, to]).map {
            FilePath(platformString: $0.map(CChar.init(bitPattern:)) + [0])
        }
        let request = RecoveryRequest(root: paths[0], target: paths[1], isPrivileged: privileged)
        let display = RecoveryDisplay(json: json, lossesMax: Self.lossesMax)
        let report: RecoveryReport
        do {
            report = try Recovery.run(request, progress: display.progress) { display.show($0) }
            display.end()
        } catch {
            display.end()
            throw Failure(Terminal.visible("\(error)"))
        }
        if json { try display.printJSON(report) } else { show(report) }
        try complain(report)
    }

    private func show(_ report: RecoveryReport) {
        for note in report.notes { Terminal.complain(Terminal.visible(note)) }
        Terminal.print(
            "Recovered \(Quantity.count(report.files, "file")) in \(report.directories == 1 ? "1 directory" : "\(report.directories) directories"), \(Quantity.bytes(report.bytes)), as of \(report.time), commit \(report.commit.prefix(12))."
        )
        for path in report.unfinished {
            Terminal.print("Was being written: \(Terminal.visible(path))")
        }
        if report.devicesLeftOut > 0 {
            Terminal.print(
                "\(Quantity.count(report.devicesLeftOut, "device")) left out; --privileged makes them."
            )
        }
    }

    private func complain(_ report: RecoveryReport) throws {
        let total = report.lost.values.reduce(0, +)
        guard total > 0 else { return }
        func advice(_ kind: RecoveryLoss.Kind, _ text: (Int) -> String) -> String? {
            report.lost[kind].map(text)
        }
        let parts = [
            advice(.content) {
                "\(Quantity.count($0, "file")) this disk does not have whole: other disks of the volume may, so recover from those too, with another --to, or start the node"
            },
            advice(.record) {
                "\(Quantity.count($0, "place")) in the history damaged: that of another disk may be whole"
            },
            advice(.refused) { "\($0) refused by the target: give one on a disk of Linux" },
            advice(.attributes) { "\($0) without some attributes" },
            advice(.unfinished) {
                "\(Quantity.count($0, "file")) without what was being written: start the node to have that"
            },
        ]
        throw Failure(
            "Not everything was recovered: \(parts.compactMap(\.self).joined(separator: "; ")).")
    }
}

/// What is shown while it goes on: the first losses, and on a terminal how far it is. With `--json` the
/// losses are printed as they come, for there may be as many as files.
private final class RecoveryDisplay: Sendable {
    let progress = RecoveryProgress()
    private let json: Bool
    private let lossesMax: Int
    private let start = ContinuousClock.now
    private let state = Mutex(State())

    private struct State {
        var losses = 0
        var hasLine = false
        var isEnded = false
    }

    private struct Loss: Encodable {
        let path, kind, reason: String
    }

    init(json: Bool, lossesMax: Int) {
        self.json = json
        self.lossesMax = lossesMax
        guard Terminal.errorIsTerminal else { return }
        let thread = Thread { [self] in
            repeat { Thread.sleep(forTimeInterval: 0.5) } while tick()
        }
        thread.name = "progress"
        thread.start()
    }

    func show(_ loss: RecoveryLoss) {
        state.withLock { state in
            state.losses += 1
            if json {
                print(json: loss, isFirst: state.losses == 1)
            } else if state.losses <= lossesMax {
                clear(&state)
                Terminal.complain(
                    "\(Terminal.visible(name: loss.path)): \(Terminal.visible(loss.reason))")
            }
        }
    }

    /// Nothing is shown after this but how many losses were not.
    func end() {
        state.withLock { state in
            clear(&state)
            state.isEnded = true
            if !json, state.losses > lossesMax {
                Terminal.complain(
                    "and \(state.losses - lossesMax) more; --json lists all of them")
            }
        }
    }

    func printJSON(_ report: RecoveryReport) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let rest = Terminal.visible(json: Array(try encoder.encode(report)).dropFirst() + [0x0A])
        let isFirst = state.withLock { $0.losses == 0 }
        Terminal.print(
            bytes: Array((isFirst ? "{\"lost\":[" : "").utf8) + Array("\n],".utf8) + rest)
    }

    private func print(json loss: RecoveryLoss, isFirst: Bool) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        let item = Loss(
            path: String(decoding: loss.path, as: UTF8.self), kind: loss.kind.rawValue,
            reason: loss.reason)
        guard let bytes = try? encoder.encode(item) else { return }
        Terminal.print(
            bytes: Array((isFirst ? "{\"lost\":[\n" : ",\n").utf8)
                + Terminal.visible(json: Array(bytes)))
    }

    private func tick() -> Bool {
        let counts = progress.counts
        let elapsed = (ContinuousClock.now - start) / .seconds(1)
        let rate = Quantity.bytes(UInt64(Double(counts.bytes) / max(elapsed, 0.001)))
        return state.withLock { state in
            guard !state.isEnded else { return false }
            state.hasLine = true
            write(
                "\r\u{1B}[K\(Quantity.count(counts.files, "file")), \(Quantity.bytes(counts.bytes)), \(rate)/s"
            )
            return true
        }
    }

    private func clear(_ state: inout State) {
        if state.hasLine { write("\r\u{1B}[K") }
        state.hasLine = false
    }

    private func write(_ text: String) { Terminal.write(Array(text.utf8), to: STDERR_FILENO) }
}
