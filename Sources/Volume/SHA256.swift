/// SHA-256 in plain Swift, for derived ids, directory shards and log chains: short inputs only.
///
/// Content is hashed by `Store` with an optimised library; this exists because the core has no
/// dependency. It is not named `SHA256` so that importing it beside a crypto library is unambiguous.
public struct PureSHA256: Sendable {
    private var state: InlineArray<8, UInt32> = [
        0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A,
        0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19,
    ]
    private var pending = InlineArray<64, UInt8>(repeating: 0)
    /// Less than one block.
    private var pendingCount = 0
    private var length: UInt64 = 0

    public init() {}

    public mutating func update(_ bytes: [UInt8]) {
        bytes.withUnsafeBufferPointer { update($0) }
    }

    private mutating func update(_ bytes: UnsafeBufferPointer<UInt8>) {
        length += UInt64(bytes.count)
        var from = 0
        if pendingCount > 0 {
            while from < bytes.count, pendingCount < 64 { append(bytes[from], &from) }
            guard pendingCount == 64 else { return }
            compressPending()
        }
        while bytes.count - from >= 64 {
            Self.compress(&state, UnsafeBufferPointer(rebasing: bytes[from..<from + 64]))
            from += 64
        }
        while from < bytes.count { append(bytes[from], &from) }
    }

    private mutating func append(_ byte: UInt8, _ from: inout Int) {
        pending[pendingCount] = byte
        pendingCount += 1
        from += 1
    }

    /// Eight bytes, most significant first.
    public mutating func update(_ number: UInt64) {
        withUnsafeBytes(of: number.bigEndian) { update($0.bindMemory(to: UInt8.self)) }
    }

    /// The 32 bytes of the digest.
    public consuming func finish() -> [UInt8] {
        let bits = length * 8
        pending[pendingCount] = 0x80
        for at in (pendingCount + 1)..<64 { pending[at] = 0 }
        if pendingCount >= 56 {
            compressPending()
            for at in 0..<64 { pending[at] = 0 }
        }
        for at in 0..<8 { pending[56 + at] = UInt8(truncatingIfNeeded: bits >> (56 - 8 * at)) }
        compressPending()
        return Array(unsafeUninitializedCapacity: 32) { digest, count in
            for at in 0..<32 {
                digest[at] = UInt8(truncatingIfNeeded: state[at / 4] >> (24 - 8 * (at % 4)))
            }
            count = 32
        }
    }

    /// The 32 bytes of the digest of one piece.
    public static func digest(_ bytes: [UInt8]) -> [UInt8] {
        var hash = PureSHA256()
        hash.update(bytes)
        return hash.finish()
    }

    private mutating func compressPending() {
        let block = pending
        withUnsafeBytes(of: block) { Self.compress(&state, $0.bindMemory(to: UInt8.self)) }
        pendingCount = 0
    }

    private static func compress(
        _ state: inout InlineArray<8, UInt32>, _ block: UnsafeBufferPointer<UInt8>
    ) {
        constants.withUnsafeBufferPointer { constants in
            withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 64) { schedule in
                expand(block, into: schedule)
                rounds(&state, schedule, constants)
            }
        }
    }

    private static func expand(
        _ bytes: UnsafeBufferPointer<UInt8>, into w: UnsafeMutableBufferPointer<UInt32>
    ) {
        var i = 0
        while i < 16 {
            let at = 4 * i
            w[i] =
                UInt32(bytes[at]) << 24 | UInt32(bytes[at + 1]) << 16
                | UInt32(bytes[at + 2]) << 8 | UInt32(bytes[at + 3])
            i += 1
        }
        while i < 64 {
            let a = w[i - 15]
            let b = w[i - 2]
            let s0 = (a >> 7 | a << 25) ^ (a >> 18 | a << 14) ^ (a >> 3)
            let s1 = (b >> 17 | b << 15) ^ (b >> 19 | b << 13) ^ (b >> 10)
            w[i] = w[i - 16] &+ s0 &+ w[i - 7] &+ s1
            i += 1
        }
    }

    private static func rounds(
        _ state: inout InlineArray<8, UInt32>, _ w: UnsafeMutableBufferPointer<UInt32>,
        _ k: UnsafeBufferPointer<UInt32>
    ) {
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        var i = 0
        while i < 64 {
            let s1 = (e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)
            let choice = (e & f) ^ (~e & g)
            let t1 = h &+ s1 &+ choice &+ k[i] &+ w[i]
            let s0 = (a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)
            let majority = (a & b) ^ (a & c) ^ (b & c)
            h = g
            g = f
            f = e
            e = d &+ t1
            d = c
            c = b
            b = a
            a = t1 &+ s0 &+ majority
            i += 1
        }
        state[0] &+= a
        state[1] &+= b
        state[2] &+= c
        state[3] &+= d
        state[4] &+= e
        state[5] &+= f
        state[6] &+= g
        state[7] &+= h
    }

    private static let constants: [UInt32] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
        0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
        0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
        0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
        0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
        0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
        0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
        0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2,
    ]
}
