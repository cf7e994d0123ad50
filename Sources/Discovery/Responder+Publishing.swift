import CAvahi

/// What this node says of itself.
extension Responder {
    private static let everywhere = CInt(AVAHI_IF_UNSPEC)
    private static let anyProtocol = CInt(AVAHI_PROTO_UNSPEC)

    private var domain: String {
        avahi_server_get_domain_name(server).map { String(cString: $0) } ?? "local"
    }

    /// Publishes what is new and withdraws what is gone: every address is a group of its own, so
    /// that the others are left alone.
    func publishAddresses() throws(ResponderError) {
        addressesChanged = false
        let current = InterfaceAddress.current(on: configuration.interfaces)
        for (address, group) in published where !current.contains(address) {
            avahi_s_entry_group_free(group)
            published[address] = nil
        }
        for address in current where published[address] == nil {
            published[address] = try publish(address)
        }
        if service == nil { service = try publishService() }
    }

    private func group(
        _ callback: @escaping AvahiSEntryGroupCallback
    ) throws(ResponderError) -> OpaquePointer {
        guard let group = avahi_s_entry_group_new(server, callback, context) else {
            throw ResponderError("publish", avahi_server_errno(server))
        }
        return group
    }

    private func publish(_ address: InterfaceAddress) throws(ResponderError) -> OpaquePointer {
        let group = try group { server, _, state, context in
            Responder.at(context).changed(state, avahi_server_errno(server))
        }
        var avahi = address.avahi
        // On its interface only, over IPv4 and IPv6; the reverse record is the host's.
        let error = avahi_server_add_address(
            server, group, CInt(address.interface), Self.anyProtocol, AVAHI_PUBLISH_NO_REVERSE,
            "\(hostLabel).\(domain)", &avahi)
        guard error >= 0, avahi_s_entry_group_commit(group) >= 0 else {
            let code = error < 0 ? error : avahi_server_errno(server)
            avahi_s_entry_group_free(group)
            throw ResponderError("publish address", code)
        }
        return group
    }

    private func publishService() throws(ResponderError) -> OpaquePointer {
        let group = try group { server, _, state, context in
            let responder = Responder.at(context)
            if state == AVAHI_ENTRY_GROUP_ESTABLISHED { responder.shared.send(.announced) }
            responder.changed(state, avahi_server_errno(server))
        }
        let pairs = ServiceText.pairs(
            volume: configuration.volume, node: configuration.node,
            authority: configuration.authority)
        var list: UnsafeMutablePointer<AvahiStringList>?
        for pair in pairs.reversed() { list = avahi_string_list_add(list, pair) }
        defer { avahi_string_list_free(list) }
        let error = avahi_server_add_service_strlst(
            server, group, Self.everywhere, Self.anyProtocol, AvahiPublishFlags(rawValue: 0),
            serviceName, ServiceText.type, nil, "\(hostLabel).\(domain)", configuration.port, list)
        guard error >= 0, avahi_s_entry_group_commit(group) >= 0 else {
            let code = error < 0 ? error : avahi_server_errno(server)
            avahi_s_entry_group_free(group)
            throw ResponderError("publish service", code)
        }
        return group
    }

    private func changed(_ state: AvahiEntryGroupState, _ error: CInt) {
        // Not here: a group must not be freed by its own callback.
        if state == AVAHI_ENTRY_GROUP_COLLISION { mustRename = true }
        if state == AVAHI_ENTRY_GROUP_FAILURE { fail("publish", error) }
    }

    /// Somebody else has our host or service name: takes the next alternative for both.
    func rename() throws(ResponderError) {
        mustRename = false
        renames += 1
        shared.send(.nameTaken)
        guard renames <= Self.renamesMax else {
            throw ResponderError("names \(hostLabel), \(serviceName)", AVAHI_ERR_COLLISION)
        }
        for group in published.values { avahi_s_entry_group_free(group) }
        published = [:]
        if let service { avahi_s_entry_group_free(service) }
        service = nil
        let taken = serviceName
        hostLabel = Self.taken(avahi_alternative_host_name(hostLabel)) ?? hostLabel
        serviceName = Self.taken(avahi_alternative_service_name(serviceName)) ?? serviceName
        try publishAddresses()
        // avahi-core has dropped the answer that told of the collision: ask again at once.
        for resolution in resolutions.values where resolution.key.name == taken {
            resolution.free()
            resolution.start(server)
        }
    }

    private static func taken(_ text: UnsafeMutablePointer<CChar>?) -> String? {
        guard let text else { return nil }
        defer { avahi_free(text) }
        return String(cString: text)
    }
}
