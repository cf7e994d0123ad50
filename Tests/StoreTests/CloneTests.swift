import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

@Suite("Copies that share blocks")
struct CloneTests {
    private static let length = 3 << 20

    /// A published file, and a staging file to become a copy of it.
    private func prepare(_ kind: TestDisk.Kind) throws -> (TestDisk, Store, Extent, FileDescriptor)
    {
        let disk = try TestDisk(kind)
        let store = try disk.store()
        try store.stage(StagingName(1, 1), pattern(Self.length))
        let extent = try store.publish(StagingName(1, 1)).extents[0].extent
        return (disk, store, extent, try store.createStaging(StagingName(2, 1)))
    }

    private func clone(_ store: Store, _ extent: Extent, to copy: FileDescriptor, parts: Int) throws
    {
        let object = try #require(try store.openObject(extent.root))
        defer { try? object.close() }
        let part = UInt64(Self.length / parts)
        for index in 0..<UInt64(parts) {
            let range = index * part..<(index + 1) * part
            try store.clone(from: object, to: copy, range: range, at: range.lowerBound)
        }
    }

    @Test("A clone is told from its blocks, whole or made in parts", arguments: [1, 3])
    func clones(parts: Int) throws {
        let (disk, store, extent, copy) = try prepare(.xfs)
        defer { withExtendedLifetime(disk) { try? copy.close() } }
        try clone(store, extent, to: copy, parts: parts)
        #expect(try store.isClone(copy, of: extent))
    }

    @Test(
        "One byte more, less or other is no clone, though nothing of it is on the disk yet",
        arguments: ["same byte again", "changed", "longer", "shorter", "hole"])
    func changed(how: String) throws {
        let (disk, store, extent, copy) = try prepare(.xfs)
        defer { withExtendedLifetime(disk) { try? copy.close() } }
        try clone(store, extent, to: copy, parts: 1)
        switch how {
        case "longer": try #require(ftruncate(copy.rawValue, off_t(Self.length + 1)) == 0)
        case "shorter": try #require(ftruncate(copy.rawValue, off_t(Self.length - 1)) == 0)
        case "hole": try store.allocate(copy, mode: 3, offset: 4096, length: 4096)
        default:
            let byte = pattern(Self.length)[1_000_000] ^ (how == "changed" ? 1 : 0)
            _ = try copy.writeAll(toAbsoluteOffset: 1_000_000, [byte])
        }
        #expect(try !store.isClone(copy, of: extent))
    }

    @Test("Equal bytes elsewhere on the disk are no clone", arguments: [TestDisk.Kind.xfs, .ext4])
    func equalBytes(kind: TestDisk.Kind) throws {
        let (disk, store, extent, copy) = try prepare(kind)
        defer { withExtendedLifetime(disk) { try? copy.close() } }
        try copy.writeAll(pattern(Self.length))
        #expect(try !store.isClone(copy, of: extent))
    }
}
