import Glibc
import Synchronization
import Testing
import Volume

@testable import Swarm

@Suite(.serialized, .timeLimit(.minutes(3)))
struct LifetimeTests {
    @Test("Only the most recently used seeds stay loaded")
    func bounded() async throws {
        try await withPeers([try Peer(.plain, maxLoadedSeeds: 2), try Peer(.plain)]) { peers in
            let samples = (0..<4).map { Sample(count: 20000, seed: 100 + $0) }
            for (index, sample) in samples.enumerated() {
                let path = try peers[0].scratch.write(sample.bytes, to: "\(index)")
                try await peers[0].swarm.seed(
                    sample.extent, path: path, layer: [], lease: .seconds(60))
            }
            try await eventually { peers[0].swarm.statistics.torrents.count == 2 }
            #expect(
                Set(peers[0].swarm.statistics.torrents.map(\.extent))
                    == [samples[2].extent, samples[3].extent])
            // One that was given up is loaded again as if it had never been there.
            try await peers[0].swarm.seed(
                samples[0].extent, path: peers[0].scratch.file("0"), layer: [],
                lease: .seconds(60))
            let download = try peers[1].fetch(samples[0], from: [peers[0]])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<20000) == samples[0].bytes)
        }
    }

    @Test("A seed is unloaded when its lease ends, or on request")
    func lease() async throws {
        try await withPeers(1, .tls) { peers in
            let sample = Sample(count: 20000, seed: 31)
            let path = try peers[0].scratch.write(sample.bytes, to: "object")
            try await peers[0].swarm.seed(
                sample.extent, path: path, layer: [], lease: .milliseconds(100))
            #expect(peers[0].swarm.statistics.torrents.count == 1)
            try await eventually { peers[0].swarm.statistics.torrents.isEmpty }
            try await peers[0].swarm.seed(
                sample.extent, path: path, layer: [], lease: .seconds(600))
            await peers[0].swarm.unload(sample.extent)
            #expect(peers[0].swarm.statistics.torrents.isEmpty)
        }
    }

    @Test(
        "Many loads and unloads of the same content at once all succeed", arguments: Mode.allCases)
    func contention(mode: Mode) async throws {
        try await withPeers(2, mode) { peers in
            let sample = Sample(count: 100_000, seed: 32)
            let path = try peers[0].scratch.write(sample.bytes, to: "object")
            try await withThrowingTaskGroup(of: Void.self) { group in
                for index in 0..<40 {
                    group.addTask {
                        if index % 4 == 3 {
                            await peers[0].swarm.unload(sample.extent)
                            return
                        }
                        do {
                            try await peers[0].swarm.seed(
                                sample.extent, path: path, layer: sample.layer,
                                lease: .seconds(60))
                        } catch SwarmError.cancelled {
                            // Unloaded while it was loading.
                        }
                    }
                }
                try await group.waitForAll()
            }
            try await peers[0].seed(sample)
            let download = try peers[1].fetch(sample, from: [peers[0]])
            try await download.finish(timeoutWithoutProgress: .seconds(20))
            #expect(try pread(download.path, 0..<sample.bytes.count) == sample.bytes)
        }
    }

    @Test("Stopping tells everybody who waits")
    func stop() async throws {
        let peer = try Peer(.tls)
        let sample = Sample(count: 200_000, seed: 33)
        let download = try peer.fetch(sample, from: [])
        let outcomes = Mutex<[Result<Void, SwarmError>]>([])
        download.onFinished { outcome in outcomes.withLock { $0.append(outcome) } }
        let waiting = Task {
            try await download.wait(for: 0..<1, timeoutWithoutProgress: .seconds(60))
        }
        await peer.swarm.stop()
        await #expect(throws: SwarmError.stopped) { try await waiting.value }
        #expect(outcomes.withLock { $0.count } == 1)
        await #expect(throws: SwarmError.stopped) {
            try await peer.swarm.seed(
                sample.extent, path: "/dev/null", layer: sample.layer, lease: .seconds(1))
        }
        #expect(throws: SwarmError.stopped) { try peer.fetch(sample, from: []) }
        // Idle calls afterwards do no harm.
        download.want(0..<1, priority: .demand)
        download.addSources([SwarmEndpoint(address: "127.0.0.1", port: 1)])
        await download.cancel(keepFile: true)
        await peer.swarm.stop()
    }

    @Test("A wait ends when its task is cancelled, and its callback does not run")
    func cancellation() async throws {
        try await withPeers(1, .plain) { peers in
            let sample = Sample(count: 200_000, seed: 34)
            let download = try peers[0].fetch(sample, from: [])
            let task = Task {
                try await download.wait(for: 0..<1, timeoutWithoutProgress: .seconds(60))
            }
            task.cancel()
            await #expect(throws: CancellationError.self) { try await task.value }
            let wait = download.whenVerified(0..<1, timeoutWithoutProgress: nil) { _ in
                Issue.record("the callback of a cancelled wait ran")
            }
            let isCancelled = [wait.cancel(), wait.cancel()]
            #expect(isCancelled == [true, false])
        }
    }

    @Test("One extent is loaded once: as a seed or as a download")
    func once() async throws {
        try await withPeers(1, .plain) { peers in
            let sample = Sample(count: 200_000, seed: 35)
            try await peers[0].seed(sample)
            #expect(throws: SwarmError.alreadyLoaded) { try peers[0].fetch(sample, from: []) }
            await peers[0].swarm.unload(sample.extent)
            let download = try peers[0].fetch(sample, from: [])
            #expect(peers[0].swarm.download(of: sample.extent) === download)
            #expect(throws: SwarmError.alreadyLoaded) { try peers[0].fetch(sample, from: []) }
            await download.cancel(keepFile: false)
            #expect(peers[0].swarm.download(of: sample.extent) == nil)
        }
    }

    @Test("A port that is taken is an error, not a wait")
    func takenPort() async throws {
        try await withPeers(1, .plain) { peers in
            #expect(throws: SwarmError.self) {
                try Swarm(
                    SwarmConfiguration(
                        listenAddress: "127.0.0.1", port: peers[0].swarm.port, transport: .plain,
                        infoSalt: testSalt))
            }
        }
    }
}

/// Polls a condition that another thread brings about; the suite's time limit bounds it.
func eventually(_ condition: () -> Bool) async throws {
    while !condition() { try await Task.sleep(for: .milliseconds(10)) }
}
