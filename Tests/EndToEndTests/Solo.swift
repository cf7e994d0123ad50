/// One node, the first of its volume, on a disk of its own.
struct Solo {
    let workshop: Workshop
    let host: Host
    let disk: Disk
    let node: NodeProcess

    /// Runs a test in a new workshop with a node that is ready.
    static func open(
        on kind: Disk.Kind = .directory, _ options: [String] = [],
        _ body: (Solo) async throws -> Void
    ) async throws {
        try await Workshop.open { workshop in
            let host = try await Network(workshop).host()
            let disk = try await Disk(workshop, "root", kind)
            let node = try NodeProcess("a", on: host, disk: disk, options: options)
            try await node.create()
            try await body(Solo(workshop: workshop, host: host, disk: disk, node: node))
        }
    }
}
