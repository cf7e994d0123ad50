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
                try await node.settle()
                try await onThread { try table.each { $0.lookAgain("published") } }
                try await onThread { try table.each { $0.end() } }
                try await node.settle()
                try await onThread { try table.each { $0.lookAgain("published, ended") } }
                try await node.stop()
                try await node.start()
                try await onThread { try table.each { $0.lookAgain("restarted") } }
                let differences = table.differences
                print(
                    "\(table.count) cells of \(place.testDescription), \(differences.count) differ")
                for difference in differences {
                    Issue.record("\(place.testDescription): \(difference)")
                }
            }
        }

        /// All cells on both sides. Touched by one thread after the other.
        private final class Table: @unchecked Sendable {
            private let cells: [(oracle: OpenFileCell, subject: OpenFileCell)]
            private var failures: [String] = []
            var count: Int { cells.count }

            init(oracle: String, subject: String) throws {
                var cells: [(OpenFileCell, OpenFileCell)] = []
                for state in OpenFileCell.State.allCases {
                    for action in OpenFileCell.Action.allCases {
                        let number = cells.count
                        cells.append(
                            (
                                try OpenFileCell(state, action, number: number, in: oracle),
                                try OpenFileCell(state, action, number: number, in: subject)
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

            var differences: [String] {
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
