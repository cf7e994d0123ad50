import Glibc
import Testing

extension EndToEnd {
    /// The catalog is a cache of the history and of what lies in `objects/` and `staging/`: it may go.
    @Suite("Lost catalogs", .serialized, .timeLimit(.minutes(5)))
    struct LostCatalogs {
        enum Loss: String, CaseIterable, Sendable {
            case deleted = "rm catalog.sqlite*"
            case emptied = "rm -f catalog.sqlite-*; : >catalog.sqlite"
            case cut = """
                rm -f catalog.sqlite-*
                truncate -s $(($(stat -c %s catalog.sqlite) / 8192 * 4096)) catalog.sqlite
                """
            /// In the middle of pages, so that the structure is hit.
            case flipped = """
                rm -f catalog.sqlite-*
                for page in 1 2 3 5 8 13; do
                    printf '\\377\\377\\377\\377' |
                        dd of=catalog.sqlite bs=1 seek=$((page * 4096)) conv=notrunc status=none
                done
                """
            case header = """
                rm -f catalog.sqlite-*
                head -c 64 /dev/urandom | dd of=catalog.sqlite conv=notrunc status=none
                """

            static var tried: [Self] { Bounds.isLong ? allCases : [.deleted, .cut, .flipped] }
        }

        /// Some of everything, and what stat shows of it.
        private static let content = """
            mkdir -p d/e/f; echo small >d/small; head -c 300K /dev/urandom >d/e/large
            ln d/small d/e/hard; ln -s ../small d/e/soft; mkfifo d/pipe; chmod 640 d/small
            chown 12:34 d/e/large; setfattr -n user.x -v y d/e/large; touch -d 2001-02-03 d/e/f
            for i in {1..50}; do echo $i >d/e/f/$i; done
            """
        private static let listing = """
            find d -printf '%p %i %y %m %U %G %n %T@ %l\\n' | LC_ALL=C sort
            find d -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; getfattr -d d/e/large
            """

        private static func spoil(_ node: NodeProcess, _ script: String) async throws {
            try await node.host.sh("cd \"$1\"; \(script)", node.root).succeeded()
        }

        @Test("A catalog that is lost or damaged is made anew, inode numbers included")
        func rebuilt() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh(Self.content).succeeded()
                for (round, loss) in Loss.tried.enumerated() {
                    try await node.sh("echo \(round) >>d/small; mv d/e/f/\(round + 1) d")
                        .succeeded()
                    let before = try await node.sh(Self.listing).succeeded().output
                    try await node.settle()
                    try await node.stop()
                    try await Self.spoil(node, loss.rawValue)
                    try await node.start()
                    let after = try await node.sh(Self.listing).succeeded().output
                    #expect(after == before, "\(loss)")
                    let status = try await node.status()
                    #expect(status.problems.map(\.code) == ["catalog-rebuilt"], "\(loss)")
                    #expect(status.contents.localFiles == 1)
                }
                try await node.stop()
                try await node.start()
                let written = Loss.tried.indices.map { "\($0)\n" }.joined()
                #expect(try await node.sh("cat d/e/hard d/3").output == "small\n\(written)3\n")
                #expect(try await node.status().problems.isEmpty)
                try await node.checkHistory()
            }
        }

        @Test("What was closed and in no commit yet when the catalog is lost gets a name beside")
        func uncommitted() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh("head -c 100K /dev/zero >old; echo kept >kept").succeeded()
                try await node.settle()
                // Held open until the kill, so that none of it is published.
                let writer = try node.host.spawn(
                    Shell.bash(
                        """
                        cd "$1"; exec 3>new 4>>old 5>>kept
                        head -c 200K /dev/urandom | tee "$2" >&3; echo more >&4; touch "$2.done"
                        sleep 1000
                        """, [node[""], "\(solo.workshop.directory)/new"]),
                    log: "\(solo.workshop.directory)/writer.log")
                try await eventually("it is written", within: Bounds.command) {
                    access("\(solo.workshop.directory)/new.done", F_OK) == 0
                }
                try await node.kill9()
                writer.send(SIGKILL)
                _ = try await writer.wait(Bounds.reaped)
                try await Self.spoil(node, Loss.deleted.rawValue)
                try await node.start()
                try await node.settle()
                try await node.sh(
                    """
                    ls -l; cmp old <(head -c 100K /dev/zero); test "$(cat kept)" = kept
                    cmp recovered* "$1"
                    cmp "old (conflict a "* <(head -c 100K /dev/zero; echo more)
                    test $(ls | wc -l) = 4
                    """, "\(solo.workshop.directory)/new"
                ).succeeded()
                #expect(FileBytes.text(node.log).contains("what was being written to inode"))
            }
        }

        @Test("An older copy of the catalog that is put back gets on to where the history is")
        func olderCopy() async throws {
            try await Duo.open(creation: ["--copies", "1"]) { a, b in
                try await a.sh("echo 1 >first; head -c 9K /dev/urandom >gone; echo x >moved")
                    .succeeded()
                try await a.settle()
                try await a.stop()
                try await Self.spoil(a, "mkdir ../copy; cp -a catalog.sqlite ../copy")
                try await a.start()
                try await a.sh(
                    """
                    echo 2 >first; rm gone; mkdir d; mv moved d
                    head -c 500K /dev/urandom | tee d/large | sha256sum
                    """
                ).succeeded()
                try await a.settle()
                let sum = try await a.sha256("d/large")
                try await b.sees("d/large")
                try await b.kill9()
                try await a.stop()
                try await Self.spoil(a, "rm -f catalog.sqlite*; cp -a ../copy/* .")
                try await a.start()
                try await a.sees("d/large")
                // Nobody else has it.
                #expect(try await a.sha256("d/large") == sum)
                #expect(try await a.sh("ls; cat first d/moved").output == "d\nfirst\n2\nx\n")
                try await b.start()
                try await a.sh("echo 3 >first").succeeded()
                try await b.sh("until test \"$(cat first)\" = 3; do sleep 0.05; done").succeeded()
                #expect(try await b.sha256("d/large") == sum)
                #expect(try await b.sh("ls").output == "d\nfirst\n")
                try await a.checkHistory()
            }
        }
    }
}
