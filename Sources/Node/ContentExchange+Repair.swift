import Catalog
import Mount
import Store
import Swarm
import Synchronization
import SystemPackage
import Volume

/// What of an object could not be read.
struct Unreadable: Sendable {
    var range: Range<UInt64>
    /// A node that is online has it.
    var isElsewhere: Bool
}

// Damaged content: no copy any more, and fetched again as far as it is damaged.
extension ContentExchange {
    func isUnreadable(
        _ range: Range<UInt64>, of extent: Extent,
        _ body: @escaping @Sendable ((any ContentStream)?) -> Void
    ) {
        Task {
            let isElsewhere = await !sources(of: extent).isEmpty
            let isGone = try? await Blocking.run(.content) { [self] in
                unreadable(extent, Unreadable(range: range, isElsewhere: isElsewhere))
                return try state(of: extent) == .none
            }
            body(isGone == true ? stream(extent) : nil)
        }
    }

    /// Takes back that the content is here, keeps its good pieces for the next fetch, and lets
    /// nobody open the damaged object any more.
    ///
    /// - Parameter damaged: the pieces that are bad; nil: nothing says which.
    /// - Returns: what it was here; nil when it was no copy any more.
    func setAside(_ extent: Extent, damaged: Set<Int>?) throws -> ContentState? {
        let verified = damaged.map { damaged in
            var good = Bitfield(count: extent.pieceCount)
            for piece in 0..<extent.pieceCount where !damaged.contains(piece) { good.insert(piece) }
            return good.bytes
        }
        let before: ContentState? = try partials.withLock { _ in
            let before: ContentState? = try catalog.perform { tx in
                guard let known = try tx.content(extent.root), known.extent == extent,
                    known.state == .stored || known.state == .cached
                else { return nil }
                try tx.setContentState(
                    extent, .partial, verified: verified, at: Monotonic.wallMilliseconds)
                return known.state
            }
            guard before != nil else { return nil }
            try catalog.flush()
            try store.setAside(extent)
            return before
        }
        if before != nil { arrived(extent, .absent) }
        return before
    }
}

extension Fetch {
    /// A file that is here and not yet known to be good for anything: an object that is not as long
    /// as its content, or partial content of which nothing is recorded.
    func hasUnchecked() throws -> Bool {
        let (catalog, store) = (exchange.catalog, exchange.store)
        guard let known = try catalog.read({ try $0.content(extent.root) }),
            known.extent == extent, known.state == .partial, known.verified == nil
        else { return false }
        if try isCut() { return true }
        guard let file = try store.openPartial(extent.root) else { return false }
        return try file.closeAfter { try store.facts(of: file).blocks > 0 }
    }

    /// What bears the object's name is not as long as the content. (Of the right length it may be
    /// one that is just being published.)
    private func isCut() throws -> Bool {
        try exchange.store.objectLength(extent.root).map { $0 != extent.length } ?? false
    }

    /// Reads it: what is good of it need not be fetched.
    func check(_ layer: [UInt8]) throws {
        let (catalog, store) = (exchange.catalog, exchange.store)
        try exchange.partials.withLock { _ in
            guard try isCut() else { return }
            try catalog.flush()
            try store.setAside(extent)
        }
        var good = Bitfield(count: extent.pieceCount)
        for piece in try store.goodPieces(ofPartial: extent, layer: layer) { good.insert(piece) }
        try catalog.perform { try $0.setVerified(extent.root, good.bytes) }
    }

    /// The file being filled and its good pieces, while no holder answers.
    func verifiedPart() throws -> (file: SharedDescriptor, pieces: Bitfield)? {
        guard let known = try exchange.catalog.read({ try $0.content(extent.root) }),
            known.extent == extent, known.state == .partial,
            let pieces = known.verified.flatMap({ Bitfield(count: extent.pieceCount, bytes: $0) }),
            pieces.setCount > 0, let file = try exchange.store.openPartial(extent.root)
        else { return nil }
        return (SharedDescriptor(file), pieces)
    }
}
