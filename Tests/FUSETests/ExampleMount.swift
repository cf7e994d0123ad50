import CFUSE
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import FUSE

/// What a child process left.
struct Outcome: Equatable {
    /// The exit code, or the negative number of the signal that ended it.
    var status: Int32
    var output: String
}

/// A child process. The process that serves a mount must never touch it; children do.
final class ChildProcess: Sendable {
    let pid: pid_t
    private let output: Int32

    /// Runs a shell command.
    convenience init(_ command: String) throws {
        try self.init(arguments: ["/bin/sh", "-c", command])
    }

    init(arguments: [String]) throws {
        var ends: [Int32] = [-1, -1]
        try #require(pipe2(&ends, O_CLOEXEC) == 0)
        defer { close(ends[1]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
        // A group of its own, to be signalled as a whole; signals as in a fresh process.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setflags(
            &attributes,
            Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        let environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]
        var envp: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) } + [nil]
        defer { for string in argv + envp { free(string) } }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, arguments[0], &actions, &attributes, &argv, &envp)
        try #require(code == 0)
        self.pid = pid
        output = ends[0]
    }

    func signal(_ number: Int32) {
        kill(-pid, number)
    }

    /// Waits for the end, at most 30 seconds; then the process is killed.
    func wait() -> Outcome {
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        var event = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
        while true {
            if poll(&event, 1, 30_000) == 0 {
                signal(SIGKILL)
                text += Array("(timed out)".utf8)
                break
            }
            let count = Glibc.read(output, &chunk, chunk.count)
            if count <= 0 { break }
            text += chunk[..<count]
        }
        close(output)
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        let signal = status & 0x7f
        return Outcome(
            status: signal == 0 ? (status >> 8) & 0xff : -signal,
            output: String(decoding: text, as: UTF8.self))
    }
}

/// A temporary directory, with a mount point and a place for backing files in it.
struct Workshop {
    let directory: FilePath
    var mountPoint: FilePath { directory.appending("mount") }
    var scratch: FilePath { directory.appending("scratch") }

    init() throws {
        var template = Array("/tmp/fuse-test-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        directory = FilePath(platformString: template)
        for path in [mountPoint, scratch] {
            try #require(path.withPlatformString { Glibc.mkdir($0, 0o777) } == 0)
        }
    }

    func remove() {
        _ = try? ChildProcess("rm -rf --one-file-system '\(directory)'").wait()
    }
}

/// The example file system, mounted and served by this process.
final class ExampleMount: Sendable {
    let workshop: Workshop
    let fileSystem: ExampleFileSystem
    let session: Session
    let features: Features
    let complaints: Complaints

    final class Complaints: Sendable {
        private let list = Mutex<[String]>([])
        func add(_ complaint: String) { list.withLock { $0.append(complaint) } }
        var all: [String] { list.withLock { $0 } }
    }

    init(
        options: SessionOptions = SessionOptions(), valid: Duration = .seconds(1),
        mounting: MountOptions = MountOptions(source: "example", subtype: "example")
    ) throws {
        workshop = try Workshop()
        fileSystem = ExampleFileSystem(scratch: workshop.scratch, valid: valid)
        let channel = try Mounting.mount(at: workshop.mountPoint, options: mounting)
        let complaints = Complaints()
        var options = options
        options.report = { complaints.add($0) }
        session = try Session(fileSystem: fileSystem, channel: channel, options: options)
        fileSystem.session.withLock { [session] in $0 = session }
        features = try session.start()
        self.complaints = complaints
    }

    var path: String { workshop.mountPoint.string }

    /// Runs a shell command with the mount point as its directory.
    func start(_ command: String) throws -> ChildProcess {
        try ChildProcess("cd '\(path)' && { \(command)\n}")
    }

    func sh(_ command: String) throws -> Outcome {
        try start(command).wait()
    }

    func end() throws {
        try Mounting.unmountAtAnyRate(at: workshop.mountPoint)
        session.wait()
        fileSystem.session.withLock { $0 = nil }
        workshop.remove()
    }
}

/// Runs the jobs of a task on threads of their own: tests block, which Swift's cooperative pool
/// must not, and stay in their task, so that what they find is theirs.
final class ThreadExecutor: TaskExecutor {
    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        do {
            try NamedThread(name: "test") { [self] in
                job.runSynchronously(on: asUnownedTaskExecutor())
            }.abandon()
        } catch {
            fatalError("no thread for a test: \(error)")
        }
    }
}

func onThread(_ body: @Sendable () throws -> Void) async throws {
    try await withTaskExecutorPreference(ThreadExecutor()) { try body() }
}

func withExampleMount(
    options: SessionOptions = SessionOptions(), valid: Duration = .seconds(1),
    mounting: MountOptions = MountOptions(source: "example", subtype: "example"),
    _ body: @Sendable (ExampleMount) throws -> Void
) async throws {
    try await onThread {
        let mount = try ExampleMount(options: options, valid: valid, mounting: mounting)
        do {
            try body(mount)
        } catch {
            try? mount.end()
            throw error
        }
        try mount.end()
    }
}

/// Waits for something that another thread or process brings about, at most 10 seconds.
func eventually(_ condition: () -> Bool) -> Bool {
    for _ in 0..<10_000 {
        if condition() { return true }
        usleep(1000)
    }
    return false
}
