import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

@Suite struct StoreTests {
    @Test func aRootGetsItsDirectoriesClosedToOthers() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        try store.acquireLock()
        for name in ["objects", "partial", "staging", "tmp"] { #expect(disk.mode(name) == 0o700) }
        #expect(disk.mode("lock") == 0o600)
        #expect(try store.rootPath == Array(disk.root.utf8))
        #expect(try store.partialPath == Array("\(disk.root)/partial".utf8))
    }

    @Test func aRootOpenToOthersIsRefusedBeforeAnythingIsWritten() throws {
        let disk = try TestDisk(.plain)
        chmod(disk.root, 0o750)
        let error = #expect(throws: StoreError.self) { try disk.store() }
        #expect(error?.reason == .rootTooWide)
        #expect(disk.names(in: "").isEmpty)
    }

    @Test func aMissingRootIsNamedByItsErrno() throws {
        let error = #expect(throws: StoreError.self) { try Store(root: "/nonexistent/root") }
        #expect(error?.errno == .noSuchFileOrDirectory)
    }

    @Test func onlyOneHasTheLock() throws {
        let disk = try TestDisk(.plain)
        var first: Store? = try disk.store()
        try first?.acquireLock()
        try first?.acquireLock()
        let second = try disk.store()
        let error = #expect(throws: StoreError.self) { try second.acquireLock() }
        #expect(error?.reason == .rootInUse)
        first = nil
        try second.acquireLock()
    }

    @Test func leftoversInTmpAreRemovedAndNeverReused() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        for name in 0..<5 { close(open("\(disk.root)/tmp/\(name)", O_CREAT | O_WRONLY, 0o600)) }
        #expect(try store.temporary().name == "5")
        try store.acquireLock()
        #expect(try store.removeTemporaries() == 6)
        #expect(disk.names(in: "tmp").isEmpty)
    }

    @Test func stagingNamesHaveOneSpelling() {
        let name = StagingName(1 << 61, 3)
        #expect(StagingName(name.description) == name)
        for text in ["", "1", "1.", ".1", "01.1", "1.1.1", "+1.1", "1.-1", "x.1", "1.1.split"] {
            #expect(StagingName(text) == nil)
        }
    }

    @Test func stagingFilesAreMadeListedAndRemoved() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let name = StagingName(7, 1)
        let file = try store.createStaging(name)
        defer { try? file.close() }
        try file.writeAll(pattern(10))
        try store.synchronizeStaging(name, file)
        #expect(disk.mode("staging/7.1") == 0o600)
        let again = #expect(throws: StoreError.self) { try store.createStaging(name) }
        #expect(again?.errno == .fileExists)
        close(open("\(disk.root)/staging/rubbish", O_CREAT | O_WRONLY, 0o600))
        #expect(try store.listStaging() == [name])
        try store.removeStaging(name)
        try store.removeStaging(name)
        #expect(try store.listStaging() == [])
    }

    @Test func aStagingFileLeftReadOnlyOpensForWriting() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        try store.stage(StagingName(1, 1), pattern(10))
        chmod("\(disk.root)/staging/1.1", 0o400)
        // As root the mode stops nobody; either way the file opens.
        try store.openStaging(StagingName(1, 1), .readWrite).close()
    }

    @Test func writersAreSeenUntilTheLastDescriptorAndMappingIsGone() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let writer = try store.createStaging(StagingName(1, 1))
        try writer.writeAll(pattern(4096))
        let reader = try store.openStaging(StagingName(1, 1), .read)
        defer { try? reader.close() }
        #expect(try store.hasWriters(reader))
        let mapping = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, writer.rawValue, 0)
        try writer.close()
        #expect(try store.hasWriters(reader))
        munmap(mapping, 4096)
        let other = try store.openStaging(StagingName(1, 1), .read)
        defer { try? other.close() }
        let path = try store.openStaging(StagingName(1, 1), .path)
        defer { try? path.close() }
        #expect(try store.hasWriters(reader) == false)
        let later = try store.openStaging(StagingName(1, 1), .readWrite)
        #expect(try store.hasWriters(reader))
        try later.close()
        #expect(try store.hasWriters(reader) == false)
    }

    @Test func theReserveIsMadeAndReleased() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        #expect(try store.createReserve())
        #expect(try store.createReserve())
        #expect(disk.blocks("reserve") >= Int(Store.reserveBytes / 8 / 512))
        var count = 0
        while try store.shrinkReserve() {
            #expect(try !store.hasReserve())
            count += 1
        }
        #expect(count == 8)
        #expect(try store.releaseReserve() == false)
        #expect(try store.createReserve())
        #expect(try store.releaseReserve())
        #expect(try store.shrinkReserve() == false)
    }
}

