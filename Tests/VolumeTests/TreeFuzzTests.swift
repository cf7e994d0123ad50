import Simulation
import Testing

@testable import Volume

/// Trees that were spoiled at random. (Single entries are in `RecordEncodingTests`.)
@Suite("Spoiled trees")
struct TreeFuzzTests {
    /// Names that are ours, Git's, or lead elsewhere.
    private static let names = [
        "..", ".", "", "a/b", "%dir", "%00", "%ff", "%2E%2E", "%", "%%", ".git", "%2Egit", "tree",
        "inode", "volume", "settings", "nodes", "horizon", "00", "0000000000000001",
    ]

    private static let rounds = 80

    private func history(seed: UInt64) throws -> CommittedHistory {
        var history = CommittedHistory(seed: seed)
        history.create(6, in: .root, prefix: "f")
        let stamp = history.clock.next(wall: 0)
        for (index, parent) in [LineageID.root, LineageID(rawValue: 60)].enumerated() {
            history.live.space.create(
                .directory, at: place("d", in: parent), id: 60 + UInt64(index),
                link: 60 + UInt64(index), stamp: stamp)
        }
        history.create(4, in: LineageID(rawValue: 61), prefix: "g")
        let file = try #require(history.live.link(at: place("f0")))
        history.live.space.link(
            file.target, at: place("hard", in: LineageID(rawValue: 60)), link: 50, stamp: stamp)
        if seed % 16 == 7 { history.create(1100, in: LineageID(rawValue: 60), prefix: "n") }
        _ = try history.live.commit(to: history.objects)
        return history
    }

    private func place(_ name: String, in directory: LineageID = .root) -> Place {
        Place(directory: directory, name: FileName(name).unsafelyUnwrapped)
    }

    @Test(
        "A spoiled tree is refused, or it is the one tree of what it says",
        arguments: Seeds.range(0..<4))
    func spoiled(seed: UInt64) throws {
        let history = try history(seed: seed)
        let objects = history.objects
        let base = try #require(history.live.head)
        var random = SeededGenerator(seed: seed)
        let known = try all(below: base, objects)
        var accepted = 0
        for round in 0..<Self.rounds {
            var forged = base
            for _ in 0..<random.number(1..<3) {
                forged = try spoil(forged, known, objects, &random)
            }
            guard forged != base else { continue }
            let alone = outcome(from: nil, to: forged, objects)
            let after = outcome(from: base, to: forged, objects)
            switch (alone, after) {
            case (.valid(let all), .valid):
                accepted += 1
                let again = try whole(all, of: forged, objects)
                #expect(again == forged, "seed \(seed), round \(round)")
            case (.refused, .refused): break
            case (.refused(let reason), .valid):
                // What is new and stands in what did not change, too: seen where both are read.
                #expect(reason.contains("stands twice"), "seed \(seed), round \(round): \(reason)")
            case (.valid, .refused(let reason)):
                Issue.record("seed \(seed), round \(round): refused after its parent: \(reason)")
            }
        }
        print("seed \(seed): \(accepted) of \(Self.rounds) spoiled trees are valid ones")
    }

    private enum Outcome {
        case valid(TreeDifference)
        case refused(String)
    }

    private func outcome(from: ObjectID?, to: ObjectID, _ objects: MemoryObjects) -> Outcome {
        do {
            return .valid(try difference(from: from, to: to, source: objects))
        } catch is InvalidTree, is UpgradeNeeded, is MemoryObjects.Missing {
            var reason = ""
            do { _ = try difference(from: from, to: to, source: objects) } catch {
                reason = "\(error)"
            }
            return .refused(reason)
        } catch {
            Issue.record("\(error)")
            return .refused("\(error)")
        }
    }

    /// The tree that a node would write for what the difference from nothing says.
    private func whole(
        _ all: TreeDifference, of tree: ObjectID, _ objects: MemoryObjects
    ) throws -> ObjectID {
        let top = try VolumeTree(reading: tree, from: objects)
        var live = CommittedNamespace(
            space: Namespace(
                records: all.records.compactMapValues(\.self),
                entries: Dictionary(
                    uniqueKeysWithValues: all.places.compactMap { place, link in
                        link.map { ($0.id, Namespace.Entry(place: place, link: $0)) }
                    })))
        live.settings = top.settings
        live.nodes = try top.nodes(from: objects)
        return try live.wholeTree(to: objects)
    }

    // MARK: Spoiling

    private func all(below tree: ObjectID, _ objects: MemoryObjects) throws -> [TreeEntry] {
        try objects.tree(tree).flatMap { entry in
            [entry] + (entry.kind == .tree ? try all(below: entry.id, objects) : [])
        }
    }

    /// Changes one tree or blob on a random way down, and all above it.
    private func spoil(
        _ tree: ObjectID, _ known: [TreeEntry], _ objects: MemoryObjects,
        _ random: inout SeededGenerator
    ) throws -> ObjectID {
        var entries = try objects.tree(tree)
        guard !entries.isEmpty else { return tree }
        let at = random.number(0..<entries.count)
        let entry = entries[at]
        func put(_ name: [UInt8], _ kind: TreeEntry.Kind, _ id: ObjectID) -> TreeEntry {
            TreeEntry(name: name, kind: kind, id: id)
        }
        if entry.kind == .tree, !random.once(in: 4) {
            // Also what an earlier change made of a blob's id.
            guard let below = try? spoil(entry.id, known, objects, &random) else { return tree }
            entries[at] = put(entry.name, .tree, below)
            return objects.write(treeAsIs: entries)
        }
        let other = known[random.number(0..<known.count)]
        let name = Array(Self.names[random.number(0..<Self.names.count)].utf8)
        var isSorted = true
        switch random.number(0..<9) {
        case 0: entries.remove(at: at)
        case 1: entries.append(put(name, entry.kind, entry.id))
        case 2: entries.append(put(name, other.kind, other.id))
        case 3: entries[at] = put(name, entry.kind, entry.id)
        case 4: entries[at] = put(entry.name, other.kind, other.id)
        case 5: entries[at] = put(entry.name, entry.kind == .tree ? .blob : .tree, entry.id)
        case 6:
            entries.shuffle(using: &random)
            isSorted = false
        default:
            guard entry.kind == .blob, let blob = try? objects.blob(entry.id) else { break }
            entries[at] = put(entry.name, .blob, objects.write(blob: spoil(blob, &random)))
        }
        return isSorted ? objects.write(tree: entries) : objects.write(treeAsIs: entries)
    }

    private func spoil(_ blob: [UInt8], _ random: inout SeededGenerator) -> [UInt8] {
        var blob = blob
        guard !blob.isEmpty else { return [0x0A] }
        let at = random.number(0..<blob.count)
        switch random.number(0..<5) {
        case 0: blob[at] = Array("0123456789abcdef \n".utf8)[random.number(0..<18)]
        case 1: blob.remove(at: at)
        case 2: blob.insert(blob[at], at: at)
        case 3:
            var lines = blob.split(separator: 0x0A, omittingEmptySubsequences: false)
            lines.swapAt(random.number(0..<lines.count), random.number(0..<lines.count))
            blob = Array(lines.joined(separator: [0x0A]))
        default: blob.removeSubrange(at...)
        }
        return blob
    }
}
