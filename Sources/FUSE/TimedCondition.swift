import CFUSE
import Glibc

/// A lock and a condition variable whose timed waits follow the monotonic clock. Foundation's follow the
/// wall clock: set back by an hour, it makes a wait of a millisecond last an hour.
package final class TimedCondition: @unchecked Sendable {
    // Sendable: the pthread objects are at fixed addresses, and nothing else is here.
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    package init() {
        mutex.initialize(to: pthread_mutex_t())
        condition.initialize(to: pthread_cond_t())
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    package func withLock<Result>(_ body: () throws -> Result) rethrows -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }

    /// Wakes everybody who waits.
    package func broadcast() { pthread_cond_broadcast(condition) }

    /// Inside `withLock`.
    package func wait() { pthread_cond_wait(condition, mutex) }

    /// Inside `withLock`.
    /// - Returns: false when the deadline has passed.
    @discardableResult
    package func wait(until deadline: ContinuousClock.Instant) -> Bool {
        let left = (deadline - .now).components
        guard left.seconds >= 0, left.attoseconds > 0 || left.seconds > 0 else { return false }
        var end = timespec()
        clock_gettime(CLOCK_MONOTONIC, &end)
        let nanoseconds = end.tv_nsec + Int(left.attoseconds / 1_000_000_000)
        end.tv_sec += Int(left.seconds) + nanoseconds / 1_000_000_000
        end.tv_nsec = nanoseconds % 1_000_000_000
        return pthread_cond_timedwait(condition, mutex, &end) == 0
    }
}
