import Glibc
import Testing

extension EndToEnd {
    @Suite("Clocks that are wrong", .serialized, .timeLimit(.minutes(5)))
    struct Clocks {
        private static let day = 86_400
        private static let year = 365 * day

        /// A library that lets a program's wall clock be ahead by the seconds that are in a file.
        private static let shim = """
            #define _GNU_SOURCE
            #include <fcntl.h>
            #include <stdlib.h>
            #include <sys/mman.h>
            #include <sys/syscall.h>
            #include <sys/time.h>
            #include <time.h>
            #include <unistd.h>
            static volatile const long *ahead;
            __attribute__((constructor)) static void begin(void) {
                int file = open(getenv("CLOCK_AHEAD"), O_RDONLY | O_CLOEXEC);
                ahead = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
                close(file);
            }
            int clock_gettime(clockid_t clock, struct timespec *time) {
                int result = syscall(SYS_clock_gettime, clock, time);
                if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += *ahead;
                return result;
            }
            int gettimeofday(struct timeval *restrict time, void *restrict zone) {
                struct timespec now;
                clock_gettime(CLOCK_REALTIME, &now);
                time->tv_sec = now.tv_sec, time->tv_usec = now.tv_nsec / 1000;
                return 0;
            }
            time_t time(time_t *out) {
                struct timespec now;
                clock_gettime(CLOCK_REALTIME, &now);
                if (out) *out = now.tv_sec;
                return now.tv_sec;
            }
            """

        /// A node whose clock can be set.
        private struct Wrong {
            let node: NodeProcess
            let file: String

            init(_ name: String, on host: Host, library: String, ahead: Int) throws {
                file = "\(host.network.workshop.directory)/clock-\(name)"
                _ = try host.network.workshop.write("12345678", to: "clock-\(name)")
                node = try NodeProcess(
                    name, on: host, variables: ["LD_PRELOAD": library, "CLOCK_AHEAD": file])
                try set(ahead)
            }

            func set(_ ahead: Int) throws {
                let descriptor = open(file, O_WRONLY)
                defer { close(descriptor) }
                var ahead = ahead
                guard pwrite(descriptor, &ahead, MemoryLayout<Int>.size, 0) > 0 else {
                    throw Failure("The clock \(file) cannot be set.")
                }
            }
        }

        private static func build(_ workshop: Workshop) async throws -> String {
            let source = try workshop.write(shim, to: "clock.c")
            let library = "\(workshop.directory)/clock.so"
            try await Shell.run(["cc", "-shared", "-fPIC", "-o", library, source]).succeeded()
            return library
        }

        @Test("Clocks that are decades off lose no edit and part no volume, and status names them")
        func decades() async throws {
            try await Workshop.open { workshop in
                let library = try await Self.build(workshop)
                let network = try await Network(workshop)
                // a is right, b three days late, c thirty years early, d shortly after 1970.
                let offsets = [0, -3 * Self.day, 30 * Self.year, 1000 - Int(time(nil))]
                var all: [Wrong] = []
                for (name, ahead) in zip(["a", "b", "c", "d"], offsets) {
                    all.append(
                        try Wrong(
                            name, on: try await network.host(), library: library, ahead: ahead))
                }
                let nodes = all.map(\.node)
                try await nodes[0].create()
                for node in nodes.dropFirst() { try await node.join(nodes[0]) }
                try await nodes[0].waitForPeers("b", "c", "d")
                try await Self.takeTurns(nodes)
                try await Self.beTold(nodes)
                try await Self.editApart(nodes)
                // Corrected, and put off, while all run.
                for (wrong, ahead) in zip(all, [40 * Self.day, 0, -20 * Self.year, 0]) {
                    try wrong.set(ahead)
                }
                try await Self.takeTurns(nodes)
                // What a node wrote is behind it at the next start, whatever the clock says then.
                try all[2].set(-40 * Self.year)
                try await nodes[2].stop()
                try await nodes[2].start()
                try await nodes[2].waitForPeers("a", "b", "d")
                try await Self.takeTurns(nodes.reversed())
                for node in nodes { try await node.checkHistory() }
            }
        }

        /// One after the other adds to the same file: nobody's edit is taken for an old one.
        private static func takeTurns(_ nodes: [NodeProcess]) async throws {
            try await nodes[0].sh("rm -f turns; : >turns; echo keep >removed").succeeded()
            try await nodes[0].settle()
            try await NodeProcess.converge(nodes)
            for node in nodes {
                try await node.sh("echo \(node.name) >>turns; mv turns t; mv t turns").succeeded()
                try await node.settle()
            }
            let last = try #require(nodes.last)
            try await last.sh("rm removed").succeeded()
            try await last.settle()
            try await NodeProcess.converge(nodes)
            for node in nodes {
                let seen = try await node.sh("cat turns; ls turns* removed* t 2>/dev/null || true")
                #expect(
                    seen.output == nodes.map { "\($0.name)\n" }.joined() + "turns\n",
                    "on \(node.name)")
            }
        }

        private static func beTold(_ nodes: [NodeProcess]) async throws {
            for node in nodes {
                let text = try await Faults.problem(
                    "clock-differs", on: node, after: "wrong clocks, on \(node.name)",
                    within: Bounds.online)
                Faults.expect(text, says: "The clock of node ", "Set the wrong one right")
            }
        }

        /// All edit one file while no node sees another: one keeps the name, all are there.
        private static func editApart(_ nodes: [NodeProcess]) async throws {
            try await nodes[0].sh("echo old >f; echo old >g").succeeded()
            try await nodes[0].settle()
            try await NodeProcess.converge(nodes)
            for node in nodes { try await node.host.cutOff() }
            for node in nodes { try await node.waitForPeers(within: Bounds.offline) }
            for node in nodes {
                try await node.sh("echo \(node.name) >f; echo \(node.name) >new").succeeded()
                try await node.settle()
            }
            // The latest clock deletes what the earliest edits.
            try await nodes[2].sh("rm g").succeeded()
            try await nodes[3].sh("echo edited >g").succeeded()
            for node in nodes { try await node.host.heal() }
            for node in nodes {
                try await node.waitForPeers(
                    Set(nodes.map(\.name)).subtracting([node.name]), within: Bounds.offline)
            }
            for node in nodes { try await node.settle() }
            try await NodeProcess.converge(nodes)
            for node in nodes {
                for name in ["f", "new"] {
                    let seen = try await node.sh(
                        "cat \(name); cat \(name)\\ \\(* | sort; cat g")
                    #expect(seen.output == "c\na\nb\nd\nedited\n", "\(name) on \(node.name)")
                }
            }
        }
    }
}
