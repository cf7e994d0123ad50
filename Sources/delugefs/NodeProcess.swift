import Foundation
import Glibc
import Logging
import Mesh
import Node
import Synchronization
import SystemPackage

/// A process that is a node: signals, readiness, and the exit code at the end.
///
/// The main thread waits for signals; the node runs on threads of its own.
final class NodeProcess: Sendable {
    private let configuration: Configuration
    private let log: NodeLog
    private let logger: Logger
    /// In the background: the way to say that the node is ready.
    private let inheritance: Background.Inheritance?
    private let showsHeldLines: Bool

    private enum Phase {
        case starting
        case running(Node)
        case stopping
    }

    private let phase = Mutex(Phase.starting)

    /// Signals within this time are one request: `timeout` and terminals send them to a process
    /// and to its group.
    private static let oneRequest = Duration.seconds(1)

    init(
        configuration: Configuration, log: NodeLog, logger: Logger,
        inheritance: Background.Inheritance?, showsHeldLines: Bool
    ) {
        self.configuration = configuration
        self.log = log
        self.logger = logger
        self.inheritance = inheritance
        self.showsHeldLines = showsHeldLines
    }

    func run() -> Never {
        signal(SIGPIPE, SIG_IGN)
        raiseDescriptorLimit()
        // Before any thread is made, so that all inherit the mask and only `sigwait` gets these.
        var signals = sigset_t()
        sigemptyset(&signals)
        for number in [SIGINT, SIGTERM, SIGHUP] { sigaddset(&signals, number) }
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        let work = Task { await self.serve() }
        var first: ContinuousClock.Instant?
        while true {
            var number: CInt = 0
            guard sigwait(&signals, &number) == 0 else { continue }
            // In the background there is no terminal that could have gone.
            if number == SIGHUP, inheritance != nil { continue }
            let now = ContinuousClock.now
            if let first, now - first < Self.oneRequest { continue }
            first = first ?? now
            stop(work)
        }
    }

    /// The first signal stops cleanly, the second at once.
    private func stop(_ work: Task<Void, Never>) {
        let before = phase.withLock { phase in
            defer { phase = .stopping }
            return phase
        }
        switch before {
        case .starting: work.cancel()
        case .running(let node):
            logger.info("stopping")
            node.requestStop()
        case .stopping:
            logger.warning(
                "ended at once, by a second signal; what was not published is published at the next start"
            )
            leave(.failed)
        }
    }

    private func serve() async {
        let node: Node
        do {
            node = try await Node.start(configuration, logger: logger)
        } catch {
            let wasStopped = phase.withLock { if case .stopping = $0 { true } else { false } }
            fail(
                wasStopped
                    ? Failure("Stopped before the node was ready.") : Failure(sentenceOf: error))
        }
        let isWanted = phase.withLock { phase in
            guard case .starting = phase else { return false }
            phase = .running(node)
            return true
        }
        if isWanted, await announce() {
            await node.runUntilStopped()
        } else {
            // Not in this task: it may be cancelled, and a stop must run to its end.
            await Task { await node.stop() }.value
            fail(Failure("Stopped before the node was ready."))
        }
        logger.info("stopped")
        leave(.done)
    }

    /// Says that the node is ready; false when nobody waits for that any more.
    private func announce() async -> Bool {
        let text = await readyText()
        guard let inheritance else {
            if Terminal.errorIsTerminal { Terminal.complain(text) } else { logger.info("\(text)") }
            return true
        }
        do {
            let root = try FilePath(configuration.root).absolute()
            try log.open(root.appending("log"))
        } catch {
            inheritance.report(
                Failure("The log in \(configuration.root) cannot be opened: \(error)."))
            return false
        }
        logger.info("\(text)")
        // Holds no directory that somebody wants to unmount.
        chdir("/")
        return inheritance.report(ready: text)
    }

    /// One line for a person. Asks the control socket, which is ready when this answers.
    private func readyText() async -> String {
        let root = FilePath(configuration.root)
        let reply: [UInt8]? = await withCheckedContinuation { continuation in
            let thread = Thread {
                continuation.resume(returning: try? NodeConversation(root: root).get("/v1/status"))
            }
            thread.name = "ready"
            thread.start()
        }
        let id = configuration.volume
        guard let reply, let status = try? JSONDecoder().decode(Status.self, from: Data(reply))
        else { return "Node of volume \(id) is ready." }
        let place = status.mount.map { "mounted on \($0)" } ?? "not mounted"
        let peers = status.peers.filter(\.online).count
        let end =
            inheritance == nil
            ? "Ctrl-C stops it"
            : "stop it with `delugefs stop --root \((try? root.absolute()) ?? root)`"
        return Terminal.visible(
            "Node \(status.name) of volume \(id) is ready, \(place), \(Quantity.count(peers, "peer")) online; \(end)."
        )
    }

    private func fail(_ failure: Failure) -> Never {
        if showsHeldLines { log.showHeld() }
        if let inheritance {
            inheritance.report(failure)
        } else {
            Terminal.complain(failure.sentence)
        }
        leave(failure.exitCode)
    }

    /// Not `exit`: it would destroy the libraries' globals under threads that still run.
    private func leave(_ code: Failure.ExitCode) -> Never { _exit(code.rawValue) }

    /// Every peer, file and torrent has a descriptor; the soft limit is for programs with `select`.
    private func raiseDescriptorLimit() {
        var limit = rlimit()
        let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        guard getrlimit(resource, &limit) == 0, limit.rlim_cur < limit.rlim_max else { return }
        limit.rlim_cur = limit.rlim_max
        setrlimit(resource, &limit)
    }
}

extension FilePath {
    /// The same path from the top, by the current directory.
    func absolute() throws -> FilePath {
        guard isRelative else { return self }
        guard let current = getcwd(nil, 0) else { throw Errno(rawValue: errno) }
        defer { free(current) }
        return FilePath(String(cString: current)).pushing(self)
    }
}
