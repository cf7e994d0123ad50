import Glibc
import Testing

extension EndToEnd {
    @Suite("Content", .serialized, .timeLimit(.minutes(Bounds.isLong ? 60 : 5)))
    struct Content {
        private static let bytes = Bounds.isLong ? 5 << 30 : 5 << 20
        private static let offsetReads = 50

        @Test("A file is read on all nodes at once, at any offset, and gets copies on two machines")
        func fileIsEverywhere() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: Self.bytes, seed: 11)
                let digest = try await Shell.sha256(source)
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                try await trio.a.sh("cp \"$1\" file", source, timeout: Bounds.transfer).succeeded()
                // The name appears with the content, when that is hashed.
                try await trio.b.sees("file", within: Bounds.replicated)
                let places = try await Self.readOffsets(on: trio.b, source)
                print("\(Self.offsetReads) reads of 64 KiB on b: \(places)")
                #expect(try await trio.c.sha256("file") == digest)
                try await trio.a.waitReplicated()
                try await eventually("two machines hold it", within: Bounds.replicated) {
                    let file = try await trio.b.whereIs("file")
                    guard file.copies >= 2, file.onlineMachines == ["near", "far"] else {
                        throw Failure("\(file)")
                    }
                    return true
                }
                #expect(try await trio.b.sha256("file") == digest)
                for node in trio.all { try await node.checkHistory() }
            }
        }

        /// Compares reads at random offsets with the source.
        private static func readOffsets(on node: NodeProcess, _ source: String) async throws
            -> Duration
        {
            var generator = SystemRandomNumberGenerator()
            let offsets = (0..<offsetReads).map { _ in
                Int.random(in: 0...(bytes - (64 << 10)), using: &generator)
            }
            let script = """
                for offset in ${@:2}; do
                    dd if="$1" bs=64k count=1 skip=$offset iflag=skip_bytes status=none
                done | sha256sum
                """
            let list = offsets.map { "\($0)" }
            let expected = try await Shell.script(script, [source] + list).succeeded()
            let seen = try await node.host.run(
                Shell.bash(script, [node["file"]] + list), timeout: Bounds.transfer
            ).succeeded()
            guard expected.digest == seen.digest else {
                throw Failure("Reads at \(offsets) differ on \(node.name).")
            }
            return seen.duration
        }

        @Test("Sizes around every threshold arrive whole")
        func thresholds() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                let sizes = [
                    0, 1, 4095, 4096, 4097, 16383, 16384, 16385, 65536, 65537, 262_143, 262_144,
                    262_145, 1 << 20, (3 << 20) + 7,
                ]
                for size in sizes {
                    _ = try await workshop.randomFile("s\(size)", bytes: size, seed: UInt64(size))
                }
                try await trio.a.sh("cp \"$1\"/s[0-9]* .", workshop.directory).succeeded()
                for size in sizes {
                    try await trio.c.sees("s\(size)")
                    let expected = try await Shell.sha256("\(workshop.directory)/s\(size)")
                    #expect(try await trio.c.sha256("s\(size)") == expected, "\(size) bytes on c")
                    #expect(try await trio.b.sha256("s\(size)") == expected, "\(size) bytes on b")
                }
            }
        }

        @Test("A source tree copied in by cp and tar is the same on both mounts")
        func sourceTree() async throws {
            try await Workshop.open { workshop in
                let trio = try await Trio.start(workshop)
                try await trio.waitForAll()
                let tree = try await Self.tree(workshop)
                try await trio.a.sh("cp -a \"$1\" copied", tree, timeout: Bounds.transfer)
                    .succeeded()
                try await trio.a.sh(
                    "mkdir untarred; tar -C \"$1\" --format=posix -cf - . | tar -C untarred -xpf -",
                    tree,
                    timeout: Bounds.transfer
                ).succeeded()
                try await trio.a.settle()
                for node in [trio.a, trio.c] {
                    for copy in ["copied", "untarred"] { try await Self.compare(node, tree, copy) }
                }
                try await Self.renameAndDelete(trio)
            }
        }

        /// This checkout, with an executable, links and an empty directory for certain.
        private static func tree(_ workshop: Workshop) async throws -> String {
            let path = try workshop.make("tree")
            try await Shell.script(
                """
                cd "$1"
                tar -cf - --exclude='*.pack' $2 . | tar -C "$3" -xpf -
                cd "$3"
                mkdir -p links/empty
                printf '#!/bin/sh\\n' >links/run; chmod 755 links/run
                ln -s run links/relative; ln -s ../Sources links/directory; ln links/run links/hard
                find . | wc -l
                """,
                [
                    Machine.checkout,
                    Bounds.isLong ? "--exclude=./.build/*/debug" : "--exclude=./.build", path,
                ],
                timeout: Bounds.transfer
            ).succeeded()
            return path
        }

        private static func compare(_ node: NodeProcess, _ tree: String, _ copy: String)
            async throws
        {
            let listing = "cd \"$1\"; find . -mindepth 1 -printf '%P %y %m %l %T@\\n' | sort"
            let expected = try await Shell.script(listing, [tree]).succeeded()
            let seen = try await node.sh(listing, copy, timeout: Bounds.transfer).succeeded()
            try FileLife.requireEqual(expected.bytes, seen.bytes, "\(copy) on \(node.name)")
            try await node.sh(
                "diff -r --no-dereference \"$1\" \"$2\"", tree, copy, timeout: Bounds.transfer
            ).succeeded()
        }

        private static func renameAndDelete(_ trio: Trio) async throws {
            let start = ContinuousClock.now
            try await trio.a.sh("mv copied renamed").succeeded()
            try await trio.c.sees("renamed", within: .seconds(5))
            try await trio.c.sees("copied", false, within: .seconds(5))
            let renamed = ContinuousClock.now
            try await trio.c.sh("rm -rf untarred", timeout: Bounds.transfer).succeeded()
            let removed = ContinuousClock.now
            try await trio.a.sees("untarred", false, within: .seconds(5))
            print(
                "rename seen elsewhere after \(renamed - start), deletion \(ContinuousClock.now - removed) after rm"
            )
        }
    }
}
