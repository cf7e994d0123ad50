import Glibc
import Synchronization

/// A switch with hosts: network namespaces of their own, connected by a bridge in another one, so
/// that nothing of this machine's own network is touched.
final class Network: Sendable {
    static let prefix = "dfse"

    let workshop: Workshop
    private let hosts = Mutex(0)
    private var base: String { "\(Self.prefix)\(getpid())-\(workshop.number)" }
    private var switchName: String { "\(base)-switch" }

    init(_ workshop: Workshop) async throws {
        self.workshop = workshop
        try await add(switchName)
        try await ip(
            "-n", switchName, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        try await ip("-n", switchName, "link", "set", "bridge", "up")
    }

    private func add(_ namespace: String) async throws {
        try await ip("netns", "add", namespace)
        workshop.onClose("network namespace \(namespace)") {
            try await Shell.run(["ip", "netns", "del", namespace]).succeeded()
        }
    }

    /// A host with `eth0` at 10.77.0.N, connected to all others.
    func host() async throws -> Host {
        let number = hosts.withLock { count in
            count += 1
            return count
        }
        let name = "\(base)-\(number)"
        try await add(name)
        try await ip("-n", name, "link", "set", "lo", "up")
        try await ip(
            "-n", switchName, "link", "add", "port\(number)", "type", "veth", "peer", "name",
            "eth0", "netns", name)
        try await ip("-n", switchName, "link", "set", "port\(number)", "master", "bridge", "up")
        try await ip("-n", name, "addr", "add", "10.77.0.\(number)/24", "dev", "eth0")
        try await ip("-n", name, "link", "set", "eth0", "up")
        // As on any machine with a default route; simple mDNS clients join groups by it.
        try await ip("-n", name, "route", "add", "default", "dev", "eth0")
        return Host(self, namespace: name, number: number)
    }

    /// Pulls a host's cable out, or puts it in again.
    func setConnected(_ host: Host, _ isConnected: Bool) async throws {
        try await ip(
            "-n", switchName, "link", "set", "port\(host.number)", isConnected ? "up" : "down")
    }

    /// `tc WORDS dev PORT ...` where the host's cable is plugged in.
    @discardableResult
    fileprivate func atPort(
        of host: Host, _ words: String..., then place: [String]
    ) async throws -> Outcome {
        try await Shell.run(
            ["ip", "netns", "exec", switchName, "tc"] + words
                + ["dev", "port\(host.number)"] + place
        ).succeeded()
    }

    fileprivate func ip(_ arguments: String...) async throws {
        try await Shell.run(["ip"] + arguments).succeeded()
    }
}

/// One machine on the test network. Mounts are made where the tests can see them, unless the host
/// was given a mount namespace of its own.
final class Host: Sendable {
    let network: Network
    let namespace: String
    let number: Int
    var address: String { "10.77.0.\(number)" }
    private let mountHolder = Mutex<pid_t?>(nil)

    fileprivate init(_ network: Network, namespace: String, number: Int) {
        self.network = network
        self.namespace = namespace
        self.number = number
    }

    func cutOff() async throws { try await network.setConnected(self, false) }
    func heal() async throws { try await network.setConnected(self, true) }

    /// Limits what this host sends, so that a transfer can be met in the middle.
    func throttle(megabitsPerSecond rate: Int) async throws {
        try await network.ip(
            "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf",
            "rate", "\(rate)mbit", "burst", "256k", "latency", "50ms")
    }

    func unthrottle() async throws {
        try await network.ip(
            "netns", "exec", namespace, "tc", "qdisc", "del", "dev", "eth0", "root")
    }

    enum Way: String, CaseIterable, Sendable {
        /// Seen from the switch.
        case sent = "ingress"
        case received = "egress"
    }

    /// From now on the cable loses so much, as a part of all, of what this host sends or is sent.
    func lose(_ part: Double, _ ways: [Way] = Way.allCases) async throws {
        // A program for the kernel: draw a number, drop the packet (2) below the limit.
        let limit = UInt32(part * Double(UInt32.max))
        let program = "4,32 0 0 4294963256,53 0 1 \(limit),6 0 0 0,6 0 0 2"
        try await network.atPort(of: self, "qdisc", "add", then: ["clsact"])
        for way in ways {
            try await network.atPort(
                of: self, "filter", "add",
                then: [way.rawValue, "bpf", "da", "bytecode", program])
        }
    }

