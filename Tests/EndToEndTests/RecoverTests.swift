import FoundationEssentials
import Glibc
import Testing

extension EndToEnd {
    /// A disk without its node: names from the history, bytes from `objects/`.
    @Suite("Recovering", .serialized, .timeLimit(.minutes(5)))
    struct Recovering {
        /// Of `recover --json`.
        private struct Report: Decodable {
            struct Loss: Decodable {
                let path, kind, reason: String
            }
            let lost: [Loss]
            let unfinished, notes: [String]
            let files: Int
            let devicesLeftOut: Int

            init(_ outcome: Outcome) throws {
                self = try JSONDecoder().decode(Self.self, from: Data(outcome.bytes))
            }
        }

        /// Some of everything.
        private static let content = """
            mkdir -p d/e/f empty many; echo small >d/small; head -c 300K /dev/urandom >d/e/large
            ln d/small d/e/hard; ln d/e/large d/large2; ln -s ../small d/e/soft; ln -s /etc out
            mkfifo d/pipe; mknod d/null c 1 3; ln d/pipe d/pipe2
            truncate -s 5M sparse; printf x | dd of=sparse bs=1 seek=3M conv=notrunc status=none
            printf odd >"$(printf 'odd\\377\\nname')"; : >d/nothing
            seq 50 | sed s,^,many/, | xargs touch
            setfattr -n user.x -v y d/e/large; setfattr -n user.d -v z d/e
            setfattr -n trusted.t -v t d/e/large; setfacl -m u:12:rwx d/nothing
            chown 12:34 d/e/large d/e; chmod 640 d/small; chmod 6755 d/e/large; chmod 1750 d/e
            head -c 200K /dev/urandom >d/damaged; ln d/damaged d/damaged2
            touch -d '2001-02-03 04:05:06.123456789' d/e/f d/e/large d/pipe d
            touch -hd '2001-02-03 04:05:06.5' out
            """
        /// With owners and all: what only `--privileged` sets is taken out by `mine`.
        private static let listing = """
            cd "$1"
            list() { find . -name .delugefs -prune -o ! -path './w*' ! -path './d/damaged*' \\
                ! -path './d/elsewhere*' ! -name 'recovered*' "$@"; }
            {
                list -type d -printf '%p %y %m %U %G %T@\\n'
                list ! -type d -printf '%p %y %m %U %G %n %s %T@ %l\\n'
                list ! -type c -exec getfattr -hdm '^(user|trusted|system.posix)' '{}' + 2>&1
                list -type f -print0 | xargs -0 sha256sum
            } | LC_ALL=C sort
            """
        private static let state = """
            find "$1" -printf '%p %i %m %s %T@ %C@\\n' | LC_ALL=C sort | sha256sum
            """

        /// A file that is held open until the node is killed, and one that is new.
        private static func write(_ node: NodeProcess) async throws -> Child {
            let mark = "\(node.host.network.workshop.directory)/writing"
            let writer = try node.host.spawn(
                Shell.bash(
                    """
                    cd "$1"; exec 3>w/new 4>>w/old
                    head -c 50K /dev/zero >&3; echo more >&4; touch "$2"; sleep 1000
                    """, [node[""], mark]), log: "\(mark).log")
            try await eventually("it is written", within: Bounds.command) {
                access(mark, F_OK) == 0
            }
            return writer
        }

