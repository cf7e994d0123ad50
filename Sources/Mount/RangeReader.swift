import FUSE
import Synchronization
import SystemPackage
import Volume

/// Answers one READ over extents, waiting for each part in turn. That of a process that ends is over.
final class RangeReader: Sendable {
    struct Part {
        let extent: Extent
        let source: ExtentBytes.Source
        /// Within the extent.
        let range: Range<UInt64>
    }

    private struct State {
        /// The part whose object the disk could not read: a second error is the reader's.
        var unreadable: Int?
        var collected: [UInt8] = []
        var wait: ContentWait?
        /// Kept while it is waited for: the interest ends with it.
        var stream: (any ContentStream)?
        var isOver = false
    }

    private let parts: [Part]
    private let remote: any RemoteContent
    private let reply: PendingReply
    private let state = Mutex(State())

    /// A range over extents some of which may be elsewhere: waits for each part in turn, then
    /// answers with all of them, because a short answer would read as the end of the file.
    static func read(
        _ extents: [ExtentBytes], _ offset: UInt64, _ size: Int, _ remote: any RemoteContent,
        _ request: RequestHeader, _ reply: PendingReply
    ) {
        let (end, overflow) = offset.addingReportingOverflow(UInt64(size))
        guard !overflow else {
            reply.error(.invalidArgument)
            return
        }
        let parts = extents.compactMap { part -> Part? in
            let whole = part.offset..<part.offset + part.extent.length
            let wanted = whole.clamped(to: offset..<end)
            guard !wanted.isEmpty else { return nil }
            return Part(
                extent: part.extent, source: part.source,
                range: wanted.lowerBound - part.offset..<wanted.upperBound - part.offset)
        }
        RangeReader(parts, remote, reply).start(request)
    }

    /// A range of one object, which is served from elsewhere if the disk cannot read it.
    static func read(
        _ extent: Extent, _ file: SharedDescriptor, _ offset: UInt64, _ size: Int,
        _ remote: any RemoteContent, _ request: RequestHeader, _ reply: consuming Reply
    ) {
        reply.data(ofFile: file.descriptor.rawValue, offset: offset, size: size) { reply, error in
            guard error == .ioError else {
                reply.error(error)
                return
            }
            let whole = ExtentBytes(extent: extent, offset: 0, source: .local(file))
            read([whole], offset, size, remote, request, reply)
        }
    }

    private init(_ parts: [Part], _ remote: any RemoteContent, _ reply: PendingReply) {
        self.parts = parts
        self.remote = remote
        self.reply = reply
    }

    func start(_ request: RequestHeader) {
        Interruption.whenEnding(reply, of: request) { [weak self] in self?.interrupt() }
        proceed(0)
    }

    private func interrupt() {
        reply.error(.interrupted)
        let wait = state.withLock { state in
            state.isOver = true
            state.collected = []
            return state.wait
        }
        wait?.cancel()
    }

    private func proceed(_ index: Int) {
        guard index < parts.count else {
            reply.data(state.withLock { $0.collected })
            return
        }
        switch parts[index].source {
        case .local(let file): append(file, index)
        case .remote(let stream, _): wait(for: stream, index)
        }
    }

    private func wait(for stream: any ContentStream, _ index: Int) {
        let wait = stream.whenReadable(parts[index].range) { result in
            switch result {
            case .success(let file): self.append(file, index)
            case .failure(let error): self.reply.error(error)
            }
        }
        let isOver = state.withLock { state in
            state.wait = wait
            return state.isOver
        }
        if isOver { wait.cancel() }
    }

    private func append(_ file: SharedDescriptor, _ index: Int) {
        let range = parts[index].range
        if parts.count == 1 {
            // Nearly every READ: straight into the answer.
            let failure = reply.tryData(
                ofFile: file.descriptor.rawValue, offset: range.lowerBound, size: range.count)
            if let failure { failed(failure, index) }
            return
        }
        var more = [UInt8](repeating: 0, count: range.count)
        let count = more.withUnsafeMutableBytes {
            (try? file.descriptor.read(fromAbsoluteOffset: Int64(range.lowerBound), into: $0)) ?? 0
        }
        guard count == more.count else {
            failed(.ioError, index)
            return
        }
        let goesOn = state.withLock { state in
            if !state.isOver { state.collected += more }
            return !state.isOver
        }
        if goesOn { proceed(index + 1) }
    }

    private func failed(_ error: Errno, _ index: Int) {
        let isFirst = state.withLock { state in
            defer { state.unreadable = index }
            return state.unreadable != index
        }
        guard error == .ioError, isFirst else {
            reply.error(error)
            return
        }
        let part = parts[index]
        remote.isUnreadable(part.range, of: part.extent) { stream in
            guard let stream else {
                self.reply.error(error)
                return
            }
            self.state.withLock { $0.stream = stream }
            self.wait(for: stream, index)
        }
    }
}
