import CFUSE
import SystemPackage

/// Tells the kernel what changed behind its back, from a thread of its own.
///
/// Notifications wait for locks that a process may hold while it waits for one of our replies;
/// sending one from a request handler, or under a lock that handlers take, deadlocks. Here they
/// are only queued: every method returns at once and may be called from anywhere. (The exception,
/// `forgetAttributes`, says why.)
///
/// A method returns false when the queue is full (`Notifier.queuedMax`); the caller's news is lost
/// then, and kernel caches live until their time is over.
public final class Notifier: Sendable {
    /// Notifications waiting to be sent.
    public static let queuedMax = 65_536

    private enum Item: Sendable {
        case packet(NotificationCode, [UInt8])
        case work(RequestTable.Work)
    }

    private struct State {
        /// Filled by callers, emptied as a whole by the thread.
        var queue: [Item] = []
        var isStopping = false
        var isDone = false
    }

    private let channel: Channel
    private let monitor = Monitor(State())
    private let report: @Sendable (String) -> Void

    init(channel: Channel, report: @escaping @Sendable (String) -> Void) {
        self.channel = channel
        self.report = report
    }

    /// The pages of a range (length 0: to the end) and the attributes. Waits, on the notifier's
    /// thread, for reads of that range that are in progress.
    @discardableResult
    public func invalidateInode(_ nodeid: UInt64, offset: Int64 = 0, length: Int64 = 0) -> Bool {
        let body = cfuse_notify_inval_inode_out(ino: nodeid, off: offset, len: length)
        return enqueue(.invalidateInode, withUnsafeBytes(of: body) { [UInt8]($0) })
    }

    /// The attributes only; never waits for reads.
    @discardableResult
    public func invalidateAttributes(_ nodeid: UInt64) -> Bool {
        invalidateInode(nodeid, offset: -1, length: 0)
    }

    /// The attributes of the inode that a request in hand is about, before this returns: its caller
    /// holds the inode, so this waits for nobody.
    public func forgetAttributes(ofRequested nodeid: UInt64) {
        let body = cfuse_notify_inval_inode_out(ino: nodeid, off: -1, len: 0)
        send(.invalidateInode, withUnsafeBytes(of: body) { [UInt8]($0) })
    }

    /// A name: the next use asks again.
    @discardableResult
    public func invalidateEntry(parent: UInt64, name: [UInt8]) -> Bool {
        invalidateEntry(parent, name, flags: 0)
    }

    /// A name: the next use asks again, but mounts on it and current directories in it stay. Where
    /// the kernel does not know it, this is `invalidateEntry`.
    @discardableResult
    public func expireEntry(parent: UInt64, name: [UInt8]) -> Bool {
        invalidateEntry(parent, name, flags: 1)
    }

    private func invalidateEntry(_ parent: UInt64, _ name: [UInt8], flags: UInt32) -> Bool {
        let body = cfuse_notify_inval_entry_out(
            parent: parent, namelen: UInt32(name.count), flags: flags)
        return enqueue(
            .invalidateEntry, withUnsafeBytes(of: body) { [UInt8]($0) } + name + [0])
    }

    /// A name that was removed elsewhere: also tells inotify watchers.
    @discardableResult
    public func delete(parent: UInt64, child: UInt64, name: [UInt8]) -> Bool {
        let body = cfuse_notify_delete_out(
            parent: parent, child: child, namelen: UInt32(name.count), padding: 0)
        return enqueue(.delete, withUnsafeBytes(of: body) { [UInt8]($0) } + name + [0])
    }

    /// Puts bytes into the page cache.
    @discardableResult
    public func store(_ nodeid: UInt64, offset: UInt64, data: [UInt8]) -> Bool {
        let body = cfuse_notify_store_out(
            nodeid: nodeid, offset: offset, size: UInt32(data.count), padding: 0)
        return enqueue(.store, withUnsafeBytes(of: body) { [UInt8]($0) } + data)
    }

    private func enqueue(_ code: NotificationCode, _ packet: [UInt8]) -> Bool {
        enqueue(.packet(code, packet))
    }

    private func enqueue(_ item: Item) -> Bool {
        monitor.update { state in
            guard !state.isStopping, state.queue.count < Self.queuedMax else { return false }
            state.queue.append(item)
            return true
        }
    }

    func run(_ work: @escaping RequestTable.Work) -> Bool {
        enqueue(.work(work))
    }

    /// For work that was accepted before and must not get lost: its number is bounded by
    /// `RequestTable.waitersMax`. After the end of the thread it is dropped.
    func runDue(_ works: [RequestTable.Work]) {
        if works.isEmpty { return }
        monitor.update { $0.queue.append(contentsOf: works.map { .work($0) }) }
    }

    // MARK: - The thread

    func serve() {
        while let batch = nextBatch() {
            for item in batch {
                switch item {
                case .work(let work): work()
                case .packet(let code, let packet): send(code, packet)
                }
            }
        }
        monitor.update { $0.isDone = true }
    }

    private func nextBatch() -> [Item]? {
        // The wait has no time limit, so it always yields; the inner nil is the end.
        let batch: [Item]?? = monitor.wait { state in
            if !state.queue.isEmpty {
                defer { state.queue = [] }
                return .some(.some(state.queue))
            }
            return state.isStopping ? .some(nil) : nil
        }
        return batch ?? nil
    }

    private func send(_ code: NotificationCode, _ packet: [UInt8]) {
        let delivery = packet.withUnsafeBytes {
            channel.send(unique: 0, error: code.rawValue, $0)
        }
        switch delivery {
        case .delivered, .abandoned: break  // ENOENT: the kernel has nothing cached
        case .failed(let error):
            // An old kernel, a name that is in use, or the end of the mount: nothing to be done.
            let expected: [Errno] = [
                .noFunction, .operationNotSupportedByDevice, .socketNotConnected,
                .badFileDescriptor,
            ]
            if !expected.contains(error) { report("notification \(code) failed: \(error)") }
        }
    }

    func stop() {
        monitor.update { $0.isStopping = true }
    }

    /// Whether the thread has ended, waiting for it at most `timeout`: a notification may be stuck
    /// in the kernel until the connection is aborted.
    func hasEnded(within timeout: Duration) -> Bool {
        monitor.wait(timeout: timeout) { $0.isDone ? true : nil } ?? false
    }
}
