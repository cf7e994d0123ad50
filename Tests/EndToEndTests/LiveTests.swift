import Glibc
import Testing

extension EndToEnd {
    @Suite("Changes that arrive while files are in use", .serialized, .timeLimit(.minutes(5)))
    struct Live {
        private static func pair(
            _ options: [String] = [],
            _ body: (_ there: NodeProcess, _ here: NodeProcess) async throws -> Void
        ) async throws {
            try await Duo.open(second: "c", options) { there, here in
                try await body(there, here)
            }
        }

        @Test(
            "Who has a file or directory in use while it changes elsewhere keeps it, and nothing is lost",
            arguments: [([], false), (["--no-passthrough"], false), ([], true)])
        func table(options: [String], apart: Bool) async throws {
            try await Self.pair(options) { there, here in
                let rows = LiveRow.all.enumerated().map { (directory: "\($0)", row: $1) }
                try await Apart.perform([(there, rows.map { ($0.directory, $0.row.setup) })])
                // The kernel is to remember what will change.
                _ = try await Apart.show(here)
                let flags = try here.host.network.workshop.make("flags")
                if apart {
                    try await here.host.cutOff()
                    try await here.waitForPeers(within: Bounds.offline)
                }
                let holders = try Self.hold(rows, on: here, flags)
                try await eventually("all are in use", within: Bounds.transfer) {
                    try Self.flags(flags, "holding").count == rows.count
                }
                try await Apart.perform([(there, rows.map { ($0.directory, $0.row.there) })])
                if apart { try await here.host.heal() }
                // A node has taken in what it has not applied yet.
                try await eventually("what changed there is here", within: Bounds.transfer) {
                    let wrong = Self.compare(
                        "meanwhile", rows.map { ($0, $1, $1.meanwhile) },
                        try await Apart.show(here), on: here)
                    if !wrong.isEmpty { throw Failure(wrong.joined(separator: "\n")) }
                    return true
                }
                _ = try here.host.network.workshop.write("", to: "flags/go")
                #expect(try await holders.wait(Bounds.transfer) == 0)
                for (directory, row) in rows {
                    let saw = FileBytes.text("\(flags)/\(directory).saw")
                    #expect(saw == row.saw, "\(directory) \(row)")
                }
                try await here.settle()
                try await NodeProcess.converge([there, here])
                for node in [here, there] {
                    let wrong = Self.compare(
                        "in the end", rows.map { ($0, $1, $1.end) }, try await Apart.show(node),
                        on: node)
                    #expect(wrong.isEmpty, "\(wrong.joined(separator: "\n"))")
                    try await node.checkHistory()
                }
            }
        }

        /// One program for each row, all at once.
        private static func hold(
            _ rows: [(directory: String, row: LiveRow)], on node: NodeProcess, _ flags: String
        ) throws -> Child {
            let programs = rows.map { directory, row in
                """
                (
                    flag=\(flags)/\(directory); cd "\(node[directory])"
                    exec >$flag.saw 2>&1
                    \(row.hold)
                    touch $flag.holding
                    until test -e \(flags)/go; do sleep 0.1; done
                    \(row.then)
                ) &
                """
            }
            return try node.host.spawn(
                Shell.bash(
                    "mapper=$1 mappedReader=$2\n\(programs.joined(separator: "\n"))\nwait",
                    [LateWrites.mapper, LiveRow.mappedReader]),
                log: "\(node.host.network.workshop.directory)/holders.log")
        }

        private static func flags(_ directory: String, _ kind: String) throws -> [String] {
            guard let stream = opendir(directory) else {
                throw Failure("There is no \(directory).")
            }
            defer { closedir(stream) }
            var names: [String] = []
            while let entry = readdir(stream) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name.hasSuffix(".\(kind)") { names.append(name) }
            }
            return names
        }

        private static func compare(
            _ when: String, _ rows: [(directory: String, row: LiveRow, expected: [String])],
            _ shown: [String: [String]], on node: NodeProcess
        ) -> [String] {
            rows.compactMap { directory, row, expected in
                let own = expected.filter { !$0.hasPrefix("/") }
                let seen = (shown[directory] ?? []).map(inRoles).sorted()
                let isAtTop = expected.filter { $0.hasPrefix("/") }.allSatisfy {
                    shown[String($0.dropFirst())] != nil
                }
                if seen == own, isAtTop { return nil }
                return """
                    \(when) on \(node.name), \(directory) \(row)
                    expected: \(expected.map { $0.prefix(200) })
                        seen: \(seen.map { $0.prefix(200) })\(isAtTop ? "" : " \(shown.keys.sorted())")
                    """
            }
        }