    /// - Returns: how many packets were lost.
    @discardableResult
    func loseNothing() async throws -> Int {
        let counts = try await network.atPort(of: self, "-s", "qdisc", "show", then: ["clsact"])
            .output
        try await network.atPort(of: self, "qdisc", "del", then: ["clsact"])
        let lost = counts.split(separator: "dropped ").dropFirst().first
        return lost.flatMap { Int($0.prefix(while: \.isNumber)) } ?? 0
    }

    /// What this host sends from that port goes at one byte a second.
    func crawl(fromPort port: Int) async throws {
        let tc = ["netns", "exec", namespace, "tc"]
        let device = ["dev", "eth0"]
        for line in [
            ["qdisc", "replace"] + device + ["root", "handle", "1:", "htb"],
            ["class", "add"] + device
                + ["parent", "1:", "classid", "1:9", "htb", "rate", "8bit", "ceil", "8bit"],
            ["filter", "add"] + device
                + ["parent", "1:", "protocol", "ip", "u32", "match", "ip", "sport", "\(port)"]
                + ["0xffff", "flowid", "1:9"],
        ] { try await Shell.run(["ip"] + tc + line).succeeded() }
    }

    /// Bytes that came in over `eth0` so far.
    func receivedBytes() async throws -> Int {
        let outcome = try await Shell.run([
            "ip", "netns", "exec", namespace, "cat", "/sys/class/net/eth0/statistics/rx_bytes",
        ]).succeeded()
        return Int(outcome.line) ?? 0
    }

    /// The command that runs another one here. `ip netns exec` would make a mount namespace, and
    /// nobody else would see a node's mount.
    func command(_ command: [String], as account: Account = .root) -> [String] {
        var enter = ["nsenter", "--net=/run/netns/\(namespace)"]
        if let holder = mountHolder.withLock({ $0 }) {
            enter.append("--mount=/proc/\(holder)/ns/mnt")
        }
        return enter + ["--"] + account.prefix + command
    }

    func run(
        _ command: [String], as account: Account = .root,
        environment: [String: String] = Shell.environment, input: String? = nil,
        timeout: Duration = Bounds.command
    ) async throws -> Outcome {
        try await Shell.run(
            self.command(command, as: account), environment: environment, input: input,
            timeout: timeout)
    }

    /// A bash script, run here.
    @discardableResult
    func sh(
        _ script: String, _ arguments: String..., as account: Account = .root,
        timeout: Duration = Bounds.command
    ) async throws -> Outcome {
        try await run(Shell.bash(script, arguments), as: account, timeout: timeout)
    }

    /// Starts a command here that goes on until it ends or the workshop closes.
    func spawn(
        _ command: [String], as account: Account = .root, log: String,
        environment: [String: String] = Shell.environment
    ) throws -> Child {
        var environment = environment
        environment[Workshop.mark] = network.workshop.directory
        let file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer {
            close(file)
            close(null)
        }
        guard file >= 0, null >= 0 else { throw Failure("\(log) cannot be opened.") }
        let child = try Child(
            self.command(command, as: account), environment: environment, input: null,
            output: file, errors: file)
        network.workshop.onClose("process \(child.pid)") {
            child.kill9()
            _ = try await child.wait(Bounds.reaped)
        }
        return child
    }

    /// A mount namespace of this host's own, where a script may cover what the machine has; its
    /// mounts are seen by commands of this host only.
    func separateMounts(_ script: String) async throws {
        let directory = network.workshop.directory
        let child = try spawn(
            [
                "unshare", "--mount", "--propagation", "private", "bash", "-euc",
                "\(script)\ntouch \(directory)/mounts-\(number)\nexec sleep infinity",
            ],
            log: "\(directory)/mounts-\(number).log")
        try await eventually("host \(number) has mounts of its own", within: Bounds.command) {
            access("\(directory)/mounts-\(self.number)", F_OK) == 0
        }
        mountHolder.withLock { $0 = child.pid }
    }
}

/// Who runs a command.
struct Account: Sendable {
    let uid: UInt32
    let gid: UInt32

    static let root = Account(uid: 0, gid: 0)

    var prefix: [String] {
        uid == 0
            ? []
            : ["setpriv", "--reuid=\(uid)", "--regid=\(gid)", "--clear-groups", "--inh-caps=-all"]
    }
}
