import Glibc
import Testing

extension EndToEnd {
    /// Which bytes an inode serves: the table of `Sources/Mount/Vnode.swift`, cell by cell, beside the
    /// same calls on ext4.
    @Suite("Open files", .serialized, .timeLimit(.minutes(5)))
    struct OpenStates {
        /// A disk that shares blocks, and one that does not; through the kernel, and through the node.
        struct Place: CustomTestStringConvertible, Sendable {
            let name: String
            let kind: Disk.Kind
            let options: [String]
            var testDescription: String { "\(name) \(options)" }

            static let all = [
                ("ext4", Disk.Kind.ext4(megabytes: 4096)), ("btrfs", .btrfs(megabytes: 4096)),
            ]
            .flatMap { name, kind in
                [[], ["--no-passthrough"]].map { Place(name: name, kind: kind, options: $0) }
            }
        }

        @Test(
            "Whatever is done to a file, all who have it open see it as on ext4",
            arguments: Place.all)
        func table(place: Place) async throws {
            try await Solo.open(on: place.kind, place.options) { solo in
                let oracle = try await Disk.oracle(solo.workshop)
                let node = solo.node
                guard try await node.status().passthrough == place.options.isEmpty else {
                    throw Failure("No cell of \(place) can be tried: status says otherwise.")
                }
                let mount = try #require(node.mount)
                let table = try Table(oracle: oracle.path, subject: mount)
                try await onThread { try table.each { try $0.make() } }
                try await node.settle()
                try await onThread { try table.each { try $0.change() } }
                try await node.settle()
                try await onThread { try table.run() }
                let overlays = try await solo.host.sh(
                    "find \"$1\"/staging -name '*.base*' | wc -l", node.root)
                #expect(
                    (Int(overlays.line) ?? 0 > 0) == (place.name == "ext4"),
                    "\(overlays.line) overlays")
                try await Self.end(table, node, place.testDescription)
            }
        }

        /// What becomes of it when it is published, when nobody has it open any more, after a restart.
        private static func end(_ table: Table, _ node: NodeProcess, _ what: String) async throws {
            try await node.settle()
            try await onThread { try table.each { $0.lookAgain("published") } }
            try await onThread { try table.each { $0.end() } }
            try await node.settle()
            try await onThread { try table.each { $0.lookAgain("published, ended") } }
            try await node.stop()
            try await node.start()
            try await onThread { try table.each { $0.lookAgain("restarted") } }
            table.report(what)
        }

        @Test(
            "Whatever is done to a file whose bytes are on another node comes out as on ext4",
            arguments: [[], ["--no-passthrough"]])
        func elsewhere(options: [String]) async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let disk = try await Disk(workshop, "c", .ext4(megabytes: 2048))
                let oracle = try await Disk.oracle(workshop)
                let a = try NodeProcess("a", on: one)
                let c = try NodeProcess("c", on: two, disk: disk, options: options)
                try await a.create("--copies", "1")
                try await c.join(a)
                try await c.waitForPeers("a")
                let (origin, mount) = (try #require(a.mount), try #require(c.mount))
                let table = try Table(
                    [
                        .inline, .published, .reader, .readerMappedShared, .twinReader,
                        .unlinkedReader,
                    ],
                    oracle: oracle.path, subject: mount, origin: origin)
                try await onThread { try table.each { try $0.make() } }
                try await a.settle()
                try await a.sh(": >last").succeeded()
                try await c.sees("last")
                #expect(try await c.status().contents.localFiles == 0)
                try await onThread { try table.run() }
                try await Self.end(table, c, "elsewhere \(options)")
            }
        }

        /// `file` is read, by descriptor 3, from a file that no writer may have. `$3` is another one with
        /// the same content.
        private static let keepingReaders = """
            exec 3<file; test -z "$3" || exec 4<"$3"
            exec 5<>file; printf 'new new new new ' >&5
            head -c 4 <&3; head -c 4 file; stat -Lc %s /dev/fd/3 file
            exec 5>&-; "$1" wait --root "$2" --timeout 30 >&2
            truncate -s 10000 file
            head -c 4 <&3; head -c 4 file; stat -Lc %s /dev/fd/3 file
            exec 3<&-; head -c 4 file
            """

        @Test(
            "Readers keep the old version if another file has the same content, or if it is very large",
            arguments: [false, true])
        func readersKeepTheirs(isLarge: Bool) async throws {
            try await Solo.open(on: .ext4(megabytes: 4096)) { solo in
                let node = solo.node
                // More than is copied for a writer while readers wait.
                let size = isLarge ? (1 << 30) + 5000 : 200_000
                try await node.sh(
                    "printf 'old old old old ' >file; truncate -s \(size) file\(isLarge ? "" : "; cp file twin")"
                ).succeeded()
                try await node.settle()
                let script = "cd '\(node[""])'\n\(Self.keepingReaders)"
                let outcome = try await node.host.run(
                    Shell.bash(script, [Machine.binary, node.root, isLarge ? "" : "twin"]),
                    environment: node.environment, timeout: Bounds.transfer)
                #expect(
                    outcome.output == """
                        old new \(size)
                        \(size)
                        old new \(size)
                        10000
                        new\u{20}
                        """, "\(outcome.report)")
            }
        }

        /// All cells on both sides. Touched by one thread after the other.
        private final class Table: @unchecked Sendable {
            private let cells: [(oracle: OpenFileCell, subject: OpenFileCell)]
            private var failures: [String] = []

            /// - Parameter origin: where the files are made; nil: on the subject.
            init(
                _ states: [OpenFileCell.State] = OpenFileCell.State.allCases, oracle: String,
                subject: String, origin: String? = nil
            ) throws {
                var cells: [(OpenFileCell, OpenFileCell)] = []
                for state in states {
                    for action in OpenFileCell.Action.allCases {
                        let number = cells.count
                        cells.append(
                            (
                                try OpenFileCell(state, action, number: number, in: oracle),
                                try OpenFileCell(
                                    state, action, number: number, in: subject, from: origin)
                            ))
                    }
                }
                self.cells = cells
            }

            func each(_ body: (OpenFileCell) throws -> Void) throws {
                for cell in cells {
                    for side in [cell.oracle, cell.subject] {
                        do { try body(side) } catch {
                            failures.append("\(side.state) × \(side.action) cannot go on: \(error)")
                        }
                    }
                }
            }

            func run() throws {
                try each {
                    try $0.enter()
                    try $0.act()
                    $0.finish()
                }
            }

            func report(_ what: String) {
                print("\(cells.count) cells: \(what)")
                for difference in differences { Issue.record("\(what): \(difference)") }
            }

            private var differences: [String] {
                failures
                    + cells.compactMap { cell in
                        let (expected, seen) = (cell.oracle.seen, cell.subject.seen)
                        guard expected != seen else { return nil }
                        let step = zip(expected, seen).prefix { $0 == $1 }.count
                        return """
                            \(cell.oracle.state) × \(cell.oracle.action), step \(step):
                              ext4  \(step < expected.count ? expected[step] : "nothing")
                              mount \(step < seen.count ? seen[step] : "nothing")
                            """
                    }
            }
        }
    }
}
