import Catalog
import Logging
import Store
import SystemPackage
import Volume

/// Opens content for reading: what is on this disk as files, the rest as streams of what is fetched.
final class ContentOpener: Sendable {
    private let catalog: Catalog
    private let store: Store
    private let remote: any RemoteContent
    private let users: ObjectUsers
    private let failures: FailureLog

    init(
        catalog: Catalog, store: Store, remote: any RemoteContent, users: ObjectUsers,
        failures: FailureLog
    ) {
        self.catalog = catalog
        self.store = store
        self.remote = remote
        self.users = users
        self.failures = failures
    }

    /// Which of them are on this disk, as the catalog believes.
    func areLocal(_ extents: [Extent], _ reader: Reader) throws(Errno) -> [Bool] {
        try extents.map { extent throws(Errno) in try Self.isLocal(extent, reader) }
    }

    private static func isLocal(_ extent: Extent, _ reader: Reader) throws(Errno) -> Bool {
        switch try reader.content(extent.root)?.state {
        case .cached, .stored, .dropping: true
        default: false
        }
    }

    /// - Parameter nodeid: for which the objects are used as long as the result is kept.
    func open(
        _ extents: [Extent], _ isLocal: [Bool], for nodeid: UInt64
    ) throws(Errno) -> Bytes {
        var offset: UInt64 = 0
        var parts: [ExtentBytes] = []
        for (extent, isLocal) in zip(extents, isLocal) {
            let source: ExtentBytes.Source
            if isLocal, let file = try openObject(extent, for: nodeid) {
                if extents.count == 1 { return .object(extent, file) }
                source = .local(file)
            } else {
                let use = users.use(extent.root, for: nodeid)
                source = .remote(remote.stream(extent), use)
            }
            parts.append(ExtentBytes(extent: extent, offset: offset, source: source))
            offset += extent.length
        }
        return .extents(parts)
    }

    /// nil when it is not on the disk, or not whole, whatever the catalog believed: from now on it
    /// knows, and the content is fetched like any other.
    func openObject(_ extent: Extent, for nodeid: UInt64) throws(Errno) -> SharedDescriptor? {
        let use = users.use(extent.root, for: nodeid)
        do throws(StoreError) {
            if let file = try store.openObject(extent.root) {
                let shared = SharedDescriptor(file, use)
                if try store.facts(of: file).size == extent.length { return shared }
                // It stays until whoever fetches the rest takes what is good of it.
            }
        } catch {
            guard error.errno == .permissionDenied || error.errno == .notPermitted else {
                throw error.errno
            }
            // Whose file it is says nothing of who may read what has its bytes.
            failures.logger.error(
                "the object \(extent.root) cannot be opened: \(error). Give the files of the root back to the user who runs the node (chown), then run `delugefs scrub`."
            )
            throw .ioError
        }
        if try noteMissing(extent) {
            failures.logger.error(
                "the object \(extent.root) is not on the disk, or not whole: it is fetched again from other disks"
            )
            remote.isMissing(extent)
        }
        return nil
    }

    /// - Returns: false when it was given up, as content of the past alone may be, or stored again
    ///   since the caller looked.
    private func noteMissing(_ extent: Extent) throws(Errno) -> Bool {
        do {
            return try catalog.perform { tx in
                guard try Self.isLocal(extent, tx),
                    try store.objectLength(extent.root) != extent.length
                else { return false }
                let isNone = try store.objectLength(extent.root) == nil
                try tx.setContentState(
                    extent, isNone ? .absent : .partial, at: Monotonic.wallMilliseconds)
                return true
            }
        } catch { throw failures.errno(error, "open") }
    }
}

/// The one place where errors become errno; what has no better answer is EIO and a log line.
struct FailureLog: Sendable {
    let logger: Logger

    func errno(_ error: any Error, _ what: StaticString) -> Errno {
        if let errno = error as? Errno { return errno }
        if let error = error as? StoreError { return error.errno }
        logger.error("\(what) failed", metadata: ["error": "\(error)"])
        return .ioError
    }
}
