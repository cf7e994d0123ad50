import Glibc
import History
import Synchronization
import SystemPackage
import Volume

/// A directory of a test's own, removed with it.
final class Scratch: Sendable {
    let path: FilePath

    init() throws {
        var template = Array("/tmp/delugefs-history-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Errno(rawValue: errno) }
        path = FilePath(platformString: template)
    }

    deinit { _ = shell("chmod -R u+rwX '\(path)'; rm -rf '\(path)'") }

    func repository(_ name: String = "history.git") throws -> History {
        try History.create(path.appending(name))
    }
}

struct ShellResult {
    let status: Int32
    let output: String
}

@discardableResult
func shell(_ command: String) -> ShellResult {
    guard let stream = popen("{ \(command)\n} 2>&1", "r") else {
        return ShellResult(status: -1, output: "popen failed")
    }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&buffer, 1, buffer.count, stream)
        guard count > 0 else { break }
        bytes += buffer.prefix(count)
    }
    return ShellResult(status: pclose(stream), output: String(decoding: bytes, as: UTF8.self))
}

/// The stock program on a repository: the oracle.
@discardableResult
func git(_ repository: FilePath, _ arguments: String) -> ShellResult {
    shell("git -c safe.directory='*' --git-dir='\(repository)' \(arguments)")
}

/// SplitMix64; a test prints its seed.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }

    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
}

/// Files by path, as a tree to be written: directories follow from the slashes.
struct Files {
    var contents: [String: [UInt8]] = [:]

    init(_ contents: [String: String] = [:]) {
        self.contents = contents.mapValues { Array($0.utf8) }
    }

    func write(into batch: inout Batch) throws -> ObjectID {
        try write(contents.map { (Substring($0.key), $0.value) }, &batch)
    }

    private func write(_ files: [(Substring, [UInt8])], _ batch: inout Batch) throws -> ObjectID {
        var entries: [TreeEntry] = []
        var below: [Substring: [(Substring, [UInt8])]] = [:]
        for (path, bytes) in files {
            if let slash = path.firstIndex(of: "/") {
                below[path[..<slash], default: []].append(
                    (path[path.index(after: slash)...], bytes))
            } else {
                let id = try batch.write(blob: bytes)
                entries.append(TreeEntry(name: Array(path.utf8), kind: .blob, id: id))
            }
        }
        for (name, files) in below {
            let id = try write(files, &batch)
            entries.append(TreeEntry(name: Array(name.utf8), kind: .tree, id: id))
        }
        return try batch.write(tree: entries)
    }
}

extension History {
    /// Commits the files on the parents; `main` moves there.
    @discardableResult
    func commit(
        _ files: Files, on parents: [ObjectID] = [], message: String = "change",
        seconds: Int64 = 1_700_000_000
    ) throws -> ObjectID {
        let id = try write { batch in
            let tree = try files.write(into: &batch)
            return try batch.write(
                commit: Commit(
                    tree: tree, parents: parents, seconds: seconds, message: Array(message.utf8)))
        }
        try setHead(id)
        return id
    }
}

/// The code of the error that `body` throws; nil if it throws none or another kind.
func code(_ body: () throws -> Void) -> HistoryError.Code? {
    do {
        try body()
        return nil
    } catch let error as HistoryError {
        return error.code
    } catch {
        return nil
    }
}

/// Runs `body` on so many threads of its own, waits for all, throws the first error.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
    final class Work: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    let failure = Mutex<(any Error)?>(nil)
    do {
        var threads: [pthread_t] = []
        for number in 0..<count {
            let work = Work {
                do {
                    try body(number)
                } catch {
                    failure.withLock { $0 = $0 ?? error }
                }
            }
            var thread = pthread_t()
            let code = pthread_create(
                &thread, nil,
                { context in
                    guard let context else { return nil }
                    Unmanaged<Work>.fromOpaque(context).takeRetainedValue().body()
                    return nil
                }, Unmanaged.passRetained(work).toOpaque())
            guard code == 0 else { throw Errno(rawValue: code) }
            threads.append(thread)
        }
        for thread in threads { pthread_join(thread, nil) }
    }
    if let error = failure.withLock({ $0 }) { throw error }
}
