import Catalog
import SystemPackage
import Testing
import Volume

struct AttributeTests {
    private func dirty(_ catalog: Catalog) throws -> DirtySet {
        try catalog.read { try $0.dirtyState() }.dirty
    }

    /// What has been committed is clean.
    private func clean(_ catalog: Catalog) throws {
        let version = try catalog.read { try $0.dirtyState() }.version
        let commit = try #require(ObjectID(bytes: Array(repeating: 1, count: 20)))
        let outcome = try commitOfNothing()
        try catalog.perform { try $0.committed(outcome, as: commit, through: version) }
        #expect(try dirty(catalog).isEmpty)
    }

    @Test func changingTheModeTouchesOnlyItsStamp() throws {
        try withCatalog { catalog in
            let before = try catalog.make("a")
            try clean(catalog)
            let after = try catalog.perform {
                try $0.setAttributes(before.ino, AttributeChange(mode: 0o600), now: time(4))
            }
            #expect(after.mode == 0o600)
            #expect(after.changed == time(4))
            #expect(after.modeStamp > before.modeStamp)
            #expect(after.ownerStamp == before.ownerStamp)
            #expect(after.contentStamp == before.contentStamp)
            #expect(try dirty(catalog).records == [before.id])
            #expect(try dirty(catalog).places.isEmpty)
            #expect(try catalog.get(before.ino) == after)
        }
    }

