import ArgumentParser
import FoundationEssentials

/// `delugefs doctor`
struct Doctor: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what this machine offers to a node, and what to do about what it lacks.",
        discussion:
            "Needs no node. With --root it looks at that directory's disk too. Exits with 1 if a node could not mount here."
    )

    @Option(
        help: ArgumentHelp("A root, existing or planned.", valueName: "dir"),
        transform: Arguments.directory)
    var root: String?

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        let findings = Machine.findings(root: root)
        if json {
            try Terminal.print(json: findings)
        } else {
            for finding in findings { show(finding) }
        }
        if let first = findings.first(where: { $0.verdict == .fails }) {
            throw Failure(
                "A node cannot mount here: \(first.check): \(Terminal.visible(first.text)) \(Terminal.visible(first.advice ?? ""))"
            )
        }
    }

    private func show(_ finding: Finding) {
        let (mark, style): (String, Terminal.Style) =
            switch finding.verdict {
            case .good: ("ok  ", .green)
            case .limited: ("note", .yellow)
            case .fails: ("FAIL", .red)
            }
        Terminal.print(
            "\(Terminal.styled(mark, style))  \(finding.check): \(Terminal.visible(finding.text))")
        if let advice = finding.advice { Terminal.print("      \(Terminal.visible(advice))") }
    }
}

/// One thing that was looked at.
struct Finding: Encodable {
    enum Verdict: String, Encodable {
        case good
        /// A node runs, with less than there could be.
        case limited
        /// A node cannot mount.
        case fails
    }

    var check: String
    var verdict: Verdict
    var text: String
    /// What to do about it.
    var advice: String?
}
