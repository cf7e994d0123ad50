import Foundation

/// A few named threads that run blocking jobs in order of arrival.
///
/// Bounded by what submits to it: each job stands for a FUSE request (at most the kernel's own
/// limit) or for a closed file in the catalog.
public final class WorkQueue: @unchecked Sendable {
    // Sendable: every stored variable is read and written under `condition` only.
    private let condition = NSCondition()
    private var jobs: [@Sendable () -> Void] = []
    private var head = 0
    private var stopping = false
    private var running: Int

    public init(name: String, threads: Int) {
        running = threads
        for _ in 0..<threads {
            let thread = Thread { self.run() }
            thread.name = name
            thread.start()
        }
    }

    public func submit(_ job: @escaping @Sendable () -> Void) {
        condition.withLock {
            jobs.append(job)
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
            while head >= jobs.count {
                jobs.removeAll(keepingCapacity: true)
                head = 0
                if stopping { return nil }
                condition.wait()
            }
            defer { head += 1 }
            return jobs[head]
        }
    }
}
