import SystemPackage

/// What reader threads, replies and the notifier share for the life of one mount.
final class Connection: Sendable {
    let channel: Channel
    let requests = RequestTable()
    let readBuffers: BufferPool
    let notifier: Notifier
    let report: @Sendable (String) -> Void

    init(channel: Channel, readSizeMax: Int, report: @escaping @Sendable (String) -> Void) {
        self.channel = channel
        self.report = report
        readBuffers = BufferPool(size: readSizeMax)
        notifier = Notifier(channel: channel, report: report)
    }

    /// Writes the answer to a request, and then lets go what waited for it.
    func finish(
        _ ticket: Ticket, error: Int32, _ first: UnsafeRawBufferPointer? = nil,
        _ second: UnsafeRawBufferPointer? = nil
    ) -> Bool {
        let delivery = channel.send(unique: ticket.unique, error: error, first, second)
        if case .failed(let reason) = delivery, !Self.endings.contains(reason) {
            // The kernel refused the packet (EINVAL: our mistake; ENOMEM: its need) and may still
            // be waiting: the smallest answer there is ends that.
            report("the answer to \(ticket.opcode) was refused: \(reason)")
            _ = channel.send(unique: ticket.unique, error: -Errno.ioError.rawValue)
        }
        if ticket.isDetached { requests.reattach(ticket.unique) }
        if let epoch = ticket.epoch { leave(epoch) }
        return delivery == .delivered
    }

    /// How replies fail once the mount is gone.
    private static let endings: [Errno] = [
        .operationNotSupportedByDevice, .permissionDenied, .socketNotConnected, .connectionAbort,
        .badFileDescriptor,
    ]

    func leave(_ epoch: UInt64) {
        notifier.runDue(requests.leave(epoch))
    }
}
