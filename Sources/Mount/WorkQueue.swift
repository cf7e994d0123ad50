import Foundation

/// A few named threads that run blocking jobs in order of arrival.
///
/// Bounded by what submits to it: each job stands for a FUSE request (at most the kernel's own
/// limit) or for a closed file in the catalog.
public final class WorkQueue: @unchecked Sendable {
    // Sendable: every stored variable is read and written under `condition` only.
    private let condition = NSCondition()
    /// Filled by callers; a thread takes it as a whole when `batch` is used up.
    private var arrived: [@Sendable () -> Void] = []
    /// In reverse order of arrival: the next job is the last element.
    private var batch: [@Sendable () -> Void] = []
    private var stopping = false
    private var running: Int

    public init(name: String, threads: Int, _ rank: OwnThread.Rank = .foreground) {
        running = threads
        for _ in 0..<threads {
            OwnThread.start(name, rank) { self.run() }
        }
    }

    /// After `drain` the job is dropped.
    public func submit(_ job: @escaping @Sendable () -> Void) {
        condition.withLock {
            guard !stopping else { return }
            arrived.append(job)
            condition.signal()
        }
    }

    /// Runs what is queued, then ends the threads.
    public func drain() {
        condition.withLock {
            stopping = true
            condition.broadcast()
            while running > 0 { condition.wait() }
        }
    }

    private func run() {
        while let job = next() { job() }
        condition.withLock {
            running -= 1
            condition.broadcast()
        }
    }

    private func next() -> (@Sendable () -> Void)? {
        condition.withLock {
            while true {
                if let job = batch.popLast() { return job }
                if !arrived.isEmpty {
                    batch = arrived.reversed()
                    arrived.removeAll()
                    continue
                }
                if stopping { return nil }
                condition.wait()
            }
        }
    }
}
