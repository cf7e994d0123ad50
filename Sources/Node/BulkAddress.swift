import Glibc

/// Addresses under which bulk content is reached.
///
/// libtorrent keeps an IPv6 address without its scope, so it cannot dial link-local ones. Where
/// peers met by such an address, the holder names its others in the reply to an open.
enum BulkAddress {
    /// More than this are not named, and not tried.
    static let countMax = 8

    static func isDialable(_ host: String) -> Bool {
        var address = in6_addr()
        let plain = host.split(separator: "%").first.map(String.init) ?? host
        guard inet_pton(AF_INET6, plain, &address) == 1 else { return true }
        return withUnsafeBytes(of: address) { !($0[0] == 0xFE && $0[1] & 0xC0 == 0x80) }
    }

    /// A numeric address as all parts of the program spell it; nil for a name and for a link-local
    /// address.
    static func canonical(_ host: String) -> String? {
        guard isDialable(host) else { return nil }
        var bytes = in6_addr()
        var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        for family in [AF_INET, AF_INET6] where inet_pton(family, host, &bytes) == 1 {
            guard inet_ntop(family, &bytes, &text, socklen_t(text.count)) != nil else { return nil }
            return String(
                decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        return nil
    }

    /// - Parameter address: in its canonical form.
    static func isLoopback(_ address: String) -> Bool {
        address.hasPrefix("127.") || address == "::1"
    }

    /// Numeric addresses of this host that others can dial, IPv4 first.
    static func own() -> [String] {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return [] }
        defer { freeifaddrs(list) }
        var found: [(isIPv6: Bool, text: String)] = []
        var next = list
        while let entry = next {
            next = entry.pointee.ifa_next
            let flags = entry.pointee.ifa_flags
            guard flags & UInt32(IFF_UP) != 0, flags & UInt32(IFF_LOOPBACK) == 0,
                let address = entry.pointee.ifa_addr, let text = numeric(address),
                isDialable(text)
            else { continue }
            found.append((CInt(address.pointee.sa_family) == AF_INET6, text))
        }
        let ordered = found.filter { !$0.isIPv6 } + found.filter(\.isIPv6)
        return ordered.prefix(countMax).map(\.text)
    }

    private static func numeric(_ address: UnsafeMutablePointer<sockaddr>) -> String? {
        let length: Int
        switch CInt(address.pointee.sa_family) {
        case AF_INET: length = MemoryLayout<sockaddr_in>.size
        case AF_INET6: length = MemoryLayout<sockaddr_in6>.size
        default: return nil
        }
        var host = [CChar](repeating: 0, count: 64)
        guard
            getnameinfo(
                address, socklen_t(length), &host, socklen_t(host.count), nil, 0, NI_NUMERICHOST)
                == 0
        else { return nil }
        return String(
            decoding: host.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
