import CAvahi
import Glibc

/// The mDNS responder. It lives and dies on the discovery thread, callbacks included: avahi-core
/// calls back only from its event loop (`avahi_simple_poll_iterate`) and from calls into it.
final class Responder {
    let shared: DiscoveryState
    let configuration: Discovery.Configuration
    private let poll: OpaquePointer
    var server: OpaquePointer?
    private var watches: [OpaquePointer] = []
    private let changes: CInt
    var addressesChanged = true
    private var failure: ResponderError?

    /// Our host label and service name; others after a collision.
    var hostLabel: String
    var serviceName: String
    var renames = 0
    var mustRename = false
    var published: [InterfaceAddress: OpaquePointer] = [:]
    var service: OpaquePointer?

    private var browser: OpaquePointer?
    var resolutions: [Resolution.Key: Resolution] = [:]
    var resolutionsChanged = false

    /// Somebody with our node id and our luck: a copied root, or a host that plays with us.
    static let renamesMax = 16
    /// Names on all interfaces together; two resolvers each.
    static let resolutionsMax = 2048

    /// avahi-core writes to stderr by itself; what matters reaches us as error codes.
    static let silenceLog: Void = avahi_set_log_function { _, _ in }

    init(_ configuration: Discovery.Configuration, _ shared: DiscoveryState) throws(ResponderError)
    {
        self.configuration = configuration
        self.shared = shared
        hostLabel = ServiceText.hostLabel(machine: configuration.machine, node: configuration.node)
        serviceName = configuration.node
        guard let poll = avahi_simple_poll_new() else {
            throw ResponderError("start", AVAHI_ERR_NO_MEMORY)
        }
        self.poll = poll
        changes = cavahi_interface_changes()
        watch(shared.stopDescriptor) { _, _, _, _ in }
        if changes >= 0 {
            watch(changes) { _, descriptor, _, context in
                Responder.at(context).drain(descriptor)
            }
        }
        try startServer()
    }

    deinit {
        for resolution in resolutions.values { resolution.free() }
        if let browser { avahi_s_service_browser_free(browser) }
        // Says goodbye for every record.
        if let server { avahi_server_free(server) }
        for watch in watches { cavahi_unwatch(avahi_simple_poll_get(poll), watch) }
        avahi_simple_poll_free(poll)
        if changes >= 0 { close(changes) }
    }

    /// - Throws: `ResponderError` when the responder cannot go on; returns when it has to stop.
    func run() throws(ResponderError) {
        while !shared.mustStop {
            if addressesChanged { try publishAddresses() }
            if mustRename { try rename() }
            if resolutionsChanged { tellResolutions() }
            if let failure { throw failure }
            guard avahi_simple_poll_iterate(poll, -1) == 0 else {
                throw ResponderError("poll", AVAHI_ERR_OS)
            }
        }
    }

    static func at(_ context: UnsafeMutableRawPointer?) -> Responder {
        guard let context else { preconditionFailure("a callback without its context") }
        return Unmanaged<Responder>.fromOpaque(context).takeUnretainedValue()
    }

    var context: UnsafeMutableRawPointer { Unmanaged.passUnretained(self).toOpaque() }

    private func watch(_ descriptor: CInt, _ callback: @escaping AvahiWatchCallback) {
        let watch = cavahi_watch(avahi_simple_poll_get(poll), descriptor, callback, context)
        if let watch { watches.append(watch) }
    }

    /// Only that something changed matters; also when messages were lost.
    private func drain(_ descriptor: CInt) {
        var buffer = [UInt8](repeating: 0, count: 16 << 10)
        while recv(descriptor, &buffer, buffer.count, 0) > 0 {}
        addressesChanged = true
    }

    private func startServer() throws(ResponderError) {
        var config = AvahiServerConfig()
        avahi_server_config_init(&config)
        defer { avahi_server_config_free(&config) }
        config.host_name = avahi_strdup(hostLabel)
        config.use_ipv6 = 1
        config.publish_hinfo = 0
        config.publish_workstation = 0
        config.publish_domain = 0
        // Would add reverse records, which clash with those of a daemon or of a sibling.
        config.publish_addresses = 0
        config.add_service_cookie = 0
        config.enable_wide_area = 0
        config.enable_reflector = 0
        config.disallow_other_stacks = 0
        for name in configuration.interfaces ?? [] {
            config.allow_interfaces = avahi_string_list_add(config.allow_interfaces, name)
        }
        var error: CInt = 0
        server = avahi_server_new(
            avahi_simple_poll_get(poll), &config,
            { server, state, context in
                guard state == AVAHI_SERVER_FAILURE else { return }
                Responder.at(context).fail("responder", avahi_server_errno(server))
            }, context, &error)
        guard let server else { throw ResponderError("start", error) }
        browser = avahi_s_service_browser_new(
            server, CInt(AVAHI_IF_UNSPEC), CInt(AVAHI_PROTO_UNSPEC),
            ServiceText.type, nil, AvahiLookupFlags(rawValue: 0),
            { _, interface, family, event, name, _, _, _, context in
                guard let name else { return }
                let source = Resolution.Source(interface: interface, family: family)
                Responder.at(context).browsed(event, source, String(cString: name))
            }, context)
        if browser == nil { throw ResponderError("browse", avahi_server_errno(server)) }
    }

    func fail(_ operation: String, _ code: CInt) {
        failure = failure ?? ResponderError(operation, code)
    }
}
