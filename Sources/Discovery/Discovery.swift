import CAvahi
import Glibc
import Synchronization

/// What another node says of itself by mDNS: a hint that anybody on the network can forge. The
/// peer API proves or refutes it.
public struct Advertisement: Hashable, Sendable {
    /// 32 lower-case hexadecimal digits.
    public let node: String
    /// The volume's id, as in `--id`.
    public let volume: String
    /// The first 16 hexadecimal digits of the authority's SHA-256.
    public let authority: String
    /// Numeric hosts, sorted, at least one; link-local IPv6 with its interface: `fe80::1%eth0`.
    public let addresses: [String]
    /// Of the peer API.
    public let port: UInt16
}

public enum DiscoveryEvent: Hashable, Sendable {
    /// This node is announced under its name; again after an interruption.
    case announced
    /// A node is new or says something else than before, other volumes' nodes included.
    case found(Advertisement)
    /// This node's own id is announced: by itself, or by one that runs on a copy of its disk.
    case twin(Advertisement)
    /// Somebody else has the name that this node's id gives: it takes another one.
    case nameTaken
    /// Nobody announces this node any more.
    case lost(node: String)
    /// No mDNS for now, with the reason; tried again every 30 s without further events.
    case unavailable(String)
}

/// Announces a node as `_delugefs._tcp` and browses for others, with an mDNS responder of its own:
/// no daemon is needed, and one that runs is not disturbed.
///
/// The responder publishes addresses under a name that no other node has, and no reverse records:
/// those belong to the host, and several responders on it would fight over them.
public final class Discovery: Sendable {
    public struct Configuration: Sendable {
        /// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`
        public var volume: String
        /// 32 lower-case hexadecimal digits.
        public var node: String
        /// 16 lower-case hexadecimal digits.
        public var authority: String
        /// Of the peer API; not 0.
        public var port: UInt16
        /// Shows up in the mDNS host name, for people; any text.
        public var machine: String
        /// Only these interfaces; nil for all, which is the default.
        public var interfaces: [String]?

        public init(
            volume: String, node: String, authority: String, port: UInt16, machine: String,
            interfaces: [String]? = nil
        ) {
            self.volume = volume
            self.node = node
            self.authority = authority
            self.port = port
            self.machine = machine
            self.interfaces = interfaces
        }
    }

    private let configuration: Configuration
    private let shared: DiscoveryState
    private let thread = Mutex<pthread_t?>(nil)

    /// - Parameter onEvent: called on the responder's thread, one event at a time; it must neither
    ///   block nor call `stop`.
    /// - Precondition: the configuration's values have the forms given there.
    public init(
        _ configuration: Configuration, onEvent: @escaping @Sendable (DiscoveryEvent) -> Void
    ) {
        precondition(
            ServiceText.isVolume(configuration.volume) && ServiceText.isNode(configuration.node)
                && ServiceText.isAuthority(configuration.authority) && configuration.port != 0)
        self.configuration = configuration
        shared = DiscoveryState(own: configuration.node, onEvent: onEvent)
    }

    deinit { stop() }

    /// The nodes known now, this one excepted, in no order.
    public var advertisements: [Advertisement] { shared.advertisements }

    /// Starts the thread `discovery`; it works in the network namespace of the caller's thread.
    ///
    /// Never fails: what goes wrong becomes the event `unavailable`.
    ///
    /// - Precondition: not started before.
    public func start() {
        guard shared.stopDescriptor >= 0 else {
            shared.send(.unavailable("no descriptor for mDNS"))
            return
        }
        let start = Unmanaged.passRetained(Start(configuration: configuration, shared: shared))
        let error = thread.withLock { thread in
            precondition(thread == nil, "started twice")
            var started = pthread_t()
            let error = pthread_create(
                &started, nil,
                { argument in
                    guard let argument else { return nil }
                    Unmanaged<Start>.fromOpaque(argument).takeRetainedValue().run()
                    return nil
                }, start.toOpaque())
            if error == 0 { thread = started }
            return error
        }
        if error != 0 {
            start.release()
            shared.send(.unavailable("no thread for mDNS: error \(error)"))
        }
    }

    /// Says goodbye to the network and waits for the thread. No event follows. Harmless when not
    /// started or already stopped.
    public func stop() {
        guard let thread = thread.withLock({ $0.take() }) else { return }
        precondition(pthread_equal(thread, pthread_self()) == 0, "stop() called by an event")
        shared.requestStop()
        pthread_join(thread, nil)
    }
}

/// What the responder's thread takes with it.
private final class Start: Sendable {
    let configuration: Discovery.Configuration
    let shared: DiscoveryState

    init(configuration: Discovery.Configuration, shared: DiscoveryState) {
        self.configuration = configuration
        self.shared = shared
    }

    /// A failed responder is tried again so often.
    static let retrySecondsMax = 30

    func run() {
        cavahi_name_thread("discovery")
        Responder.silenceLog
        var told: String?
        while !shared.mustStop {
            do {
                let responder = try Responder(configuration, shared)
                try responder.run()
                return
            } catch {
                shared.removeAll()
                let reason = error.reason
                if told != reason { shared.send(.unavailable(reason)) }
                told = reason
            }
            shared.waitForStop(seconds: Self.retrySecondsMax)
        }
    }
}

/// What the thread and its owner share.
final class DiscoveryState: Sendable {
    private let own: String
    private let onEvent: @Sendable (DiscoveryEvent) -> Void
    private let known = Mutex<[String: Advertisement]>([:])
    private let stopping = Atomic(false)
    /// Readable once the thread has to end; -1 when the process had no descriptor left.
    let stopDescriptor: CInt

    init(own: String, onEvent: @escaping @Sendable (DiscoveryEvent) -> Void) {
        self.own = own
        self.onEvent = onEvent
        stopDescriptor = eventfd(0, CInt(EFD_CLOEXEC | EFD_NONBLOCK))
    }

    deinit { if stopDescriptor >= 0 { close(stopDescriptor) } }

    var advertisements: [Advertisement] {
        known.withLock { $0.values.filter { $0.node != own } }
    }

    var mustStop: Bool { stopping.load(ordering: .acquiring) }

    func requestStop() {
        stopping.store(true, ordering: .releasing)
        var one: UInt64 = 1
        _ = write(stopDescriptor, &one, MemoryLayout.size(ofValue: one))
    }

    func waitForStop(seconds: Int) {
        var descriptor = pollfd(fd: stopDescriptor, events: Int16(POLLIN), revents: 0)
        _ = poll(&descriptor, 1, CInt(seconds * 1000))
    }

    func send(_ event: DiscoveryEvent) {
        if !mustStop { onEvent(event) }
    }

    /// Replaces what is known and tells the differences.
    func update(_ current: [String: Advertisement]) {
        let previous = known.withLock { known in
            let previous = known
            known = current
            return previous
        }
        for node in previous.keys where current[node] == nil && node != own {
            send(.lost(node: node))
        }
        for (node, advertisement) in current where previous[node] != advertisement {
            send(node == own ? .twin(advertisement) : .found(advertisement))
        }
    }

    func removeAll() { update([:]) }
}

struct ResponderError: Error {
    let reason: String

    init(_ operation: String, _ code: Int) { self.init(operation, CInt(code)) }

    init(_ operation: String, _ code: CInt) {
        let text = avahi_strerror(code).map { String(cString: $0) } ?? "error \(code)"
        reason = "mDNS: \(operation): \(text)"
    }
}