        /// A volume of two disks, of whose files one has some; that one is dead, without its catalog.
        private static func deadDisk(
            _ body: (NodeProcess, _ place: String, _ listing: String) async throws -> Void
        ) async throws {
            try await Duo.open(creation: ["--copies", "1", "--suid-dev"]) { a, b in
                let place = try a.host.network.workshop.make("recovered")
                try await a.sh(content).succeeded()
                try await a.sh("mkdir w; head -c 20K /dev/zero >w/old").succeeded()
                try await a.settle()
                try await b.sees("w/old")
                try await b.sh("head -c 100K /dev/urandom >d/elsewhere; touch -r d/e/f d")
                    .succeeded()
                try await b.settle()
                try await a.sh(
                    "until test \"$(stat -c %Y d)\" = \"$(stat -c %Y d/e/f)\"; do sleep 0.05; done"
                ).succeeded()
                let listing = try await a.host.sh(listing, a[""]).succeeded().output
                let refused = try await a.command("recover", "--to", "\(place)/early")
                #expect(refused.status == 1 && refused.errors.contains("A node is running on"))
                #expect(access("\(place)/early", F_OK) != 0)
                try await a.host.sh(
                    """
                    sum=$(sha256sum <"$1/d/damaged")
                    for file in "$2"/objects/*/*; do
                        test "$(sha256sum <"$file")" != "$sum" ||
                            printf '\\377\\376\\375' |
                                dd of="$file" bs=1 seek=70000 conv=notrunc status=none
                    done
                    """, a[""], a.root
                ).succeeded()
                let writer = try await write(a)
                try await a.kill9()
                writer.send(SIGKILL)
                _ = try await writer.wait(Bounds.reaped)
                try await a.host.sh("rm \"$1\"/catalog.sqlite*", a.root).succeeded()
                try await body(a, place, listing)
            }
        }

        @Test("A dead disk without catalog gives back all that it has, and names what it has not")
        func deadDisk() async throws {
            try await Self.deadDisk { node, place, before in
                let root = try await node.host.sh(Self.state, node.root).succeeded().output
                try await Self.recoversAll(of: node, to: "\(place)/all", before)
                try await Self.recoversForAnybody(node, to: "\(place)/mine")
                let after = try await node.host.sh(Self.state, node.root).succeeded().output
                #expect(after == root, "something was changed in the root")
            }
        }

        private static func recoversAll(
            of node: NodeProcess, to target: String, _ before: String
        ) async throws {
            let outcome = try await node.command(
                "recover", "--privileged", "--json", "--to", target)
            #expect(outcome.status == 1)
            #expect(outcome.errors.contains("3 files this disk does not have whole"))
            let found = try await node.host.sh(listing, target).succeeded().output
            let differing = Set(found.split(separator: "\n"))
                .symmetricDifference(before.split(separator: "\n"))
            #expect(differing.isEmpty)
            let report = try Report(outcome)
            #expect(
                report.lost.map { "\($0.path) \($0.kind)" }.sorted() == [
                    "/d/damaged content", "/d/damaged2 content", "/d/elsewhere content",
                ])
            #expect(report.unfinished.count == 2 && report.notes.isEmpty)
            try await node.host.sh(
                """
                cd "$1"; test ! -e .delugefs
                cmp recovered* <(head -c 50K /dev/zero); cmp w/old <(head -c 20K /dev/zero)
                cmp "w/old (conflict a "* <(head -c 20K /dev/zero; echo more)
                test $(du -k sparse | cut -f1) -lt 1000
                """, target
            ).succeeded()
        }

        /// Without `--privileged`, from a mount that nothing can be written to.
        private static func recoversForAnybody(
            _ node: NodeProcess, to target: String
        ) async throws {
            let mount = try node.host.network.workshop.make("read-only")
            try await node.host.sh(
                "mount --bind \"$1\" \"$2\"; mount -o remount,bind,ro \"$2\"", node.root, mount
            ).succeeded()
            node.host.network.workshop.onClose("read-only root") {
                _ = try await Shell.run(["umount", "-l", mount])
            }
            func recover(to target: String) async throws -> Outcome {
                try await node.host.run(
                    [Machine.binary, "recover", "--root", mount, "--to", target])
            }
            for (target, reason) in [
                ("\(node.root)/objects/new", "from which nothing may be changed"),
                ("\(mount)/objects/new", "from which nothing may be changed"),
                (node.host.network.workshop.directory, "is not empty"),
                ("\(target)/no/such", "does not exist, and neither does"),
            ] {
                let refused = try await recover(to: target)
                #expect(refused.status == 1 && refused.errors.contains(reason), "\(target)")
            }
            let outcome = try await recover(to: target)
            #expect(outcome.status == 1)
            #expect(outcome.errors.contains("/d/elsewhere: its content is not on this disk"))
            #expect(outcome.errors.contains("/d/damaged: its content on this disk is damaged"))
            #expect(outcome.output.contains("1 device left out"))
            try await node.host.sh(
                """
                cd "$1"; test ! -e d/null; test -z "$(find . ! -user root -o ! -group root)"
                test "$(stat -c %a d/e/large d/e d/small d/nothing)" = "$(
                    printf '%s\\n' 755 1750 640 604)"
                test "$(getfattr -dm- d/e/large | grep =)" = 'user.x="y"'
                test "$(stat -c %y d/e/large | cut -c1-29)" = '2001-02-03 04:05:06.123456789'
                """, target
            ).succeeded()
        }

