import CAvahi
import Glibc

/// One address of this host on one interface.
struct InterfaceAddress: Hashable {
    let interface: UInt32
    let isIPv6: Bool
    /// Network byte order; 4 or 16 bytes.
    let bytes: [UInt8]

    /// Hosts with hundreds of bridges exist; every address is a record to probe for.
    static let countMax = 64

    /// What to publish: all addresses of interfaces that are up, IPv6 link-local ones only where
    /// the interface has no other of IPv6, loopback only where the host has nothing else.
    static func current(on names: [String]?) -> Set<InterfaceAddress> {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return [] }
        defer { freeifaddrs(list) }
        var found: [InterfaceAddress] = []
        var next = list
        while let entry = next {
            next = entry.pointee.ifa_next
            guard entry.pointee.ifa_flags & UInt32(IFF_UP) != 0,
                entry.pointee.ifa_flags & UInt32(IFF_POINTOPOINT) == 0,
                let name = entry.pointee.ifa_name, let address = entry.pointee.ifa_addr,
                names.map({ $0.contains(String(cString: name)) }) ?? true
            else { continue }
            let interface = if_nametoindex(name)
            guard interface != 0, let bytes = bytes(of: address) else { continue }
            found.append(
                InterfaceAddress(interface: interface, isIPv6: bytes.count == 16, bytes: bytes))
        }
        let routed = Set(found.filter { $0.isIPv6 && !$0.isLinkLocal }.map(\.interface))
        let hasNetwork = found.contains { !$0.isLoopback }
        let wanted = found.filter {
            (!$0.isLinkLocal || !routed.contains($0.interface)) && !($0.isLoopback && hasNetwork)
        }
        return Set(wanted.prefix(countMax))
    }

    /// fe80::/10
    var isLinkLocal: Bool { isIPv6 && bytes[0] == 0xFE && bytes[1] & 0xC0 == 0x80 }

    /// 127.0.0.0/8, ::1
    private var isLoopback: Bool {
        isIPv6 ? bytes.dropLast().allSatisfy { $0 == 0 } && bytes[15] == 1 : bytes[0] == 127
    }

    private static func bytes(of address: UnsafeMutablePointer<sockaddr>) -> [UInt8]? {
        let raw = UnsafeRawPointer(address)
        switch CInt(address.pointee.sa_family) {
        case AF_INET:
            let address = raw.loadUnaligned(as: sockaddr_in.self)
            return withUnsafeBytes(of: address.sin_addr) { Array($0) }
        case AF_INET6:
            let address = raw.loadUnaligned(as: sockaddr_in6.self)
            return withUnsafeBytes(of: address.sin6_addr) { Array($0) }
        default:
            return nil
        }
    }

    init(interface: UInt32, isIPv6: Bool, bytes: [UInt8]) {
        self.interface = interface
        self.isIPv6 = isIPv6
        self.bytes = bytes
    }

    /// What avahi resolved on an interface; nil for what is no address of a host.
    init?(_ address: AvahiAddress, interface: CInt) {
        guard interface > 0 else { return nil }
        self.interface = UInt32(interface)
        isIPv6 = address.proto == AVAHI_PROTO_INET6
        let count = isIPv6 ? 16 : 4
        bytes = withUnsafeBytes(of: address.data) { Array($0.prefix(count)) }
        let isMulticast = isIPv6 ? bytes[0] == 0xFF : bytes[0] >= 224
        guard !isMulticast, bytes.contains(where: { $0 != 0 }) else { return nil }
    }

    var avahi: AvahiAddress {
        var address = AvahiAddress()
        address.proto = CInt(isIPv6 ? AVAHI_PROTO_INET6 : AVAHI_PROTO_INET)
        withUnsafeMutableBytes(of: &address.data) { $0.copyBytes(from: bytes) }
        return address
    }

    /// Numeric, as getaddrinfo takes it; nil when the interface is gone meanwhile.
    var host: String? {
        var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        guard inet_ntop(isIPv6 ? AF_INET6 : AF_INET, bytes, &text, socklen_t(text.count)) != nil
        else { return nil }
        let host = String(decoding: text.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
        guard isLinkLocal else { return host }
        var name = [CChar](repeating: 0, count: Int(IF_NAMESIZE))
        guard if_indextoname(interface, &name) != nil else { return nil }
        let scope = name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        return "\(host)%\(String(decoding: scope, as: UTF8.self))"
    }
}
