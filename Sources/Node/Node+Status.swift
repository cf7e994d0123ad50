import Catalog
import FUSE
import Foundation
import Mesh
import Mount
import Store
import Swarm
import Synchronization
import SystemPackage
import Volume

extension Node {
    /// The JSON of `status --json`.
    func statusText() -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return (try? encoder.encode(status())).map { Array($0) + [0x0A] } ?? []
    }

    func status() -> Status {
        let (state, isDraining, mount, historyBytes) = running.withLock {
            ($0.state, $0.isDraining, $0.mount, $0.historyBytes)
        }
        let free = (try? store.freeBytes()) ?? 0
        let lacking = replicator.lacking
        let counts = (try? catalog.perform { $0.counts }) ?? Counts()
        let uncommitted = (try? catalog.read { try $0.uncommittedFiles() }) ?? 0
        let local = catalog.local
        let transfers = transfers()
        let incoming = transfers.filter { $0.direction == "in" }.reduce(0) {
            $0 + $1.bytesPerSecond
        }
        let left = lacking.underReplicated.bytes
        return Status(
            volume: file.volume, node: file.node, name: file.name, machine: file.machine,
            state: state == "ready" && isDraining ? "draining" : state, version: Self.version,
            mount: mount?.path.string,
            passthrough: mount?.session.features.map { $0.passthrough != .none } ?? false,
            transport: settings.transport.rawValue, head: timeline.applied?.description ?? "",
            unpublished: publisher.unpublished + uncommitted, capacityBytes: capacityBytes,
            usedBytes: local.bytes, freeBytes: free, historyBytes: historyBytes,
            copiesTarget: settings.copies, problems: problems(lacking), peers: peers(),
            contents: Status.Contents(
                files: Int(counts.files), bytes: counts.bytes,
                localFiles: Int(local.count), localBytes: local.bytes,
                underReplicated: lacking.underReplicated, unavailable: lacking.unavailable),
            transfers: transfers,
            repair: Status.Repair(
                bytesLeft: left,
                etaSeconds: left == 0
                    ? 0 : incoming > 0 ? Double(left) / Double(incoming) : nil),
            scrub: scrubber.status)
    }

    private func peers() -> [Status.Peer] {
        let known = (try? catalog.read { try $0.nodes() }) ?? []
        let listed = Set(known.filter { $0.description != nil }.map(\.id))
        // Without those that were said not to come back.
        return mesh.peers.filter { $0.isOnline || listed.contains($0.node) }.map { peer in
            Status.Peer(
                node: "\(peer.node)", name: peer.hello.name, machine: peer.hello.machine,
                address: "\(peer.endpoint)", online: peer.isOnline,
                lastSeen: Self.iso8601(milliseconds: peer.lastSeenMilliseconds),
                head: peer.hello.head?.description ?? "", freeBytes: peer.hello.freeBytes,
                capacityBytes: peer.hello.capacityBytes)
        } + absent(known)
    }

    /// Nodes that the volume lists and that have not been heard of since this one started.
    private func absent(_ known: [NodeEntry]) -> [Status.Peer] {
        let heard = Set(mesh.peers.map(\.node) + [identity.node])
        return known.compactMap { entry in
            guard !heard.contains(entry.id), let description = entry.description else { return nil }
            return Status.Peer(
                node: "\(entry.id)", name: description.name, machine: description.machine,
                address: "", online: false,
                lastSeen: Self.iso8601(milliseconds: Int64(entry.seen ?? 0)), head: "",
                freeBytes: 0, capacityBytes: 0)
        }
    }

    private func problems(
        _ lacking: Replicator.Amounts
    ) -> [Status.Problem] {
        var problems = mesh.problems.map {
            Status.Problem(
                code: $0.code.rawValue, since: Self.iso8601(milliseconds: $0.sinceMilliseconds),
                text: $0.text)
        }
        let now = Int64(Monotonic.wallMilliseconds)
        let (known, notices) = running.withLock { ($0.problemsSince, $0.notices) }
        var current: [String: Int64] = [:]
        func add(_ code: String, _ text: String) {
            let since = known[code] ?? now
            current[code] = since
            problems.append(
                Status.Problem(code: code, since: Self.iso8601(milliseconds: since), text: text))
        }
        defer { running.withLock { [current] in $0.problemsSince = current } }
        if catalog.hasFailed {
            add(
                "catalog-failed",
                "The catalog could not be written: the volume is read-only here. Look after the disk, then restart the node."
            )
        }
        if let reason = link.damaged.withLock(\.self) {
            add(
                "catalog-damaged",
                "The catalog of this disk is damaged (\(reason)). Restart the node: it is made anew then from the history."
            )
        }
        for (code, text) in notices { add(code, text) }
        for problem in timeline.problems { add(problem.code, problem.text) }
        if let alarm = timeline.massRemoval { add("mass-removal", text(of: alarm)) }
        if let text = gossip.problem { add("peer-refused", text) }
        for (peer, ahead) in mesh.otherClocks {
            add(
                "clock-differs",
                "The clock of node \(peer.hello.name) is \(Self.inWords(ahead)) this node's. Set the wrong one right: the later of two concurrent changes keeps the name, and nothing old is given up meanwhile."
            )
            break
        }
        if let text = scrubber.problem { add("damaged-content", text) }
        if let text = exchange.failures.problem { add("content-not-given", text) }
        if let reason = publisher.lastFailure, publisher.unpublished > 0 {
            add(
                "publishing-failed",
                "Closed files cannot be given to other nodes, are kept here and tried again: \(reason). Look after the disk, or write the file anew."
            )
        }
        if space.isFull {
            add(
                "disk-full",
                "The disk of this node is full: nothing new can be made here. Remove files or make room on the disk."
            )
        }
        if lacking.unavailable.files > 0 {
            add(
                "unavailable",
                "\(lacking.unavailable.files == 1 ? "1 content is" : "\(lacking.unavailable.files) contents are") on no disk that is online. Start the disks that `delugefs whereis` names."
            )
        }
        let able = storingPeers.count + (countedBytes > 0 ? 1 : 0)
        if able < settings.copies, lacking.underReplicated.files > 0 {
            add(
                "too-few-nodes",
                "\(able) of the \(settings.copies) disks that copies need are online. Start another node of the volume."
            )
        }
        return problems
    }

    private static func inWords(_ ahead: Duration) -> String {
        let seconds = ahead.components.seconds.magnitude
        let amount =
            seconds < 172_800 ? "\(seconds / 60) minutes" : "\(seconds / 86_400) days"
        return amount + (ahead < .zero ? " behind" : " ahead of")
    }

    /// With the command that undoes it.
    func text(of alarm: MassRemoval.Alarm) -> String {
        let command = [
            "delugefs", "restore", "--root", ShellWord.quoted(Array(root.string.utf8)),
            ShellWord.quoted(
                [0x2F] + Array(alarm.path.map(\.bytes).joined(separator: [0x2F]))),
            "--at", "\(alarm.commit)",
        ].joined(separator: " ")
        return
            "Other nodes removed \(alarm.files) of \(alarm.total) files. If that was a mistake, this undoes it: \(command)"
    }

    private func transfers() -> [Status.Transfer] {
        swarm.statistics.torrents.compactMap { torrent in
            let isDownload = torrent.kind == .download
            let rate = isDownload ? torrent.downloadRate : torrent.uploadRate
            guard isDownload || rate > 0 else { return nil }
            let done =
                isDownload
                ? min(
                    torrent.extent.length,
                    UInt64(torrent.verifiedPieces) * torrent.extent.pieceBytes)
                : UInt64(max(0, torrent.uploadedBytes))
            return Status.Transfer(
                root: "\(torrent.extent.root)", path: path(of: torrent.extent.root) ?? "/",
                direction: isDownload ? "in" : "out", doneBytes: done,
                totalBytes: torrent.extent.length, bytesPerSecond: UInt64(max(0, rate)))
        }
    }

    /// Of a file with that content; nil: none has it now.
    func path(of root: ContentRoot) -> String? { Self.path(of: root, in: catalog) }

    static func path(of root: ContentRoot, in catalog: Catalog) -> String? {
        let names = try? catalog.read { reader in
            try reader.inodes(with: root, limit: 1).first.map { try reader.path(of: $0) }
        }
        guard let names = names ?? nil, !names.isEmpty else { return nil }
        return "/" + names.map(\.description).joined(separator: "/")
    }

    static func iso8601(milliseconds: Int64) -> String {
        Date(timeIntervalSince1970: Double(milliseconds) / 1000)
            .formatted(.iso8601.dateTimeSeparator(.standard))
    }
}
