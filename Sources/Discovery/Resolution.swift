import CAvahi

/// One service name on one interface, being resolved for as long as it is announced.
///
/// Confined to the responder's thread, like everything that avahi-core calls back.
final class Resolution {
    struct Key: Hashable {
        let interface: CInt
        let name: String
    }

    /// Where a browser saw a name: it does so once for IPv4 and once for IPv6.
    struct Source: Hashable {
        let interface: CInt
        let family: CInt
    }

    let key: Key
    var families: Set<CInt>
    private(set) var fields: ServiceText.Fields?
    private(set) var port: UInt16 = 0
    /// By family: the resolver for IPv6 answers apart from the one for IPv4.
    private(set) var addresses: [Bool: InterfaceAddress] = [:]
    private unowned let responder: Responder
    private var resolvers: [Family] = []

    /// One resolver; its address is what avahi calls back with.
    private final class Family {
        unowned let resolution: Resolution
        let isIPv6: Bool
        var resolver: OpaquePointer?

        init(_ resolution: Resolution, isIPv6: Bool) {
            self.resolution = resolution
            self.isIPv6 = isIPv6
        }
    }

    init(_ key: Key, first source: Source, _ responder: Responder) {
        self.key = key
        self.responder = responder
        families = [source.family]
    }

    /// - Precondition: `free` is called before the object ends.
    func start(_ server: OpaquePointer?) {
        for isIPv6 in [false, true] {
            let family = Family(self, isIPv6: isIPv6)
            resolvers.append(family)
            family.resolver = avahi_s_service_resolver_new(
                server, key.interface, CInt(AVAHI_PROTO_UNSPEC), key.name, ServiceText.type, nil,
                CInt(isIPv6 ? AVAHI_PROTO_INET6 : AVAHI_PROTO_INET), AvahiLookupFlags(rawValue: 0),
                { _, interface, _, event, _, _, _, _, address, port, text, _, context in
                    guard let context else { return }
                    let family = Unmanaged<Family>.fromOpaque(context).takeUnretainedValue()
                    let isFound = event == AVAHI_RESOLVER_FOUND
                    let address = address.flatMap {
                        InterfaceAddress($0.pointee, interface: interface)
                    }
                    family.resolution.resolved(
                        family, isFound ? address : nil, port, Resolution.pairs(text))
                }, Unmanaged.passUnretained(family).toOpaque())
        }
    }

    func free() {
        for family in resolvers {
            if let resolver = family.resolver { avahi_s_service_resolver_free(resolver) }
        }
        resolvers = []
    }

    /// Everything here comes from the network.
    private func resolved(
        _ family: Family, _ address: InterfaceAddress?, _ port: UInt16, _ pairs: [[UInt8]]
    ) {
        responder.resolutionsChanged = true
        addresses[family.isIPv6] = nil
        guard let address, address.isIPv6 == family.isIPv6, port != 0 else { return }
        guard let fields = ServiceText.Fields(pairs), key.name.hasPrefix(fields.node) else {
            self.fields = nil
            return
        }
        self.fields = fields
        self.port = port
        addresses[family.isIPv6] = address
    }

    /// avahi bounds the record at 64 KiB; more than these pairs nobody sends.
    private static let pairsMax = 32

    private static func pairs(_ text: UnsafeMutablePointer<AvahiStringList>?) -> [[UInt8]] {
        var pairs: [[UInt8]] = []
        var next = text
        while let item = next, pairs.count < pairsMax {
            let bytes = avahi_string_list_get_text(item)
            pairs.append(
                Array(UnsafeBufferPointer(start: bytes, count: avahi_string_list_get_size(item))))
            next = avahi_string_list_get_next(item)
        }
        return pairs
    }
}

extension Responder {
    /// A name appeared or went away on an interface.
    func browsed(_ event: AvahiBrowserEvent, _ source: Resolution.Source, _ name: String) {
        let key = Resolution.Key(interface: source.interface, name: name)
        switch event {
        case AVAHI_BROWSER_NEW:
            // A service is named after its node; `node #2` where the name was taken.
            guard name.utf8.count <= 63, ServiceText.isNode(String(name.prefix(32)))
            else { return }
            if let known = resolutions[key] {
                known.families.insert(source.family)
            } else if resolutions.count < Self.resolutionsMax {
                let resolution = Resolution(key, first: source, self)
                resolutions[key] = resolution
                resolution.start(server)
            }
        case AVAHI_BROWSER_REMOVE:
            guard let known = resolutions[key] else { return }
            known.families.remove(source.family)
            guard known.families.isEmpty else { return }
            known.free()
            resolutions[key] = nil
            resolutionsChanged = true
        case AVAHI_BROWSER_FAILURE:
            fail("browse", avahi_server_errno(server))
        default:
            break
        }
    }

    /// Of one node: hosts with more addresses show their first ones.
    private static let addressesMax = 16

    /// Puts together what the interfaces say of each node.
    func tellResolutions() {
        resolutionsChanged = false
        var byNode: [String: [Resolution]] = [:]
        for resolution in resolutions.values where !resolution.addresses.isEmpty {
            guard let fields = resolution.fields else { continue }
            byNode[fields.node, default: []].append(resolution)
        }
        var current: [String: Advertisement] = [:]
        for (node, all) in byNode {
            // Two names for one node: one of them is forged or a copied disk; stay with one.
            let order = all.sorted {
                ($0.key.name.utf8.count, $0.key.name, $0.key.interface)
                    < ($1.key.name.utf8.count, $1.key.name, $1.key.interface)
            }
            guard let first = order.first, let fields = first.fields else { continue }
            let same = order.filter {
                $0.key.name == first.key.name && $0.fields == fields && $0.port == first.port
            }
            let hosts = Set(same.flatMap { $0.addresses.values.compactMap(\.host) })
            guard !hosts.isEmpty else { continue }
            current[node] = Advertisement(
                node: node, volume: fields.volume, authority: fields.authority,
                addresses: Array(hosts.sorted().prefix(Self.addressesMax)), port: first.port)
        }
        shared.update(current)
    }
}
