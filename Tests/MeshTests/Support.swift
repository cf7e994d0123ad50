import Crypto
import Foundation
import Glibc
import SystemPackage

/// Removed with everything in it at the end of the test.
final class TemporaryDirectory: Sendable {
    let path: FilePath

    init(in parent: FilePath = "/tmp") throws {
        var template = Array("\(parent)/mesh-test-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        path = FilePath(platformString: template)
    }

    deinit { try? FileManager.default.removeItem(atPath: path.string) }

    func write(_ name: String, _ text: String) throws {
        try OwnerFile.write(path.appending(name), text)
    }
}

private enum OwnerFile {
    static func write(_ path: FilePath, _ text: String) throws {
        let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .truncate], permissions: [.ownerReadWrite])
        try file.closeAfter { _ = try file.writeAll(text.utf8) }
    }
}

/// SplitMix64: reproducible from its printed seed.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

func sha256(_ bytes: [UInt8]) -> [UInt8] { Array(SHA256.hash(data: bytes)) }

/// Runs a program to its end; output and errors together.
@discardableResult
func run(_ arguments: String..., input: String = "") async throws -> (
    status: Int32, output: String
) {
    try await runArguments(arguments, input: input)
}

func runArguments(_ arguments: [String], input: String) async throws -> (
    status: Int32, output: String
) {
    try await onThread { try spawnAndWait(arguments, input: input) }
}

/// Not Foundation's Process: its `waitUntilExit` now and then misses the end of a program, for
/// ever.
/// Files instead of pipes: nothing waits for another program that inherited an end.
private func spawnAndWait(_ arguments: [String], input: String) throws -> (
    status: Int32, output: String
) {
    let directory = try TemporaryDirectory()
    try directory.write("in", input)
    try directory.write("out", "")
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "\(directory.path)/in", O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, "\(directory.path)/out", O_WRONLY, 0)
    posix_spawn_file_actions_adddup2(&actions, 1, 2)
    // Else a program keeps alive the connections that the test closes. (closefrom_np would do, but
    // is hidden behind _GNU_SOURCE; closing what is not open is no error.)
    for descriptor in Int32(3)..<1024 {
        posix_spawn_file_actions_addclose(&actions, descriptor)
    }
    var words = arguments.map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var process: pid_t = 0
    let code = posix_spawnp(&process, arguments[0], &actions, nil, &words, environ)
    guard code == 0 else { throw Errno(rawValue: code) }
    var status: Int32 = 0
    while waitpid(process, &status, 0) < 0 {
        guard errno == EINTR else { throw Errno(rawValue: errno) }
    }
    let output = try Data(contentsOf: URL(fileURLWithPath: "\(directory.path)/out"))
    return (status, String(decoding: output, as: UTF8.self))
}

/// Runs blocking work on a thread of its own, never on Swift's pool.
func onThread<T: Sendable>(_ work: @escaping @Sendable () throws -> T) async throws -> T {
    try await withCheckedThrowingContinuation { continuation in
        Thread { continuation.resume(with: Result { try work() }) }.start()
    }
}
