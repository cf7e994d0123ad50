import Glibc
import Testing

extension EndToEnd {
    /// The history may go: the catalog has the present, and the other nodes have the past.
    @Suite("Damaged histories", .serialized, .timeLimit(.minutes(5)))
    struct DamagedHistories {
        enum Damage: String, CaseIterable, Sendable {
            case packGone = "rm -f $(ls -S objects/pack/*.pack | head -1)"
            case packFlipped = """
                pack=$(ls -S objects/pack/*.pack | head -1); chmod u+w $pack
                printf '\\377\\377\\377\\377' | dd of=$pack bs=1 seek=60 conv=notrunc status=none
                """
            case indexesGone = "rm -f objects/pack/*.idx"
            case referenceNowhere = "printf '%040d\\n' 1 >refs/heads/main"
            case referenceGarbage = "head -c 41 /dev/urandom >refs/heads/main"
            case emptied = "rm -rf ./*"
            case gone = "rm -rf ../history.git"

            static var tried: [Self] {
                Bounds.isLong ? allCases : [.packFlipped, .referenceGarbage, .gone]
            }
        }

        private static func spoil(_ node: NodeProcess, _ damage: Damage) async throws {
            try await node.host.sh(
                "shopt -s nullglob; cd \"$1\"/history.git; \(damage.rawValue)", node.root
            ).succeeded()
        }

        private static let listing = "find . -printf '%p %i %m %s %T@\\n' | LC_ALL=C sort"

        @Test(
            "A damaged history is healed by a peer at the start, and changes of both sides arrive")
        func healed() async throws {
            try await Duo.open { a, b in
                try await a.sh("mkdir d; for i in {1..40}; do echo $i >d/$i; done").succeeded()
                try await a.settle()
                try await NodeProcess.converge([a, b])
                for (round, damage) in Damage.tried.enumerated() {
                    try await a.sh("echo \(round) >round; rm d/\(round + 1)").succeeded()
                    try await b.sees("d/\(round + 1)", false)
                    try await b.sh("until test \"$(cat round)\" = \(round); do sleep 0.05; done")
                        .succeeded()
                    try await b.settle()
                    let before = try await b.sh(Self.listing).succeeded().output
                    try await b.stop()
                    try await Self.spoil(b, damage)
                    try await a.sh("echo \(damage) >meanwhile").succeeded()
                    try await b.start()
                    try await b.sh(
                        "until test \"$(cat meanwhile)\" = \(damage); do sleep 0.05; done"
                    ).succeeded()
                    try await b.sh("rm meanwhile; echo \(damage) >from-b-\(round)").succeeded()
                    try await a.sees("from-b-\(round)")
                    try await a.sees("meanwhile", false)
                    try await b.sh("rm from-b-\(round)").succeeded()
                    try await a.sees("from-b-\(round)", false)
                    try await b.settle()
                    let codes = try await b.status().problems.map(\.code)
                    #expect(codes.allSatisfy { $0 == "history-damaged" }, "\(damage): \(codes)")
                    // Nothing that was removed came back, and nothing was doubled.
                    let after = try await b.sh(Self.listing).succeeded().output
                    #expect(
                        after.split(separator: "\n").dropFirst()
                            == before.split(separator: "\n").dropFirst(), "\(damage)")
                    try await b.checkHistory()
                }
                #expect(
                    try await a.sh(Self.listing).succeeded().output
                        == b.sh(Self.listing).succeeded().output)
            }
        }

        @Test("A history that turns out to be damaged while the node runs is healed by a peer")
        func healedInOperation() async throws {
            try await Duo.open { a, b in
                try await a.sh("mkdir d; for i in {1..40}; do echo $i >d/$i; done").succeeded()
                try await a.settle()
                try await NodeProcess.converge([a, b])
                // So that nothing of it is remembered: only what commits need is read.
                try await b.stop()
                try await b.start()
                try await b.host.sh(
                    """
                    cd "$1"/history.git/objects/pack
                    for pack in *.pack; do
                        chmod u+w $pack; size=$(stat -c %s $pack)
                        for at in $(seq 13 7 $((size - 24))); do
                            printf '\\377' | dd of=$pack bs=1 seek=$at conv=notrunc status=none
                        done
                    done
                    """, b.root
                ).succeeded()
                try await b.sh("echo new >d/new; rm d/7").succeeded()
                try await a.sees("d/new")
                try await a.sees("d/7", false)
                try await a.sh("echo back >d/back").succeeded()
                try await b.sees("d/back")
                try await b.settle()
                #expect(FileBytes.text(b.log).contains("the history is damaged"))
                #expect(try await a.sh("ls d").output == b.sh("ls d").output)
                try await b.checkHistory()
            }
        }

        @Test("The last disk of a volume whose history is lost goes on from its files")
        func alone() async throws {
            try await Solo.open { solo in
                let node = solo.node
                try await node.sh("mkdir d; echo 1 >d/1; head -c 90K /dev/urandom >large")
                    .succeeded()
                let sum = try await node.sha256("large")
                for damage in [Damage.packFlipped, .emptied] {
                    try await node.settle()
                    let before = try await node.sh(Self.listing).succeeded().output
                    try await node.stop()
                    try await Self.spoil(node, damage)
                    try await node.start()
                    #expect(try await node.sh(Self.listing).succeeded().output == before)
                    #expect(try await node.sha256("large") == sum)
                    try await node.sh("echo \(damage) >>d/1").succeeded()
                    try await node.settle()
                    try await node.checkHistory()
                }
                try await node.stop()
                try await node.start()
                #expect(
                    try await node.sh("cat d/1").output == "1\npackFlipped\nemptied\n")
            }
        }

        @Test(
            "Without a node that has the history the mount goes on, and what it says is what to do")
        func apart() async throws {
            try await Duo.open { a, b in
                try await a.sh("echo 1 >one; echo 2 >two").succeeded()
                try await a.settle()
                try await NodeProcess.converge([a, b])
                try await a.kill9()
                // Only here, and then nowhere: the live state has to stand for it.
                try await b.waitForPeers(within: Bounds.offline)
                try await b.sh("echo here >only-here; rm one").succeeded()
                try await b.settle()
                try await b.stop()
                try await Self.spoil(b, .gone)
                try await b.start()
                try await b.sh("cat two only-here; echo more >more; mv two three; sync more")
                    .succeeded()
                #expect(try await b.command("wait", "--timeout", "1").status != 0)
                let problems = try await b.status().problems
                #expect(problems.contains { $0.text.contains("start the other nodes") })
                try await a.start()
                try await a.sees("only-here")
                try await a.sees("more")
                try await a.sees("three")
                try await b.settle()
                #expect(try await a.sh("ls").output == "more\nonly-here\nthree\n")
                #expect(try await b.sh("ls; cat three").output == "more\nonly-here\nthree\n2\n")
                try await b.checkHistory()
            }
        }
    }
}
