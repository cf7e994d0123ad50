import Glibc
import Testing

extension EndToEnd {
    /// A member whose commits no honest one would make: they are made in its repository with stock git.
    @Suite("A member gone mad", .serialized, .timeLimit(.minutes(5)))
    struct MadMember {
        /// How `$list`, the entries of the top directory, is spoiled. It has a file `f`.
        enum Madness: String, CaseIterable, Sendable {
            case nameThatEscapes = """
                printf '100644 blob %s\\t%%2E%%2E\\n' $(git rev-parse main:tree/f) >>$list
                """
            case notCanonical = """
                blob=$(git cat-file blob main:tree/f | sed 's/^owner 0 0/owner 00 0/' |
                    git hash-object -w --stdin)
                sed -i "s/^.*\\tf$/100644 blob $blob\\tf/" $list
                """
            case stampBeyondAll = """
                blob=$(git cat-file blob main:tree/f | sed 's/^content [0-9a-f]*/content fffffffffff/' |
                    git hash-object -w --stdin)
                sed -i "s/^.*\\tf$/100644 blob $blob\\tf/" $list
                """
            case directoryWithoutRecord = "sed -i '/%dir/d' $list"
            case directoryInItself = """
                printf '040000 tree %s\\tagain\\n' $(git rev-parse main:tree) >>$list
                """

            static var tried: [Self] {
                Bounds.isLong ? allCases : [.nameThatEscapes, .stampBeyondAll]
            }
        }

        /// Prints the id of the commit, to which `main` leads then.
        private static func forge(_ node: NodeProcess, _ madness: Madness) async throws -> String {
            try await node.host.sh(
                """
                cd "$1"; export GIT_DIR="$1"/history.git
                export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
                list=$(mktemp); git ls-tree main:tree >$list
                \(madness.rawValue)
                top=$(git mktree <$list); list=$(mktemp)
                git ls-tree main | sed "s/^.*\\ttree$/040000 tree $top\\ttree/" >$list
                tree=$(git mktree <$list)
                git cat-file commit main | sed "/^parent/d; s/^node .*/node $2/" |
                    sed "1c tree $tree\\nparent $(git rev-parse main)" |
                    git hash-object -w -t commit --stdin >$list
                git update-ref refs/heads/main $(cat $list); cat $list
                """, node.root, try await Self.id(node)
            ).succeeded().line
        }

        private static func id(_ node: NodeProcess) async throws -> String {
            try await node.host.sh(
                "sed -n 's/.*\"node\" *: *\"\\([0-9a-f]*\\)\".*/\\1/p' \"$1\"/volume.json",
                node.root
            ).succeeded().line
        }

        private static func open(
            _ body: (_ sane: NodeProcess, _ mad: NodeProcess) async throws -> Void
        ) async throws {
            try await Duo.open { sane, mad in
                try await sane.sh("mkdir d; echo d >d/d").succeeded()
                try await mad.sees("d/d")
                try await mad.sh("echo f >f").succeeded()
                try await sane.sees("f")
                try await body(sane, mad)
            }
        }

        private static func check(_ sane: NodeProcess, _ mad: NodeProcess, _ round: Int)
            async throws
        {
            try await sane.sh("echo \(round) >d/sane-\(round)").succeeded()
            try await mad.sees("d/sane-\(round)")
            try await mad.sh("echo \(round) >mad-\(round); echo \(round) >f").succeeded()
            try await sane.sees("mad-\(round)")
            try await sane.sh("until test \"$(cat f)\" = \(round); do sleep 0.05; done").succeeded()
            #expect(try await sane.sh("ls -R").output == mad.sh("ls -R").output)
            try await mad.settle()
        }

        @Test("Its commits are refused as a whole, it is told, and comes back with what it has")
        func refused() async throws {
            try await Self.open { sane, mad in
                for (round, madness) in Madness.tried.enumerated() {
                    try await mad.sh("echo unseen-\(round) >unseen").succeeded()
                    try await mad.settle()
                    try await mad.stop()
                    let forged = try await Self.forge(mad, madness)
                    // It takes the commit for its own state, and knows no better.
                    try await mad.host.sh(
                        """
                        sqlite3 "$1"/catalog.sqlite \\
                            "UPDATE meta SET value = x'$2' WHERE key = CAST('catalog.applied' AS BLOB)"
                        """, mad.root, forged
                    ).succeeded()
                    try await mad.start()
                    try await eventually("it has come back", within: Bounds.online) {
                        FileBytes.text(mad.log).contains("commit \(forged) was not valid")
                    }
                    let id = try await Self.id(mad)
                    #expect(
                        FileBytes.text(sane.log).contains("refused commit \(forged) of node \(id)"))
                    #expect(FileBytes.text(mad.log).contains("refuses commit \(forged)"))
                    try await Self.check(sane, mad, round)
                    #expect(try await sane.sh("cat unseen").output == "unseen-\(round)\n")
                    let kept = try await mad.host.sh(
                        "cat \"$1\"/history.git/refs/rejected/$2", mad.root, forged)
                    #expect(kept.line == forged)
                    let has = try await sane.host.sh(
                        "git -c safe.directory='*' --git-dir=\"$1\"/history.git cat-file -e $2",
                        sane.root, forged)
                    #expect(!has.isSuccess, "\(madness)")
                }
                try await sane.checkHistory()
                #expect(try await sane.status().problems.isEmpty)
                #expect(try await mad.status().problems.isEmpty)
            }
        }

        @Test("Where only its branch was moved it sees for itself that the commit is not valid")
        func moved() async throws {
            try await Self.open { sane, mad in
                try await mad.stop()
                let forged = try await Self.forge(mad, .directoryWithoutRecord)
                try await mad.start()
                try await Self.check(sane, mad, 1)
                #expect(FileBytes.text(mad.log).contains("commit \(forged) is not valid"))
                #expect(!FileBytes.text(sane.log).contains("not taken in"))
                #expect(try await mad.status().problems.isEmpty)
                try await sane.checkHistory()
            }
        }
    }
}
