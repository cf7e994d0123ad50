import Catalog
import History
import Logging
import Mount
import Store
import Synchronization
import SystemPackage
import Volume

/// Catalog and history of a root, opened; what is damaged is set aside and begun anew.
struct DurableState {
    let catalog: Catalog
    let history: History
    let salvage: Salvage
    /// What the owner has to know of it, by the code of the problem.
    let notices: [String: String]
    /// The disk is to be taken away.
    let isDraining: Bool

    init(
        _ root: FilePath, _ node: NodeID, _ name: String, _ store: Store, _ link: MeshLink,
        _ logger: Logger
    ) throws {
        let (history, damage) = try Self.openHistory(root, logger)
        let options = Self.catalogOptions(node, store, link, logger)
        let (catalog, loss) = try Self.openCatalog(root, history, options, logger)
        self.catalog = catalog
        self.history = history
        salvage = Salvage(
            root: root, catalog: catalog, history: history, store: store, node: node, name: name,
            logger: logger)
        notices = ["history-damaged": damage, "catalog-rebuilt": loss].compactMapValues(\.self)
        isDraining = try catalog.read { try $0.meta(Node.drainingKey) } != nil
    }

    private static func openCatalog(
        _ root: FilePath, _ history: History, _ options: Catalog.Options, _ logger: Logger
    ) throws -> (catalog: Catalog, notice: String?) {
        let path = root.appending("catalog.sqlite")
        do {
            let hasHistory = try history.head() != nil
            var reason: String?
            if hasHistory, FileStatus(path) == nil {
                reason = "it is not there"
            } else {
                do {
                    let catalog = try Catalog.open(path, options: options)
                    let isFilled = try catalog.read { try $0.settings() != nil }
                    let isCommitted = try catalog.read { try $0.applied() != nil }
                    if !hasHistory || isFilled && isCommitted { return (catalog, nil) }
                    reason = isFilled ? "it is older than the first commit" : "it is empty"
                    catalog.close()
                } catch let damage as CatalogDamage { reason = damage.description }
            }
            let parts = ["", "-wal", "-redo", "-damaged"].map { "catalog.sqlite" + $0 }
            let place = try Damaged.setAside(parts, of: root)
            let text =
                "The catalog of this disk was lost or damaged (\(reason ?? "")) and was made anew from the history: what was changed in the last moment before may be missing."
                + (place.map { " What was there is in \($0)." } ?? "")
            logger.error("\(text)")
            return (try Catalog.open(path, options: options), text)
        } catch { throw NodeError("The catalog of \(root) cannot be opened: \(error)") }
    }

    private static func catalogOptions(
        _ node: NodeID, _ store: Store, _ link: MeshLink, _ logger: Logger
    ) -> Catalog.Options {
        var options = Catalog.Options(node: node)
        options.log = { logger.warning("catalog: \($0)") }
        options.own = { Store.own($0, of: $1) }
        options.beforeCommit = {
            let failures = store.synchronizeOwed()
            guard !failures.isEmpty else { return nil }
            for (name, error) in failures {
                logger.error(
                    "staging/\(name), which is being written, could not be synced: \(error)")
            }
            // The row has the older bytes until the file is published, which a power cut or the kernel
            // may have left with neither. (What a rename displaced has no row any more: as on any
            // disk that fails, it is the new file or nothing.)
            return { tx in
                for name in failures.keys {
                    guard var row = try tx.staging(of: name.ino), row.name == "\(name)" else {
                        continue
                    }
                    row.doubt()
                    try tx.setStaging(row)
                }
            }
        }
        options.makeRoom = { (try? store.shrinkReserve()) == true }
        options.onFailure = {
            logger.critical(
                "the catalog could not be written; the volume is read-only here until the node was restarted"
            )
            link.node?.running.withLock { $0.mount?.fileSystem }?.catalogFailed()
        }
        options.onDamage = { reason in
            logger.critical("the catalog is damaged: \(reason)")
            link.damaged.withLock { $0 = reason }
        }
        return options
    }

    private static func openHistory(
        _ root: FilePath, _ logger: Logger
    ) throws -> (History, notice: String?) {
        let path = root.appending("history.git")
        do {
            guard RootDirectory.isDirectory(path) else {
                let isFirst = FileStatus(root.appending("catalog.sqlite")) == nil
                return (
                    try History.create(path),
                    isFirst
                        ? nil
                        : "The history of this disk is gone; nodes that have it make it anew here."
                )
            }
            do {
                return (try History.open(path), nil)
            } catch  where (error as? HistoryError)?.isDamage ?? (error as? Errno == .ioError) {
                guard let place = try Damaged.setAside(["history.git"], of: root) else {
                    throw error
                }
                let old = place.appending("history.git")
                let (history, found) = try History.restore(from: old, to: path)
                let text =
                    "The history of this disk was damaged (\(error)) and is made anew of what can be proven whole, the rest by nodes that have it. \(found). What was there is in \(place)."
                logger.error("\(text)")
                return (history, text)
            }
        } catch { throw NodeError("The history of \(root) cannot be opened: \(error)") }
    }
}
