import Glibc
import Testing

extension EndToEnd {
    /// Disks that refuse: the error must come to a caller, and what was durable must be there later.
    @Suite("Failing disks", .serialized, .timeLimit(.minutes(5)))
    struct FailingDisks {
        /// Writes small files, each with an fsync, and notes each one that was acknowledged in `$1`.
        private static let storm = """
            mkdir -p small
            for i in {1..100000}; do
                test -e "$2" && exit 0
                seq 1 $((i % 7 * 300 + 1)) | dd of=small/$i conv=fsync status=none 2>>"$1.errors" &&
                    echo $i >>"$1" || sleep 0.02
            done
            """

        private static func startStorm(_ node: NodeProcess, _ workshop: Workshop) throws -> (
            ledger: String, child: Child
        ) {
            let ledger = try workshop.write("", to: "ledger")
            let child = try node.host.spawn(
                Shell.bash(
                    "cd \"$3\"; set +e\n\(storm)",
                    [ledger, "\(workshop.directory)/end", node[""]]),
                log: "\(workshop.directory)/storm.log")
            return (ledger, child)
        }

        private static func acknowledged(_ ledger: String) -> Int {
            FileBytes.read(ledger).count { $0 == 0x0A }
        }

        private static func check(_ node: NodeProcess, _ ledger: String) async throws {
            let kept = try await node.sh(
                "while read -r i; do cmp <(seq 1 $((i % 7 * 300 + 1))) small/$i; done <\"$1\"; wc -l <\"$1\"",
                ledger, timeout: Bounds.transfer
            ).succeeded()
            print("all \(kept.line) acknowledged files are there")
        }

