import Glibc
import Testing
import Volume

@testable import Swarm

@Suite(.serialized, .timeLimit(.minutes(3)))
struct TransferTests {
    @Test(
        "Content of every shape arrives bit for bit", arguments: Mode.allCases,
        [1, 16383, 16384, 65536, 65537, 200_001, 5 << 20])
    func arrives(mode: Mode, size: Int) async throws {
        try await withPeers(2, mode) { peers in
            let sample = Sample(count: size, seed: UInt64(size))
            try await peers[0].seed(sample)
            let download = try peers[1].fetch(sample, from: [peers[0]])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<(size + 1)) == sample.bytes)
        }
    }

    @Test("A demanded range can be read the moment it is verified", arguments: Mode.allCases)
    func demand(mode: Mode) async throws {
        try await withPeers(2, mode) { peers in
            let sample = Sample(count: 8 << 20, seed: 7)
            try await peers[0].seed(sample)
            let download = try peers[1].fetch(sample, from: [peers[0]])
            for offset in [8 << 20 - 100, 0, 3_000_000, 5_555_555] {
                let range = offset..<min(offset + 150_000, sample.bytes.count)
                let wanted = UInt64(range.lowerBound)..<UInt64(range.upperBound)
                download.want(wanted, priority: .demand)
                try await download.wait(for: wanted, timeoutWithoutProgress: .seconds(20))
                #expect(download.isVerified(wanted))
                #expect(try pread(download.path, range) == Array(sample.bytes[range]))
            }
            #expect(!download.isComplete)
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }
}
