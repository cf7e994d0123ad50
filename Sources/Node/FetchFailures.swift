import Catalog
import Logging
import Mesh
import Synchronization
import Volume

/// Reads that ended without their bytes: what a person is told of them, until the content arrives or
/// for `lifetime`.
final class FetchFailures: Sendable {
    static let lifetime = Duration.seconds(600)
    static let countMax = 64

    private struct Failure {
        var text: String
        var last: ContinuousClock.Instant
    }

    private let kept = Mutex<[Extent: Failure]>([:])

    /// - Returns: whether it is not told of yet.
    func note(_ extent: Extent, _ text: String) -> Bool {
        let now = ContinuousClock.now
        return kept.withLock { kept in
            kept = kept.filter { now - $0.value.last < Self.lifetime }
            guard kept[extent] != nil || kept.count < Self.countMax else { return true }
            return kept.updateValue(Failure(text: text, last: now), forKey: extent)?.text != text
        }
    }

    func clear(_ extent: Extent) { kept.withLock { $0[extent] = nil } }

    /// The newest one, and how many others there are.
    var problem: String? {
        let now = ContinuousClock.now
        let current = kept.withLock { kept in
            kept.values.filter { now - $0.last < Self.lifetime }
        }
        guard let newest = current.max(by: { $0.last < $1.last }) else { return nil }
        return newest.text
            + (current.count > 1 ? " (\(current.count - 1) other files could not be read.)" : "")
    }
}

extension ContentExchange {
    /// A reader got an error because nothing came for `progressTimeout`.
    func starved(_ extent: Extent, hashFailures: Int) {
        Task {
            let names = await holderNames(of: extent)
            let seconds = Self.progressTimeout.components.seconds
            let reason =
                if names.isEmpty {
                    "no disk that is online has its content. Start the disks that `delugefs whereis` names."
                } else if hashFailures > 0 {
                    "what came from \(names) is not its content. Run `delugefs scrub` there: it repairs what is damaged."
                } else {
                    "nothing of its content came from \(names) for \(seconds) s. Look after the network and the disk there, and run `delugefs scrub` on it."
                }
            let path = await pathForPerson(extent)
            let text = "\(path) could not be read: \(reason)"
            if failures.note(extent, text) { logger.error("\(text)") }
        }
    }

    /// It came, in spite of somebody.
    func arrived(_ extent: Extent, hashFailures: Int) {
        guard hashFailures > 0 else { return }
        Task {
            let names = await holderNames(of: extent)
            let path = await pathForPerson(extent)
            logger.warning(
                "\(hashFailures) times a piece of \(path) came damaged, and was fetched again, from one of \(names). Run `delugefs scrub` there: it repairs what is damaged."
            )
        }
    }

    private func holderNames(of extent: Extent) async -> String {
        await holders(of: extent).named.map(\.hello.name).sorted().joined(separator: ", ")
    }

    private func pathForPerson(_ extent: Extent) async -> String {
        let path = try? await Blocking.run { [catalog] in
            Node.path(of: extent.root, in: catalog)
        }
        return (path ?? nil) ?? "old content \(extent.root)"
    }
}
