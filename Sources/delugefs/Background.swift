import Glibc
import SystemPackage

/// `--background`: the same program with the same arguments in a session of its own, which tells
/// over a pipe when it is ready. Never fork: this process may have threads.
enum Background {
    /// For the child alone: `READY:KEY`, the descriptors of the two pipes; KEY is empty when the
    /// node has to find its key itself.
    private static let variable = "DELUGEFS_BACKGROUND_PIPES"
    private static let readyDescriptor: CInt = 3
    private static let keyDescriptor: CInt = 4
    /// POSIX_SPAWN_SETSID, which Glibc's module hides behind _GNU_SOURCE.
    private static let newSession: CInt = 0x80
    /// A report is one line: a sentence with paths in it.
    private static let reportBytesMax = 64 << 10

    // MARK: The parent

    /// Starts the child and returns once it is ready.
    ///
    /// - Returns: what it says to a person.
    /// - Throws: `Failure` with the child's sentence and exit code.
    static func launch(key: String?) throws -> String {
        let ready = try pipe()
        defer { try? ready.reading.close() }
        let pid: pid_t
        do {
            defer { try? ready.writing.close() }
            let keys = try key.map { text in
                let keys = try pipe()
                // Far less than a pipe holds: does not wait for a reader.
                Terminal.write(Array(text.utf8), to: keys.writing.rawValue)
                try keys.writing.close()
                return keys.reading
            }
            defer { try? keys?.close() }
            pid = try spawn(ready: ready.writing, key: keys)
        }
        guard let report = Report(parsing: read(ready.reading)) else {
            throw Failure(
                "The node ended before it was ready (\(end(of: pid))); run it without --background to see why."
            )
        }
        switch report {
        case .ready(let text): return text
        case .failed(let failure):
            // It goes now; nobody else would collect it before we end too.
            _ = end(of: pid)
            throw failure
        }
    }

    /// High numbers, so that giving them 3 and 4 in the child hits neither.
    private static func pipe() throws -> (reading: FileDescriptor, writing: FileDescriptor) {
        var ends: [CInt] = [-1, -1]
        guard Glibc.pipe(&ends) == 0 else {
            throw Failure("No pipe could be made: \(Errno(rawValue: errno)).")
        }
        let moved = ends.map { end in
            let high = fcntl(end, F_DUPFD_CLOEXEC, 16)
            close(end)
            return high
        }
        guard moved.allSatisfy({ $0 >= 0 }) else {
            throw Failure("No pipe could be made; raise the limit of open files (ulimit -n).")
        }
        return (FileDescriptor(rawValue: moved[0]), FileDescriptor(rawValue: moved[1]))
    }

    private static func spawn(ready: FileDescriptor, key: FileDescriptor?) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ready.rawValue, readyDescriptor)
        if let key { posix_spawn_file_actions_adddup2(&actions, key.rawValue, keyDescriptor) }
        closeOnSpawn()

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var noSignals = sigset_t()
        sigemptyset(&noSignals)
        posix_spawnattr_setsigmask(&attributes, &noSignals)
        posix_spawnattr_setflags(&attributes, Int16(newSession | POSIX_SPAWN_SETSIGMASK))

        let pipes = "\(readyDescriptor):\(key == nil ? "" : "\(keyDescriptor)")"
        guard setenv(variable, pipes, 1) == 0 else {
            throw Failure("The environment could not be set: \(Errno(rawValue: errno)).")
        }
        defer { unsetenv(variable) }
        var pid: pid_t = 0
        let code = posix_spawn(
            &pid, "/proc/self/exe", &actions, &attributes, CommandLine.unsafeArgv, environ)
        guard code == 0 else {
            throw Failure(
                "The node could not be started in the background: \(Errno(rawValue: code)).")
        }
        return pid
    }

    /// What our own parent left open is not for a process that stays.
    private static func closeOnSpawn() {
        guard let directory = opendir("/proc/self/fd") else { return }
        defer { closedir(directory) }
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if let number = CInt(name), number > STDERR_FILENO {
                _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            }
        }
    }

    private static func read(_ file: FileDescriptor) -> [UInt8] {
        var report: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while report.count < reportBytesMax, report.last != 0x0A {
            let count = buffer.withUnsafeMutableBytes { (try? file.read(into: $0)) ?? 0 }
            if count == 0 { break }
            report += buffer.prefix(count)
        }
        return report
    }

    private static func end(of pid: pid_t) -> String {
        var status: CInt = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        let signal = status & 0x7F
        return signal == 0 ? "exit status \(status >> 8 & 0xFF)" : "signal \(signal)"
    }

    /// What the child says, in one line: `ready TEXT` or `failed CODE SENTENCE`.
    private enum Report {
        case ready(String)
        case failed(Failure)

        init?(parsing bytes: [UInt8]) {
            guard bytes.last == 0x0A else { return nil }
            let line = String(decoding: bytes.dropLast(), as: UTF8.self)
            let words = line.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false)
            switch words.first {
            case "ready": self = .ready(String(line.dropFirst("ready ".count)))
            case "failed":
                guard words.count == 3, let number = CInt(words[1]),
                    let code = Failure.ExitCode(rawValue: number)
                else { return nil }
                self = .failed(Failure(String(words[2]), exitCode: code))
            default: return nil
            }
        }
    }

    // MARK: The child

    /// The child's ends of the pipes.
    struct Inheritance {
        let key: String?
        private let ready: FileDescriptor

        /// Nil in a process that was not started by `launch`.
        init?() {
            guard let text = SecretEnvironment.value(variable) else { return nil }
            unsetenv(variable)
            let numbers = text.split(separator: ":", omittingEmptySubsequences: false)
            guard numbers.count == 2, let number = CInt(numbers[0]) else { return nil }
            ready = FileDescriptor(rawValue: number)
            _ = fcntl(ready.rawValue, F_SETFD, FD_CLOEXEC)
            key = CInt(numbers[1]).map { number in
                let file = FileDescriptor(rawValue: number)
                defer { try? file.close() }
                return String(decoding: (try? KeySource.read(file)) ?? [], as: UTF8.self)
            }
            nameProcess()
        }

        /// False when nobody waits any more.
        func report(ready text: String) -> Bool { send("ready \(text)") }

        func report(_ failure: Failure) {
            _ = send("failed \(failure.exitCode.rawValue) \(failure.sentence)")
        }

        private func send(_ line: String) -> Bool {
            let flat = line.split(separator: "\n").joined(separator: " ") + "\n"
            defer { try? ready.close() }
            return (try? ready.writeAll(flat.utf8)) != nil
        }

        /// Started through /proc/self/exe we would be called "exe" in lists of processes.
        private func nameProcess() {
            let file = try? FileDescriptor.open(
                "/proc/self/comm", .writeOnly, options: .closeOnExec)
            _ = try? file?.closeAfter { try file?.writeAll("delugefs".utf8) }
        }
    }
}