    @Test(
        "Times that no file system can hold do not keep an inode from being read",
        arguments: [
            .min, .min / 1_000_000_000 - 1, .min / 1_000_000_000, -1, 0, .max / 1_000_000_000, .max,
        ] as [Int64])
    func extremeTimes(seconds: Int64) throws {
        try withCatalog { catalog in
            let made = try catalog.make("a")
            let extreme = Timestamp(seconds: seconds, nanoseconds: 1)
            let change = AttributeChange(accessed: extreme, modified: extreme)
            _ = try catalog.perform { try $0.setAttributes(made.ino, change, now: time(4)) }
            let read = try catalog.get(made.ino)
            #expect(read.modified == extreme)
            // Access times have 64 bits of nanoseconds: 292 years from 1970.
            let isHeld = seconds > .min / 1_000_000_000 && seconds < .max / 1_000_000_000
            if isHeld { #expect(read.accessed == extreme) }
            #expect((read.accessed.seconds < 0) == (seconds < 0))
        }
    }

    @Test func changingTheOwnerClearsSetIdBitsOfFiles() throws {
        try withCatalog { catalog in
            func chown(_ text: String, _ mode: UInt16, _ new: NewInode) throws -> UInt16 {
                var new = new
                new.mode = mode
                let made = try catalog.make(text, new)
                return try catalog.perform {
                    try $0.setAttributes(made.ino, AttributeChange(uid: 5), now: time(2))
                }.mode
            }
            #expect(try chown("a", 0o6755, .file) == 0o755)
            // Without group execution set-group-id meant mandatory locking.
            #expect(try chown("b", 0o6745, .file) == 0o2745)
            #expect(try chown("c", 0o6755, .directory) == 0o6755)
            let d = try catalog.make("d")
            let both = try catalog.perform {
                try $0.setAttributes(d.ino, AttributeChange(mode: 0o4755, gid: 9), now: time(2))
            }
            #expect(both.mode == 0o4755)
            #expect(both.owner == Owner(uid: 1000, gid: 9))
            let cleared = try catalog.perform { try $0.clearSetID(d.ino, now: time(3)) }
            #expect(cleared?.mode == 0o755)
            #expect(try catalog.perform { try $0.clearSetID(d.ino, now: time(3)) } == nil)
        }
    }

    @Test func accessTimesAreLocal() throws {
        try withCatalog { catalog in
            let before = try catalog.make("a")
            try clean(catalog)
            try catalog.perform { try $0.touchAccessed(before.ino, time(50)) }
            let change = AttributeChange(accessed: time(60))
            #expect(try catalog.get(before.ino).accessed == time(50))
            #expect(try catalog.get(before.ino).changed == before.changed)
            let after = try catalog.perform {
                try $0.setAttributes(before.ino, change, now: time(7))
            }
            #expect(after.accessed == time(60))
            #expect(after.contentStamp == before.contentStamp)
            #expect(try dirty(catalog).isEmpty)
        }
    }

    @Test func modificationTimesAreKeptExactly() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            for modified in [
                Timestamp(seconds: -1, nanoseconds: 999_999_999),
                Timestamp(seconds: 1 << 40, nanoseconds: 1),
                Timestamp(seconds: -(1 << 40), nanoseconds: 0),
            ] {
                _ = try catalog.perform { try $0.touchModified(file.ino, modified, now: time(1)) }
                #expect(try catalog.get(file.ino).modified == modified)
            }
        }
    }

    @Test func contentReplacesContent() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            let extents = try (0..<3).map { try extent(UInt8($0)) }
            func publish(_ content: Content) throws -> InodeRow {
                try catalog.perform {
                    try $0.setContent(file.ino, content, modified: time(3), now: time(4))
                }
            }
            let first = try publish(.extents(extents))
            #expect(first.size == 3 * 70_000)
            #expect(first.contentStamp > file.contentStamp)
            #expect(try catalog.read { try $0.content(of: file.ino) } == .extents(extents))
            #expect(try catalog.read { try $0.references(to: extents[1].root) } == 1)
            #expect(
                try catalog.read { try $0.inodes(with: extents[1].root, limit: 5) } == [file.ino])
            #expect(try publish(.inline([9])).size == 1)
            #expect(try catalog.read { try $0.content(of: file.ino) } == .inline([9]))
            #expect(try catalog.read { try $0.references(to: extents[1].root) } == 0)
            #expect(try publish(.empty).size == 0)
            #expect(try catalog.read { try $0.content(of: file.ino) } == .empty)
            #expect(throws: Errno.invalidArgument) {
                try catalog.perform {
                    try $0.setContent(.root, .empty, modified: time(1), now: time(1))
                }
            }
        }
    }

    @Test func stagingRowsLastUntilTheyAreCleared() throws {
        try withDirectory { directory in
            var new = NewInode.file
            new.staging = "17.1"
            var catalog = try openCatalog(directory)
            try makeRoot(catalog)
            let file = try catalog.make("a", new)
            catalog.close()
            catalog = try openCatalog(directory)
            defer { catalog.close() }
            var staging = Staging(ino: file.ino, name: "17.1", base: file.contentStamp)
            #expect(try catalog.read { try $0.unpublished(limit: 5) } == [staging])
            staging.overlay = [1, 2, 3]
            try catalog.perform { try $0.setStaging(staging) }
            #expect(try catalog.read { try $0.staging(of: file.ino) } == staging)
            #expect(try catalog.read { try $0.unpublishedCount() } == 1)
            try catalog.perform { try $0.clearStaging(file.ino) }
            #expect(try catalog.read { try $0.unpublished(limit: 5) }.isEmpty)
        }
    }

    @Test func extendedAttributesFollowTheirModesAndLimits() throws {
        try withCatalog { catalog in
            let file = try catalog.make("a")
            func set(
                _ name: String, _ value: [UInt8], _ mode: XattrMode = .set
            ) throws {
                _ = try catalog.perform {
                    try $0.setXattr(file.ino, Array(name.utf8), value, mode, now: time(2))
                }
            }
            func get(_ name: String) throws -> [UInt8] {
                try catalog.read { try $0.xattr(file.ino, Array(name.utf8)) }
            }
            #expect(throws: Errno.noData) { try get("user.a") }
            #expect(throws: Errno.noData) { try set("user.a", [1], .replace) }
            try set("user.a", [1], .create)
            #expect(throws: Errno.fileExists) { try set("user.a", [2], .create) }
            try set("user.a", [], .replace)
            #expect(try get("user.a") == [])
            try set("user.b", [3])
            #expect(
                try catalog.read { try $0.xattrNames(file.ino) }
                    == [Array("user.a".utf8), Array("user.b".utf8)])
            #expect(throws: Errno.outOfRange) { try set(String(repeating: "x", count: 256), []) }
            #expect(throws: Errno.argListTooLong) {
                try set("user.c", Array(repeating: 0, count: 65_537))
            }
            _ = try catalog.perform {
                try $0.removeXattr(file.ino, Array("user.a".utf8), now: time(3))
            }
            #expect(throws: Errno.noData) { try get("user.a") }
            #expect(throws: Errno.noData) {
                try catalog.perform {
                    try $0.removeXattr(file.ino, Array("user.a".utf8), now: time(3))
                }
            }
            #expect(throws: Errno.noSpace) {
                for index in 0..<17 {
                    try set("user.big\(index)", Array(repeating: 1, count: 65_536))
                }
            }
            #expect(try dirty(catalog).records.contains(file.id))
        }
    }
}
