import ArgumentParser
import Glibc
import Logging
import Mesh
import Node
import SystemPackage
import Volume

/// `delugefs [run]`: argv and environment become a `Configuration`.
struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Run the node of one disk, and mount the volume (the default).",
        discussion: """
            Runs in the foreground and logs to standard error, until SIGINT or SIGTERM stop it \
            cleanly (another one, a second later, ends it at once), or `delugefs stop`.

            The volume key: --key-file, else the environment variable DELUGEFS_KEY, else the one \
            kept in the root or in ${XDG_CONFIG_HOME:-$HOME/.config}/delugefs/ID.key. It never \
            stands on the command line.

            SIZE: bytes, or a number with K, M, G, T or P (powers of 1024; KB, MB, ... powers of \
            1000). ID, NAME, MACHINE: up to 63 letters, digits, '.', '_', '-', of which the first \
            is a letter or digit.

            In the mount, .delugefs/at/TIME/ and .delugefs/at/COMMIT/ are the volume as it was, \
            read-only: .delugefs/at/2h, .delugefs/at/2026-11-26T14:00; `ls .delugefs/at` names some.

            Environment: DELUGEFS_KEY; DELUGEFS_LOG=trace|debug|info|warning|error (default info); \
            NO_COLOR.
            """)

    @Option(
        help: ArgumentHelp("The volume's name.", valueName: "id"),
        transform: Arguments.identifier)
    var id: String

    @Option(
        help: ArgumentHelp(
            "The directory on the disk that this node is; its last component is made if missing.",
            valueName: "dir"),
        transform: Arguments.directory)
    var root: String

    @Option(
        help: ArgumentHelp(
            "Where to mount the volume; made if missing, and then removed at the stop. Without it the node only stores and serves.",
            valueName: "dir"),
        transform: Arguments.directory)
    var mount: String?

    @Flag(help: "Found a new volume; only in an empty root, and only if no peer serves the id.")
    var create = false

    @Option(
        help: ArgumentHelp(
            "Read the volume key from a file, or from standard input (-).", valueName: "file"))
    var keyFile: String?

    @Option(
        help: ArgumentHelp(
            "With --create: target copies of every file. (default: 2)", valueName: "n"),
        transform: { try Arguments.number($0, in: 1...Limits.copiesMax) })
    var copies: Int?

    @Option(
        help: ArgumentHelp(
            "This node's display name. (default: from the disk's mount point)", valueName: "name"),
        transform: Arguments.identifier)
    var name: String?

    @Option(
        help: ArgumentHelp(
            "The machine that fails as a whole: copies go to different ones. (default: the host name at the first start)",
            valueName: "name"),
        transform: Arguments.identifier)
    var machine: String?

    @Option(
        help: ArgumentHelp(
            "Most bytes this node may store; 0: only a cache. (default: the disk less 5 %)",
            valueName: "size"),
        transform: Arguments.size)
    var capacity: UInt64?

    @Option(
        help: ArgumentHelp("The address to listen on. (default: all)", valueName: "address"))
    var listen: String?

    @Option(
        help: ArgumentHelp(
            "TCP port of the peer API; bulk content uses the one after it, the private DHT of volumes of eight and more nodes UDP of the next. (default: any free)",
            valueName: "n"),
        transform: { try Arguments.number($0, in: 0...65_534) })
    var port: Int?

    @Option(
        name: .customLong("peer"),
        help: ArgumentHelp(
            "A peer's API that mDNS cannot see; may be repeated.", valueName: "host:port"),
        transform: Arguments.peer)
    var peers: [PeerAddress] = []

    @Flag(name: .customLong("no-discovery"), help: "No mDNS: use only the peers given by --peer.")
    var noDiscovery = false

    @Option(
        help: ArgumentHelp(
            "Absence of a disk before its copies are made elsewhere. (default: 600)",
            valueName: "seconds"),
        transform: { try Arguments.number($0, in: 0...Int(Int32.max)) })
    var grace: Int?

    @Option(
        help: ArgumentHelp(
            "Bytes a second that the monthly scrub reads at most; 0: no scrub by itself. (default: 20M)",
            valueName: "size"),
        transform: Arguments.size)
    var scrubRate: UInt64?

    @Option(
        help: ArgumentHelp(
            "With --create: tls or plain, for bulk content, fixed for the volume. With plain, who can watch the wire can read content. (default: tls)",
            valueName: "tls|plain"),
        transform: Arguments.transport)
    var transport: Configuration.Transport?

    @Flag(name: .customLong("no-passthrough"), help: "Read and write through the node always.")
    var noPassthrough = false

    @Flag(
        help:
            "Other users may enter the mount; without root /etc/fuse.conf must have user_allow_other. (root: always)"
    )
    var allowOther = false

    @Flag(help: "As root: honour set-id bits and device nodes. (default: they are only stored)")
    var suidDev = false

    @Option(
        help: ArgumentHelp(
            "Show the volume's owner as this one, and store this one's files as that owner's. (without root: the mounting user)",
            valueName: "uid:gid"),
        transform: Arguments.owner)
    var mapOwner: Owner?

    @Option(
        help: ArgumentHelp(
            "Only these ways to find who has content, for tests: logs, ask, dht, or none.",
            valueName: "ways", visibility: .hidden),
        transform: Arguments.ways)
    var findBy: Set<Configuration.Way>?

    @Flag(help: "Start a new, empty node at a root where another node was known.")
    var newNode = false

    @Flag(help: "Return once the node is ready; it goes on, and logs to ROOT/log.")
    var background = false

    func validate() throws {
        if !create, copies != nil {
            throw ValidationError("--copies belongs to --create: it is a setting of the volume")
        }
        if !create, transport != nil {
            throw ValidationError("--transport belongs to --create: it is a setting of the volume")
        }
        if mount == nil, suidDev || allowOther || mapOwner != nil {
            throw ValidationError("--allow-other, --suid-dev and --map-owner belong to --mount")
        }
    }

    func run() throws {
        let askedLevel = try Logger.Level.fromEnvironment()
        let inheritance = background ? Background.Inheritance() : nil
        let log = inheritance == nil ? NodeLog.standardError() : NodeLog.held()
        do {
            let keyText = try inheritance.map(\.key) ?? KeySource.text(file: keyFile)
            if suidDev, geteuid() != 0 {
                throw Failure("--suid-dev needs root; leave it out, or run as root.")
            }
            if allowOther, geteuid() != 0, !Machine.letsUsersAllowOthers {
                throw Failure(
                    "--allow-other without root needs the line user_allow_other in /etc/fuse.conf; add it as root, or leave --allow-other out."
                )
            }
            if background, inheritance == nil {
                let text = try Background.launch(key: keyText)
                if Terminal.errorIsTerminal { Terminal.complain(text) }
                return
            }
            let level = askedLevel ?? .info
            let logger = Logger(label: "delugefs") { _ in LineLogHandler(log: log, level: level) }
            NodeProcess(
                configuration: try nodeConfiguration(keyText), log: log, logger: logger,
                inheritance: inheritance, showsHeldLines: askedLevel != nil
            ).run()
        } catch let failure as Failure {
            inheritance?.report(failure)
            if inheritance != nil { failure.exitCode.leave() }
            throw failure
        }
    }

    private func nodeConfiguration(_ keyText: String?) throws -> Configuration {
        var result = Configuration(
            volume: id, root: root, configurationDirectory: try Self.configurationDirectory())
        result.mountPoint = mount
        result.create = create
        result.keyText = keyText
        if let copies { result.copies = copies }
        result.name = name
        result.machine = machine
        result.capacityBytes = capacity
        result.listenAddress = listen
        if let port { result.port = port }
        result.peers = peers.map { ($0.host, $0.port) }
        result.discovery = !noDiscovery
        if let scrubRate { result.scrubBytesPerSecond = scrubRate }
        if let grace { result.graceSeconds = grace }
        if let transport { result.transport = transport }
        if let findBy { result.ways = findBy }
        result.passthrough = !noPassthrough
        result.allowOther = allowOther
        result.honourSetID = suidDev
        result.mapOwner = mapOwner
        result.newNode = newNode
        return result
    }

    private static func configurationDirectory() throws -> String {
        let directory = KeyRing.directory(
            configHome: SecretEnvironment.value("XDG_CONFIG_HOME").map { FilePath($0) },
            home: SecretEnvironment.value("HOME").map { FilePath($0) })
        guard let directory else {
            throw Failure(
                "HOME is not set, so there is no place for keys; set HOME or XDG_CONFIG_HOME.")
        }
        return directory.string
    }
}
