import Catalog
import FoundationEssentials
import Logging
import Mesh
import Mount
import Synchronization
import Volume

extension ControlMessage {
    /// `POST /v1/scrub`: begins a pass; the answer comes at once or, `waits`, when it is over and
    /// what it found is repaired, or cannot be.
    public struct Scrub: Codable, Sendable {
        public var waits: Bool
        public init(waits: Bool) { self.waits = waits }
    }

    public struct ScrubReply: Codable, Sendable {
        public var scrub: Status.Scrub
        /// For a person: what could not be repaired, and what to do.
        public var problem: String?
    }
}

extension Node {
    func scrub(_ message: ControlMessage.Scrub) async throws -> ControlMessage.ScrubReply {
        let pass = scrubber.request()
        let deadline = ContinuousClock.now + .seconds(Self.waitSecondsMax)
        while message.waits, !(scrubber.hasEnded(pass) && scrubber.hasSettled) {
            guard ContinuousClock.now < deadline else {
                throw NodeError("The scrub goes on; `delugefs status` tells how far it is.")
            }
            try await Task.sleep(for: Self.waitPoll)
        }
        return try await Blocking.run { [scrubber] in
            ControlMessage.ScrubReply(
                scrub: scrubber.status, problem: message.waits ? scrubber.problem : nil)
        }
    }

    static func scrubber(
        _ exchange: ContentExchange, _ configuration: Configuration, _ link: MeshLink
    ) throws -> Scrubber {
        try Scrubber(
            catalog: exchange.catalog, store: exchange.store, exchange: exchange,
            rate: configuration.scrubBytesPerSecond, logger: exchange.logger,
            surroundings: Scrubber.Surroundings(
                path: { link.node?.path(of: $0) },
                setAside: { link.node?.fileSystem?.setAside($0) },
                repaired: { link.node?.fileSystem?.repaired($0) }))
    }

    private var fileSystem: VolumeFileSystem? { running.withLock { $0.mount?.fileSystem } }

    /// A read of a local object failed.
    func unreadable(_ extent: Extent, _ part: Unreadable?) {
        guard let part else { return scrubber.suspect(extent) }
        let size = extent.pieceBytes
        let pieces = part.range.lowerBound / size..<(part.range.upperBound + size - 1) / size
        do {
            try scrubber.unreadable(
                extent, Set(pieces.map { Int($0) }), isElsewhere: part.isElsewhere)
        } catch { logger.error("setting \(extent.root) aside: \(error)") }
    }
}