        /// A third of the packs without their indexes.
        private static let loseIndexes = """
            cd "$1"/history.git/objects/pack; rm $(ls *.idx | head -2)
            """
        private static let flipPacks = """
            cd "$1"/history.git/objects/pack; chmod u+w *.pack
            for pack in $(ls -S *.pack | head -3); do
                for part in 3 5 7; do
                    printf '\\377\\376\\375' | dd of=$pack bs=1 conv=notrunc status=none \
                        seek=$(($(stat -c %s $pack) * part / 10))
                done
            done
            """
        /// Takes the packs apart and removes one of the parts that a large directory is split into.
        /// Prints how many names that had.
        private static let loseShard = """
            cd "$1"/history.git; mv objects/pack packs; mkdir objects/pack
            export GIT_DIR=. GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*
            export GIT_CONFIG_KEY_1=core.fsync GIT_CONFIG_VALUE_1=none
            for pack in packs/*.pack; do git unpack-objects -q <$pack; done
            shard=$(git rev-parse main:tree/many/%07)
            git ls-tree $shard | wc -l
            rm -f objects/$(echo $shard | sed 's,^..,&/,')
            """

        @Test("A damaged history gives what can be read of it, and never anything wrong")
        func damagedHistory() async throws {
            try await Solo.open { solo in
                let node = solo.node
                for round in 1...2 {
                    try await node.sh(
                        "mkdir \(round); for i in {1..40}; do echo $RANDOM >\(round)/$i; done"
                    ).succeeded()
                    try await node.settle()
                }
                try await node.sh("mkdir many; seq 1100 | sed s,^,many/, | xargs touch")
                    .succeeded()
                let before = try await node.sh("sha256sum [12]/*").succeeded().output
                try await node.stop()
                let place = try solo.workshop.make("recovered")
                /// What a copy of the root gives back after that.
                func recover(
                    _ name: String, after loss: String
                ) async throws -> (loss: String, recover: Outcome, sums: String) {
                    let copy = "\(place)/root-\(name)"
                    try await solo.host.sh("cp -a \"$1\" \"$2\"", node.root, copy).succeeded()
                    let lost = try await solo.host.sh(loss, copy).succeeded()
                    let target = "\(place)/\(name)"
                    let outcome = try await solo.host.run(
                        [Machine.binary, "recover", "--root", copy, "--json", "--to", target])
                    let sums = try await solo.host.sh("cd \"$1\"; sha256sum [12]/*", target)
                    return (lost.line, outcome, sums.output)
                }

                let indexes = try await recover("indexes", after: Self.loseIndexes)
                #expect(indexes.recover.status == 0 && indexes.sums == before)

                let packs = try await recover("packs", after: Self.flipPacks)
                #expect(packs.recover.status == 1)
                #expect(try !Report(packs.recover).notes.isEmpty)
                let found = Set(packs.sums.split(separator: "\n"))
                #expect(!found.isEmpty && found.isSubset(of: before.split(separator: "\n")))

                let shard = try await recover("shard", after: Self.loseShard)
                let report = try Report(shard.recover)
                #expect(report.lost.map { "\($0.path) \($0.kind)" } == ["/many record"])
                let lost = try #require(Int(shard.loss))
                #expect(lost > 0 && report.files == 1180 - lost)
                #expect(shard.sums == before)
            }
        }
    }
}
