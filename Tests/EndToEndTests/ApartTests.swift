import Foundation
import Testing

extension EndToEnd {
    @Suite("Nodes that were apart", .serialized, .timeLimit(.minutes(5)))
    struct Apart {
        @Test("Whatever two sides did while they were cut apart ends as the table of merges says")
        func table() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                var nodes: [NodeProcess] = []
                for name in ["a", "b", "c"] {
                    nodes.append(try NodeProcess(name, on: try await network.host()))
                }
                let (a, b, c) = (nodes[0], nodes[1], nodes[2])
                try await a.create()
                try await b.join(a)
                try await c.join(a)
                try await a.waitForPeers("b", "c")
                try await c.waitForPeers("a", "b")
                let places = Place.all(pair: [a, b], single: c)
                try await Self.perform([(a, places.map { ($0.directory, $0.row.setup) })])
                try await NodeProcess.converge(nodes)
                // The kernels are to remember what will be changed by others.
                for node in nodes { _ = try await Self.show(node) }
                try await c.host.cutOff()
                try await c.waitForPeers(within: Bounds.offline)
                try await a.waitForPeers("b", within: Bounds.offline)
                try await Self.perform(
                    nodes.map { node in
                        (
                            node,
                            places.filter { $0.earlier === node }.map {
                                ($0.directory, $0.row.earlier)
                            }
                        )
                    })
                try await Self.perform(
                    nodes.map { node in
                        (
                            node,
                            places.filter { $0.later === node }.map { ($0.directory, $0.row.later) }
                        )
                    })
                for node in nodes { _ = try await Self.show(node) }
                let start = ContinuousClock.now
                try await c.host.heal()
                try await NodeProcess.converge(nodes)
                print(
                    "\(places.count) rows are merged \(ContinuousClock.now - start) after the cut")
                for node in nodes { Self.compare(places, try await Self.show(node), on: node) }
                try await Self.endWhole(nodes, places)
            }
        }

        /// What all have is what the commit has, and it stays.
        private static func endWhole(_ nodes: [NodeProcess], _ places: [Place]) async throws {
            let tree = try await nodes[0].tree()
            for node in nodes {
                #expect(try await node.tree() == tree)
                try await node.checkHistory()
            }
            try await readWithGit(nodes[1])
            try await nodes[2].stop()
            try await nodes[2].start()
            // It has the commit alone.
            let late = try NodeProcess(
                "d", on: try await nodes[0].host.network.host(), options: ["--capacity", "0"])
            try await late.join(nodes[0])
            for node in [nodes[2], late] { compare(places, try await show(node), on: node) }
            try await NodeProcess.converge(nodes + [late])
        }

        /// A clone by stock git is whole, and tells the story of a path: row 0, where the later side wins.
        private static func readWithGit(_ node: NodeProcess) async throws {
            let workshop = node.host.network.workshop
            let outcome = try await node.host.sh(
                """
                export HOME="$2" GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
                git clone --quiet --no-local "$1"/history.git "$2"/clone
                cd "$2"/clone
                git fsck --full --strict --no-progress 2>&1 | grep -v '^notice:' || true
                git log -p --reverse --format= -- tree/0.0/f.txt | grep -E '^[-+](old|one|two)$' | paste -sd:
                git log --oneline -- tree/0.0/'f (conflict'* | wc -l
                grep -hx one tree/0.0/'f (conflict'*
                """, node.root, workshop.make("clone"), timeout: Bounds.transfer
            ).succeeded()
            #expect(outcome.output == "+old:-old:+two\n1\none\n", "\(outcome.report)")
        }

        // MARK: The table's rows in a volume

        /// A row in a directory of its own, and who does what in it.
        private struct Place: Sendable {
            let row: MergeRow
            let directory: String
            let earlier: NodeProcess
            let later: NodeProcess

            /// Each row twice: each side does each part, or does it first.
            static func all(pair: [NodeProcess], single: NodeProcess) -> [Place] {
                MergeRow.all.enumerated().flatMap { index, row in
                    let first = pair[index / 2 % 2]
                    let other = row.isTimeless ? row.swapped : row
                    let (one, two) = index % 2 == 0 ? (row, other) : (other, row)
                    return [
                        Place(
                            row: one, directory: "\(index).0", earlier: first, later: single),
                        Place(
                            row: two, directory: "\(index).1", earlier: single, later: first),
                    ]
                }
            }

            /// The nodes' names in conflict names become their roles.
            func inRoles(_ line: String) -> String {
                var line = line
                for (node, role) in [(earlier, "earlier"), (later, "later")] {
                    let pattern = "(conflict \(node.name) "
                    while let start = line.range(of: pattern) {
                        let end = line[start.upperBound...].firstIndex(of: ")") ?? line.endIndex
                        line.replaceSubrange(start.lowerBound..<end, with: "(conflict \(role)")
                    }
                }
                return line
            }
        }

        /// Each node runs its scripts, one after the other, all nodes at the same time.
        static func perform(
            _ parts: [(node: NodeProcess, scripts: [(directory: String, script: String)])]
        ) async throws {
            for part in parts { try await part.node.settle() }
            try await withThrowingTaskGroup(of: Void.self) { group in
                for (node, scripts) in parts {
                    group.addTask { try await perform(scripts, on: node) }
                }
                try await group.waitForAll()
            }
        }

        static func perform(
            _ scripts: [(directory: String, script: String)], on node: NodeProcess
        ) async throws {
            // All saves at once: each falls into the one commit that comes after the batch's time.
            let saves = scripts.filter { $0.script.hasPrefix("save ") }.flatMap {
                directory, script in
                let words = script.split(separator: " ").map(String.init)
                return [words[1], "\(directory)/\(words[2])"]
            }
            try await node.host.run(
                [
                    "perl", "-e",
                    """
                    chdir shift or die "$!";
                    while (my ($text, $file) = splice @ARGV, 0, 2) {
                        open my $out, ">", "$file.swp" or die "$file: $!";
                        print $out "$text\\n"; close $out;
                        rename "$file.swp", $file or die "$file: $!";
                    }
                    """, node[""],
                ] + saves
            ).succeeded()
            try await node.settle()
            let others = scripts.filter { !$0.script.hasPrefix("save ") }.map { directory, script in
                """
                row=\(directory); mkdir -p "$top/\(directory)"; cd "$top/\(directory)"
                \(script)
                """
            }
            try await node.sh(
                """
                top=$PWD; trap 'echo "in row $row" >&2' ERR
                \(others.joined(separator: "\n"))
                """, timeout: Bounds.transfer
            ).succeeded()
            try await node.settle()
        }

        /// What each directory of a row holds.
        static func show(_ node: NodeProcess) async throws -> [String: [String]] {
            let outcome = try await node.host.run(
                Shell.bash("cd \"$1\"; exec perl -e \"$2\"", [node[""], MergeRow.show]),
                timeout: Bounds.transfer
            ).succeeded()
            var shown: [String: [String]] = [:]
            for line in outcome.output.split(separator: "\n") {
                let parts = line.split(separator: "/", maxSplits: 1).map(String.init)
                shown[parts[0], default: []] += parts.dropFirst()
            }
            return shown
        }

        private static func compare(
            _ places: [Place], _ shown: [String: [String]], on node: NodeProcess
        ) {
            for place in places {
                let seen = (shown[place.directory] ?? []).map(place.inRoles).sorted()
                if seen != place.row.end {
                    Issue.record(
                        """
                        On \(node.name), \(place.directory) \(place.row), earlier on \(place.earlier.name), later on \(place.later.name)
                        expected: \(place.row.end)
                            seen: \(seen)
                        """)
                }
            }
        }
    }
}

extension NodeProcess {
    /// The id of the tree of its branch, as stock git tells it.
    fileprivate func tree() async throws -> String {
        try await host.run([
            "git", "-c", "safe.directory=*", "--git-dir=\(root)/history.git", "rev-parse",
            "main^{tree}",
        ]).succeeded().line
    }
}
