import CModel
import Foundation
import Glibc
import Testing

extension EndToEnd {
    /// What goes wrong most easily where the kernel reads and writes by itself:
    ///
    /// | P | what | where |
    /// |---|---|---|
    /// | 1 | one file opened in every mixture of ways | `OpenStates.table` |
    /// | 2 | appended to, and asked for its size by another process | `appended` |
    /// | 3 | a store through a mapping, then stat and read by others | `OpenStates.table`, `map` |
    /// | 4 | set-id bits and capabilities go when others write | `privileges` |
    /// | 5 | renamed over a file while both are open | `renamedOver` |
    /// | 6 | kill -9 during writes | `LateWrites`, `Crash`, `Kill` |
    /// | 7 | unlinked while open, then written to | `OpenStates.table`, `unlinkedWriter` |
    /// | 8 | partial becomes complete under a reader | `completedUnderReader` |
    /// | 9 | roots on overlayfs, tmpfs, XFS, btrfs | `onOverlayfs`, `OneNode.fileLifeOnOtherDisks` |
    /// | 10 | all the same without passthrough | `OpenStates.table`, `Model`, `OneNode.fileLife` |
    /// | 11 | 10,000 files open at once | `manyOpen` |
    /// | 12 | many open and close one file at once | `storm` |
    /// | 13 | no request for a write | `noRequests` |
    @Suite("Passthrough", .serialized, .timeLimit(.minutes(5)))
    struct Passthrough {
        private static let size = 40_000
        private static let user = Account(uid: 1000, gid: 1000)

