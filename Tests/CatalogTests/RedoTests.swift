import Catalog
import Foundation
import Glibc
import SystemPackage
import Testing
import Volume

struct RedoTests {
    /// Only `flush` commits.
    private func slow() -> Catalog.Options {
        var options = options()
        options.commitInterval = .seconds(3600)
        return options
    }

    /// What a kill at this moment would leave.
    private func copy(_ directory: String, to name: String) throws -> String {
        let copy = "\(directory)/\(name)"
        try FileManager.default.createDirectory(
            atPath: copy, withIntermediateDirectories: false)
        for suffix in ["", "-wal", "-redo"] {
            try FileManager.default.copyItem(
                atPath: directory + "/catalog.sqlite" + suffix,
                toPath: copy + "/catalog.sqlite" + suffix)
        }
        return copy
    }

    private func names(in directory: String) throws -> [String] {
        let catalog = try openCatalog(directory, slow())
        defer { catalog.close() }
        _ = try dump(catalog)
        return try catalog.names()
    }

    private func withSlowCatalog(_ body: (Catalog, String) throws -> Void) throws {
        try withDirectory { directory in
            let catalog = try openCatalog(directory, slow())
            defer { catalog.close() }
            try makeRoot(catalog)
            try body(catalog, directory)
        }
    }

    @Test func whatWasAnsweredSurvivesAKillAtAnyMoment() throws {
        try withSlowCatalog { catalog, directory in
            for round in 0..<4 {
                try catalog.make("a\(round)")
                let crash = try copy(directory, to: "crash-\(round)")
                if round == 1 { try catalog.flush() }
                try catalog.make("b\(round)")
                let later = try copy(directory, to: "later-\(round)")
                // Longer than it was, so that the next batch does not overwrite all of this one.
                if round == 2 { try catalog.flush() }
                let earlier = (0..<round).flatMap { ["a\($0)", "b\($0)"] }
                #expect(try names(in: crash) == (earlier + ["a\(round)"]).sorted())
                #expect(
                    try names(in: later) == (earlier + ["a\(round)", "b\(round)"]).sorted())
            }
        }
    }

    @Test func whatIsPerformedAgainIsTheSame() throws {
        try withSlowCatalog { catalog, directory in
            let file = try catalog.make("file")
            try catalog.make("directory", in: .root, .directory)
            _ = try catalog.perform {
                _ = try $0.setXattr(file.ino, Array("user.a".utf8), [], now: time(2))
                _ = try $0.setContent(
                    file.ino, .inline([1, 2, 3]), modified: time(3), now: time(3))
            }
            try catalog.move("file", to: "renamed", into: try catalog.find("directory").ino)
            let crash = try copy(directory, to: "crash")
            let expected = try dump(catalog)
            let survivor = try openCatalog(crash, slow())
            defer { survivor.close() }
            let found = try dump(survivor)
            #expect(found.mapValues(\.record) == expected.mapValues(\.record))
            #expect(found.mapValues(\.links) == expected.mapValues(\.links))
        }
    }

    @Test func nothingIsPerformedTwice() throws {
        try withSlowCatalog { catalog, directory in
            try catalog.make("a")
            let crash = try copy(directory, to: "crash")
            #expect(try names(in: crash) == ["a"])
            // Killed before anything else was performed: the file still has the record.
            let again = try openCatalog(crash, slow())
            _ = try again.perform { try $0.unlink(.root, try name("a"), now: time(2)) }
            let second = try copy(crash, to: "second")
            again.close()
            #expect(try names(in: second).isEmpty)
            #expect(try names(in: crash).isEmpty)
        }
    }

    @Test func whatIsTornDoesNotCount() throws {
        try withSlowCatalog { catalog, directory in
            try catalog.make("a")
            try catalog.flush()
            try catalog.make("b")
            try catalog.make("c")
            let end = try copy(directory, to: "end")
            let length = try recordLength(end, at: 0)
            let size = length + (try recordLength(end, at: length))
            for (number, cut) in [length - 1, length, length + 11, size - 1, size].enumerated() {
                let torn = try copyOf(end, "\(directory)/torn-\(number)")
                #expect(truncate(torn + "/catalog.sqlite-redo", off_t(cut)) == 0)
                let expected = cut < length ? ["a"] : cut < size ? ["a", "b"] : ["a", "b", "c"]
                #expect(try names(in: torn) == expected)
            }
            // One bit of the second record.
            let bent = try FileDescriptor.open(end + "/catalog.sqlite-redo", .readWrite)
            var byte: [UInt8] = [0]
            _ = try byte.withUnsafeMutableBytes {
                try bent.read(fromAbsoluteOffset: length + 40, into: $0)
            }
            try bent.writeAll(toAbsoluteOffset: length + 40, [byte[0] ^ 1])
            try bent.close()
            #expect(try names(in: end) == ["a", "b"])
        }
    }

    private func recordLength(_ directory: String, at offset: Int64) throws -> Int64 {
        let file = try FileDescriptor.open(directory + "/catalog.sqlite-redo", .readOnly)
        defer { try? file.close() }
        var payload: UInt32 = 0
        _ = try withUnsafeMutableBytes(of: &payload) {
            try file.read(fromAbsoluteOffset: offset, into: $0)
        }
        return 12 + Int64(payload)
    }

    private func copyOf(_ source: String, _ target: String) throws -> String {
        try FileManager.default.copyItem(atPath: source, toPath: target)
        return target
    }

    @Test func aBatchThatDoesNotFitIsCommitted() throws {
        try withSlowCatalog { catalog, directory in
            let value = Array(repeating: UInt8(7), count: 60_000)
            for round in 0..<200 {
                try catalog.perform { try $0.setMeta("k\(round)", value) }
                if round % 20 == 19 { try catalog.make("f\(round)") }
            }
            let crash = try copy(directory, to: "crash")
            #expect(try names(in: crash).count == 10)
            let survivor = try openCatalog(crash, slow())
            defer { survivor.close() }
            #expect(try survivor.read { try $0.meta("k199") } == value)
        }
    }
}