        @Test("A used up quota is EDQUOT for the writer, and no acknowledged file is lost")
        func quota() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "quota", .btrfs(megabytes: 2048))
                try await host.sh(
                    "btrfs quota enable \"$1\"; btrfs qgroup limit 400M \"$1\"; btrfs quota rescan -w \"$1\"",
                    disk.path
                ).succeeded()
                let node = try NodeProcess("a", on: host, disk: disk)
                try await node.create()
                let (ledger, storm) = try Self.startStorm(node, workshop)
                let large = try await node.sh(
                    "dd if=/dev/urandom of=large bs=1M count=600 conv=fsync 2>&1",
                    timeout: Bounds.transfer)
                #expect(!large.isSuccess)
                #expect(large.output.contains("Disk quota exceeded"), "\(large.report)")
                try await Task.sleep(for: .seconds(1))
                try await node.sh("rm large").succeeded()
                try await eventually("writing goes on", within: Bounds.offline) {
                    try await node.sh("echo again >again; sync again").isSuccess
                }
                _ = try workshop.write("", to: "end")
                #expect(try await storm.wait(Bounds.command) == 0)
                let errors = FileBytes.text("\(ledger).errors")
                #expect(!errors.contains("Input/output"), "\(errors.suffix(500))")
                try await Self.check(node, ledger)
                try await node.settle()
                try await node.stop()
                try await node.start()
                try await Self.check(node, ledger)
                #expect(try await node.sh("cat again").output == "again\n")
                try await node.checkHistory()
            }
        }

        /// Promises more than it has: what the kernel took is refused when it is written back.
        @Test("A disk that cannot write back what it took fails the fsync and the wait")
        func writeback() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let thin = try await Disk(workshop, "thin", .tmpfs(megabytes: 500))
                let disk = try workshop.make("promised")
                let mount = "mount -o loop,errors=continue \"$1\"/image \"$2\""
                try await host.sh(
                    "truncate -s 2G \"$1\"/image; mkfs.ext4 -q -F \"$1\"/image; \(mount)",
                    thin.path,
                    disk
                ).succeeded()
                workshop.onClose("the promised disk") {
                    _ = try await Shell.run(["umount", "-l", disk])
                }
                let node = try NodeProcess("a", on: host, root: "\(disk)/db")
                try await node.create()
                try await node.sh(
                    "head -c 20M /dev/urandom >kept; sync kept; sha256sum kept >sum; sync sum"
                )
                .succeeded()
                try await node.settle()
                let large = try await node.sh(
                    "dd if=/dev/urandom of=large bs=1M count=600 conv=fsync 2>&1",
                    timeout: Bounds.transfer)
                #expect(!large.isSuccess, "\(large.report)")
                // Closed without an fsync: whoever waits for it learns.
                _ = try await node.sh(
                    "dd if=/dev/urandom of=closed bs=1M count=100", timeout: Bounds.transfer)
                let waited = try await node.command("wait", "--timeout", "2")
                #expect(!waited.isSuccess, "\(waited.report)")
                Faults.tell("a disk that cannot write back, wait", waited.errors)
                let status = try await node.status()
                Faults.tell(
                    "a disk that cannot write back",
                    "status: \(status.unpublished) unpublished, \(status.problems.map(\.text))")
                #expect(status.unpublished > 0 || !status.problems.isEmpty)
                _ = try await node.sh("sha256sum --quiet -c sum").succeeded()
                try await node.kill9()
                try await host.sh(
                    """
                    umount -l "$3"; umount "$2"; mount -o remount,size=3G "$1"
                    e2fsck -fy "$1"/image >/dev/null || test $? -le 2; \(mount)
                    """, thin.path, disk, try #require(node.mount)
                ).succeeded()
                try await node.start()
                try await node.sh("sha256sum --quiet -c sum").succeeded()
                try await node.sh("echo again >again; sync again; cat again").succeeded()
                try await node.checkHistory()
            }
        }

        enum Loss: String, CaseIterable, Sendable {
            case gone = "xfs_io -x -c shutdown \"$1\""
            case readOnly = """
                mount -o remount,errors=remount-ro "$1"
                echo 1 >/sys/fs/ext4/$(basename $(findmnt -no SOURCE "$1"))/trigger_fs_error
                """

            /// From the first failed sync of its log on the catalog is read-only, whatever the disk said.
            var said: [String] {
                self == .gone
                    ? ["Input/output error", "Read-only file system"] : ["Read-only file system"]
            }
        }

        @Test(
            "A disk that is gone or read-only from one moment to the next costs nothing that was fsynced",
            arguments: zip(Loss.allCases, [[], ["--no-passthrough"]]))
        func lost(_ loss: Loss, options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "lost", .ext4(megabytes: 700))
                let node = try NodeProcess("a", on: host, disk: disk, options: options)
                try await node.create()
                let (ledger, storm) = try Self.startStorm(node, workshop)
                try await eventually("files are acknowledged", within: Bounds.transfer) {
                    Self.acknowledged(ledger) > 50
                }
                try await host.sh(loss.rawValue, disk.path).succeeded()
                try await Task.sleep(for: .seconds(1))
                let after = Self.acknowledged(ledger)
                try await Task.sleep(for: .seconds(1))
                #expect(Self.acknowledged(ledger) == after, "Nothing is acknowledged any more.")
                let errors = FileBytes.text("\(ledger).errors")
                #expect(loss.said.contains { errors.contains($0) }, "\(errors)")
                _ = try workshop.write("", to: "end")
                #expect(try await storm.wait(Bounds.command) == 0)
                #expect(try await !node.sh("echo new >new; sync new").isSuccess)
                let told = try await Faults.problem(
                    "catalog-failed", on: node, after: "a disk that is \(loss)")
                Faults.expect(
                    told, says: "The catalog could not be written", "Look after the disk",
                    "restart the node")
                _ = try await node.command("stop")
                _ = try await node.exited(within: Bounds.stop)
                try await disk.repair()
                try await node.start()
                try await Self.check(node, ledger)
                try await node.sh("echo new >new; sync new; cat new").succeeded()
                try await node.settle()
                try await node.checkHistory()
            }
        }

        /// btrfs tells by its checksums that a block is not what was written.
        @Test(
            "A block that cannot be read is EIO for its readers, and everything else goes on",
            arguments: [[], ["--no-passthrough"]])
        func unreadable(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let disk = try await Disk(workshop, "rotten", .btrfs(megabytes: 512))
                let node = try NodeProcess("a", on: host, disk: disk, options: options)
                try await node.create()
                try await node.sh(
                    "{ head -c 4M /dev/zero; echo rotten-block; head -c 4M /dev/zero; } >bad; head -c 8M /dev/urandom >good; sha256sum good >sum"
                ).succeeded()
                try await node.settle()
                try await node.stop()
                try await disk.unmount()
                try await host.sh(
                    """
                    place=$(grep -obUa rotten-block "$1" | cut -d: -f1)
                    for at in $place; do printf ROTTEN | dd of="$1" bs=1 seek=$at conv=notrunc status=none; done
                    """, disk.image
                ).succeeded()
                try await disk.mount()
                try await node.start()
                let read = try await node.sh("cat bad >/dev/null")
                #expect(
                    !read.isSuccess && read.errors.contains("Input/output error"), "\(read.report)")
                try await node.sh(
                    "head -c 1M bad | cmp - <(head -c 1M /dev/zero); sha256sum --quiet -c sum"
                ).succeeded()
                // A new version of it cannot be read either, which whoever waits for it learns.
                try await node.sh("printf new | dd of=bad conv=notrunc,fsync status=none")
                    .succeeded()
                let waited = try await node.command("wait", "--timeout", "1")
                Faults.tell("a block that cannot be read, in a new version, wait", waited.errors)
                #expect(!waited.isSuccess)
                Faults.expect(
                    waited.errors, says: "/bad: read for hashing: Input/output error",
                    "Look after the disk")
                let told = try await Faults.problem(
                    "publishing-failed", on: node, after: "a block that cannot be read")
                Faults.expect(told, says: "/bad", "write the file anew")
                #expect(try await node.status().unpublished > 0)
                try await node.sh(
                    "head -c 8M /dev/urandom | tee ../over | dd of=bad bs=1M conv=notrunc,fsync status=none iflag=fullblock"
                ).succeeded()
                try await node.settle()
                try await node.kill9()
                try await node.start()
                try await node.sh("cmp <(head -c 8M bad) ../over; sha256sum --quiet -c sum; rm bad")
                    .succeeded()
                try await node.settle()
                try await node.checkHistory()
            }
        }

        @Test(
            "Without descriptors opens fail and nothing hangs; with them again all goes on",
            arguments: [[], ["--no-passthrough"]])
        func descriptors(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                try await node.sh(
                    "for i in {1..200}; do head -c 10000 /dev/urandom >$i; done; cat {1..200} | sha256sum >../sum"
                )
                .succeeded()
                try await node.settle()
                let pid = try #require(node.pid)
                func limit(_ count: Int) async throws {
                    try await host.sh("prlimit --pid $1 --nofile=$2:", "\(pid)", "\(count)")
                        .succeeded()
                }
                let before = try await host.sh(
                    "prlimit --pid $1 --nofile --output SOFT --noheadings", "\(pid)")
                let open = Leftovers.names(in: "/proc/\(pid)/fd").count
                // What the kernel reads and writes by itself keeps none open here.
                try await limit(options.isEmpty ? 3 : open + 10)
                let outcome = try await node.sh(
                    """
                    failed=0
                    for i in {1..200}; do { exec {f}<>$i; } 2>>"$1" || failed=$((failed + 1)); done
                    for i in {1..20}; do { echo new >new$i; } 2>>"$1" || { failed=$((failed + 1)); test ! -e new$i; }; done
                    mkdir dir 2>>"$1" || true; ls >/dev/null 2>>"$1" || true; stat -f . >/dev/null
                    echo $failed
                    """, "\(workshop.directory)/errors", timeout: Bounds.transfer
                ).succeeded()
                let errors = FileBytes.text("\(workshop.directory)/errors")
                print("\(outcome.line) opens failed: \(errors.suffix(200))")
                #expect(Int(outcome.line) ?? 0 > 100)
                #expect(errors.contains("Too many open files"))
                #expect(!errors.contains("Input/output"), "\(errors.suffix(500))")
                try await limit(try #require(Int(before.line.filter(\.isNumber))))
                try await node.sh("cat {1..200} | sha256sum | cmp - ../sum; echo new >new; cat new")
                    .succeeded()
                try await node.settle()
                try await node.stop()
                try await node.start()
                try await node.sh("cat {1..200} | sha256sum | cmp - ../sum; cat new").succeeded()
                try await node.checkHistory()
            }
        }
    }
}
