import FUSE
import Synchronization
import SystemPackage
import Volume

/// Answers one READ over extents, waiting for each part in turn. That of a process that ends is over.
final class RangeReader: Sendable {
    struct Part {
        let source: ExtentBytes.Source
        /// Within the extent.
        let range: Range<UInt64>
    }

    private struct State {
        var collected: [UInt8] = []
        var wait: ContentWait?
        var isOver = false
    }

    private let parts: [Part]
    private let reply: PendingReply
    private let state = Mutex(State())

    /// A range over extents some of which may be elsewhere: waits for each part in turn, then
    /// answers with all of them, because a short answer would read as the end of the file.
    static func read(
        _ extents: [ExtentBytes], _ offset: UInt64, _ size: Int, _ request: RequestHeader,
        _ reply: consuming Reply
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
                source: part.source,
                range: wanted.lowerBound - part.offset..<wanted.upperBound - part.offset)
        }
        RangeReader(parts, reply.detach()).start(request)
    }

    private init(_ parts: [Part], _ reply: PendingReply) {
        self.parts = parts
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
        case .remote(let stream, _):
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
    }

    private func append(_ file: SharedDescriptor, _ index: Int) {
        let range = parts[index].range
        if parts.count == 1 {
            // Nearly every READ: straight into the answer.
            reply.data(
                ofFile: file.descriptor.rawValue, offset: range.lowerBound, size: range.count)
            return
        }
        var more = [UInt8](repeating: 0, count: range.count)
        let count = more.withUnsafeMutableBytes {
            (try? file.descriptor.read(fromAbsoluteOffset: Int64(range.lowerBound), into: $0)) ?? 0
        }
        guard count == more.count else {
            reply.error(.ioError)
            return
        }
        let goesOn = state.withLock { state in
            if !state.isOver { state.collected += more }
            return !state.isOver
        }
        if goesOn { proceed(index + 1) }
    }
}