        private static func inRoles(_ line: String) -> String {
            var line = line
            for (name, role) in [("a", "there"), ("c", "here")] {
                guard let start = line.firstRange(of: "(conflict \(name) "),
                    let end = line[start.upperBound...].firstIndex(of: ")")
                else { continue }
                line.replaceSubrange(start.lowerBound..<end, with: "(conflict \(role)")
            }
            return line
        }

        /// Looks up names that the kernel does not know, until it is told to end, and says how long the
        /// longest look took, and how many took more than 50 ms.
        private static let looker = """
            use Time::HiRes qw(time sleep);
            my ($directory, $end) = @ARGV;
            my ($longest, $long, $number) = (0, 0, 0);
            until (-e $end) {
                my $start = time;
                lstat "$directory/none-" . $number++;
                my $took = time - $start;
                $longest = $took if $took > $longest;
                $long++ if $took > 0.05;
                sleep 0.002;
            }
            printf "%d %d %d\\n", $longest * 1000, $long, $number;
            """

        private static let changes = [
            ("new files", "make"), ("edited files", "edit"), ("removed files", "remove"),
        ]

        private static let changer = """
            my ($what, $count) = @ARGV;
            for my $i (1 .. $count) {
                my $directory = "d" . $i % 20;
                my $file = "$directory/f$i";
                if ($what eq "make" && $i <= 20) { mkdir $directory or die "$directory: $!" }
                if ($what eq "remove") { unlink $file or die "$file: $!"; next }
                open my $out, ">", $file or die "$file: $!";
                print $out "$what $i\\n"; close $out or die "$file: $!";
            }
            """

        @Test("A large change that arrives at once holds nobody up")
        func largeChange() async throws {
            let count = Bounds.isLong ? 20_000 : 800
            try await Self.pair { there, here in
                for (name, change) in Self.changes {
                    try await here.stop()
                    try await there.sh(
                        "perl -e \"$1\" \(change) \(count)", Self.changer, timeout: Bounds.transfer
                    ).succeeded()
                    try await eventually("it is committed", within: Bounds.transfer) {
                        try await there.status().unpublished == 0
                    }
                    let start = ContinuousClock.now
                    try await here.start()
                    let workshop = here.host.network.workshop.directory
                    let end = "\(workshop)/end-\(change)"
                    let log = "\(workshop)/looker-\(change).log"
                    let looker = try here.host.spawn(
                        ["perl", "-e", Self.looker, here[""], end], log: log)
                    try await there.settle()
                    try await NodeProcess.converge([there, here], within: Bounds.transfer)
                    let took = ContinuousClock.now - start
                    _ = try here.host.network.workshop.write("", to: "end-\(change)")
                    #expect(try await looker.wait(Bounds.command) == 0)
                    let words = FileBytes.text(log).split(separator: " ").map(String.init)
                    print(
                        "\(count) \(name): brought in \(took) after the start; longest lookup \(words.first ?? "?") ms, \(FileBytes.text(log))"
                    )
                    #expect(Int(words.first ?? "") ?? .max < 2000)
                }
                #expect(try await here.sh("find . -type f | wc -l").line == "0")
            }
        }

        @Test("News is not held back by a reader who waits for a node that does not answer")
        func newsPassesReaders() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                var nodes: [NodeProcess] = []
                for name in ["a", "b", "c"] {
                    nodes.append(
                        try NodeProcess(
                            name, on: try await network.host(),
                            options: name == "a" ? [] : ["--capacity", "0"]))
                }
                let (a, b, c) = (nodes[0], nodes[1], nodes[2])
                try await a.create("--copies", "1")
                try await b.join(a)
                try await c.join(b)
                try await c.waitForPeers("a", "b")
                try await a.sh("head -c 3M /dev/urandom >far; echo old >f").succeeded()
                try await a.settle()
                try await c.sh("cat f; ls -la").succeeded()
                let pid = try #require(a.pid)
                kill(pid, SIGSTOP)
                defer { kill(pid, SIGCONT) }
                let reader = try c.host.spawn(
                    ["cat", c["far"]], log: "\(workshop.directory)/reader.log")
                try await Task.sleep(for: .seconds(1))
                #expect(reader.status == nil)
                try await b.sh("echo new >f; echo more >g").succeeded()
                try await c.sees("g")
                #expect(try await c.sh("cat f").output == "new\n")
                #expect(reader.status == nil, "The reader waits still.")
                kill(pid, SIGCONT)
                #expect(try await reader.wait(Bounds.command) == 0)
            }
        }
    }
}
