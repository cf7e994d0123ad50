import Catalog
import Foundation
import Glibc
import Store
import Synchronization
import SystemPackage
import Testing
import Volume

/// On a small tmpfs of their own; mounting needs root.
@Suite(.enabled(if: geteuid() == 0), .serialized)
struct DiskFullTests {
    private func run(_ command: String, _ arguments: String...) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: command)
        process.arguments = arguments
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
    }

    private func withSmallDisk(
        megabytes: Int = 8, _ kind: String = "tmpfs", _ body: (String) throws -> Void
    ) throws {
        try withDirectory { directory in
            let mount = directory + "/mount"
            try FileManager.default.createDirectory(
                atPath: mount, withIntermediateDirectories: false)
            if kind == "tmpfs" {
                try run("/bin/mount", "-t", kind, "-o", "size=\(megabytes)m", kind, mount)
            } else {
                let image = directory + "/image"
                try run("/bin/truncate", "-s", "\(megabytes)M", image)
                try run("/sbin/mkfs.\(kind)", "-q", image)
                try run("/bin/mount", "-o", "loop", image, mount)
            }
            defer { try? run("/bin/umount", "-l", mount) }
            try body(mount)
        }
    }

    /// Leaves nothing.
    private func fill(_ path: String) throws {
        let file = try FileDescriptor.open(
            path, .writeOnly, options: [.create, .truncate], permissions: .ownerReadWrite)
        defer { try? file.close() }
        let block = Array(repeating: UInt8(1), count: 4096)
        while (try? file.writeAll(block)) != nil {}
    }

    private func makeReserve(_ path: String) throws {
        let file = try FileDescriptor.open(
            path, .writeOnly, options: .create, permissions: .ownerReadWrite)
        try file.writeAll(Array(repeating: 1, count: 2 << 20))
        try file.close()
    }

    @Test func aFullDiskLosesNothingThatWasAnswered() throws {
        try withSmallDisk { disk in
            try makeReserve(disk + "/reserve")
            let failures = Mutex(0)
            var options = options()
            options.commitInterval = .seconds(3600)
            options.makeRoom = { unlink(disk + "/reserve") == 0 }
            options.onFailure = { failures.withLock { $0 += 1 } }
            let catalog = try openCatalog(disk, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.flush()
            try fill(disk + "/fill")
            let extents = try [extent(1), extent(2)]
            for index in 0..<100 {
                let made = try catalog.make("f\(index)")
                _ = try catalog.perform {
                    try $0.setContent(
                        made.ino, .extents(extents), modified: time(3), now: time(3))
                }
                #expect(throws: Errno.fileExists) { try catalog.make("f\(index)") }
            }
            let before = try catalog.read { try $0.listInodes(.root, after: 0, limit: .max) }
            try catalog.flush()
            #expect(!FileManager.default.fileExists(atPath: disk + "/reserve"))
            let after = try catalog.read { try $0.listInodes(.root, after: 0, limit: .max) }
            #expect(before.map(\.target) == after.map(\.target))
            #expect(before.map(\.cookie) == after.map(\.cookie))
            _ = try dump(catalog)

            // Now there is no reserve left.
            try fill(disk + "/more")
            for index in 0..<100 { try catalog.make("g\(index)") }
            for _ in 0..<2 { #expect(throws: Errno.noSpace) { try catalog.flush() } }
            // All that was answered is there, for as long as it takes until there is room.
            #expect(try catalog.names().count == 200)
            try catalog.make("h")
            unlink(disk + "/more")
            try catalog.flush()
            #expect(!catalog.hasFailed)
            #expect(failures.withLock { $0 } == 0)
            let again = try catalog.snapshot { try $0.listInodes(.root, after: 0, limit: .max) }
            #expect(again.count == 201)
        }
    }

    @Test func whatWaitsForRoomIsBounded() throws {
        try withSmallDisk { disk in
            var options = options()
            options.commitInterval = .milliseconds(1)
            let catalog = try openCatalog(disk, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.flush()
            try fill(disk + "/fill")
            let value = Array(repeating: UInt8(7), count: 60_000)
            var kept = 0
            #expect(throws: Errno.noSpace) {
                while kept < 1000 {
                    try catalog.perform { try $0.setMeta("k\(kept)", value) }
                    kept += 1
                }
            }
            #expect(kept > 10)
            // What was refused has not happened.
            #expect(try catalog.read { try $0.meta("k\(kept)") } == nil)
            unlink(disk + "/fill")
            try catalog.flush()
            for index in 0..<kept {
                #expect(try catalog.read { try $0.meta("k\(index)") } == value)
            }
            #expect(try catalog.read { try $0.meta("k\(kept)") } == nil)
        }
    }

    /// A disk on which somebody else has written the last block, for as long as a log takes to start
    /// over several times.
    @Test(arguments: ["tmpfs", "ext4"])
    func theCatalogNeedsNoNewBlocksOnAFullDisk(kind: String) throws {
        try withSmallDisk(megabytes: 128, kind) { disk in
            let releases = Mutex(0)
            var options = options()
            options.own = { Store.own($0, of: $1) }
            options.makeRoom = {
                releases.withLock { $0 += 1 }
                return false
            }
            let catalog = try openCatalog(disk, options)
            defer { catalog.close() }
            try makeRoot(catalog)
            try catalog.flush()
            try fill(disk + "/fill")
            let value = Array(repeating: UInt8(7), count: 60_000)
            for round in 0..<1500 {
                try catalog.perform { try $0.setMeta("k\(round % 8)", value) }
                if round < 500 { try catalog.make("f\(round)") }
                if round % 4 == 0 { try catalog.flush() }
            }
            try catalog.flush()
            #expect(!catalog.hasFailed)
            #expect(try catalog.names().count == 500)
            #expect(releases.withLock { $0 } == 0)
        }
    }

    @Test func theCatalogOpensAgainAfterItEndedOnAFullDisk() throws {
        try withSmallDisk { disk in
            var options = options()
            options.commitInterval = .seconds(3600)
            let catalog = try openCatalog(disk, options)
            try makeRoot(catalog)
            try catalog.make("kept")
            try catalog.flush()
            try fill(disk + "/fill")
            for index in 0..<100 { try catalog.make("f\(index)") }
            #expect(throws: Errno.noSpace) { try catalog.flush() }
            catalog.close()
            unlink(disk + "/fill")
            let again = try openCatalog(disk, options)
            defer { again.close() }
            // What found room in the redo file is there again, from the first on.
            let names = try again.names()
            #expect(Set(names) == Set(["kept"] + (0..<names.count - 1).map { "f\($0)" }))
            try again.make("more")
            try again.flush()
        }
    }
}
