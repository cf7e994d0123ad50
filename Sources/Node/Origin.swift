import Catalog
import Glibc
import History
import Logging
import Mesh
import Mount
import SystemPackage
import Volume

/// Where a node's state comes from at its start: its own root, nothing (a new volume), or a peer.
enum Origin {
    case root
    case newVolume
    case peer(NodeID)

    /// Decided before anything is written.
    static func find(
        _ configuration: Configuration, _ root: RootDirectory, _ membership: Membership,
        _ mesh: Mesh
    ) async throws -> Origin {
        if case .node = root.content {
            try await refuseCopy(root, configuration, membership, mesh)
            return .root
        }
        if configuration.create {
            try await refuseServed(configuration, membership, mesh)
            return .newVolume
        }
        return .peer(try await member(configuration, membership, mesh))
    }

    /// A root that was copied while its node runs elsewhere: both would speak in one node's name.
    private static func refuseCopy(
        _ root: RootDirectory, _ configuration: Configuration, _ membership: Membership,
        _ mesh: Mesh
    ) async throws {
        guard configuration.discovery || !configuration.peers.isEmpty else { return }
        let probe = root.isKnown ? Node.knownRootProbe : Node.copyProbe
        let start = ContinuousClock.now
        while ContinuousClock.now - start < (membership.hasTwin ? Node.copyProbeMax : probe) {
            if let problem = mesh.problems.first(where: {
                $0.code == .copiedRoot && $0.subject == "\(mesh.node)"
            }) {
                throw NodeError("\(root.path) is a copy: \(problem.text).")
            }
            try await Task.sleep(for: .milliseconds(50))
        }
    }

    private static func refuseServed(
        _ configuration: Configuration, _ membership: Membership, _ mesh: Mesh
    ) async throws {
        guard configuration.discovery || !configuration.peers.isEmpty else { return }
        let deadline = ContinuousClock.now + Node.createProbe
        while ContinuousClock.now < deadline {
            let address =
                membership.anyone?.address
                ?? mesh.peers.first { $0.isOnline }.map { "\($0.endpoint)" }
                ?? mesh.problems.first { $0.code == .wrongAuthority }?.subject
            if let address {
                throw NodeError(
                    "Volume \(configuration.volume) is served already, for example at \(address). Leave out --create to join it, or choose another --id."
                )
            }
            try await Task.sleep(for: .milliseconds(50))
        }
    }

    private static func member(
        _ configuration: Configuration, _ membership: Membership, _ mesh: Mesh
    ) async throws -> NodeID {
        let deadline = ContinuousClock.now + Node.joinTimeout
        while ContinuousClock.now < deadline {
            if let peer = mesh.peers.first(where: { $0.isOnline && $0.hello.head != nil }) {
                return peer.node
            }
            try await Task.sleep(for: .milliseconds(50))
        }
        if let problem = mesh.problems.first { throw NodeError(problem.text) }
        if let foreign = membership.foreign {
            throw NodeError(
                Membership.wrongKey(
                    configuration.volume, ours: membership.authority.ca16,
                    theirs: foreign.authority))
        }
        throw NodeError(
            "No node of volume \(configuration.volume) answered within \(Node.joinTimeout.components.seconds) s. Start one of its nodes, give one's address with --peer HOST:PORT, or begin a new volume with --create."
        )
    }

    /// Brings catalog and history to that state.
    /// - Returns: the volume's settings.
    static func adopt(
        _ origin: Origin, _ configuration: Configuration, _ salvage: Salvage, _ mesh: Mesh,
        _ file: VolumeFile
    ) async throws -> VolumeSettings {
        let (catalog, node, logger) = (salvage.catalog, salvage.node, salvage.logger)
        let known = try await Blocking.alone { try resume(salvage) }
        if let known { return known }
        let description = NodeDescription(name: file.name, machine: file.machine)
        if case .newVolume = origin {
            return try await Blocking.run {
                try found(configuration, catalog, node, description)
            }
        }
        // Also for a root whose first start was cut off before it had the volume's state.
        var deadline = ContinuousClock.now + Node.joinTimeout
        while true {
            let begin = ContinuousClock.now
            do {
                return try await join(salvage, mesh, description)
            } catch {
                // A copy that was under way for long goes on where it was.
                let isFresh = ContinuousClock.now - begin < Node.joinTimeout
                if !isFresh { deadline = .now + Node.joinTimeout }
                guard ContinuousClock.now < deadline else {
                    throw NodeError(
                        "The volume's state could not be fetched: \(error). Start a node of the volume that has it, then this one again."
                    )
                }
                logger.log(level: isFresh ? .debug : .warning, "joining: \(error)")
                try await Task.sleep(for: .milliseconds(200))
            }
        }
    }

    /// From this root alone; nil: it has nothing.
    private static func resume(_ salvage: Salvage) throws -> VolumeSettings? {
        if let known = try salvage.catalog.read({ try $0.settings() }) {
            if try salvage.isOutdated() {
                salvage.logger.warning(
                    "the catalog is older than the history: looking at everything that is here")
                try salvage.takeStock(owner: known.owner)
            }
            return known
        }
        guard let head = try salvage.newestCommit() else { return nil }
        let settings = try salvage.rebuild(from: head)
        salvage.logger.notice("the catalog was rebuilt from commit \(head)")
        return settings
    }

    private static func found(
        _ configuration: Configuration, _ catalog: Catalog, _ node: NodeID,
        _ description: NodeDescription
    ) throws -> VolumeSettings {
        let owner = Owner(uid: geteuid(), gid: getegid())
        let settings = VolumeSettings(
            volume: configuration.volume, copies: configuration.copies,
            transport: configuration.transport == .tls ? .tls : .plain, owner: owner)
        try catalog.perform { tx in
            try tx.setSettings(settings)
            _ = try tx.createRoot(mode: 0o755, owner: owner, now: .now)
            try tx.describe(node, as: description)
        }
        try catalog.flush()
        return settings
    }

    private static func join(
        _ salvage: Salvage, _ mesh: Mesh, _ description: NodeDescription
    ) async throws -> VolumeSettings {
        let history = salvage.history
        guard let peer = mesh.peers.first(where: { $0.isOnline && $0.hello.head != nil })
        else { throw NodeError("no node of the volume is online") }
        let begin = ContinuousClock.now
        let head = try await Joining(history, from: peer.node, through: mesh).fetch()
        let fetched = ContinuousClock.now
        return try await Blocking.alone {
            let settings = try salvage.rebuild(from: head, describing: description)
            try history.setHead(head)
            try history.releaseFiles()
            History.releaseMemory()
            salvage.logger.debug(
                "joined: history taken in \(fetched - begin), catalog in \(ContinuousClock.now - fetched)"
            )
            return settings
        }
    }
}
