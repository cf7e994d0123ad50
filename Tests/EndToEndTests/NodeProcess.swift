import FoundationEssentials
import Glibc
import Synchronization

/// One node under test: its command line, its process, and the commands that talk to it.
final class NodeProcess: Sendable {
    let host: Host
    let name: String
    let volume: String
    let root: String
    let mount: String?
    let account: Account
    let log: String
    private let options: [String]
    /// Of its environment, besides `environment`.
    private let variables: [String: String]
    private let home: String
    private let child = Mutex<Child?>(nil)
    private var workshop: Workshop { host.network.workshop }

    static let volume = "bigstore"

    /// - Parameters:
    ///   - home: who starts it: keys and known roots are kept there; nil: a home of its own.
    ///   - options: further arguments of every start.
    init(
        _ name: String, on host: Host, disk: Disk? = nil, root: String? = nil,
        isMounted: Bool = true, home: String? = nil, volume: String = volume,
        account: Account = .root, options: [String] = [], variables: [String: String] = [:]
    ) throws {
        let workshop = host.network.workshop
        self.name = name
        self.host = host
        self.volume = volume
        self.account = account
        let place = try workshop.make("place-\(name)")
        let ownHome = try workshop.make("home-\(home ?? name)", mode: 0o700)
        chown(place, account.uid, account.gid)
        chown(ownHome, account.uid, account.gid)
        self.home = ownHome
        self.root = root ?? disk.map { "\($0.path)/.db" } ?? "\(place)/db"
        mount = isMounted ? "\(place)/mnt" : nil
        log = "\(workshop.directory)/\(name).log"
        self.options = options
        self.variables = variables
        workshop.addLog(name, log)
    }

    /// Nothing of the user who runs the tests; everything at debug level, so that a search for
    /// secrets sees all that is ever logged.
    var environment: [String: String] {
        var result = Shell.environment
        result["HOME"] = home
        result["XDG_CONFIG_HOME"] = "\(home)/.config"
        result["DELUGEFS_LOG"] = "debug"
        result["XDG_RUNTIME_DIR"] = nil
        return result
    }

    var configuration: String { "\(home)/.config/delugefs" }
    var pid: pid_t? { child.withLock { $0?.pid } }
    var isRunning: Bool { child.withLock { $0 != nil && $0?.status == nil } }

    func arguments(_ extra: [String] = []) -> [String] {
        var line = ["--id", volume, "--root", root, "--name", name]
        if let mount { line += ["--mount", mount] }
        return line + options + extra
    }

    // MARK: Start

    func create(_ extra: String...) async throws { try await start(["--create"] + extra) }

    /// Joins the volume of another node, with its key.
    func join(_ other: NodeProcess, _ extra: String...) async throws {
        let key = try workshop.write(try await other.key(), to: "\(name).key")
        chown(key, account.uid, account.gid)
        try await start(["--key-file", key] + extra)
    }

    /// Starts it and waits until it is mounted and listens.
    func start(_ extra: [String] = []) async throws {
        try launch(extra)
        try await eventually("\(name) is ready", within: Bounds.ready) {
            guard self.isRunning else { throw Dead(name: self.name, log: self.log) }
            return try await self.status().state == "ready"
        }
    }

    /// Starts it and does not wait.
    func launch(_ extra: [String] = []) throws {
        let started = try host.spawn(
            [Machine.binary] + arguments(extra), as: account, log: log,
            environment: environment.merging(variables) { $1 })
        child.withLock { $0 = started }
    }

    private struct Dead: Error, CustomStringConvertible {
        let name: String
        let log: String
        var description: String {
            "\(name) ended at its start: \(FileBytes.text(log).suffix(2000))"
        }
    }

    /// Runs the node's command line to its end, for a start that must be refused.
    func refusedStart(_ extra: [String] = [], environment more: [String: String] = [:])
        async throws -> Outcome
    {
        try await host.run(
            [Machine.binary] + arguments(extra), as: account,
            environment: environment.merging(more) { $1 }, timeout: Bounds.refusal)
    }

    // MARK: End

    func stop() async throws {
        try await command("stop").succeeded()
        guard try await exited(within: Bounds.stop) == 0 else {
            throw Failure("\(name) did not end cleanly after stop.")
        }
    }

    func kill9() async throws {
        child.withLock { $0?.send(SIGKILL) }
        _ = try await exited(within: Bounds.reaped)
    }

    func exited(within bound: Duration) async throws -> Int32 {
        guard let child = child.withLock({ $0 }) else {
            throw Failure("\(name) was never started.")
        }
        guard let status = try await child.wait(bound) else {
            throw Failure("\(name) did not end within \(bound).")
        }
        return status
    }

    // MARK: Commands

    /// `delugefs NAME --root ROOT ...`, as this node's user on its host.
    func command(_ arguments: String..., timeout: Duration = Bounds.command) async throws -> Outcome
    {
        try await host.run(
            [Machine.binary, arguments[0], "--root", root] + arguments.dropFirst(), as: account,
            environment: environment, timeout: timeout)
    }