        /// Of one node whose mount passes through, or the tests would be about nothing.
        private static func open(
            on kind: Disk.Kind = .directory, _ options: [String] = [],
            _ body: (Solo, _ mount: String) async throws -> Void
        ) async throws {
            try await Solo.open(on: kind, options) { solo in
                guard try await solo.node.status().passthrough == options.isEmpty else {
                    throw Failure("Nothing can be tried: status says that passthrough is off.")
                }
                try await body(solo, try #require(solo.node.mount))
            }
        }

        private static func make(_ path: String, _ flags: Int32 = O_RDWR | O_CREAT) throws -> Int32
        {
            let file = Glibc.open(path, flags | O_CLOEXEC, 0o666)
            guard file >= 0 else { throw Failure("open \(path): \(ModelWorld.name(errno))") }
            return file
        }

        private static func bytes(_ seed: Int) -> [UInt8] {
            (0..<size).map { UInt8(truncatingIfNeeded: $0 / 251 &+ $0 &* (seed + 1)) }
        }

        private static func makeFile(_ path: String, _ seed: Int) throws {
            let file = try make(path)
            defer { close(file) }
            guard pwrite(file, bytes(seed), size, 0) == size, fchmod(file, 0o666) == 0 else {
                throw Failure("\(path) cannot be written.")
            }
        }

        // MARK: Requests

        @Test("Reading and writing make no request: they go on while the node is stopped")
        func noRequests() async throws {
            try await Self.open { solo, mount in
                let names = ["published", "taken", "read", "unlinked"]
                for (index, name) in names.enumerated() {
                    try Self.makeFile("\(mount)/\(name)", index)
                }
                try await solo.node.settle()
                let pid = try #require(solo.node.pid)
                let reader = try Self.make("\(mount)/taken", O_RDONLY)
                let unlinked = try Self.make("\(mount)/unlinked", O_RDWR)
                #expect(unlink("\(mount)/unlinked") == 0)
                let rows: [(name: String, file: Int32)] = [
                    ("new", try Self.make("\(mount)/new")),
                    ("appended", try Self.make("\(mount)/appended", O_RDWR | O_CREAT | O_APPEND)),
                    ("published", try Self.make("\(mount)/published", O_RDWR)),
                    ("taken from a reader", try Self.make("\(mount)/taken", O_RDWR)),
                    ("only read", try Self.make("\(mount)/read", O_RDONLY)),
                    ("unlinked", unlinked),
                    ("temporary", try Self.make(mount, O_RDWR | cmodel_o_tmpfile)),
                ]
                defer { for file in rows.map(\.file) + [reader] { close(file) } }
                for row in rows {
                    // The kernel asks for the capabilities once, after it got attributes.
                    if row.name != "only read" { #expect(pwrite(row.file, "x", 1, 0) == 1) }
                    for account in [Account.root, Self.user] {
                        let said = try await Self.whileStopped(pid) {
                            Self.use(row.file, as: account)
                        }
                        #expect(said == "done", "\(row.name), uid \(account.uid)")
                    }
                }
                let seen = try await Self.whileStopped(pid) { () -> String in
                    var byte: UInt8 = 0
                    return pread(reader, &byte, 1, 999) == 1 && byte == 0x77 ? "done" : "\(byte)"
                }
                #expect(seen == "done", "The reader sees what was written.")
            }
        }

        /// Reads, writes, maps.
        private static func use(_ file: Int32, as account: Account) -> String {
            cmodel_act_as(account.uid, account.gid)
            defer { cmodel_act_as(0, 0) }
            var block = [UInt8](repeating: 0x77, count: 4096)
            if fcntl(file, F_GETFL) & O_ACCMODE != O_RDONLY {
                for index in 0..<500 {
                    guard pwrite(file, block, 4096, index % 10 * 4096) == 4096 else {
                        return "write: \(ModelWorld.name(errno))"
                    }
                }
                guard let memory = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0),
                    memory != MAP_FAILED
                else { return "mmap: \(ModelWorld.name(errno))" }
                memory.storeBytes(of: 0x78, as: UInt8.self)
                munmap(memory, 4096)
            }
            for index in 0..<500 {
                guard pread(file, &block, 4096, index % 9 * 4096) == 4096 else {
                    return "read: \(ModelWorld.name(errno))"
                }
            }
            return "done"
        }

        /// - Returns: what the body says, unless it had to wait for the node.
        private static func whileStopped(
            _ pid: pid_t, _ body: @escaping @Sendable () -> String
        ) async throws -> String {
            kill(pid, SIGSTOP)
            try await eventually("the node is stopped", within: Bounds.command) {
                Leftovers.names(in: "/proc/\(pid)/task").allSatisfy { thread in
                    // "." and ".." have no state.
                    let stat = FileBytes.text("/proc/\(pid)/task/\(thread)/stat")
                    return stat.isEmpty || stat.split(separator: ")").last?.hasPrefix(" T") == true
                }
            }
            let watch = Task {
                try await Task.sleep(for: .seconds(10))
                kill(pid, SIGCONT)
            }
            let said = try await onThread(body)
            watch.cancel()
            kill(pid, SIGCONT)
            if case .success = await watch.result { return "waited for the node" }
            return said
        }

        // MARK: Beside ext4

        /// The same in a directory of ext4 and on a mount, where what `make` makes is published before
        /// `use`; both must say the same.
        private static func compare(
            make: @escaping @Sendable (_ directory: String) throws -> Void,
            use: @escaping @Sendable (_ directory: String) throws -> [String]
        ) async throws {
            try await Self.open(on: .ext4(megabytes: 1024)) { solo, mount in
                let oracle = try await Disk.oracle(solo.workshop).path
                try await onThread { for side in [oracle, mount] { try make(side) } }
                try await solo.node.settle()
                let expected = try await onThread { try use(oracle) }
                let seen = try await onThread { try use(mount) }
                for (expected, seen) in zip(expected, seen) { #expect(seen == expected) }
                #expect(seen.count == expected.count)
            }
        }

        private struct PrivilegedFile {
            let state, mark, action: String
            let account: Account
            var name: String { "\(state)-\(mark)-\(action)-\(account.uid)" }

            static let all = ["published", "read", "new"].flatMap { state in
                ["4777", "2777", "6777", "capability"].flatMap { mark in
                    ["write", "map", "truncate", "truncatingOpen"].flatMap { action in
                        [Account.root, user].map {
                            Self(state: state, mark: mark, action: action, account: $0)
                        }
                    }
                }
            }

            func make(_ path: String, _ seed: Int) throws {
                try makeFile(path, seed)
                if let mode = mode_t(mark, radix: 8) {
                    guard chmod(path, mode) == 0 else { throw Failure("chmod \(path)") }
                } else {
                    // CAP_NET_BIND_SERVICE, effective.
                    let value: [UInt8] = [1, 0, 0, 2, 0, 4] + Array(repeating: 0, count: 14)
                    let done = cmodel_set_xattr(path, "security.capability", value, 20, 0)
                    guard done == 0 else { throw Failure("setxattr \(path): \(done)") }
                }
            }

            /// - Returns: the marks that are left.
            func use(_ path: String) throws -> String {
                let reader = state == "read" ? try Passthrough.make(path, O_RDONLY) : -1
                defer { if reader >= 0 { close(reader) } }
                cmodel_act_as(account.uid, account.gid)
                defer { cmodel_act_as(0, 0) }
                var result = 0
                switch action {
                case "truncate": result = Int(truncate(path, 20_001))
                case "truncatingOpen": close(try Passthrough.make(path, O_WRONLY | O_TRUNC))
                default:
                    let file = try Passthrough.make(path, O_RDWR)
                    defer { close(file) }
                    if action == "map" {
                        let memory = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                        guard let memory, memory != MAP_FAILED else { return "not mapped" }
                        memory.storeBytes(of: 1, as: UInt8.self)
                        munmap(memory, 4096)
                    } else {
                        result = pwrite(file, "xyz", 3, 7)
                    }
                }
                var status = stat()
                guard stat(path, &status) == 0 else { return ModelWorld.name(errno) }
                var value = [UInt8](repeating: 0, count: 64)
                let kept = cmodel_get_xattr(path, "security.capability", &value, 64)
                return "\(name): \(result), \(String(status.st_mode, radix: 8)), \(kept)"
            }
        }

        @Test("Whoever writes takes set-id bits and capabilities away, as on ext4")
        func privileges() async throws {
            let files = PrivilegedFile.all
            try await Self.compare { directory in
                for (index, file) in files.enumerated() where file.state != "new" {
                    try file.make("\(directory)/\(file.name)", index)
                }
            } use: { directory in
                try files.enumerated().map { index, file in
                    let path = "\(directory)/\(file.name)"
                    if file.state == "new" { try file.make(path, index) }
                    return try file.use(path)
                }
            }
        }

        @Test("Renaming over a file and exchanging two leave open descriptors where they were")
        func renamedOver() async throws {
            try await Self.compare { directory in
                for (index, name) in ["final", "other"].enumerated() {
                    try Self.makeFile("\(directory)/\(name)", index)
                }
            } use: { directory in
                let (temporary, final, other) = (
                    "\(directory)/temporary", "\(directory)/final", "\(directory)/other"
                )
                let old = try Self.make(final, O_RDWR)
                try Self.makeFile(temporary, 3)
                let new = try Self.make(temporary, O_RDWR)
                let reader = try Self.make(other, O_RDONLY)
                defer { for file in [old, new, reader] { close(file) } }
                var said: [String] = []
                func look(_ when: String) throws {
                    said.append(
                        "\(when): \(try [old, new, reader].map(Self.words)) \(try [final, other].map(Self.words(path:)))"
                    )
                }
                try look("before")
                said.append("\(rename(temporary, final))")
                try look("renamed")
                said.append("\(pwrite(new, "NEW", 3, 5)) \(pwrite(old, "OLD", 3, 5))")
                try look("written")
                said.append("\(cmodel_rename(final, other, 2))")
                said.append("\(pwrite(new, "NEWER", 5, 50)) \(truncate(final, 20_001))")
                try look("exchanged")
                return said
            }
        }

        private static func words(_ file: Int32) throws -> String {
            var status = stat()
            var block = [UInt8](repeating: 0, count: size)
            guard fstat(file, &status) == 0 else { return ModelWorld.name(errno) }
            let count = pread(file, &block, size, 0)
            let digest = count < 0 ? 0 : cmodel_digest(block, UInt64(count))
            return "\(status.st_size) \(status.st_nlink) \(count) \(digest)"
        }

        private static func words(path: String) throws -> String {
            let file = try make(path, O_RDONLY)
            defer { close(file) }
            return try words(file)
        }

        @Test("Another process sees the size of a file grow with each append")
        func appended() async throws {
            try await Self.open { solo, _ in
                let script = """
                    for round in 1 2; do
                        exec 3>>file 4>>file
                        for i in {1..30}; do printf %250s x >&3; stat -c %s file; printf y >&4; stat -c %s file; done
                        exec 3>&- 4>&-
                        "$1" wait --root "$2" --timeout 30 >&2
                    done
                    """
                let outcome = try await solo.host.run(
                    Shell.bash(
                        "cd '\(solo.node[""])'\n\(script)", [Machine.binary, solo.node.root]),
                    environment: solo.node.environment)
                let sizes = (1...60).flatMap { ["\($0 * 251 - 1)", "\($0 * 251)"] }
                #expect(
                    outcome.output.split(separator: "\n").map(String.init) == sizes,
                    "\(outcome.report)")
            }
        }

        // MARK: Places

        @Test("A root on overlayfs gives the same file life")
        func onOverlayfs() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk.oracle(workshop)
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                try await FileLife.run(on: host, in: oracle.path)
                let disk = try await Disk(workshop, "overlay", .ext4(megabytes: 1024))
                let merged = try workshop.make("merged")
                try await Shell.script(
                    """
                    cd "$1"; mkdir lower upper work
                    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay "$2"
                    """, [disk.path, merged]
                ).succeeded()
                workshop.onClose("overlayfs") { _ = try await Shell.run(["umount", "-l", merged]) }
                let node = try NodeProcess("a", on: host, root: "\(merged)/db")
                try await node.create()
                try await FileLife.runAndCompare(node, oracle, "The mount over overlayfs")
            }
        }

