import Foundation
import Glibc
import SystemPackage
import Testing
import Volume

@testable import Catalog

/// What is damaged must be told from what is not: the one is set aside, the other refused or used.
@Suite struct DamageTests {
    /// A closed database with some hundred rows.
    private func withDatabase(_ body: (_ path: String) throws -> Void) throws {
        try withDirectory { directory in
            let catalog = try openCatalog(directory)
            try makeRoot(catalog)
            try catalog.perform { tx in
                for number in 0..<300 {
                    guard let name = FileName("file \(number)") else { continue }
                    _ = try tx.create(
                        .root, name,
                        NewInode(
                            body: .file(.inline([UInt8](repeating: 7, count: 100))), mode: 0o644,
                            owner: Owner(uid: 0, gid: 0)),
                        now: Timestamp(seconds: 1, nanoseconds: 0))
                }
            }
            try catalog.flush()
            catalog.close()
            try body(directory + "/catalog.sqlite")
        }
    }

    private func opening(_ path: String) throws {
        try Catalog.open(FilePath(path), options: options()).close()
    }

    private func write(_ bytes: [UInt8], to path: String, at offset: Int) throws {
        let file = try FileDescriptor.open(FilePath(path), .writeOnly)
        defer { try? file.close() }
        _ = try file.writeAll(toAbsoluteOffset: Int64(offset), bytes)
    }

    @Test func aWholeDatabaseIsOpenedAndOneThatIsNotThereIsMade() throws {
        try withDatabase { path in
            try opening(path)
            #expect(Catalog.damage(of: FilePath(path)) == nil)
            unlink(path)
            try opening(path)
        }
    }

    @Test func pagesThatAreOverwrittenOrMissingAreDamage() throws {
        try withDatabase { path in
            let whole = try #require(FileManager.default.contents(atPath: path))
            for page in [1, 2, 5, 9, whole.count / 4096 - 1] {
                try write([UInt8](repeating: 0xFF, count: 64), to: path, at: page * 4096)
                #expect(throws: CatalogDamage.self, "page \(page)") { try opening(path) }
                try whole.write(to: URL(filePath: path))
            }
            for count in [100, 4096, whole.count / 8192 * 4096] {
                try whole.prefix(count).write(to: URL(filePath: path))
                #expect(throws: CatalogDamage.self, "\(count) bytes") { try opening(path) }
            }
            try Data(repeating: 1, count: 9999).write(to: URL(filePath: path))
            #expect(throws: CatalogDamage.self) { try opening(path) }
            try whole.write(to: URL(filePath: path))
            try opening(path)
        }
    }

    @Test func aLaterVersionIsRefusedAndAnImpossibleOneIsDamage() throws {
        try withDatabase { path in
            try write([0, 0, 0, 200], to: path, at: 60)
            #expect(throws: Schema.TooNew.self) { try opening(path) }
            try write([0, 9, 0, 0], to: path, at: 60)
            #expect(throws: CatalogDamage.self) { try opening(path) }
        }
    }

    @Test func whatWasMetWhileItWasUsedIsLookedAtByTheNextStart() throws {
        try withDatabase { path in
            let catalog = try Catalog.open(FilePath(path), options: options())
            let pages = try #require(FileManager.default.contents(atPath: path)).count / 4096
            for page in 2..<pages {
                try write([UInt8](repeating: 0xFF, count: 64), to: path, at: page * 4096)
            }
            // The snapshot has a connection of its own, which remembers nothing yet.
            #expect(throws: (any Error).self) {
                try catalog.snapshot { try $0.children(of: .root) }
            }
            #expect(access(path + "-damaged", F_OK) == 0)
            catalog.close()
            #expect(throws: CatalogDamage.self) { try opening(path) }
        }
    }
}
