/// Two nodes of a volume, each on a machine of its own, that have met.
enum Duo {
    /// Runs a test in a new workshop with them.
    ///
    /// - Parameters:
    ///   - second: what the node that joined is called; the first is `a`.
    ///   - options: of the second one; `creation` of the founding start alone.
    static func open(
        second: String = "b", _ options: [String] = [], creation: [String] = [],
        _ body: (_ a: NodeProcess, _ second: NodeProcess) async throws -> Void
    ) async throws {
        try await Workshop.open { workshop in
            let network = try await Network(workshop)
            let a = try NodeProcess("a", on: try await network.host())
            let other = try NodeProcess(second, on: try await network.host(), options: options)
            try await a.start(["--create"] + creation)
            try await other.join(a)
            try await other.waitForPeers("a")
            try await a.waitForPeers(second)
            try await body(a, other)
        }
    }
}
