import Glibc
import Testing

extension EndToEnd {
    @Suite("Holders that go", .serialized, .timeLimit(.minutes(Bounds.isLong ? 60 : 5)))
    struct Holders {
        private static let bytes = 48 << 20
        /// Reads the first MiB of `$1`, says so in `$2.started`, and reads the rest after `$2.go`.
        private static let reader = """
            exec 3<"$1"
            head -c 1048576 <&3 >"$2"
            touch "$2.started"
            until test -e "$2.go"; do sleep 0.02; done
            cat <&3 >>"$2"
            """

        /// One reader on a node that holds nothing itself, met in the middle of a file.
        private static func meet(
            _ workshop: Workshop, _ reader: NodeProcess,
            within bound: Duration = Bounds.starvedRead,
            then disturb: () async throws -> Void
        ) async throws -> (status: Int32, duration: Duration, result: String, errors: String) {
            let result = "\(workshop.directory)/read"
            let log = "\(workshop.directory)/reader.log"
            let child = try reader.host.spawn(
                Shell.bash(Self.reader, [reader["file"], result]), log: log)
            try await eventually("the reader has begun", within: Bounds.transfer) {
                access("\(result).started", F_OK) == 0
            }
            try await disturb()
            let start = ContinuousClock.now
            _ = try workshop.write("", to: "read.go")
            guard let status = try await child.wait(bound) else {
                throw Failure("The reader hung for \(bound).")
            }
            return (status, ContinuousClock.now - start, result, FileBytes.text(log))
        }

        @Test("When a holder dies in the middle of a read another one takes over")
        func anotherTakesOver() async throws {
            let (bytes, megabits) = Bounds.isLong ? (2 << 30, 640) : (Self.bytes, 64)
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: bytes, seed: 10)
                let network = try await Network(workshop)
                let hosts = [
                    try await network.host(), try await network.host(), try await network.host(),
                ]
                let a = try NodeProcess("a", on: hosts[0])
                let b = try NodeProcess("b", on: hosts[1])
                let c = try NodeProcess("c", on: hosts[2], options: ["--capacity", "0"])
                try await a.create()
                try await b.join(a)
                try await c.join(a)
                try await c.waitForPeers("a", "b")
                try await a.sh("cp \"$1\" file", source, timeout: Bounds.transfer).succeeded()
                try await a.waitReplicated()
                try await hosts[0].throttle(megabitsPerSecond: megabits)
                try await hosts[1].throttle(megabitsPerSecond: megabits)
                try await c.sees("file")
                let read = try await Self.meet(workshop, c, within: Bounds.transfer) {
                    try await a.kill9()
                }
                print("the rest was read \(read.duration) after a died")
                #expect(read.status == 0, "\(read.errors)")
                #expect(try await Shell.sha256(read.result) == Shell.sha256(source))
            }
        }

        @Test("A copy whose file is gone is no copy, and is made again")
        func vanishedObject() async throws {
            try await Duo.open { a, b in
                try await a.sh("head -c 3M /dev/urandom >file; head -c 99K /dev/urandom >other")
                    .succeeded()
                try await a.waitReplicated()
                #expect(try await a.whereIs("file").copies == 2)
                try await b.host.sh("rm -rf '\(b.root)'/objects/??/*").succeeded()
                // It asks b, which looks at its disk.
                try await a.waitReplicated()
                let count = try await b.host.sh(
                    "find '\(b.root)'/objects/ -type f -size +90k | wc -l")
                #expect(count.line == "2")
                #expect(try await b.sha256("file") == a.sha256("file"))
            }
        }

        @Test("What no online disk has cannot be replicated, and wait says so at once")
        func impossible() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let b = try NodeProcess("b", on: try await network.host())
                let c = try NodeProcess("c", on: try await network.host())
                try await a.create("--copies", "1")
                try await b.join(a)
                try await c.join(a)
                try await b.waitForPeers("a", "c")
                try await a.sh("head -c 1M /dev/urandom >file").succeeded()
                try await b.sees("file")
                try await a.waitReplicated()
                try await a.kill9()
                try await b.waitForPeers("c", within: Bounds.offline)
                let outcome = try await b.command("wait", "--replicated", "--timeout", "30")
                #expect(outcome.status == 1, "\(outcome)")
                #expect(outcome.errors.contains("no disk that is online"), "\(outcome.errors)")
                let told = try await Faults.problem(
                    "unavailable", on: b, after: "the only holder is gone", within: Bounds.online)
                Faults.expect(
                    told, says: "1 content is on no disk that is online",
                    "Start the disks that `delugefs whereis` names")
            }
        }

        @Test(
            "With no holder left a read ends in EIO, and other files are unaffected",
            .enabled(if: Bounds.isLong, "It waits for the reader's own time limit: in long runs."))
        func nobodyTakesOver() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: Self.bytes, seed: 12)
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two, options: ["--capacity", "0"])
                try await a.create("--copies", "1")
                try await c.join(a)
                try await c.waitForPeers("a")
                try await one.throttle(megabitsPerSecond: 64)
                try await a.sh(
                    "cp \"$1\" file; echo small >small", source, timeout: Bounds.transfer
                )
                .succeeded()
                try await c.sees("small")
                try await c.sees("file")
                let read = try await Self.meet(workshop, c) {
                    try await a.kill9()
                    try await c.sh("test \"$(cat small)\" = small; echo own >own; cat own")
                        .succeeded()
                }
                print("the read failed after \(read.duration)")
                #expect(read.status != 0)
                #expect(read.errors.contains("Input/output error"), "\(read.errors)")
                try await c.sh("cat small own; ls").succeeded()
                // It is readable again when the holder is back.
                try await one.unthrottle()
                try await a.start()
                try await c.waitForPeers("a", within: Bounds.offline)
                #expect(try await c.sha256("file") == Shell.sha256(source))
            }
        }
    }
}
