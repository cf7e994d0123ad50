import History
import SystemPackage
import Testing
import Volume

@Suite("Reading a repository that is left as it is")
struct ReaderTests {
    private static let node = NodeID(high: 1, low: 1)

    /// Three states, of which the branch has two: the third is what a crash left.
    private static func make(
        _ scratch: Scratch
    ) throws -> (path: FilePath, branch: ObjectID, loose: ObjectID) {
        let history = try scratch.repository()
        let first = try history.commit(VolumeFiles(["a": "1"]), stamp: 1_000)
        let branch = try history.commit(VolumeFiles(["a": "2"]), on: [first], stamp: 2_000)
        let loose = try history.commit(VolumeFiles(["a": "3"]), on: [branch], stamp: 3_000)
        try history.setHead(branch)
        return (history.path, branch, loose)
    }

    private static func newest(
        _ path: FilePath, of node: NodeID? = node, _ scratch: Scratch
    ) throws -> (id: ObjectID, isBranch: Bool)? {
        let reader = try HistoryReader(path, copyingTo: scratch.path.appending("copy"))
        defer { reader.close() }
        return try reader.newestCommit(of: node).map { ($0.commit.id, $0.isBranch) }
    }

    private static func state(_ path: FilePath) -> String {
        shell("find '\(path)' -printf '%p %i %s %T@ %C@\\n' | LC_ALL=C sort").output
    }

    @Test("The newest state is the branch's, or this node's own after it, unless that was refused")
    func newest() throws {
        let scratch = try Scratch()
        let (path, branch, loose) = try Self.make(scratch)
        let before = Self.state(path)
        #expect(try Self.newest(path, scratch)?.id == loose)
        #expect(try Self.newest(path, of: nil, scratch)?.id == loose)
        #expect(try Self.newest(path, of: NodeID(high: 2, low: 2), scratch)?.id == branch)
        #expect(Self.state(path) == before)
        git(path, "update-ref refs/rejected/\(loose) \(loose)")
        #expect(try Self.newest(path, scratch)?.id == branch)
    }

    @Test(
        "Without the branch, or the indexes, it is the latest that can be read",
        arguments: [
            "rm refs/heads/main", "echo garbage >refs/heads/main",
            "echo 0123456789012345678901234567890123456789 >refs/heads/main",
            "rm refs/heads/main objects/pack/*.idx",
            "truncate -s 100 objects/pack/*.idx; rm refs/heads/main",
        ])
    func withoutBranch(loss: String) throws {
        let scratch = try Scratch()
        let (path, _, loose) = try Self.make(scratch)
        #expect(shell("cd '\(path)'; chmod -R u+w .; \(loss)").status == 0)
        let before = Self.state(path)
        let found = try #require(try Self.newest(path, scratch))
        #expect(found.id == loose && !found.isBranch)
        #expect(Self.state(path) == before)
        #expect(shell("test ! -e '\(scratch.path)/copy'").status == 0)
    }
}
