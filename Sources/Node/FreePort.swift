import Glibc
import SystemPackage

/// A TCP port that nobody has, on IPv4 and IPv6 alike.
///
/// libtorrent opens one socket per interface and, asked for any port, a different one for each;
/// peers are told one number. Somebody else may take it before it is used: the start then fails and
/// says so.
enum FreePort {
    static func isFree(_ port: UInt16) -> Bool { (try? find(port)) == port }

    /// - Parameter wanted: 0 for any.
    static func find(_ wanted: UInt16 = 0) throws(Errno) -> UInt16 {
        let descriptor = socket(AF_INET6, Int32(SOCK_STREAM.rawValue), 0)
        if descriptor >= 0 {
            defer { close(descriptor) }
            var off: Int32 = 0
            setsockopt(
                descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &off,
                socklen_t(MemoryLayout<Int32>.size))
            var address = sockaddr_in6()
            address.sin6_family = sa_family_t(AF_INET6)
            address.sin6_port = wanted.bigEndian
            allowReuse(descriptor)
            if let port = bound(descriptor, &address) { return port.sin6_port.bigEndian }
        }
        let plain = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard plain >= 0 else { throw Errno(rawValue: errno) }
        defer { close(plain) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = wanted.bigEndian
        allowReuse(plain)
        guard let port = bound(plain, &address) else { throw Errno(rawValue: errno) }
        return port.sin_port.bigEndian
    }

    /// As the listeners do: the connections of a node that was killed must not keep the next one
    /// from its port for a minute.
    private static func allowReuse(_ descriptor: Int32) {
        var on: Int32 = 1
        setsockopt(
            descriptor, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
    }

    /// Binds to the address and returns it as the kernel completed it.
    private static func bound<Address>(
        _ descriptor: Int32, _ address: inout Address
    ) -> Address? {
        var length = socklen_t(MemoryLayout<Address>.size)
        let isBound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
            }
        }
        return isBound ? address : nil
    }
}
