import Discovery
import Glibc
import Testing

/// A running avahi-daemon with a D-Bus of its own, in a host's namespace.
///
/// It keeps its process id in /run/avahi-daemon, so that there is one of it on a machine.
private final class AvahiDaemon {
    private let directory: String
    private var processes: [pid_t] = []

    static var canRun: Bool {
        getuid() == 0 && isInstalled("avahi-daemon") && isInstalled("avahi-browse")
            && isInstalled("dbus-daemon") && (try? run(["avahi-daemon", "--check"])) == nil
    }

    private static func isInstalled(_ program: String) -> Bool {
        (try? run(["sh", "-c", "command -v \(program) >/dev/null"])) ?? false
    }

    init(on host: Host, name: String) async throws {
        var template = Array("/tmp/delugefs-avahi-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw TestNetwork.Failure(command: "mkdtemp") }
        let bytes = template.dropLast().map { UInt8(bitPattern: $0) }
        directory = String(decoding: bytes, as: UTF8.self)
        let bus = """
            <busconfig><type>system</type><listen>unix:path=\(directory)/bus</listen>
            <policy context="default"><allow user="*"/><allow own="*"/>
            <allow send_type="method_call"/><allow send_destination="*"/>
            <allow receive_sender="*"/></policy></busconfig>
            """
        try write(bus, "bus.conf")
        try write("[server]\nhost-name=\(name)\n", "avahi.conf")
        processes.append(
            try spawn(
                ["dbus-daemon", "--config-file=\(directory)/bus.conf", "--nofork", "--nopidfile"],
                output: "\(directory)/bus.log"))
        guard await eventually({ access("\(directory)/bus", F_OK) == 0 }) else {
            throw TestNetwork.Failure(command: "dbus-daemon")
        }
        processes.append(
            try spawn(
                inNamespace(
                    host,
                    [
                        "avahi-daemon", "-f", "\(directory)/avahi.conf", "--no-drop-root",
                        "--no-chroot", "--no-rlimits",
                    ]), output: "\(directory)/avahi.log"))
        guard await eventually({ log.contains("Server startup complete") }) else {
            throw TestNetwork.Failure(command: "avahi-daemon: \(log)")
        }
    }

    deinit {
        for process in processes.reversed() {
            kill(process, SIGTERM)
            var status: CInt = 0
            waitpid(process, &status, 0)
        }
        _ = try? run(["rm", "-rf", directory])
    }

    private func inNamespace(_ host: Host, _ command: [String]) -> [String] {
        [
            "ip", "netns", "exec", host.namespace, "env",
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path=\(directory)/bus",
        ] + command
    }

    private func write(_ text: String, _ name: String) throws {
        guard let file = fopen("\(directory)/\(name)", "w") else {
            throw TestNetwork.Failure(command: name)
        }
        fputs(text, file)
        fclose(file)
    }

    private func read(_ name: String) -> String {
        guard let file = fopen("\(directory)/\(name)", "r") else { return "" }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 20)
        let count = fread(&bytes, 1, bytes.count, file)
        return String(decoding: bytes[..<count], as: UTF8.self)
    }

    var log: String { read("avahi.log") }

    /// What avahi-browse, asking this daemon, resolves of our services: one line each.
    func browse(on host: Host) throws -> String {
        let process = try spawn(
            inNamespace(host, ["timeout", "6", "avahi-browse", "-rtp", "_delugefs._tcp"]),
            output: "\(directory)/browse.log")
        var status: CInt = 0
        waitpid(process, &status, 0)
        return read("browse.log")
    }
}

@Suite(.enabled(if: AvahiDaemon.canRun), .serialized) struct AvahiDaemonTests {
    @Test func aDaemonOfTheSameHostResolvesOurNodesAndKeepsItsName() async throws {
        let network = try TestNetwork()
        let host = try network.host()
        try network.connect(host)
        let daemon = try await AvahiDaemon(on: host, name: "stranger")
        let nodes = [TestNode("a", on: host), TestNode("b", on: host, machine: "stranger")]
        #expect(await eventually { nodes[0].addresses(of: nodes[1]).contains(host.address) })
        #expect(await eventually { nodes[1].addresses(of: nodes[0]).contains(host.address) })
        let lines = try daemon.browse(on: host).split(separator: "\n")
        for node in nodes {
            let line = lines.first {
                $0.hasPrefix("=;eth0;") && $0.contains(";\(node.node);")
                    && $0.contains(";\(host.address);7000;")
            }
            #expect(line?.contains("\"id=bigstore\"") == true, "\(lines)")
            #expect(line?.contains("\"ca=0123456789abcdef\"") == true)
        }
        #expect(!daemon.log.contains("conflict") && !daemon.log.contains("collision"))
        #expect(daemon.log.contains("Host name is stranger.local"))
        for node in nodes { node.discovery.stop() }
    }
}
