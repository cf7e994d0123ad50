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
/// Unchecked: `state` is only touched under the condition's lock.
final class Monitor<State>: @unchecked Sendable {
    private var state: State
    private let condition = TimedCondition()

    init(_ state: sending State) { self.state = state }

    /// Changes the state and wakes everybody who waits for a change.
    func update<Result>(_ body: (inout State) -> Result) -> Result {
        condition.withLock {
            defer { condition.broadcast() }
            return body(&state)
        }
    }

    func read<Result>(_ body: (State) -> Result) -> Result { condition.withLock { body(state) } }

    /// Waits until `body` returns something; nil when `timeout` passed first.
    func wait<Result>(timeout: Duration? = nil, _ body: (inout State) -> Result?) -> Result? {
        let deadline = timeout.map { ContinuousClock.now + $0 }
        return condition.withLock {
            while true {
                if let result = body(&state) { return result }
                if let deadline {
                    guard condition.wait(until: deadline) else { return body(&state) }
                } else {
                    condition.wait()
                }
            }
        }
    }
}
