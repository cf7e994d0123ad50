import Catalog
import Logging
import Mount
import Store
import Synchronization
import Volume

// Having repaired what was found.
extension Scrubber {
    /// Until it is cancelled.
    func repair() async {
        while !Task.isCancelled {
            do {
                var left = Self.repairsMax
                for damage in state.withLock({ $0.progress.damaged }) where left > 0 {
                    if try await attend(damage) { left -= 1 }
                }
            } catch { logger.warning("repairing damaged content: \(error)") }
            try? await Task.sleep(for: Self.lookInterval)
        }
    }

    /// - Returns: whether it is being fetched.
    private func attend(_ damage: Damage) async throws -> Bool {
        guard let root = ContentRoot(hex: damage.root) else {
            forget(damage, isRepaired: false)
            return false
        }
        let extent = Extent(root: root, length: damage.length)
        let (isWhole, isWanted) = try await Blocking.run { [self] in
            (try isComplete(extent) != nil, try self.isWanted(extent))
        }
        guard damage.obstacle == nil else {
            if !isWanted { forget(damage, isRepaired: true) }
            return false
        }
        if isWhole, damage.unreadable == nil {
            forget(damage, isRepaired: true)
            logger.notice(
                "\(surroundings.path(root) ?? "old content") (\(root)) is whole again")
            surroundings.repaired(extent)
            return false
        }
        if !isWanted {
            forget(damage, isRepaired: true)
            return false
        }
        let isFetching =
            damage.isStored ? exchange.isCloning(extent) : exchange.isFetching(extent)
        let now = ContinuousClock.now
        let isDue = state.withLock { state in
            var trial = state.trials[damage.root, default: Trial()]
            if trial.isUnderWay, !isFetching { trial.fail(at: now) }
            state.trials[damage.root] = trial
            return !trial.isUnderWay && now >= trial.next
        }
        guard isDue else { return isFetching }
        guard await !exchange.sources(of: extent).isEmpty else {
            state.withLock { $0.trials[damage.root]?.fail(at: .now) }
            return false
        }
        if isWhole, let pieces = damage.unreadable {
            // From now on it is a damage like any other.
            try await Blocking.run(.content) { [self] in
                try setAside(extent, damaged: Set(pieces))
            }
            return true
        }
        begin(damage, extent)
        return true
    }

    private func begin(_ damage: Damage, _ extent: Extent) {
        let stream = damage.isStored ? nil : exchange.stream(extent)
        state.withLock { state in
            state.trials[damage.root]?.isUnderWay = true
            state.trials[damage.root]?.stream = stream
        }
        if let stream {
            // Whole, and a cached copy as before.
            _ = stream.whenReadable(0..<extent.length) { _ in }
        } else {
            _ = exchange.clone(extent)
        }
    }

    /// Content that neither a file has nor anybody else can give is not worth a word.
    private func isWanted(_ extent: Extent) throws -> Bool {
        try catalog.read { reader in
            guard let known = try reader.content(extent.root), known.extent == extent else {
                return false
            }
            let isHere = known.state != .absent
            return try isHere || reader.references(to: extent.root) > 0
        }
    }

    private func forget(_ damage: Damage, isRepaired: Bool) {
        state.withLock { state in
            state.trials[damage.root] = nil
            state.progress.damaged.removeAll { $0.root == damage.root }
            if isRepaired { state.progress.errorsRepaired += 1 }
            state.isDirty = true
        }
        save(atOnce: true)
    }

    /// It could not be read before, and is sound.
    func forget(_ extent: Extent) {
        let root = "\(extent.root)"
        let known = state.withLock { state in
            state.progress.damaged.first {
                $0.root == root && ($0.obstacle != nil || $0.unreadable != nil)
            }
        }
        if let known { forget(known, isRepaired: true) }
    }

    // MARK: For a person

    /// Nothing of what was found is still being fetched.
    var hasSettled: Bool {
        state.withLock { state in
            state.progress.damaged.allSatisfy {
                $0.obstacle != nil || state.trials[$0.root]?.hasFailed == true
            }
        }
    }

    /// What is damaged and could not be repaired so far.
    var unrepaired: [ContentRoot] {
        state.withLock { state in
            state.progress.damaged.filter {
                $0.obstacle != nil || state.trials[$0.root]?.hasFailed == true
            }.compactMap { ContentRoot(hex: $0.root) }
        }
    }

    /// Paths named in one sentence.
    static let pathsMax = 10

    /// nil: nothing is damaged for good.
    var problem: String? {
        let roots = unrepaired
        guard !roots.isEmpty else { return nil }
        let refused = state.withLock { state in
            Set(state.progress.damaged.filter { $0.obstacle != nil }.map(\.root))
        }
        let (unreadable, damaged) = (
            roots.filter { refused.contains("\($0)") },
            roots.filter { !refused.contains("\($0)") }
        )
        var sentences: [String] = []
        if !damaged.isEmpty {
            sentences.append(
                "\(list(damaged, "on this disk cannot be read or is damaged, and no disk that is online can repair it")). Start the disks that `delugefs whereis` names, or bring an older version back with `delugefs restore`."
            )
        }
        if !unreadable.isEmpty {
            sentences.append(
                "\(list(unreadable, "on this disk may not be read by this node, and counts as a copy still")). Give the files of the root back to the user who runs the node (chown), look after the disk, then run `delugefs scrub`."
            )
        }
        return sentences.joined(separator: " ")
    }

    private func list(_ roots: [ContentRoot], _ what: String) -> String {
        let paths = roots.prefix(Self.pathsMax).map {
            surroundings.path($0) ?? "old content \($0)"
        }
        let count = roots.count == 1 ? "1 content" : "\(roots.count) contents"
        return
            "\(count) \(what): \(paths.joined(separator: ", "))\(roots.count > paths.count ? ", ..." : "")"
    }

    var status: Status.Scrub {
        let progress = state.withLock { $0.progress }
        return Status.Scrub(
            lastCompleted: progress.lastCompleted.map {
                Node.iso8601(milliseconds: Int64(clamping: $0))
            }, bytesChecked: progress.bytesChecked, errorsFound: progress.errorsFound,
            errorsRepaired: progress.errorsRepaired,
            bytesTotal: progress.cursor == nil ? nil : catalog.local.bytes)
    }
}

extension Scrubber.Trial {
    mutating func fail(at now: ContinuousClock.Instant) {
        isUnderWay = false
        hasFailed = true
        stream = nil
        next = now + Scrubber.retryPause
    }
}
