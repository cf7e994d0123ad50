import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

@Suite("Overlays")
struct OverlayTests {
    /// An overlay over published bytes, with its files open.
    private final class Opened {
        let store: Store
        let name: StagingName
        var overlay: Overlay
        let changes: FileDescriptor
        let bases: [FileDescriptor]

        init(_ store: Store, _ name: StagingName, over bases: [Extent], keeping: UInt64) throws {
            self.store = store
            self.name = name
            overlay = Overlay(over: bases, keeping: keeping)
            changes = try store.createOverlay(name, overlay)
            self.bases = try bases.indices.map { [overlay] in
                try store.openBase(of: name, overlay, $0)
            }
        }

        deinit {
            try? changes.close()
            for base in bases { try? base.close() }
        }

        var file: OverlaidFile { OverlaidFile(overlay, changes: changes, bases: bases) }

        func write(_ bytes: [UInt8], at offset: Int) throws {
            let count = try bytes.withUnsafeBytes { try file.change($0, at: UInt64(offset)) }
            #expect(count == bytes.count)
        }

        func truncate(to length: Int) throws {
            try #require(ftruncate(changes.rawValue, off_t(length)) == 0)
            overlay.cut(to: UInt64(length))
        }

        /// Whole blocks only.
        func punch(_ range: Range<Int>) throws {
            let range = UInt64(range.lowerBound)..<UInt64(range.upperBound)
            let isHidden = overlay.hide(range)
            #expect(isHidden)
            // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            try store.allocate(
                changes, mode: 3, offset: range.lowerBound, length: UInt64(range.count))
        }

        func bytes() throws -> [UInt8] { try file.bytes(in: 0..<file.length) }

        func composed(_ name: StagingName) throws -> [UInt8] {
            let target = try store.createStaging(name)
            defer { try? target.close() }
            try file.compose(into: target)
            return try contents(of: target)
        }
    }

    private func publish(_ bytes: [UInt8], _ store: Store, _ name: StagingName) throws -> [Extent] {
        try store.stage(name, bytes)
        return try store.publish(name).extents.map(\.extent)
    }

    @Test(
        "Random writes, cuts and holes give what they give in memory, whatever is under the file",
        arguments: [TestDisk.Kind.ext4, .tmpfs], [1, 2, 3, 4] as [UInt64])
    func randomChanges(kind: TestDisk.Kind, seed: UInt64) throws {
        let disk = try TestDisk(kind, megabytes: 64)
        let store = try disk.store(extentBytesMax: 64 << 10)
        try #require(try store.diskFacts().supportsOverlays)
        var random = SeededBytes(seed: seed)
        func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
        // Several extents, the last one short.
        var model = random.bytes(150_000 + below(20_000))
        let bases = try publish(model, store, StagingName(1, 1))
        #expect(bases.count == 3)
        let keeping = below(4) == 0 ? below(model.count) : model.count
        model = Array(model.prefix(keeping))
        let opened = try Opened(store, StagingName(1, 2), over: bases, keeping: UInt64(keeping))
        for step in 0..<120 {
            switch below(10) {
            case 0:
                let length = below(200_000)
                try opened.truncate(to: length)
                model = Array(model.prefix(length))
                model += [UInt8](repeating: 0, count: length - model.count)
            case 1:
                let first = below(40) * 4096
                let range = first..<first + (1 + below(5)) * 4096
                try opened.punch(range)
                for index in range.clamped(to: 0..<model.count) { model[index] = 0 }
            default:
                let bytes = below(5) == 0 ? [0] : random.bytes(1 + below(9000))
                let offset = below(180_000)
                try opened.write(bytes, at: offset)
                let missing = offset + bytes.count - model.count
                if missing > 0 { model += [UInt8](repeating: 0, count: missing) }
                model.replaceSubrange(offset..<offset + bytes.count, with: bytes)
            }
            try #require(try opened.bytes() == model, "seed \(seed), step \(step), \(kind)")
            // As a start finds it.
            let kept = try #require(Overlay(encoded: opened.overlay.encoded))
            #expect(kept == opened.overlay)
        }
        #expect(try opened.composed(StagingName(1, 3)) == model, "seed \(seed), \(kind)")
        #expect(try store.objectBytes(bases[0].root)?.count == 64 << 10)
    }

    @Test("The bytes below stay when their object goes, and go with the overlay")
    func basesStay() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(50_000)
        let bases = try publish(bytes, store, StagingName(1, 1))
        let opened = try Opened(store, StagingName(1, 2), over: bases, keeping: 50_000)
        try opened.write([1, 2, 3], at: 10_000)
        #expect(try store.isUnfinished(bases[0].root), "the collector leaves it")
        try store.removeObject(bases[0].root)
        var expected = bytes
        expected.replaceSubrange(10_000..<10_003, with: [1, 2, 3])
        #expect(try opened.bytes() == expected)
        #expect(try store.listStaging() == [StagingName(1, 2)])
        try store.removeStaging(StagingName(1, 2))
        #expect(disk.names(in: "staging").isEmpty)
    }

    @Test("Only changed blocks take room")
    func room() throws {
        let disk = try TestDisk(.ext4)
        let store = try disk.store()
        let bases = try publish(pattern(8 << 20), store, StagingName(1, 1))
        let opened = try Opened(store, StagingName(1, 2), over: bases, keeping: 8 << 20)
        try opened.write([1], at: 5 << 20)
        #expect(disk.blocks("staging/1.2") * 512 <= 2 * 4096)
        #expect(
            try opened.file.segments(in: 0..<8 << 20).filter { $0.source == .changed }
                == [.init(source: .changed, range: 5 << 20..<(5 << 20) + 4096)])
    }

    @Test("What is no encoding of an overlay is refused")
    func damagedEncoding() throws {
        var overlay = Overlay(
            over: [Extent(root: try #require(ContentRoot(bytes: pattern(32))), length: 99)],
            keeping: 50)
        let isHidden = overlay.hide(10..<20)
        #expect(isHidden && overlay.visible == [0..<10, 20..<50])
        let encoded = overlay.encoded
        #expect(Overlay(encoded: encoded) == overlay)
        for count in encoded.indices { #expect(Overlay(encoded: Array(encoded[..<count])) == nil) }
        #expect(Overlay(encoded: encoded + [0]) == nil)
    }
}
