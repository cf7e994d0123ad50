import Glibc
import Logging
import Synchronization
import SystemPackage

/// Where a node's log lines go: standard error, or `ROOT/log` of a node in the background.
///
/// Nothing may be written into ROOT before the node has accepted it, so a background node's lines
/// are held until then.
final class NodeLog: Sendable {
    /// Lines held before the file is open; more are dropped.
    static let heldBytesMax = 256 << 10
    /// At this size the log becomes `log.1`, which replaces the one before.
    static let fileBytesMax = 16 << 20

    private enum Target {
        case standardError
        case held([UInt8])
        case file(FileDescriptor, FilePath, size: Int)
    }

    private let target: Mutex<Target>

    private init(_ target: Target) { self.target = Mutex(target) }

    static func standardError() -> NodeLog { NodeLog(.standardError) }
    static func held() -> NodeLog { NodeLog(.held([])) }

    func write(_ line: String) {
        let bytes = Array((line + "\n").utf8)
        target.withLock { target in
            switch target {
            case .standardError: Terminal.write(bytes, to: STDERR_FILENO)
            case .held(let lines):
                if lines.count + bytes.count <= Self.heldBytesMax { target = .held(lines + bytes) }
            case .file(let file, let path, let size):
                Terminal.write(bytes, to: file.rawValue)
                target = .file(file, path, size: size + bytes.count)
                if size + bytes.count > Self.fileBytesMax { Self.rotate(&target, path, file) }
            }
        }
    }

    /// Opens the log file, writes what was held, and sends standard output and standard error
    /// there too, for what the runtime says when it ends the process.
    func open(_ path: FilePath) throws {
        let file = try Self.openFile(path)
        let size = try Int(file.seek(offset: 0, from: .end))
        target.withLock { target in
            if case .held(let lines) = target { Terminal.write(lines, to: file.rawValue) }
            target = .file(file, path, size: size)
        }
        Self.redirect(to: file)
    }

    /// Nothing came of the start: what was held is shown where somebody asked for it.
    func showHeld() {
        target.withLock { target in
            if case .held(let lines) = target { Terminal.write(lines, to: STDERR_FILENO) }
            target = .standardError
        }
    }

    private static func openFile(_ path: FilePath) throws -> FileDescriptor {
        try FileDescriptor.open(
            path, .writeOnly, options: [.append, .create, .closeOnExec, .noFollow],
            permissions: [.ownerReadWrite])
    }

    private static func redirect(to file: FileDescriptor) {
        dup2(file.rawValue, STDOUT_FILENO)
        dup2(file.rawValue, STDERR_FILENO)
    }

    /// Without room for another file the old one goes on.
    private static func rotate(_ target: inout Target, _ path: FilePath, _ file: FileDescriptor) {
        rename(path.string, path.string + ".1")
        guard let next = try? openFile(path) else {
            target = .file(file, path, size: 0)
            return
        }
        redirect(to: next)
        try? file.close()
        target = .file(next, path, size: 0)
    }
}

/// One plain line per event: time, level, message, metadata; what came from outside is escaped.
struct LineLogHandler: LogHandler {
    let log: NodeLog
    var logLevel: Logger.Level
    var metadata: Logger.Metadata = [:]
    var metadataProvider: Logger.MetadataProvider?

    init(log: NodeLog, level: Logger.Level) {
        self.log = log
        logLevel = level
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var text = "\(Self.now()) \(event.level) \(event.message)"
        let all = metadata.merging(event.metadata ?? [:]) { $1 }
        for (key, value) in all.sorted(by: { $0.key < $1.key }) { text += " \(key)=\(value)" }
        if let error = event.error { text += " error=\(error)" }
        log.write(Terminal.visible(text))
    }

    /// UTC, to the millisecond.
    private static func now() -> String {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        var parts = tm()
        gmtime_r(&time.tv_sec, &parts)
        func padded(_ number: some BinaryInteger, _ width: Int) -> String {
            let digits = String(number)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        let date =
            "\(padded(parts.tm_year + 1900, 4))-\(padded(parts.tm_mon + 1, 2))-\(padded(parts.tm_mday, 2))"
        let clock =
            "\(padded(parts.tm_hour, 2)):\(padded(parts.tm_min, 2)):\(padded(parts.tm_sec, 2))"
        return "\(date)T\(clock).\(padded(time.tv_nsec / 1_000_000, 3))Z"
    }
}

extension Logger.Level {
    /// `DELUGEFS_LOG`; nil when it is not set.
    static func fromEnvironment() throws -> Logger.Level? {
        guard let text = SecretEnvironment.value("DELUGEFS_LOG"), !text.isEmpty else { return nil }
        let levels: [String: Logger.Level] = [
            "trace": .trace, "debug": .debug, "info": .info, "warning": .warning, "error": .error,
        ]
        guard let level = levels[text] else {
            throw Failure(
                "DELUGEFS_LOG is '\(Terminal.visible(text))'; set it to trace, debug, info, warning or error.",
                exitCode: .usage)
        }
        return level
    }
}
