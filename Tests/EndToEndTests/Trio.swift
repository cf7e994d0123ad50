/// Two disks on one machine and a third on another, all mounted, one volume.
struct Trio {
    let network: Network
    let near: Host
    let far: Host
    let a: NodeProcess
    let b: NodeProcess
    let c: NodeProcess
    var all: [NodeProcess] { [a, b, c] }

    /// - Parameter creation: options of the founding start alone.
    static func start(
        _ workshop: Workshop, options: [String] = [], creation: [String] = []
    ) async throws -> Trio {
        let network = try await Network(workshop)
        let (near, far) = (try await network.host(), try await network.host())
        let trio = Trio(
            network: network, near: near, far: far,
            a: try NodeProcess(
                "a", on: near, home: "near", options: ["--machine", "near"] + options),
            b: try NodeProcess(
                "b", on: near, home: "near", options: ["--machine", "near"] + options),
            c: try NodeProcess("c", on: far, options: ["--machine", "far"] + options))
        try await trio.a.start(["--create"] + creation)
        // The key is kept for the user of this machine; the other machine is given it.
        try await trio.b.start()
        try await trio.c.join(trio.a)
        return trio
    }

    func waitForAll() async throws {
        try await a.waitForPeers("b", "c")
        try await b.waitForPeers("a", "c")
        try await c.waitForPeers("a", "b")
    }
}
