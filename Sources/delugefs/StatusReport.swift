import Node

/// A node's status as a person reads it.
struct StatusReport {
    private let status: Status

    init(_ status: Status) { self.status = status }

    /// What came from peers is escaped in here, in every line.
    var lines: [String] {
        var sections = [problems, node, peers, copies, scrub, transfers].filter { !$0.isEmpty }
        for index in sections.indices.dropLast() { sections[index].append("") }
        return sections.flatMap { $0 }
    }

    private var problems: [String] {
        guard !status.problems.isEmpty else { return [] }
        return [heading(Quantity.count(status.problems.count, "problem"), .red)]
            + status.problems.map { problem in
                let age = Quantity.age(since: problem.since).map { " (for \($0))" } ?? ""
                return "  " + Terminal.visible("\(problem.code): \(problem.text)") + age
            }
    }

    private var node: [String] {
        let title = "Volume \(status.volume), node \(status.name) on machine \(status.machine)"
        let mount =
            status.mount.map { "mounted on \($0)" + (status.passthrough ? ", passthrough" : "") }
            ?? "not mounted"
        let publishing =
            status.unpublished == 0
            ? "every closed file is committed"
            : "\(Quantity.count(status.unpublished, "closed file")) not yet committed"
        var space = "\(Quantity.bytes(status.usedBytes)) used"
        space +=
            status.capacityBytes == 0
            ? ", a cache only" : " of \(Quantity.bytes(status.capacityBytes))"
        space += ", \(Quantity.bytes(status.freeBytes)) free on the disk"
        if status.historyBytes > 0 { space += ", history \(Quantity.bytes(status.historyBytes))" }
        return [heading(Terminal.visible(title), .bold)]
            + [
                "  \(status.state), \(mount), content by \(status.transport), delugefs \(status.version)",
                "  \(space)", "  \(publishing)",
            ].map { Terminal.visible($0) }
    }

    private var peers: [String] {
        guard !status.peers.isEmpty else { return [heading("No peers", .bold)] }
        let online = status.peers.filter(\.online).count
        var table = Table()
        table.add(["NAME", "MACHINE", "STATE", "FREE", "CAPACITY", "ADDRESS"], .dim)
        for peer in status.peers.sorted(by: { ($0.name, $0.node) < ($1.name, $1.node) }) {
            let isKnown = peer.online || peer.capacityBytes > 0
            table.add(
                [
                    peer.name, peer.machine, state(of: peer),
                    isKnown ? Quantity.bytes(peer.freeBytes) : "-",
                    isKnown
                        ? peer.capacityBytes == 0 ? "cache" : Quantity.bytes(peer.capacityBytes)
                        : "-",
                    peer.address.isEmpty ? "-" : peer.address,
                ].map { Terminal.visible($0) }, peer.online ? nil : .yellow)
        }
        return [heading("Peers: \(online) of \(status.peers.count) online", .bold)] + table.lines
    }

    private func state(of peer: Status.Peer) -> String {
        if peer.online { return "online" }
        return Quantity.age(since: peer.lastSeen).map { "offline for \($0)" } ?? "offline"
    }

    private var copies: [String] {
        let contents = status.contents
        var lines = [
            heading("Contents", .bold),
            "  \(amount(contents.files, contents.bytes)); here \(amount(contents.localFiles, contents.localBytes))",
        ]
        let lacking = contents.underReplicated
        if lacking.files == 0 {
            let copies = status.copiesTarget == 1 ? "its copy" : "\(status.copiesTarget) copies"
            let isCounted = status.peers.contains { !$0.online }
            lines.append(
                "  each has \(copies)"
                    + (isCounted ? ", disks that just went offline included" : ""))
        } else {
            var line =
                "  \(amount(lacking.files, lacking.bytes)) with less than \(status.copiesTarget) copies"
            if status.repair.bytesLeft > 0 {
                line += ", \(Quantity.bytes(status.repair.bytesLeft)) left to copy"
            }
            if let seconds = status.repair.etaSeconds, seconds > 0 {
                line += ", done in \(Quantity.duration(seconds: seconds))"
            }
            lines.append(Terminal.styled(line, .yellow))
        }
        let missing = contents.unavailable
        if missing.files > 0 {
            lines.append(
                Terminal.styled(
                    "  \(amount(missing.files, missing.bytes)) on no disk that is online", .red))
        }
        return lines
    }

    private var scrub: [String] {
        let scrub = status.scrub
        let age = scrub.lastCompleted.flatMap { Quantity.age(since: $0) }
        var line = age.map { "  last completed \($0) ago" } ?? "  never completed"
        if let total = scrub.bytesTotal {
            line += ", checking: \(Quantity.bytes(scrub.bytesChecked)) of \(Quantity.bytes(total))"
        }
        let errors =
            "\(Quantity.count(scrub.errorsFound, "error")) found, \(scrub.errorsRepaired) repaired"
        return [
            heading("Scrub", .bold), line,
            scrub.errorsFound > scrub.errorsRepaired
                ? Terminal.styled("  \(errors)", .red) : "  \(errors)",
        ]
    }

    private var transfers: [String] {
        guard !status.transfers.isEmpty else { return [] }
        var table = Table()
        for transfer in status.transfers {
            let isIn = transfer.direction == "in"
            let left = transfer.totalBytes - min(transfer.totalBytes, transfer.doneBytes)
            let rate = transfer.bytesPerSecond
            table.add(
                [
                    isIn ? "in" : "out",
                    isIn && transfer.totalBytes > 0
                        ? "\(min(100, transfer.doneBytes * 100 / transfer.totalBytes)) %" : "-",
                    "\(Quantity.bytes(transfer.doneBytes)) of \(Quantity.bytes(transfer.totalBytes))",
                    "\(Quantity.bytes(rate))/s",
                    isIn && rate > 0
                        ? Quantity.duration(seconds: Double(left) / Double(rate)) : "-",
                    Terminal.visible(transfer.path),
                ])
        }
        var lines = table.lines
        lines.insert(heading("Transfers: \(status.transfers.count)", .bold), at: 0)
        return lines
    }

    private func heading(_ text: String, _ style: Terminal.Style) -> String {
        Terminal.styled(text, style)
    }

    private func amount(_ files: Int, _ bytes: UInt64) -> String {
        "\(Quantity.count(files, "file")), \(Quantity.bytes(bytes))"
    }
}
