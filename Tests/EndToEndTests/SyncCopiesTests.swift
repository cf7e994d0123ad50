import Testing

extension EndToEnd {
    @Suite("fsync that waits for copies", .serialized, .timeLimit(.minutes(5)))
    struct SyncCopies {
        private static let sizes = [0, 100, 5000, 3_000_001]

        @Test(
            "What fsync has answered for outlives this disk, though the file is still open",
            arguments: [[], ["--no-passthrough"]])
        func outlivesTheDisk(options: [String]) async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop, options: options)
                try await trio.waitForAll()
                try await trio.a.sh(
                    "mkdir -p safe/below; setfattr -n user.delugefs.fsync-copies -v 2 safe"
                ).succeeded()
                var digests: [Int: String] = [:]
                for size in Self.sizes {
                    let source = try await workshop.randomFile("s\(size)", bytes: size, seed: 9)
                    digests[size] = try await Shell.sha256(source)
                }
                let log = "\(workshop.directory)/writer.log"
                // The last one is written on after its fsync, of which nothing is promised.
                let writer = try trio.a.host.spawn(
                    Shell.bash(
                        """
                        cd "$1"; shift
                        for size in "$@"; do
                            exec {file}>safe/below/$size
                            cat "\(workshop.directory)/s$size" >&$file
                            sync safe/below/$size || exit
                        done
                        echo synced
                        while printf more >&$file; do sleep 0.1; done
                        """, [trio.a["."]] + Self.sizes.map(String.init)), log: log)
                try await eventually("the files are synced", within: Bounds.transfer) {
                    #expect(writer.status == nil)
                    return try await Shell.run(["cat", log]).output.contains("synced")
                }
                try await trio.a.kill9()
                for node in [trio.b, trio.c] {
                    for size in Self.sizes {
                        let path = "safe/below/\(size)"
                        try await node.sees(path)
                        let read = try await node.sh("head -c \(size) \(path) | sha256sum")
                        #expect(read.digest == digests[size], "\(size) bytes on \(node.name)")
                    }
                }
            }
        }

        @Test("Without a second disk online fsync says so, and the bytes are on this one")
        func alone() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh(
                    "mkdir safe; setfattr -n user.delugefs.fsync-copies -v 2 safe; echo text >safe/file"
                ).succeeded()
                let sync = try await node.sh("sync safe/file")
                #expect(sync.status == 1, "\(sync.report)")
                #expect(sync.errors.contains("Connection timed out"), "\(sync.report)")
                #expect(try await node.sh("cat safe/file").output == "text\n")
                // Where the directory asks for one copy, one is all there is to wait for.
                try await node.sh(
                    "setfattr -n user.delugefs.fsync-copies -v 1 safe; sync safe/file"
                )
                .succeeded()
            }
        }
    }
}
