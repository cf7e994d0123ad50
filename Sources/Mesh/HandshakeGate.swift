import Synchronization
import Volume

/// Decides, before TLS, which connections may try a handshake.
///
/// The oldest unfinished handshake makes room for the newest: a member needs a few milliseconds,
/// so strangers who hold connections open never fill the table. Refusing the newest instead would
/// lock members out for the whole handshake deadline. Preferring the silent as victims would turn
/// against members, too: a stranger needs but one byte, and a member is silent at first.
final class HandshakeGate: Sendable {
    typealias Ticket = UInt64

    private struct Pending {
        let address: String
        let isMember: Bool
        let close: @Sendable () -> Void
    }

    private struct State {
        var next: Ticket = 0
        /// Tickets of accepted connections whose own event loop has not taken them up.
        var accepted: [ObjectIdentifier: Ticket] = [:]
        var pending: [Ticket: Pending] = [:]
        var memberAddresses: [String: Ticket] = [:]
        var connections = 0
        var byMember: [PeerRequest.Origin: Int] = [:]
    }

    private let limits: ServerLimits
    private let state = Mutex(State())

    init(limits: ServerLimits) { self.limits = limits }

    /// How many handshakes are unfinished.
    var pendingCount: Int { state.withLock { $0.pending.count } }

    /// Gives an accepted connection its place in the order; on the listening socket's event loop.
    ///
    /// The event loops take connections up at their own pace: without this, a member on a quick one
    /// would count as older than strangers who came before it and wait on a slow one.
    func accept(_ connection: ObjectIdentifier) {
        state.withLock { state in
            state.next += 1
            state.accepted[connection] = state.next
        }
    }

    /// Starts counting the handshake of an accepted connection, or closes it at once; the victims
    /// of the limits are closed.
    func begin(
        _ connection: ObjectIdentifier, address: String, close: @escaping @Sendable () -> Void
    ) -> Ticket {
        let address = Self.accounted(address)
        var victims: [@Sendable () -> Void] = []
        let ticket = state.withLock { state in
            state.next += 1
            // The newest, if it ended meanwhile.
            let ticket = state.accepted.removeValue(forKey: connection) ?? state.next
            let isMember = state.memberAddresses[address] != nil
            let all = isMember ? limits.memberHandshakesMax : limits.handshakesMax
            state.pending[ticket] = Pending(address: address, isMember: isMember, close: close)
            Self.makeRoom(in: &state, limit: limits.handshakesPerAddress, victims: &victims) {
                $0.address == address
            }
            Self.makeRoom(in: &state, limit: all, victims: &victims) { $0.isMember == isMember }
            return ticket
        }
        // Outside the lock: closing calls back.
        for close in victims { close() }
        return ticket
    }

    func forget(_ connection: ObjectIdentifier) {
        state.withLock { _ = $0.accepted.removeValue(forKey: connection) }
    }

    /// The handshake is over; `address` is remembered when a member stood at its end.
    func end(_ ticket: Ticket, memberAt address: String?) {
        state.withLock { state in
            state.pending[ticket] = nil
            guard let address = address.map(Self.accounted) else { return }
            if state.memberAddresses.count >= limits.memberAddressesMax,
                state.memberAddresses[address] == nil,
                let oldest = state.memberAddresses.min(by: { $0.value < $1.value })
            {
                state.memberAddresses[oldest.key] = nil
            }
            state.memberAddresses[address] = ticket
        }
    }

    /// Cuts every unfinished handshake.
    func closeAll() {
        let pending = state.withLock { Array($0.pending.values) }
        for handshake in pending { handshake.close() }
    }

    /// Counts an authenticated connection; false when there are too many.
    func open(_ origin: PeerRequest.Origin) -> Bool {
        state.withLock { state in
            guard state.connections < limits.connectionsMax,
                state.byMember[origin, default: 0] < limits.connectionsPerMember
            else { return false }
            state.connections += 1
            state.byMember[origin, default: 0] += 1
            return true
        }
    }

    func close(_ origin: PeerRequest.Origin) {
        state.withLock { state in
            state.connections -= 1
            let left = state.byMember[origin, default: 1] - 1
            state.byMember[origin] = left == 0 ? nil : left
        }
    }

    private static func makeRoom(
        in state: inout State, limit: Int, victims: inout [@Sendable () -> Void],
        among belongs: (Pending) -> Bool
    ) {
        let group = state.pending.filter { belongs($0.value) }
        guard group.count > limit, let victim = group.min(by: { $0.key < $1.key }) else { return }
        state.pending[victim.key] = nil
        victims.append(victim.value.close)
    }

    /// One IPv6 customer has 2^64 addresses: they count as one, link-local ones aside.
    private static func accounted(_ address: String) -> String {
        guard address.contains(":"), !address.hasPrefix("fe80:") else { return address }
        let parts = address.split(separator: ":", omittingEmptySubsequences: false)
        let head = parts.prefix { !$0.isEmpty }.prefix(4)
        return head.isEmpty ? address : head.joined(separator: ":") + "::/64"
    }
}
