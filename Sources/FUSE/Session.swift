import CFUSE
import Glibc
import Synchronization
public import SystemPackage

/// Why a session could not start.
public enum SessionError: Error, Hashable, Sendable, CustomStringConvertible {
    case protocolTooOld(major: UInt32, minor: UInt32)
    /// The mount went away, or was aborted, before the kernel and the session had settled.
    case endedEarly
    case timedOut
    case system(Errno)

    public var description: String {
        switch self {
        case .protocolTooOld(let major, let minor):
            "the kernel speaks FUSE \(major).\(minor), at least 7.31 (Linux 5.4) is needed"
        case .endedEarly: "the mount was removed before the file system had started"
        case .timedOut: "the kernel did not greet the file system; is the mount point reachable?"
        case .system(let error): "cannot create the threads of the file system: \(error)"
        }
    }
}

/// Serves one mount: reader threads take requests from the device and call the file system.
///
/// Life: `init`, `start`, and then either the mount is removed (by anybody) or `stop` is called;
/// both end the reader threads, after which `FileSystem.ended` is called once and `wait` returns.
public final class Session: Sendable {
    /// How long the kernel may take to send INIT. It does so at once when mounted.
    static let initTimeout: Duration = .seconds(10)
    /// How long `stop` waits for a notification that is stuck in the kernel.
    static let notifierTimeout: Duration = .seconds(5)

    private enum Phase: Equatable {
        case created, starting
        case running
        case failed(SessionError)
        case ended
    }

    private struct State {
        var phase = Phase.created
        var features: Features?
        var dialect = Dialect()
        var readers: [NamedThread] = []
        var runningReaders = 0
        var notifierThread: NamedThread?
    }

    let connection: Connection
    let options: SessionOptions
    let fileSystem: any FileSystem
    let wake: WakeSignal
    let rhythm = ReaderRhythm()
    private let monitor = Monitor(State())

    /// Takes over the mounted device.
    public init(
        fileSystem: any FileSystem, channel: MountedChannel, options: SessionOptions = .init()
    ) throws(SessionError) {
        let sizes = PageBuffer.pageSize...(1 << 20)
        precondition(
            sizes.contains(options.writeSizeMax) && options.writeSizeMax % PageBuffer.pageSize == 0,
            "writeSizeMax is a multiple of 4096 up to 1 MiB")
        precondition((1...2).contains(options.stackDepthMax), "stackDepthMax is 1 or 2")
        do throws(Errno) {
            wake = try WakeSignal()
        } catch {
            throw .system(error)
        }
        self.fileSystem = fileSystem
        self.options = options
        connection = Connection(
            channel: Channel(takingOver: channel.takeDescriptor()),
            readSizeMax: options.writeSizeMax, report: options.report)
    }

    /// Starts the threads and waits for the kernel's INIT, so that `features` is settled when it
    /// returns. Must be called on a thread that may block for a moment.
    ///
    /// - Parameter threads: reader threads, at least 2: one that a handler keeps busy must not
    ///   keep interrupts from being read.
    @discardableResult
    public func start(threads: Int = 4) throws(SessionError) -> Features {
        precondition((2...256).contains(threads), "a session has 2 to 256 reader threads")
        monitor.update { state in
            precondition(state.phase == .created, "a session starts once")
            state.phase = .starting
        }
        do throws(Errno) {
            let notifier = connection.notifier
            let thread = try NamedThread(name: "fuse-notifier") { notifier.serve() }
            monitor.update { $0.notifierThread = thread }
            for index in 0..<threads {
                monitor.update { $0.runningReaders += 1 }
                do throws(Errno) {
                    let reader = try NamedThread(name: "fuse-reader-\(index)") { [self] in
                        do throws(Errno) {
                            try Reader(session: self).run()
                        } catch {
                            options.report("a reader thread could not start: \(error)")
                        }
                        readerEnded()
                    }
                    monitor.update { $0.readers.append(reader) }
                } catch {
                    monitor.update { $0.runningReaders -= 1 }
                    throw error
                }
            }
        } catch {
            stop()
            throw .system(error)
        }
        let outcome: Phase? = monitor.wait(timeout: Self.initTimeout) { state in
            state.phase == .starting ? nil : state.phase
        }
        switch outcome {
        case .running:
            if let features = monitor.read({ $0.features }) { return features }
            throw .endedEarly
        case .failed(let error):
            stop()
            throw error
        case nil:
            stop()
            throw .timedOut
        case .ended, .created, .starting:
            stop()
            throw .endedEarly
        }
    }

    /// What was settled; nil before `start` has returned.
    public var features: Features? { monitor.read { $0.features } }

    public var notifier: Notifier { connection.notifier }

    // MARK: - The end

    /// Waits until the mount is gone and every reader thread has ended.
    public func wait() {
        _ = monitor.wait { state -> Void? in
            state.runningReaders == 0 && state.phase != .starting ? () : nil
        }
        joinThreads()
    }

