import FUSE
import Foundation
import Glibc
import Synchronization
import SystemPackage

/// Threads made for blocking work, with a name that `ps -L` shows.
public enum OwnThread {
    public enum Rank: Sendable {
        /// Somebody waits for what it does.
        case foreground
        /// Hashing, commits and the like, which nobody waits for as a rule: it leaves the processors
        /// to programs and to the threads that answer them. Creating files goes faster
        /// so, on two processors.
        case background
    }

    /// A quarter of a busy processor is left to it: files must appear elsewhere all the same.
    private static let backgroundNiceness: Int32 = 5

    /// Runs the body on a thread of its own and waits for it: where a thread of the background is to have a
    /// lock that requests wait for, and must not wait for a processor with it.
    public static func run<T: Sendable>(
        _ name: String, _ body: @escaping @Sendable () throws -> T
    ) throws -> T {
        let finished = TimedCondition()
        let result = Mutex<Result<T, any Error>?>(nil)
        start(name) {
            let outcome = Result { try body() }
            finished.withLock {
                result.withLock { $0 = outcome }
                finished.broadcast()
            }
        }
        return try finished.withLock {
            while true {
                if let outcome = result.withLock(\.self) { return try outcome.get() }
                finished.wait()
            }
        }
    }

    /// - Parameter name: at most 15 bytes, as the kernel keeps it.
    public static func start(
        _ name: String, _ rank: Rank = .foreground, _ body: @escaping @Sendable () -> Void
    ) {
        Thread {
            if let comm = try? FileDescriptor.open("/proc/thread-self/comm", .writeOnly) {
                _ = try? comm.closeAfter { try comm.writeAll(name.utf8) }
            }
            // Linux takes 0 for the calling thread. Failing is harmless.
            if rank == .background {
                let which = __priority_which_t(PRIO_PROCESS.rawValue)
                // Under what the process was given, not under everybody.
                let own = getpriority(which, id_t(getpid()))
                setpriority(which, 0, own + backgroundNiceness)
            }
            body()
        }.start()
    }
}
