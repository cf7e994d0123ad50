import Discovery
import Glibc
import Synchronization

/// A switch with hosts: network namespaces of their own, connected by a bridge in another one.
final class TestNetwork {
    struct Failure: Error { let command: String }

    private static let next = Atomic<Int>(0)
    private let prefix: String
    private var namespaces: [String] = []
    private var hosts = 0

    init() throws {
        let number = Self.next.wrappingAdd(1, ordering: .relaxed).oldValue
        prefix = "dfsd\(getpid())-\(number)"
        try add(switchName)
        try ip("-n", switchName, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        try ip("-n", switchName, "link", "set", "bridge", "up")
    }

    deinit {
        for namespace in namespaces { _ = try? ip("netns", "del", namespace) }
    }

    private var switchName: String { "\(prefix)-switch" }

    private func add(_ namespace: String) throws {
        try ip("netns", "add", namespace)
        namespaces.append(namespace)
    }

    /// A host without any interface but a loopback that is down.
    func host() throws -> Host {
        hosts += 1
        let name = "\(prefix)-\(hosts)"
        try add(name)
        return Host(namespace: name, number: hosts)
    }

    /// Gives a host `eth0` with 10.9.0.N and the link-local IPv6 address that the kernel makes.
    func connect(_ host: Host, hasIPv4: Bool = true) throws {
        try ip(
            "-n", switchName, "link", "add", "port\(host.number)", "type", "veth", "peer", "name",
            "eth0", "netns", host.namespace)
        try ip("-n", switchName, "link", "set", "port\(host.number)", "master", "bridge", "up")
        if hasIPv4 {
            try ip("-n", host.namespace, "addr", "add", "\(host.address)/24", "dev", "eth0")
        }
        try ip("-n", host.namespace, "link", "set", "eth0", "up")
    }

    /// Pulls the cable out.
    func disconnect(_ host: Host) throws {
        try ip("-n", switchName, "link", "set", "port\(host.number)", "nomaster")
    }
}

struct Host {
    let namespace: String
    let number: Int
    var address: String { "10.9.0.\(number)" }

    /// Runs a body on a thread inside the namespace, and waits for it.
    func enter(_ body: @escaping @Sendable () -> Void) {
        let context = Unmanaged.passRetained(Entry(namespace: namespace, body: body))
        var thread = pthread_t()
        let error = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Entry>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, context.toOpaque())
        precondition(error == 0)
        pthread_join(thread, nil)
    }

    private final class Entry: Sendable {
        let namespace: String
        let body: @Sendable () -> Void

        init(namespace: String, body: @escaping @Sendable () -> Void) {
            self.namespace = namespace
            self.body = body
        }

        func run() {
            // Not in Swift's Glibc module: glibc declares it under _GNU_SOURCE.
            typealias SetNamespace = @convention(c) (CInt, CInt) -> CInt
            guard let symbol = dlsym(dlopen(nil, RTLD_NOW), "setns") else { fatalError("setns") }
            let setNamespace = unsafeBitCast(symbol, to: SetNamespace.self)
            let file = open("/run/netns/\(namespace)", O_RDONLY | O_CLOEXEC)
            precondition(setNamespace(file, 0) == 0, "setns \(namespace)")
            close(file)
            body()
        }
    }
}

@discardableResult
func ip(_ arguments: String...) throws -> Bool { try run(["ip"] + arguments) }

/// Runs a program to its end; true.
@discardableResult
func run(_ command: [String]) throws -> Bool {
    let pid = try spawn(command)
    var status: CInt = 0
    while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
    guard status == 0 else {
        throw TestNetwork.Failure(command: command.joined(separator: " "))
    }
    return true
}

/// Starts a program; standard output goes to a file when one is given.
func spawn(_ command: [String], output: String? = nil) throws -> pid_t {
    var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
    arguments.append(nil)
    defer { arguments.forEach { free($0) } }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    if let output {
        posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
    }
    // Threads of the cooperative pool block most signals, and children inherit that.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    var pid = pid_t()
    guard posix_spawnp(&pid, command[0], &actions, &attributes, arguments, environ) == 0 else {
        throw TestNetwork.Failure(command: command.joined(separator: " "))
    }
    return pid
}

/// A running Discovery and what it told.
final class TestNode: Sendable {
    let node: String
    let discovery: Discovery
    private let log: Log

    private final class Log: Sendable {
        let events = Mutex<[DiscoveryEvent]>([])
    }

    var events: [DiscoveryEvent] { log.events.withLock { $0 } }

    /// - Parameter digit: the node id is 32 times this hexadecimal digit.
    init(
        _ digit: Character, on host: Host, port: UInt16 = 7000, machine: String = "machine",
        volume: String = "bigstore"
    ) {
        let node = String(repeating: digit, count: 32)
        let log = Log()
        let configuration = Discovery.Configuration(
            volume: volume, node: node, authority: "0123456789abcdef", port: port,
            machine: machine)
        let discovery = Discovery(configuration) { event in
            log.events.withLock { $0.append(event) }
        }
        self.node = node
        self.log = log
        self.discovery = discovery
        host.enter { discovery.start() }
    }

    func advertisement(of other: TestNode) -> Advertisement? {
        discovery.advertisements.first { $0.node == other.node }
    }

    func addresses(of other: TestNode) -> [String] { advertisement(of: other)?.addresses ?? [] }
}

/// Waits for a condition, at most 30 s.
func eventually(_ condition: () throws -> Bool) async rethrows -> Bool {
    for _ in 0..<1500 {
        if try condition() { return true }
        try? await Task.sleep(for: .milliseconds(20))
    }
    return false
}
