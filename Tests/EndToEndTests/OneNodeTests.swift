import Glibc
import Testing

extension EndToEnd {
    @Suite("One node", .serialized, .timeLimit(.minutes(5)))
    struct OneNode {
        @Test(
            "Ordinary file life is that of a plain directory, also after a restart",
            arguments: [[], ["--no-passthrough"]])
        func fileLife(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                try await FileLife.run(on: host, in: oracle.path)
                let expected = try await FileLife.list(on: host, oracle.path)

                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                let mount = try #require(node.mount)
                if !options.isEmpty { #expect(try await !node.status().passthrough) }
                try await FileLife.run(on: host, in: mount)
                try FileLife.requireEqual(
                    expected, try await FileLife.list(on: host, mount), "The mount")
                try await node.settle()
                let unpublished = try await node.status().unpublished
                #expect(unpublished == 0)
                try FileLife.requireEqual(
                    expected, try await FileLife.list(on: host, mount), "The published mount")

                try await node.stop()
                #expect(access(mount, F_OK) != 0, "The mount point was made by the node.")
                try await node.start()
                try FileLife.requireEqual(
                    expected, try await FileLife.list(on: host, mount), "The restarted mount")
                try await node.checkHistory()
            }
        }

        @Test(
            "Every file system under a root gives the same file life",
            arguments: ["xfs", "btrfs", "tmpfs"])
        func fileLifeOnOtherDisks(kind: String) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                try await FileLife.run(on: host, in: oracle.path)
                let kinds: [String: Disk.Kind] = [
                    "xfs": .xfs(megabytes: 1024), "btrfs": .btrfs(megabytes: 1024),
                    "tmpfs": .tmpfs(megabytes: 1024),
                ]
                let disk = try await Disk(workshop, "root", try #require(kinds[kind]))
                let node = try NodeProcess("a", on: host, disk: disk)
                try await node.create()
                try await FileLife.runAndCompare(node, oracle, "The mount over \(kind)")
            }
        }

        @Test("It runs in the background, is found from inside its mount, and stops cleanly")
        func background() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let node = try NodeProcess("a", on: host)
                let started = try await node.refusedStart(["--create", "--background"])
                try started.succeeded()
                let mount = try #require(node.mount)
                workshop.onClose("the node in the background") {
                    _ = try await node.command("stop")
                }
                #expect(try await node.status().state == "ready")
                let inside = try await node.sh("\"$1\" status", Machine.binary).succeeded()
                #expect(inside.output.contains(NodeProcess.volume))
                try await node.sh("echo text >file").succeeded()
                let holders = try await node.whereIs("file")
                #expect(holders.length == 5)
                try await node.command("stop").succeeded()
                try await eventually("the mount point is gone", within: Bounds.stop) {
                    access(mount, F_OK) != 0
                }
                #expect(access("\(node.root)/log", F_OK) == 0)
            }
        }

        @Test("The doctor says what this machine offers")
        func doctor() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let report = try await host.run([Machine.binary, "doctor"])
                #expect(report.output.contains("/dev/fuse"))
                try await host.separateMounts("mount -t tmpfs e2e /dev")
                let without = try await host.run([Machine.binary, "doctor"])
                #expect(!without.isSuccess)
                #expect(without.output.contains("/dev/fuse"))
            }
        }
    }
}
