import CFUSE
import Glibc
import Synchronization
import SystemPackage

/// Ends the sleep of all reader threads, for good.
final class WakeSignal: Sendable {
    let descriptor: Int32

    init() throws(Errno) {
        descriptor = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
        if descriptor < 0 { throw Errno(rawValue: errno) }
    }

    deinit {
        close(descriptor)
    }

    /// Never read back, so that it stays raised.
    func raise() {
        var one: UInt64 = 1
        _ = Glibc.write(descriptor, &one, MemoryLayout<UInt64>.size)
    }
}

/// Sleeps until the device has a request or the wake signal is raised.
///
/// Every reader has an epoll of its own with EPOLLEXCLUSIVE, so that a request wakes one sleeper;
/// with `poll` it would wake all of them, to find nothing.
private struct Sleeper: ~Copyable {
    private let epoll: Int32
    private let wake: Int32

    init(device: Int32, wake: Int32) throws(Errno) {
        epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
        self.wake = wake
        if epoll < 0 { throw Errno(rawValue: errno) }
        try add(device, EPOLLIN.rawValue | EPOLLEXCLUSIVE.rawValue)
        try add(wake, EPOLLIN.rawValue)
    }

    deinit {
        close(epoll)
    }

    private func add(_ descriptor: Int32, _ events: UInt32) throws(Errno) {
        var event = epoll_event(events: events, data: epoll_data_t(fd: descriptor))
        if epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) < 0 { throw Errno(rawValue: errno) }
    }

    /// False when the wake signal is raised. Errors of the device show at the next read.
    func sleep() -> Bool {
        var events = (epoll_event(), epoll_event())
        return withUnsafeMutableBytes(of: &events) { bytes in
            let events = bytes.bindMemory(to: epoll_event.self)
            while true {
                let count = epoll_wait(epoll, events.baseAddress, 2, -1)
                if count >= 0 { return !events[..<Int(count)].contains { $0.data.fd == wake } }
                if errno != EINTR { return false }
            }
        }
    }
}

/// What the readers know together about the pace of requests.
final class ReaderRhythm: Sendable {
    /// A reader keeps looking only while requests follow one another this closely, nanoseconds.
    static let gapMax: UInt64 = 1_000_000

    private let spinning = Atomic(false)
    private let lastArrival = Atomic<UInt64>(0)
    private let isBusy = Atomic(false)

    /// Nanoseconds of the monotonic clock.
    static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    func arrived() {
        let now = Self.now
        let last = lastArrival.exchange(now, ordering: .relaxed)
        isBusy.store(now &- last < Self.gapMax, ordering: .relaxed)
    }

    /// One reader at a time may keep looking.
    func tryToSpin() -> Bool {
        isBusy.load(ordering: .relaxed)
            && spinning.compareExchange(expected: false, desired: true, ordering: .acquiring)
                .exchanged
    }

    func endSpin() {
        spinning.store(false, ordering: .releasing)
    }
}

/// One reader thread: takes a request, has it handled, takes the next.
struct Reader: ~Copyable {
    private let session: Session
    private let buffer: PageBuffer
    private let spinNanoseconds: UInt64
    private let sleeper: Sleeper

    init(session: Session) throws(Errno) {
        sleeper = try Sleeper(
            device: session.connection.channel.descriptor, wake: session.wake.descriptor)
        self.session = session
        // SETXATTR may be larger than small WRITEs; the kernel wants 8 KiB at least.
        let payload = max(session.options.writeSizeMax, 128 * 1024)
        buffer = PageBuffer(headroom: RequestParser.headerSize + 40, count: payload)
        let (seconds, nanoseconds) = session.options.spin.wire
        spinNanoseconds = seconds * 1_000_000_000 + UInt64(nanoseconds)
    }

    deinit {
        buffer.deallocate()
    }

    func run() {
        let channel = session.connection.channel
        var hasAnswered = false
        while true {
            var arrival = channel.receive(into: buffer.bytes)
            if arrival == .nothing, hasAnswered, session.rhythm.tryToSpin() {
                arrival = spin()
                session.rhythm.endSpin()
            }
            switch arrival {
            case .packet(let count):
                session.rhythm.arrived()
                handle(UnsafeRawBufferPointer(rebasing: buffer.bytes[..<count]))
                hasAnswered = true
            case .nothing:
                hasAnswered = false
                if !sleeper.sleep() { return }
            case .ended:
                return
            case .failed(let error):
                session.options.report("reading the FUSE device failed: \(error)")
                return
            }
        }
    }

    private func spin() -> Channel.Arrival {
        let deadline = ReaderRhythm.now + spinNanoseconds
        repeat {
            let arrival = session.connection.channel.receive(into: buffer.bytes)
            if arrival != .nothing { return arrival }
            // The process that just got its answer may have been woken on this very processor.
            sched_yield()
        } while ReaderRhythm.now < deadline
        return .nothing
    }

    // MARK: - One request

    private func handle(_ packet: UnsafeRawBufferPointer) {
        let header: RequestHeader
        let opcode: Opcode
        let operation: Operation
        do throws(MalformedRequest) {
            (header, opcode, operation) = try RequestParser.parse(packet, dialect: session.dialect)
        } catch {
            refuse(error)
            return
        }
        switch operation {
        case .forget(let count):
            session.fileSystem.part(of: header.nodeid)
                .forget(nodeid: header.nodeid, count: count)
        case .batchForget(let batch):
            session.fileSystem.forget(batch: batch)
        case .interrupt(let unique):
            session.connection.requests.interrupted(unique)?.interrupt()
        case .initialize(let request):
            session.settle(request, unique: header.unique)
        case .notifyReply:
            break
        default:
            let epoch = session.connection.requests.enter()
            let ticket = Ticket(
                connection: session.connection, unique: header.unique, opcode: opcode,
                epoch: epoch)
            session.fileSystem.part(of: header.nodeid)
                .dispatch(operation, header, Reply(ticket))
        }
    }

    private func refuse(_ malformed: MalformedRequest) {
        if malformed.errno != .noFunction {
            session.options.report("a malformed request with opcode \(malformed.opcode)")
        }
        let isAnswered = Opcode(rawValue: malformed.opcode)?.isAnswered ?? true
        guard let unique = malformed.unique, isAnswered else { return }
        _ = session.connection.channel.send(
            unique: unique, error: -malformed.errno.rawValue)
    }
}
