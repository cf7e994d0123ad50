import Dispatch
import FUSE
import SystemPackage

/// The kernel passes on any signal to a process that waits. File systems on disks end a wait only for
/// one that ends the process: others, say of a child's end or of a resized window, would reach programs
/// as errors that they do not expect of a file.
enum Interruption {
    /// Between looks at an interrupted process: the kernel tells of its first signal only.
    static let lookMilliseconds = 200
    /// HUP, INT, QUIT, KILL and TERM; of most others that end a process the kernel makes KILL.
    private static let endingSignals: UInt64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 14
    private static let looks = DispatchQueue(label: "interruptions")

    /// Runs `body` once, if the process is to end before the reply was given: on a reader thread, on
    /// one of Dispatch, or at once on this one.
    static func whenEnding(
        _ reply: PendingReply, of request: RequestHeader, _ body: @escaping @Sendable () -> Void
    ) {
        reply.onInterrupt { [weak reply] in
            if let reply { look(at: reply, request.pid, body) }
        }
    }

    private static func look(
        at reply: PendingReply, _ pid: UInt32, _ body: @escaping @Sendable () -> Void
    ) {
        guard !reply.isAnswered else { return }
        guard !isEnding(pid) else { return body() }
        looks.asyncAfter(deadline: .now() + .milliseconds(lookMilliseconds)) { [weak reply] in
            if let reply { look(at: reply, pid, body) }
        }
    }

    /// True as well when that cannot be seen: a process of another PID namespace or user.
    static func isEnding(_ pid: UInt32) -> Bool {
        guard pid > 0, let file = try? FileDescriptor.open("/proc/\(pid)/status", .readOnly)
        else { return true }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = try? file.closeAfter {
            try bytes.withUnsafeMutableBytes { try file.read(into: $0) }
        }
        return isEnding(status: String(decoding: bytes.prefix(count ?? 0), as: UTF8.self))
    }

    private static func isEnding(status: String) -> Bool {
        var sets: [Substring: UInt64] = [:]
        for line in status.split(separator: "\n") {
            let parts = line.split(separator: ":\t", maxSplits: 1)
            if parts.count == 2, let set = UInt64(parts[1], radix: 16) { sets[parts[0]] = set }
        }
        guard let own = sets["SigPnd"], let shared = sets["ShdPnd"], let blocked = sets["SigBlk"],
            let ignored = sets["SigIgn"], let caught = sets["SigCgt"]
        else { return true }
        return (own | shared) & ~(blocked | ignored | caught) & endingSignals != 0
    }
}
