import Glibc
import Testing

extension EndToEnd {
    @Suite("The tests' own tools", .serialized, .timeLimit(.minutes(2)))
    struct Harness {
        @Test("Hosts reach each other until one is cut off, and again when it is healed")
        func hostsAreConnected() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let reach = "exec 3<>/dev/tcp/\(two.address)/9"
                func connects() async throws -> Bool {
                    // Nobody listens: a refusal is an answer.
                    let outcome = try await one.run(["timeout", "1", "bash", "-c", reach])
                    return outcome.errors.contains("refused")
                }
                try await eventually("they are connected", within: Bounds.online, connects)
                try await two.cutOff()
                #expect(try await !connects())
                try await two.heal()
                try await eventually("they are connected again", within: Bounds.online, connects)
            }
        }

        @Test("Every kind of disk is a file system of its own and leaves nothing behind")
        func disksAreRemoved() async throws {
            var directory = ""
            try await Workshop.open { workshop in
                directory = workshop.directory
                let kinds: [(String, Disk.Kind)] = [
                    ("ext2/ext3", .ext4(megabytes: 64)), ("xfs", .xfs(megabytes: 320)),
                    ("btrfs", .btrfs(megabytes: 128)), ("tmpfs", .tmpfs(megabytes: 16)),
                ]
                for (number, (type, kind)) in kinds.enumerated() {
                    let disk = try await Disk(workshop, "\(number)", kind)
                    let seen = try await Shell.run(["stat", "-f", "-c", "%T", disk.path])
                    #expect(seen.line == type)
                }
            }
            #expect(access(directory, F_OK) != 0)
            #expect(!FileBytes.text("/proc/self/mountinfo").contains(directory))
        }

        @Test("A command that hangs is killed and named")
        func hangingCommandIsKilled() async throws {
            await #expect(throws: Failure.self) {
                _ = try await Shell.run(["sleep", "60"], timeout: .milliseconds(100))
            }
        }

        @Test("Processes end with the workshop")
        func processesEnd() async throws {
            var child: Child?
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                child = try host.spawn(
                    ["sleep", "600"], log: "\(workshop.directory)/log")
            }
            #expect(try #require(child).status == 128 + SIGKILL)
        }

        @Test("A host's own mounts hide what the machine has, and only there")
        func mountsAreSeparate() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                try await host.separateMounts("mount -t tmpfs e2e /mnt && touch /mnt/here")
                try await host.sh("test -e /mnt/here").succeeded()
                #expect(access("/mnt/here", F_OK) != 0)
                let nobody = Account(uid: 65534, gid: 65534)
                #expect(try await host.sh("id -u", as: nobody).line == "65534")
            }
        }
    }
}