@Suite(.enabled(if: getuid() == 0), .serialized) struct DiskTests {
    @Test(arguments: TestDisk.Kind.allCases)
    func factsSayWhatTheDiskCan(kind: TestDisk.Kind) throws {
        let disk = try TestDisk(kind)
        let facts = try disk.store().diskFacts()
        print(kind, facts)
        #expect(facts.capacityBytes > 0 && facts.freeBytes <= facts.capacityBytes)
        #expect(disk.names(in: "tmp").isEmpty)
        guard kind != .plain else { return }
        #expect(facts.fileSystem == kind.rawValue)
        #expect(facts.supportsReflink == TestDisk.Kind.sharing.contains(kind))
        #expect(facts.supportsLeases)
        if kind != .tmpfs { #expect(facts.uuid?.utf8.count == 36) }
    }

    @Test(arguments: TestDisk.Kind.allCases)
    func clonesKeepBytesAndHoles(kind: TestDisk.Kind) throws {
        let disk = try TestDisk(kind)
        let store = try disk.store()
        let source = try store.createStaging(StagingName(1, 1))
        defer { try? source.close() }
        let island = pattern(300_000)
        _ = try island.withUnsafeBytes { try source.writeAll(toAbsoluteOffset: 8 << 20, $0) }
        try source.resize(to: 24 << 20, retryOnInterrupt: true)
        let target = try store.createStaging(StagingName(1, 2))
        defer { try? target.close() }
        let result = try store.clone(from: source, to: target, range: 0..<24 << 20)
        if kind != .plain {
            #expect(result == (TestDisk.Kind.sharing.contains(kind) ? .reflinked : .copied))
        }
        #expect(try contents(of: target) == contents(of: source))
        #expect(disk.blocks("staging/1.2") < (2 << 20) / 512)
        // Over old data, unaligned: the range is replaced, what surrounds it stays.
        let third = try store.createStaging(StagingName(1, 3))
        defer { try? third.close() }
        try third.writeAll([UInt8](repeating: 9, count: 9 << 20))
        let from = UInt64(8 << 20) - 1000
        #expect(
            try store.clone(from: source, to: third, range: from..<from + 5000, at: 777) == .copied)
        let found = try contents(of: third)
        #expect(found.count == 9 << 20)
        #expect(found[..<777].allSatisfy { $0 == 9 } && found[5777...].allSatisfy { $0 == 9 })
        #expect(found[777..<1777].allSatisfy { $0 == 0 })
        #expect(found[1777..<5777].elementsEqual(island[..<4000]))
    }

    @Test(arguments: TestDisk.Kind.allCases)
    func aFileOfSeveralExtentsIsSplitAndResumed(kind: TestDisk.Kind) throws {
        let seed: UInt64 = 99
        print("seed \(seed)")
        var random = SeededBytes(seed: seed)
        let disk = try TestDisk(kind)
        let store = try disk.store(extentBytesMax: 4 << 20)
        let bytes = random.bytes(10_000_001)
        let name = StagingName(1, 1)
        try store.stage(name, bytes)
        // A directory where the second extent belongs makes publishing end in the middle.
        let file = try store.openStaging(name, .readWrite)
        defer { try? file.close() }
        let result = try store.hash(file, length: UInt64(bytes.count))
        #expect(result.extents.map(\.extent.length) == [4 << 20, 4 << 20, 10_000_001 - 8 << 20])
        let publication = Publication(staging: name, result: result)
        let second = result.extents[1].extent.root
        let obstacle = "\(disk.root)/objects/\(Hex.encode([second.bytes[0]]))/\(second)"
        mkdir(String(obstacle.dropLast(65)), 0o700)
        mkdir(obstacle, 0o700)
        #expect(throws: StoreError.self) { try store.moveToObjects(publication) }
        // Where blocks are shared the staging file has lost none of its bytes.
        let isWhole = TestDisk.Kind.sharing.contains(kind)
        #expect(try store.interruptedSplit(name) == (isWhole ? nil : publication))
        #expect(try store.objectBytes(result.extents[0].extent.root)?.count == 4 << 20)
        if !isWhole {
            guard case .needed = try store.withdrawObject(result.extents[0].extent.root) else {
                Issue.record("an object is withdrawn that has the bytes of a staging file")
                return
            }
        }
        #expect(throws: StoreError.self) { try store.moveToObjects(publication) }
        rmdir(obstacle)
        try store.moveToObjects(publication)
        try store.removeStaging(name)
        var found: [UInt8] = []
        for hashed in result.extents {
            found += try #require(try store.objectBytes(hashed.extent.root))
            #expect(try store.layer(of: hashed.extent) == hashed.layer)
        }
        #expect(found == bytes)
        #expect(disk.names(in: "staging").isEmpty && disk.names(in: "tmp").isEmpty)
    }

    @Test func aSplitThatFindsNoRoomLeavesTheStagingFileAsItWas() throws {
        let disk = try TestDisk(.tmpfs, megabytes: 24)
        let store = try disk.store(extentBytesMax: 8 << 20)
        let name = StagingName(1, 1)
        let bytes = pattern(18 << 20)
        try store.stage(name, bytes)
        let file = try store.openStaging(name, .read)
        defer { try? file.close() }
        let result = try store.hash(file, length: UInt64(bytes.count))
        let error = #expect(throws: StoreError.self) {
            try store.moveToObjects(Publication(staging: name, result: result))
        }
        #expect(error?.errno == .noSpace)
        #expect(try store.interruptedSplit(name) == nil)
        #expect(try contents(of: file) == bytes)
        #expect(disk.names(in: "staging") == ["1.1"] && disk.names(in: "tmp").isEmpty)
    }

    @Test func aFullDiskIsAnErrorAndLosesNothing() throws {
        let disk = try TestDisk(.tmpfs, megabytes: 24)
        let store = try disk.store()
        _ = try store.diskFacts()
        #expect(try store.createReserve() == false)
        #expect(!disk.exists("reserve"))
        let bytes = [UInt8](repeating: 3, count: 16 << 20)
        try store.stage(StagingName(1, 1), bytes)
        let result = try store.publish(StagingName(1, 1))
        let root = result.extents[0].extent.root
        let error = #expect(throws: StoreError.self) {
            try store.detachObject(root, to: StagingName(1, 2), copyBytesMax: 64 << 20)
        }
        #expect(error?.errno == .noSpace)
        #expect(try store.listStaging() == [])
        #expect(try store.objectBytes(root) == bytes)
        let other = Merkle.hash([UInt8](repeating: 5, count: 12 << 20))
        let refused = #expect(throws: StoreError.self) {
            try store.storeObject(other.extent, bytes: [UInt8](repeating: 5, count: 12 << 20))
        }
        #expect(refused?.errno == .noSpace)
        #expect(disk.names(in: "tmp").isEmpty)
    }

    @Test func aFileThatCouldNotBeSyncedIsNeverTakenForDurable() throws {
        // A disk in a file whose own disk becomes full: its writes fail when the kernel makes them.
        let outer = try TestDisk(.tmpfs, megabytes: 48)
        let (image, mount) = (outer.root + "/image", outer.root + "/mount")
        try run("truncate", "-s", "256M", image)
        try run("mkfs.ext4", "-q", "-O", "^has_journal", image)
        mkdir(mount, 0o700)
        try run("mount", "-o", "loop", image, mount)
        defer { try? run("umount", "-l", mount) }
        mkdir(mount + "/root", 0o700)
        let store = try Store(root: mount + "/root")
        let bytes = pattern(1 << 20)
        let names = [StagingName(1, 1), StagingName(1, 2)]
        for name in names { try store.stage(name, bytes) }
        let filler = outer.root + "/filler"
        #expect(throws: TestDisk.Failure.self) { try run("fallocate", "-l", "64M", filler) }
        try? run("dd", "if=/dev/zero", "of=" + filler, "bs=64k", "status=none")
        let file = try store.openStaging(names[0], .read)
        defer { try? file.close() }
        #expect(throws: StoreError.self) { try store.synchronizeStaging(names[0], file) }
        #expect(store.isDamaged(names[0]))
        for name in names { store.oweSync(name) }
        #expect(Set(store.synchronizeOwed().keys) == Set(names))
        #expect(store.synchronizeOwed().isEmpty)
        // The disk is well again, and the kernel has forgotten.
        unlink(filler)
        #expect(throws: StoreError.self) { try store.synchronizeStaging(names[0], file) }
        let hashed = Merkle.hash(bytes)
        #expect(throws: StoreError.self) {
            try store.prepareObject(names[0], hashed, synchronizing: true)
        }
        // A copy of what is in memory still is as good as it was.
        let copy = try store.createStaging(StagingName(1, 3))
        defer { try? copy.close() }
        try store.clone(from: file, to: copy, range: 0..<UInt64(bytes.count))
        try store.synchronizeStaging(StagingName(1, 3), copy)
        try store.discard(store.prepareObject(StagingName(1, 3), hashed, synchronizing: true))
        try store.removeStaging(names[0])
        #expect(!store.isDamaged(names[0]))
    }

    @Test func aSmallReserveHelpsAFullDisk() throws {
        let disk = try TestDisk(.tmpfs, megabytes: 80)
        let store = try disk.store()
        #expect(try store.createReserve())
        let file = try store.createStaging(StagingName(1, 1))
        defer { try? file.close() }
        let megabyte = [UInt8](repeating: 3, count: 1 << 20)
        #expect(throws: Errno.noSpace) { for _ in 0..<80 { try file.writeAll(megabyte) } }
        try store.releaseReserve()
        for _ in 0..<60 { try file.writeAll(megabyte) }
    }
}
