import Glibc
import Synchronization

/// Everything one test makes on this machine: directories, namespaces, mounts, processes. Undone in
/// reverse order when the test ends, however it ends.
final class Workshop: Sendable {
    typealias Undo = @Sendable () async throws -> Void

    let directory: String
    let number: Int
    private let undos = Mutex<[(what: String, undo: Undo)]>([])
    private let logs = Mutex<[(name: String, path: String)]>([])
    private static let next = Atomic<Int>(0)
    private static let leftovers = Leftovers()
    private static let logTailBytes = 6000

    static let prefix = "/tmp/delugefs-e2e."
    /// Marks processes as made here, also for a later run that has to clean up.
    static let mark = "DELUGEFS_WORKSHOP"

    private init() throws {
        number = Self.next.wrappingAdd(1, ordering: .relaxed).oldValue
        directory = "\(Self.prefix)\(getpid()).\(number)"
        guard mkdir(directory, 0o755) == 0 else {
            throw Failure("\(directory) cannot be made.")
        }
    }

    /// Runs a test in a new workshop; prints the tails of all nodes' logs when it throws.
    static func open(_ body: (Workshop) async throws -> Void) async throws {
        try Machine.requireCapable()
        await leftovers.remove()
        let workshop = try Workshop()
        do {
            try await body(workshop)
        } catch {
            workshop.printLogs()
            await workshop.close()
            throw error
        }
        await workshop.close()
    }

    func onClose(_ what: String, _ undo: @escaping Undo) {
        undos.withLock { $0.append((what, undo)) }
    }

    func addLog(_ name: String, _ path: String) { logs.withLock { $0.append((name, path)) } }

    /// A new directory under the workshop, or the one of that name.
    func make(_ name: String, mode: mode_t = 0o755) throws -> String {
        let path = "\(directory)/\(name)"
        guard mkdir(path, mode) == 0 || errno == EEXIST else {
            throw Failure("\(path) cannot be made.")
        }
        return path
    }

    func write(_ text: String, to name: String, mode: mode_t = 0o600) throws -> String {
        let path = "\(directory)/\(name)"
        let file = Glibc.open(path, O_WRONLY | O_CREAT | O_TRUNC, mode)
        defer { Glibc.close(file) }
        let bytes = Array(text.utf8)
        guard file >= 0, Glibc.write(file, bytes, bytes.count) == bytes.count else {
            throw Failure("\(path) cannot be written.")
        }
        return path
    }

    /// Random bytes that this seed always gives.
    func randomFile(_ name: String, bytes: Int, seed: UInt64) async throws -> String {
        let path = "\(directory)/\(name)"
        print("\(name): \(bytes) random bytes of seed \(seed)")
        try await Shell.script(
            """
            set +o pipefail
            openssl enc -aes-128-ctr -nosalt -pbkdf2 -iter 1 -pass "pass:$1" </dev/zero 2>/dev/null |
                head -c "$2" >"$3"
            """, ["\(seed)", "\(bytes)", path], timeout: Bounds.transfer
        ).succeeded()
        return path
    }

    private func printLogs() {
        for (name, path) in logs.withLock({ $0 }) {
            let log = FileBytes.read(path)
            let tail = String(decoding: log.suffix(Self.logTailBytes), as: UTF8.self)
            print("--- log of \(name), the last of \(log.count) bytes\n\(tail)\n--- end of \(name)")
        }
    }

    private func close() async {
        let undos = undos.withLock { list in
            defer { list = [] }
            return list
        }
        let directory = directory
        // A task of its own: cleaning up must go on when the test was cancelled.
        await Task {
            for (what, undo) in undos.reversed() {
                do { try await undo() } catch { print("Cleaning up \(what): \(error)") }
            }
            await Leftovers.remove(directory: directory)
        }.value
    }
}

enum FileBytes {
    static func read(_ path: String) -> [UInt8] {
        guard let file = fopen(path, "r") else { return [] }
        defer { fclose(file) }
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = fread(&buffer, 1, buffer.count, file)
            if count == 0 { return result }
            result += buffer[..<count]
        }
    }

    static func text(_ path: String) -> String { String(decoding: read(path), as: UTF8.self) }
}