        @Test("A file that is complete after it was opened is read and written by all alike")
        func completedUnderReader() async throws {
            try await Workshop.open { workshop in
                let source = try await workshop.randomFile("source", bytes: 3 << 20, seed: 31)
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let c = try NodeProcess("c", on: try await network.host())
                try await a.create("--copies", "1")
                try await c.join(a)
                try await c.waitForPeers("a")
                try await a.sh("cp \"$1\" file", source).succeeded()
                try await c.sees("file")
                #expect(try await c.whereIs("file").copies == 1)
                let outcome = try await c.sh(
                    """
                    exec 3<file 5<file
                    cmp <(head -c 100000 <&3) <(head -c 100000 "$1")
                    cmp file "$1"
                    until [ "$(find "$2"/objects -type f -size +2M | wc -l)" = 1 ]; do sleep 0.02; done
                    exec 4<file
                    cmp <(head -c 200000 <&4) <(head -c 200000 "$1")
                    exec 6<>file
                    printf CHANGED | dd of=file bs=1 seek=300000 conv=notrunc status=none
                    for fd in 3 4 5; do tail -c +300001 /dev/fd/$fd >/dev/null; done
                    perl -e 'for (3..6) { open my $f, "<&=$_"; sysseek $f, 300_000, 0; sysread $f, my $b, 7; print "$b\n" }'
                    exec 3<&- 4<&- 5<&- 6>&-
                    exec 3<file; head -c 300007 <&3 | tail -c 7
                    """, source, c.root, timeout: Bounds.transfer)
                #expect(
                    outcome.output == String(repeating: "CHANGED\n", count: 4) + "CHANGED",
                    "\(outcome.report)")
            }
        }

        // MARK: Many

        @Test("10,000 files are open at once, and take no descriptor of the node")
        func manyOpen() async throws {
            try await Self.open { solo, _ in
                let outcome = try await solo.node.sh(
                    """
                    ulimit -n 12000
                    perl -e '
                        for (1 .. 10_000) {
                            open $f[$_], "+>", "file$_" or die "open $_: $!";
                            syswrite $f[$_], "<$_>" or die "write $_: $!";
                        }
                        opendir my $d, "/proc/$ARGV[0]/fd"; print scalar(() = readdir $d), "\\n";
                        for (1 .. 10_000) {
                            sysseek $f[$_], 0, 0; sysread $f[$_], my $b, 100;
                            $b eq "<$_>" or die "read $_: $b $!";
                        }' "$1"
                    cat file{1..10000} | wc -c
                    """, "\(try #require(solo.node.pid))", timeout: Bounds.transfer)
                let lines = outcome.output.split(separator: "\n").map(String.init)
                try #require(outcome.isSuccess && lines.count == 2, "\(outcome.report)")
                #expect(lines[1] == "58894")
                #expect(Int(lines[0]) ?? .max < 1000, "descriptors of the node")
            }
        }

        private static let stormTurns = 150
        private static let stormThreads = 8

        @Test(
            "While many open, change and close one file no call fails",
            arguments: [[], ["--no-passthrough"]])
        func storm(options: [String]) async throws {
            try await Self.open(options) { solo, mount in
                let path = "\(mount)/file"
                try await onThread { try Self.makeFile(path, 0) }
                let settles = Task {
                    while !Task.isCancelled { try await solo.node.settle() }
                }
                let failures = try await withThrowingTaskGroup(of: String?.self) { group in
                    for number in 0..<Self.stormThreads {
                        group.addTask {
                            try await onThread { Self.useInTurn(path, number) }
                        }
                    }
                    return try await group.compactMap { $0 }.reduce(into: []) { $0.append($1) }
                }
                settles.cancel()
                _ = await settles.result
                #expect(failures == [])
                let before = try await solo.node.sha256("file")
                try await solo.node.settle()
                #expect(try await solo.node.sha256("file") == before)
                try await solo.node.stop()
                try await solo.node.start()
                #expect(try await solo.node.sha256("file") == before)
            }
        }

        /// - Returns: the call that failed.
        private static func useInTurn(_ path: String, _ number: Int) -> String? {
            let block = bytes(number)
            var read = [UInt8](repeating: 0, count: size)
            for turn in 0..<stormTurns {
                // Each of the threads does all of it, in another order.
                let kind = (turn + number) % 5
                let flags = [O_RDONLY, O_RDWR, O_WRONLY | O_TRUNC, O_RDWR | O_APPEND, O_RDONLY][
                    kind]
                if kind == 4, turn % 3 == 0, truncate(path, 20_001) != 0 {
                    return "truncate: \(ModelWorld.name(errno))"
                }
                let file = Glibc.open(path, flags | O_CLOEXEC)
                guard file >= 0 else { return "open \(flags): \(ModelWorld.name(errno))" }
                defer { close(file) }
                let count =
                    switch kind {
                    case 1, 2: pwrite(file, block, size, 0)
                    case 3: Glibc.write(file, block, 100)
                    default: pread(file, &read, size, 0)
                    }
                guard count >= 0 else {
                    return "\(kind) in turn \(turn): \(ModelWorld.name(errno))"
                }
            }
            return nil
        }
    }
}
