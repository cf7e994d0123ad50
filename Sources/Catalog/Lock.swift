internal import Glibc
internal import SystemPackage

/// A pthread mutex with one condition.
///
/// Not `Synchronization.Mutex`: on Linux that is a priority-inheriting futex, which hands the lock
/// over on every contended unlock, and each FUSE request would pay a context switch; and it has no
/// condition to wait on.
///
/// `@unchecked Sendable`: both pointers are constant, and what they point to is made for sharing.
final class Lock: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    init() {
        var kind = pthread_mutexattr_t()
        pthread_mutexattr_init(&kind)
        pthread_mutexattr_settype(&kind, CInt(PTHREAD_MUTEX_ERRORCHECK))
        pthread_mutex_init(mutex, &kind)
        pthread_mutexattr_destroy(&kind)
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

    /// - Precondition: this thread does not have the lock. (An operation's body called the catalog.)
    func lock() {
        let code = pthread_mutex_lock(mutex)
        precondition(code == 0, "locking twice: error \(code)")
    }
    func unlock() { pthread_mutex_unlock(mutex) }

    func withLock<T>(_ body: () throws -> T) rethrows -> T {
        lock()
        defer { unlock() }
        return try body()
    }

    /// With the lock held: gives it up until `signalAll`, and has it again on return.
    func wait() { pthread_cond_wait(condition, mutex) }

    /// As `wait`, for at most the given time.
    func wait(atMost limit: Duration) {
        var deadline = timespec()
        clock_gettime(CLOCK_MONOTONIC, &deadline)
        let parts = limit.components
        deadline.tv_sec += Int(parts.seconds)
        deadline.tv_nsec += Int(parts.attoseconds / 1_000_000_000)
        if deadline.tv_nsec >= 1_000_000_000 {
            deadline.tv_sec += 1
            deadline.tv_nsec -= 1_000_000_000
        }
        pthread_cond_timedwait(condition, mutex, &deadline)
    }

    func signalAll() { pthread_cond_broadcast(condition) }
}

/// `pthread_setname_np` is not in Swift's view of glibc. A name is a courtesy: failing is harmless.
private func nameCurrentThread(_ name: String) {
    guard let comm = try? FileDescriptor.open("/proc/thread-self/comm", .writeOnly) else { return }
    _ = try? comm.closeAfter { try comm.writeAll(name.utf8) }
}

/// A named thread of our own for blocking work, joined once.
///
/// `@unchecked Sendable`: the handle is set before the value is shared, and only `join` reads it.
final class WorkerThread: @unchecked Sendable {
    private let handle: pthread_t

    private final class Start {
        let name: String
        let body: @Sendable () -> Void
        init(name: String, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// - Parameter name: at most 15 bytes, as the kernel shows it.
    init(name: String, body: @escaping @Sendable () -> Void) {
        precondition(name.utf8.count <= 15)
        var handle = pthread_t()
        let start = Unmanaged.passRetained(Start(name: name, body: body))
        let code = pthread_create(
            &handle, nil,
            { context in
                // Non-nil and a retained `Start`: passed four lines above.
                let start = Unmanaged<Start>.fromOpaque(context!).takeRetainedValue()
                nameCurrentThread(start.name)
                start.body()
                return nil
            }, start.toOpaque())
        precondition(code == 0, "no thread: error \(code)")
        self.handle = handle
    }

    func join() { pthread_join(handle, nil) }
}
