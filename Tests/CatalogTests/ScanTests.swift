import Catalog
import Testing
import Volume

/// SQLite has no statistics here: what order it joins tables in is for the statement to say.
@Suite("No statement reads a whole table") struct ScanTests {
    private static let files = 3000
    private static let rowsMax = 100

    @Test(
        "What a change, a commit, its application and a status ask for follows the change, not the volume"
    )
    func changes() throws {
        try withTwo { a, b, objects in
            let directory = try a.make("d", .directory)
            for number in 0..<Self.files { _ = try a.make("f\(number)", in: directory.ino) }
            _ = try pull(commit(a, objects), into: b, objects)
            for catalog in [a, b] { _ = try scans(catalog) }

            let open = try a.perform { tx in
                let inode = try tx.create(.root, name("open"), .file, now: time(1))
                try tx.setStaging(
                    Staging(ino: inode.ino, name: "s", base: inode.contentStamp, isNewborn: true))
                return inode
            }
            _ = try a.make("g", in: directory.ino)
            try a.perform { _ = try $0.unlink(directory.ino, name("f7"), now: time(2)) }
            _ = try pull(commit(a, objects, hidingNewborn: true), into: b, objects)
            _ = try pull(commit(a, objects), into: b, objects)
            for catalog in [a, b] {
                _ = try catalog.read { try $0.uncommittedFiles() }
                _ = try catalog.read { try $0.unreferencedBytes() }
                _ = try catalog.snapshot { try $0.newborn() }
                _ = try catalog.read { try $0.inode(open.ino) }
                for (text, rows) in try scans(catalog) {
                    #expect(rows < Self.rowsMax, "\(rows) rows: \(text)")
                }
            }
        }
    }

    private func scans(_ catalog: Catalog) throws -> [(text: String, rows: Int)] {
        try catalog.read(\.scannedRows) + catalog.snapshot(\.scannedRows)
    }
}
