import CFUSE
import Glibc
import Synchronization
import SystemPackage

/// A thread of our own: everything here blocks in system calls, which threads of Swift's
/// cooperative pool must never do.
///
/// It takes no signals, so that those sent to the process reach the thread that waits for them.
final class NamedThread: Sendable {
    private final class Body: Sendable {
        let name: String
        let run: @Sendable () -> Void

        init(name: String, run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }

    private let handle: pthread_t

    /// - Parameter name: at most 15 bytes; the kernel refuses longer ones.
    init(name: String, _ run: @escaping @Sendable () -> Void) throws(Errno) {
        precondition(name.utf8.count <= 15, "the kernel's thread names have 15 bytes")
        var handle = pthread_t()
        let body = Unmanaged.passRetained(Body(name: name, run: run))
        var blocked = sigset_t()
        var former = sigset_t()
        sigfillset(&blocked)
        // Signals are inherited; these four mean a fault of the thread itself.
        for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE] { sigdelset(&blocked, fault) }
        pthread_sigmask(SIG_SETMASK, &blocked, &former)
        let code = pthread_create(
            &handle, nil,
            { context in
                // The context is the retained body passed below, never null.
                let body = Unmanaged<Body>.fromOpaque(context!).takeRetainedValue()
                pthread_setname_np(pthread_self(), body.name)
                body.run()
                return nil
            }, body.toOpaque())
        pthread_sigmask(SIG_SETMASK, &former, nil)
        if code != 0 {
            body.release()
            throw Errno(rawValue: code)
        }
        self.handle = handle
    }

    var isCurrent: Bool { pthread_equal(handle, pthread_self()) != 0 }

    /// Waits for the end of the thread. Exactly one of `join` and `abandon` must be called, once.
    func join() {
        precondition(!isCurrent, "a thread cannot wait for its own end")
        pthread_join(handle, nil)
    }

    func abandon() {
        pthread_detach(handle)
    }
}

/// State with a lock and a condition variable: the standard library's `Mutex` has none.
///
/// Unchecked: `state` is only touched under `mutex`; the pthread objects are at fixed addresses.
final class Monitor<State>: @unchecked Sendable {
    private var state: State
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    init(_ state: sending State) {
        self.state = state
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

    /// Changes the state and wakes everybody who waits for a change.
    func update<Result>(_ body: (inout State) -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        let result = body(&state)
        pthread_cond_broadcast(condition)
        return result
    }

    func read<Result>(_ body: (State) -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body(state)
    }

    /// Waits until `body` returns something; nil when `timeout` passed first.
    func wait<Result>(timeout: Duration? = nil, _ body: (inout State) -> Result?) -> Result? {
        var deadline = timespec()
        if let timeout {
            clock_gettime(CLOCK_MONOTONIC, &deadline)
            let (seconds, nanoseconds) = timeout.wire
            let sum = deadline.tv_nsec + Int(nanoseconds)
            deadline.tv_sec += Int(seconds) + sum / 1_000_000_000
            deadline.tv_nsec = sum % 1_000_000_000
        }
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&state) { return result }
            if timeout == nil {
                pthread_cond_wait(condition, mutex)
            } else if pthread_cond_timedwait(condition, mutex, &deadline) == ETIMEDOUT {
                return body(&state)
            }
        }
    }
}
