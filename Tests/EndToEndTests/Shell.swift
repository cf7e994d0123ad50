import Glibc
import Synchronization

/// How a command ended and what it printed.
struct Outcome: Sendable {
    let command: String
    /// The exit code; 128 + signal when a signal ended it.
    let status: Int32
    /// Bytes, because file names are not always text.
    let bytes: [UInt8]
    let errors: String
    let duration: Duration

    var output: String { String(decoding: bytes, as: UTF8.self) }
    var line: String { output.split(separator: "\n").first.map(String.init) ?? "" }
    var isSuccess: Bool { status == 0 }

    /// - Throws: `Failure` with the command and what it said.
    @discardableResult
    func succeeded() throws -> Outcome {
        guard isSuccess else { throw Failure(report) }
        return self
    }

    var report: String {
        "`\(command.prefix(600))` ended with \(status): \(errors.suffix(2000)) \(output.suffix(2000))"
    }
}

/// A child in a process group of its own, so that its children end with it.
final class Child: Sendable {
    let pid: pid_t
    private let ended = Mutex<Int32?>(nil)

    /// - Parameter output: where standard output and error go; nil: the given descriptors.
    init(
        _ command: [String], environment: [String: String], input: Int32, output: Int32,
        errors: Int32
    ) throws {
        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
        arguments.append(nil)
        var variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup("\($0)=\($1)") }
        variables.append(nil)
        defer { (arguments + variables).forEach { free($0) } }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, input, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, errors, 2)
        // Threads of the cooperative pool block most signals, and children inherit that.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETSIGMASK) | Int16(POSIX_SPAWN_SETPGROUP))
        var child = pid_t()
        let error = posix_spawnp(&child, command[0], &actions, &attributes, arguments, variables)
        guard error == 0 else {
            throw Failure("\(command[0]) cannot be started: \(String(cString: strerror(error)))")
        }
        pid = child
    }

    /// The exit code, 128 + signal, or nil while it runs.
    var status: Int32? {
        ended.withLock { ended in
            if let ended { return ended }
            var status: Int32 = 0
            guard waitpid(pid, &status, WNOHANG) == pid else { return nil }
            ended = status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + (status & 0x7F)
            return ended
        }
    }

    func send(_ signal: Int32) { if status == nil { kill(pid, signal) } }

    /// Ends the whole group at once.
    func kill9() { if status == nil { killpg(pid, SIGKILL) } }

    /// - Returns: nil when it still runs after that time.
    func wait(_ bound: Duration) async throws -> Int32? {
        let deadline = ContinuousClock.now + bound
        var pause = Duration.milliseconds(2)
        while ContinuousClock.now < deadline {
            if let status { return status }
            try await Task.sleep(for: pause)
            pause = min(pause * 2, .milliseconds(40))
        }
        return status
    }
}

/// Runs commands as children with a bound: a process that touches a mount served by something
/// broken can hang, and it must not be this one.
enum Shell {
    /// Nothing of the user's own environment, so that no file of theirs is touched.
    static let environment = [
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C",
        "HOME": "/nonexistent",
    ]

    static func run(
        _ command: [String], environment: [String: String] = environment, input: String? = nil,
        timeout: Duration = Bounds.command
    ) async throws -> Outcome {
        let start = ContinuousClock.now
        let (source, output, errors) = (
            try Scratch(input ?? ""), try Scratch(), try Scratch()
        )
        let child = try Child(
            command, environment: environment, input: source.descriptor,
            output: output.descriptor, errors: errors.descriptor)
        let ended: Int32?
        do {
            ended = try await child.wait(timeout)
        } catch {
            child.kill9()
            throw error
        }
        guard let status = ended else {
            child.kill9()
            let isGone = try await child.wait(Bounds.reaped) != nil
            throw Failure(
                "`\(command.joined(separator: " ").prefix(600))` did not end within \(timeout)\(isGone ? "" : " and cannot be killed"): \(errors.text.suffix(1000)) \(output.text.suffix(1000))"
            )
        }
        return Outcome(
            command: command.joined(separator: " "), status: status, bytes: output.bytes,
            errors: errors.text, duration: ContinuousClock.now - start)
    }

    /// A script for bash; it stops at the first failing command.
    static func script(
        _ text: String, _ arguments: [String] = [], timeout: Duration = Bounds.command
    ) async throws -> Outcome {
        try await run(bash(text, arguments), timeout: timeout)
    }

    static func bash(_ text: String, _ arguments: [String]) -> [String] {
        ["bash", "-euo", "pipefail", "-c", text, "test"] + arguments
    }
}

/// A temporary file without a name.
private final class Scratch {
    let descriptor: Int32

    init(_ content: String = "") throws {
        var template = Array("/tmp/delugefs-e2e-output.XXXXXX".utf8CString)
        descriptor = mkstemp(&template)
        guard descriptor >= 0 else { throw Failure("A temporary file cannot be made in /tmp.") }
        unlink(template)
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        let bytes = Array(content.utf8)
        guard pwrite(descriptor, bytes, bytes.count, 0) == bytes.count else {
            throw Failure("/tmp is full.")
        }
    }

    deinit { close(descriptor) }

    var bytes: [UInt8] {
        let size = Int(lseek(descriptor, 0, SEEK_END))
        guard size > 0 else { return [] }
        return [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            count = max(0, pread(descriptor, buffer.baseAddress, size, 0))
        }
    }

    var text: String { String(decoding: bytes, as: UTF8.self) }
}
