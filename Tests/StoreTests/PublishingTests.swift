import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

@Suite struct PublishingTests {
    @Test func aPublishedFileIsTheSameInodeUnderItsRoot() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(200_001)
        try store.stage(StagingName(1, 1), bytes)
        let inode = disk.inode("staging/1.1")
        let result = try store.publish(StagingName(1, 1))
        let extent = result.extents[0].extent
        let path = "objects/\(Hex.encode([extent.root.bytes[0]]))/\(extent.root)"
        #expect(disk.inode(path) == inode && disk.mode(path) == 0o400)
        #expect(try store.objectBytes(extent.root) == bytes)
        #expect(try store.objectLength(extent.root) == 200_001)
        #expect(try store.layer(of: extent) == result.extents[0].layer)
        #expect(try store.listStaging() == [])
        #expect(disk.names(in: "tmp").isEmpty)
    }

    @Test(arguments: [false, true])
    func anObjectThatIsHereIsReplacedForItMayHaveDecayed(isCutShort: Bool) throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(70_000)
        try store.stage(StagingName(1, 1), bytes)
        let root = try store.publish(StagingName(1, 1)).extents[0].extent.root
        let reader = try #require(try store.openObject(root))
        defer { try? reader.close() }
        let path = "\(disk.root)/objects/\(Hex.encode([root.bytes[0]]))/\(root)"
        chmod(path, 0o600)
        let file = try FileDescriptor.open(FilePath(path), .readWrite)
        try file.writeAll(toAbsoluteOffset: 500, [0, 1, 2, 3])
        try file.close()
        if isCutShort { truncate(path, 1000) }
        let decayed = try contents(of: reader)
        #expect(decayed != bytes)
        try store.stage(StagingName(1, 2), bytes)
        try store.publish(StagingName(1, 2))
        #expect(try store.objectBytes(root) == bytes)
        #expect(try contents(of: reader) == decayed)
        #expect(try store.listStaging() == [])
        #expect(disk.names(in: "tmp").isEmpty)
    }

    @Test func anObjectOfAFileThatIsBeingPublishedIsNotWithdrawn() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let name = StagingName(1, 1)
        try store.stage(name, pattern(70_000))
        let hashed = Merkle.hash(pattern(70_000))
        let root = hashed.extent.root
        // Linked again is the same: it was left by an error before its row was there.
        for _ in 1...2 {
            try store.link(store.prepareObject(name, hashed, synchronizing: true))
            guard case .needed = try store.withdrawObject(root) else {
                Issue.record("withdrawn under the publisher's hands")
                return
            }
            #expect(disk.names(in: "tmp").isEmpty)
        }
        try store.removeStaging(name)
        guard case .withdrawn(let object) = try store.withdrawObject(root) else {
            Issue.record("not withdrawn")
            return
        }
        #expect(try store.objectLength(root) == nil)
        #expect(try store.layer(of: hashed.extent) == nil)
        try store.removeWithdrawn(object)
        #expect(disk.names(in: "tmp").isEmpty)
    }

    @Test(arguments: [3, 40]) func aBatchStoresAllButTheOneThatFails(count: Int) throws {
        let seed: UInt64 = 5
        print("seed \(seed)")
        var random = SeededBytes(seed: seed)
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        var contents: [(extent: Extent, bytes: [UInt8])] = []
        for number in 0..<count {
            let bytes =
                number == count - 1 ? contents[0].bytes : random.bytes(60_000 + 1000 * number)
            contents.append((Merkle.hash(bytes).extent, bytes))
        }
        contents[1].bytes[9] ^= 1
        let outcomes = try store.storeObjects(contents)
        for (number, outcome) in outcomes.enumerated() {
            let (extent, bytes) = contents[number]
            if number == 1 {
                let error = #expect(throws: StoreError.self) { try outcome.get() }
                #expect(error?.reason == .mismatch)
                #expect(try store.objectLength(extent.root) == nil)
            } else {
                try outcome.get()
                #expect(try store.objectBytes(extent.root) == bytes)
                #expect(try store.layer(of: extent) == Merkle.hash(bytes).layer)
            }
        }
        #expect(disk.names(in: "tmp").isEmpty)
        var listed: Set<ContentRoot> = []
        try store.forEachObject { (root, _) throws(StoreError) in
            listed.insert(root)
            return true
        }
        #expect(listed.count == count - 2)
    }

    @Test func objectsAreRemovedWithTheirLayer() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(200_001)
        let hashed = Merkle.hash(bytes)
        try store.storeObject(hashed.extent, bytes: bytes)
        let reader = try #require(try store.openObject(hashed.extent.root))
        defer { try? reader.close() }
        #expect(try store.layer(of: hashed.extent) == hashed.layer)
        #expect(try store.removeObject(hashed.extent.root))
        #expect(try store.removeObject(hashed.extent.root) == false)
        #expect(try store.layer(of: hashed.extent) == nil)
        #expect(try store.openObject(hashed.extent.root) == nil)
        #expect(try store.openObjectPath(hashed.extent.root) == nil)
        #expect(try contents(of: reader) == bytes)
    }

    @Test func bytesThatAreNotTheContentAreNotStored() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let extent = Merkle.hash(pattern(5000)).extent
        var bytes = pattern(5000)
        bytes[7] ^= 1
        let error = #expect(throws: StoreError.self) { try store.storeObject(extent, bytes: bytes) }
        #expect(error?.reason == .mismatch)
        #expect(try store.objectLength(extent.root) == nil)
    }

    @Test func aStagingFileThatCannotBeLinkedWholeIsNoObject() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let name = StagingName(1, 1)
        try store.stage(name, pattern(70_000))
        let hashed = Merkle.hash(pattern(70_000))
        let root = hashed.extent.root
        #expect(try store.objectLength(root) == nil)
        let object = try store.prepareObject(name, hashed, synchronizing: true)
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        // No descriptor is to be had, in the whole process: for one call only.
        var none = rlimit(rlim_cur: 0, rlim_max: limit.rlim_max)
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &none)
        let error = #expect(throws: StoreError.self) { try store.link(object) }
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        #expect(error?.errno == .tooManyOpenFiles)
        #expect(try store.objectLength(root) == nil)
        try store.link(object)
        let again = try store.prepareObject(name, hashed, synchronizing: true)
        try store.link(again)
        let path = "objects/\(Hex.encode([root.bytes[0]]))/\(root)"
        #expect(disk.mode(path) == 0o400 && disk.inode(path) == disk.inode("staging/1.1"))
    }

    @Test func fetchedContentBecomesAnObjectUnderBothNames() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(200_001)
        let hashed = Merkle.hash(bytes)
        let file = try store.createPartial(hashed.extent)
        #expect(disk.blocks("partial/\(hashed.extent.root)") == 0)
        let wrong = HashedExtent(extent: hashed.extent, layer: [])
        #expect(throws: StoreError.self) { try store.adoptPartial(wrong) }
        try file.writeAll(bytes)
        try file.close()
        try store.synchronizePartial(hashed.extent.root)
        #expect(try store.listPartial() == [hashed.extent.root])
        try store.adoptPartial(hashed)
        try store.adoptPartial(hashed)
        #expect(try store.objectBytes(hashed.extent.root) == bytes)
        #expect(try store.layer(of: hashed.extent) == hashed.layer)
        #expect(try store.openPartial(hashed.extent.root).map { try $0.close() } != nil)
        try store.removePartial(hashed.extent.root)
        #expect(try store.openPartial(hashed.extent.root) == nil)
        #expect(try store.objectBytes(hashed.extent.root) == bytes)
    }

    @Test func aDetachedObjectKeepsItsReadersOnTheStagingFile() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(200_001)
        let hashed = Merkle.hash(bytes)
        try store.storeObject(hashed.extent, bytes: bytes)
        let reader = try #require(try store.openObject(hashed.extent.root))
        defer { try? reader.close() }
        let staging = try store.detachObject(
            hashed.extent.root, to: StagingName(3, 1), copyBytesMax: 1 << 30)
        defer { try? staging.close() }
        _ = try [UInt8](repeating: 0xEE, count: 4).withUnsafeBytes {
            try staging.writeAll(toAbsoluteOffset: 0, $0)
        }
        #expect(try contents(of: reader).prefix(4).allSatisfy { $0 == 0xEE })
        #expect(disk.mode("staging/3.1") == 0o600)
        #expect(try store.objectBytes(hashed.extent.root) == bytes)
        #expect(try store.scrub(hashed.extent)?.isSound == true)
    }

    @Test func aScrubNamesTheDamagedPieces() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(400_000)
        let hashed = Merkle.hash(bytes)
        try store.storeObject(hashed.extent, bytes: bytes)
        var read = 0
        #expect(try store.scrub(hashed.extent, afterRead: { read += $0 })?.isSound == true)
        #expect(read == bytes.count)
        let root = hashed.extent.root
        let path = "\(disk.root)/objects/\(Hex.encode([root.bytes[0]]))/\(root)"
        unlink("\(path).layer")
        let lost = try #require(try store.scrub(hashed.extent))
        #expect(lost.isLayerDamaged && lost.damagedPieces.isEmpty)
        try store.restoreLayer(lost.hashed)
        #expect(try store.scrub(hashed.extent)?.isSound == true)
        chmod(path, 0o600)
        let file = try FileDescriptor.open(FilePath(path), .readWrite)
        defer { try? file.close() }
        _ = try [UInt8](repeating: 0, count: 1).withUnsafeBytes {
            try file.writeAll(toAbsoluteOffset: 70_001, $0)
        }
        try file.resize(to: 390_000, retryOnInterrupt: true)
        let damaged = try #require(try store.scrub(hashed.extent))
        #expect(damaged.damagedPieces == [1, 5, 6])
        #expect(try store.scrub(Merkle.hash([1]).extent) == nil)
    }

    @Test func aDamagedObjectBecomesPartialContentWithItsGoodPieces() throws {
        let disk = try TestDisk(.plain)
        let store = try disk.store()
        let bytes = pattern(400_000)
        let hashed = Merkle.hash(bytes)
        try store.storeObject(hashed.extent, bytes: bytes)
        let root = hashed.extent.root
        let path = "\(disk.root)/objects/\(Hex.encode([root.bytes[0]]))/\(root)"
        chmod(path, 0o600)
        truncate(path, 200_000)
        let reader = try #require(try store.openObject(root))
        defer { try? reader.close() }
        #expect(try store.setAside(hashed.extent))
        #expect(try store.openObject(root) == nil)
        #expect(try store.goodPieces(ofPartial: hashed.extent, layer: hashed.layer) == [0, 1, 2])
        #expect(try store.setAside(hashed.extent) == false)
        let partial = try store.createPartial(hashed.extent)
        defer { try? partial.close() }
        try bytes.withUnsafeBytes { _ = try partial.writeAll($0) }
        try store.adoptPartial(hashed)
        #expect(try store.scrub(hashed.extent)?.isSound == true)
        // Who had it open reads what took the place of the damage.
        #expect(try contents(of: reader) == bytes)
    }
}
