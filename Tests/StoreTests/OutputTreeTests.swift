import Glibc
import SystemPackage
import Testing
import Volume

@testable import Store

@Suite("Trees made anew")
struct OutputTreeTests {
    private static let attributes = FileAttributes(
        mode: 0o640, modified: Timestamp(seconds: 1, nanoseconds: 2))

    private func path(_ names: String...) throws -> [FileName] {
        try names.map { try #require(FileName($0)) }
    }

    @Test("Nothing is written through a symbolic link, nor over another file")
    func links() throws {
        let disk = try TestDisk(.plain)
        let tree = try OutputTree(at: FilePath("\(disk.directory)/new"))
        _ = try tree.makeSymbolicLink(
            at: path("link"), to: Array(disk.root.utf8), Self.attributes)
        for attempt in 0..<2 {
            #expect(throws: StoreError.self) {
                _ = try tree.makeFile(at: path("link", "file"), Self.attributes) { _ in }
            }
            #expect(throws: StoreError.self) { try tree.makeDirectory(at: path("link", "sub")) }
            #expect(throws: StoreError.self) {
                _ = try tree.makeFile(at: path("link"), Self.attributes) { _ in }
            }
            // The second time with another directory opened before.
            if attempt == 0 { try tree.makeDirectory(at: path("directory")) }
        }
        #expect(!disk.exists("file") && !disk.exists("sub"))
        #expect(try tree.finish(Self.attributes) == nil)
    }

    @Test("A file that could not be filled has no name, and the scratch directory goes at the end")
    func unfinished() throws {
        let disk = try TestDisk(.plain)
        let tree = try OutputTree(at: FilePath(disk.root))
        #expect(throws: Errno.ioError) {
            _ = try tree.makeFile(at: path("file"), Self.attributes) { file in
                _ = try file.writeAll("part".utf8)
                throw Errno.ioError
            }
        }
        #expect(!disk.exists("file") && disk.exists(".delugefs"))
        #expect(try tree.makeFile(at: path("file"), Self.attributes) { _ in } == nil)
        #expect(disk.mode("file") == 0o640)
        _ = try tree.finish()
        #expect(disk.exists("file") && !disk.exists(".delugefs"))
        #expect(throws: StoreError.self) { _ = try OutputTree(at: FilePath(disk.root)) }
    }
}