    /// Ends the session. Unmount first: while mounted, this aborts the connection, and every
    /// process in the file system gets ENOTCONN or ECONNABORTED. Not to be called by a handler.
    public func stop() {
        monitor.read { state in
            precondition(
                !state.readers.contains { $0.isCurrent }, "a reader thread cannot stop its session")
        }
        wake.raise()
        _ = monitor.wait { $0.runningReaders == 0 ? () : nil }
        joinThreads()
    }

    private func joinThreads() {
        let (readers, notifier) = monitor.update { state in
            defer {
                state.readers = []
                state.notifierThread = nil
            }
            return (state.readers, state.notifierThread)
        }
        for reader in readers { reader.join() }
        connection.notifier.stop()
        connection.channel.shutDown()
        guard let notifier else { return }
        if connection.notifier.hasEnded(within: Self.notifierTimeout) {
            notifier.join()
        } else {
            options.report("a notification is stuck in the kernel, its thread is left behind")
            notifier.abandon()
        }
    }

    /// The last reader to end answers what still waits, then tells the file system.
    private func readerEnded() {
        let isLast = monitor.update { state in
            state.runningReaders -= 1
            return state.runningReaders == 0
        }
        // The others see the end of the mount by themselves; after a failure they must be told.
        wake.raise()
        guard isLast else { return }
        for reply in connection.requests.detachedReplies {
            reply.interrupt()
            reply.error(.ioError)
        }
        connection.notifier.runDue(connection.requests.takeWaiters())
        let wasRunning = monitor.update { state in
            defer { if case .failed = state.phase {} else { state.phase = .ended } }
            return state.phase == .running
        }
        if wasRunning { fileSystem.ended() }
    }

    // MARK: - INIT

    var dialect: Dialect { monitor.read { $0.dialect } }

    /// Answers INIT. Called by a reader thread; every other request waits in the kernel for it.
    func settle(_ request: InitRequest, unique: UInt64) {
        let channel = connection.channel
        switch Negotiation.answer(request, options) {
        case .accept(let reply, let features, let dialect):
            // The file system is told before the kernel may send anything that it would see.
            fileSystem.initialized(features)
            monitor.update { state in
                state.dialect = dialect
                state.features = features
            }
            let delivery = withUnsafeBytes(of: reply) {
                channel.send(unique: unique, error: 0, $0)
            }
            monitor.update { $0.phase = delivery == .delivered ? .running : .failed(.endedEarly) }
        case .repeated(let reply):
            _ = withUnsafeBytes(of: reply) { channel.send(unique: unique, error: 0, $0) }
        case .refuse:
            _ = channel.send(unique: unique, error: -EPROTO)
            let error = SessionError.protocolTooOld(major: request.major, minor: request.minor)
            monitor.update { $0.phase = .failed(error) }
        }
    }

    // MARK: - Passthrough

    /// Registers an open regular file (any mode, also `O_PATH`) and returns its backing id for
    /// `open` and `create` replies. The descriptor may be closed afterwards.
    ///
    /// One id per inode at a time: a second one, even for the same file, makes the open fail. Close
    /// it after the reply was taken by the kernel.
    ///
    /// Throws EPERM without `CAP_SYS_ADMIN` (then passthrough is off for the session), ELOOP when
    /// the file lies on more stacked file systems than `stackDepthMax` allows, and others.
    public func openBacking(_ descriptor: Int32) throws(Errno) -> Int32 {
        guard let features, features.passthrough != .none else { throw .notSupported }
        do throws(Errno) {
            return try connection.channel.openBacking(descriptor)
        } catch {
            let isHopeless = [Errno.notPermitted, .notSupported, Errno(rawValue: ENOTTY)]
            if isHopeless.contains(error) {
                options.report("passthrough is off: registering a file failed: \(error)")
                monitor.update { $0.features?.passthrough = .none }
            }
            throw error
        }
    }

    public func closeBacking(_ id: Int32) {
        do throws(Errno) {
            try connection.channel.closeBacking(id)
        } catch {
            options.report("closing backing file \(id) failed: \(error)")
        }
    }

    /// Whether passthrough works with files like the given one: tries it. Turns it off if not.
    public func probePassthrough(_ descriptor: Int32) -> Features.Passthrough {
        do throws(Errno) {
            closeBacking(try openBacking(descriptor))
        } catch {
            monitor.update { $0.features?.passthrough = .none }
        }
        return features?.passthrough ?? .none
    }

    // MARK: - Order

    /// Runs `body` on the notifier's thread once every request that is being worked on now has
    /// been answered: no answer from before a change can then arrive after its invalidation.
    /// Publish the change first. Detached READs and others without attributes in
    /// their answers do not count: they may wait for the network.
    ///
    /// Returns false when too many bodies wait (`RequestTable.waitersMax`) or the session is
    /// over; `body` will not run then.
    @discardableResult
    public func afterCurrentRequests(_ body: @escaping @Sendable () -> Void) -> Bool {
        switch connection.requests.afterCurrent(body) {
        case .due: connection.notifier.run(body)
        case .later: true
        case .refused: false
        }
    }
}
