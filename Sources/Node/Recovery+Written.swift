import Glibc
import Store
import SystemPackage
import Volume

// What was being written when the node ended: what `staging/` has and no commit. As at a start without
// the catalog (`Salvage`) it becomes files beside those that it belongs to, never in their place, for
// nothing says whether it is whole.
extension Recovery {
    /// What the catalog alone can put together.
    private static let inParts =
        "it was being changed, and only a start of the node can put its last version together"

    func recoverWritten() throws {
        let facts = try store.listStaging().sorted().map { ($0, try store.stagingFacts($0)) }
        let linked = facts.map(\.1).filter { $0.links > 1 }.map(\.identity)
        let objects = try store.objects(Set(linked))
        for (staging, facts) in facts where facts.size > 0 {
            let file = written[staging.ino]
            let isWhole = try isWhole(staging)
            if let file,
                try isCommitted(staging, facts, file, isWhole, objects[facts.identity])
            {
                continue
            }
            let original = file?.path ?? [Self.nameless]
            if isWhole {
                try adopt(staging, facts, beside: original, file)
            } else {
                lose(.unfinished, original, "\(Self.inParts): staging/\(staging)")
            }
        }
    }

    /// Name of what no commit knows. (Not nil: it is a name.)
    private static let nameless = FileName("recovered")!

    /// Nothing shows through from beneath, and no bytes were moved out.
    private func isWhole(_ staging: StagingName) throws -> Bool {
        guard try store.stagingBases(staging).isEmpty else { return false }
        // A list of the parts that cannot be read is one too.
        do { return try store.interruptedSplit(staging) == nil } catch { return false }
    }

    /// Whether the file has nothing that its record has not.
    private func isCommitted(
        _ staging: StagingName, _ facts: FileFacts, _ file: WrittenFile, _ isWhole: Bool,
        _ object: Extent?
    ) throws -> Bool {
        let group = file.record.content.value
        guard case .file(let content) = group.body else { return false }
        switch content {
        case .inline(let bytes): return try isWhole && store.holds(staging, bytes)
        case .extents(let extents):
            // The very file that the record names: whether it is right was told.
            if extents == [object].compactMap(\.self) { return true }
            let isUntouched = isWhole ? group.modified == facts.modified : facts.blocks == 0
            return file.isRecovered && content.length == facts.size && isUntouched
        }
    }

    private func adopt(
        _ staging: StagingName, _ facts: FileFacts, beside original: [FileName],
        _ file: WrittenFile?
    ) throws {
        let directory = Array(original.dropLast())
        guard let last = original.last else { return }
        if !directory.isEmpty { try tree.reopenDirectory(at: directory) }
        let milliseconds = UInt64(max(0, facts.modified.seconds)) * 1000
        let name = try conflictName(
            original: last, node: name,
            stamp: Stamp(milliseconds: milliseconds, counter: 0, node: NodeID(high: 0, low: 0)),
            id: LineageID(rawValue: staging.ino.rawValue),
            taken: { try tree.exists(directory + [$0]) })
        let path = directory + [name]
        var attributes = FileAttributes(mode: 0o600, modified: facts.modified)
        if let file {
            attributes = self.attributes(file.record)
            attributes.modified = facts.modified
        }
        let recovered = try attempt(path) {
            try tree.makeFile(at: path, attributes) { target in
                let source = try store.openStaging(staging, .read)
                try source.closeAfter {
                    try copy(0..<facts.size, of: source, to: target, at: 0)
                }
            }
        }
        settle(recovered, path)
        if recovered.isMade {
            report.bytes += facts.size
            report.unfinished.append(String(decoding: Self.bytes(of: path), as: UTF8.self))
        }
        guard let parent = file?.parent, !directory.isEmpty else { return }
        _ = try tree.finishDirectory(at: directory, parent)
    }
}
