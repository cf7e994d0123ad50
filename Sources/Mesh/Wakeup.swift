import NIOCore
import Synchronization

/// Wakes one waiting task; signals that come while nobody waits count as one.
final class Wakeup: Sendable {
    private struct State {
        var isSignalled = false
        var waiter: (ticket: UInt64, continuation: CheckedContinuation<Void, Never>)?
        var next: UInt64 = 0
    }

    private let state = Mutex(State())

    func signal() {
        let waiter = state.withLock { state in
            let waiter = state.waiter
            state.waiter = nil
            state.isSignalled = waiter == nil
            return waiter
        }
        waiter?.continuation.resume()
    }

    /// Returns at a signal (also an earlier one), at the time's end, or at cancellation.
    func wait(atMost time: Duration, on loop: any EventLoop) async {
        let ticket = state.withLock { state in
            state.next += 1
            return state.next
        }
        let timer = loop.scheduleTask(in: time.timeAmount) { self.expire(ticket) }
        defer { timer.cancel() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let isOver = state.withLock { state in
                    precondition(state.waiter == nil, "one task waits")
                    if state.isSignalled {
                        state.isSignalled = false
                        return true
                    }
                    state.waiter = (ticket, continuation)
                    return false
                }
                if isOver { continuation.resume() }
            }
        } onCancel: {
            signal()
        }
    }

    private func expire(_ ticket: UInt64) {
        let waiter = state.withLock { state in
            guard let waiter = state.waiter, waiter.ticket == ticket else {
                // Not waiting yet, with a time of next to nothing: the signal ends the wait.
                if state.next == ticket, state.waiter == nil { state.isSignalled = true }
                return nil as CheckedContinuation<Void, Never>?
            }
            state.waiter = nil
            return waiter.continuation
        }
        waiter?.resume()
    }
}