    func status() async throws -> NodeStatus {
        let outcome = try await command("status", "--json").succeeded()
        do {
            return try JSONDecoder().decode(NodeStatus.self, from: Data(outcome.bytes))
        } catch { throw Failure("status --json of \(name): \(error) in \(outcome.output)") }
    }

    func key() async throws -> String { try await command("key").succeeded().line }

    func whereIs(_ path: String) async throws -> FileHolders {
        guard let file = try await whereAre([path]).first else {
            throw Failure("whereis names no file.")
        }
        return file
    }

    func whereAre(_ paths: [String]) async throws -> [FileHolders] {
        let outcome = try await host.run(
            [Machine.binary, "whereis", "--root", root, "--json"] + paths.map { self[$0] },
            as: account, environment: environment
        ).succeeded()
        do {
            return try JSONDecoder().decode([FileHolders].self, from: Data(outcome.bytes))
        } catch { throw Failure("whereis --json of \(name): \(error) in \(outcome.output)") }
    }

    /// `wait`: what was closed here is committed and acknowledged.
    func settle() async throws { try await command("wait", "--timeout", "30").succeeded() }

    func waitReplicated() async throws {
        try await command(
            "wait", "--replicated", "--timeout", "\(Bounds.replicated.components.seconds)",
            timeout: Bounds.replicated + Bounds.command
        ).succeeded()
    }

    // MARK: Files

    /// A path in the mount.
    subscript(_ path: String) -> String { "\(mount ?? "/nonexistent")/\(path)" }

    /// A bash script with the mount as its working directory.
    @discardableResult
    func sh(
        _ script: String, _ arguments: String..., as other: Account? = nil,
        timeout: Duration = Bounds.command
    ) async throws -> Outcome {
        try await host.run(
            Shell.bash("cd '\(mount ?? "/nonexistent")'\n\(script)", arguments),
            as: other ?? account, timeout: timeout)
    }

    /// The content's digest as another program sees it.
    func sha256(_ path: String) async throws -> String {
        try await sh("sha256sum <\"$1\"", path, timeout: Bounds.transfer).succeeded().digest
    }

    /// Waits until another node's change is seen in this mount.
    func sees(_ path: String, _ isThere: Bool = true, within bound: Duration = Bounds.visible)
        async throws
    {
        try await sh(
            "until \(isThere ? "" : "! ") test -e \"$1\" -o -L \"$1\"; do sleep 0.02; done", path,
            timeout: bound
        ).succeeded()
    }

    func waitForPeers(_ names: String..., within bound: Duration = Bounds.online) async throws {
        try await waitForPeers(Set(names), within: bound)
    }

    func waitForPeers(_ names: Set<String>, within bound: Duration) async throws {
        try await eventually("\(name) sees \(names.sorted()) online", within: bound) {
            let online = try await self.status().onlinePeers
            guard online == names else { throw Failure("\(self.name) sees \(online)") }
            return true
        }
    }

    /// Waits until all nodes represent one commit.
    static func converge(_ nodes: [NodeProcess], within bound: Duration = Bounds.offline)
        async throws
    {
        try await eventually("all have one head", within: bound) {
            var heads: [String] = []
            for node in nodes { heads.append(try await node.status().head) }
            guard Set(heads).count == 1 else { throw Failure("\(heads)") }
            return true
        }
    }

    /// Every `history.git` is one that stock git finds nothing wrong with.
    func checkHistory() async throws {
        var said = try await checkedHistory()
        // Packs that the node combines while git looks are gone when it opens them.
        for _ in 1...3 where !said.isEmpty && said.allSatisfy({ $0.hasSuffix("index not opened") })
        {
            said = try await checkedHistory()
        }
        guard said.isEmpty else { throw Failure("git fsck of \(name): \(said)") }
    }

    private func checkedHistory() async throws -> [String] {
        let outcome = try await host.run(
            [
                "git", "--git-dir=\(root)/history.git", "fsck", "--full", "--strict",
                "--no-dangling",
            ],
            environment: Shell.environment.merging([
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            ]) { $1 }, timeout: Bounds.transfer)
        var said = (outcome.output + outcome.errors).split(separator: "\n").map(String.init)
            .filter {
                !$0.hasPrefix("Checking") && !$0.hasPrefix("notice:") && !$0.hasPrefix("dangling")
            }
        if !outcome.isSuccess, said.isEmpty { said = [outcome.report] }
        return said
    }
}

extension Outcome {
    /// The first word: what sha256sum prints.
    var digest: String { line.split(separator: " ").first.map(String.init) ?? "" }
}

extension Shell {
    static func sha256(_ path: String) async throws -> String {
        try await run(["sha256sum", path], timeout: Bounds.transfer).succeeded().digest
    }
}
