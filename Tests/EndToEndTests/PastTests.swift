import FoundationEssentials
import Glibc
import Testing

extension EndToEnd {
    @Suite("The past in a mount", .serialized, .timeLimit(.minutes(5)))
    struct Past {
        private static let games = Account(uid: 5, gid: 60)

        /// All that `stat` shows but access and change times, of everything below `$1`.
        private static let exact = #"""
            cd "$1"
            find . -printf '%P %y %m %U:%G %n %l %s %b %T@\0' | LC_ALL=C sort -z | tr '\n\0' '?\n'
            find . -mindepth 1 ! -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -n -p
            """#

        /// Replaces, renames, removes and changes what file life left.
        private static let destruction = #"""
            echo other >a/greeting; mv log log2; rm large.link; chmod 0 cut; rm -r source
            ln empty a/second 2>/dev/null || ln a/empty a/second
            setfattr -x user.test.plain a/greeting; setfattr -n user.test.new -v 1 a/b/short
            mv a b; mkdir a; echo new >a/greeting; rm pipe; chown 77:77 grown
            find . -mindepth 1 -maxdepth 1 ! -name b -exec rm -r {} +
            """#

        @Test(
            "It shows every file as it was, whatever became of it, also after a restart",
            arguments: [[], ["--no-passthrough"]])
        func everything(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                let mount = try #require(node.mount)
                try await FileLife.run(on: host, in: oracle.path)
                try await FileLife.runAndCompare(node, oracle, "The mount")
                try await node.sh("setfacl -m u:5:rw,g:61:r a/greeting; setfacl -d -m u:5:rx a")
                    .succeeded()
                let commit = try await node.commit()
                let expected = try await host.sh(Self.exact, mount).succeeded().bytes
                let copy = try await Disk(workshop, "copy", .ext4(megabytes: 128))
                try await host.sh(
                    "cp -a \"$1\"/. \"$2\"; rmdir \"$2\"/lost+found", mount, copy.path
                )
                .succeeded()
                try await node.sh(Self.destruction).succeeded()
                let later = try await node.commit()
                #expect(later != commit)

                let past = node.past(commit)
                try await Self.compare(host, past, expected, copy.path, oracle.path)
                let present = try await host.sh(Self.exact, mount).succeeded().bytes
                try FileLife.requireEqual(
                    present, try await host.sh(Self.exact, node.past(later)).bytes, "The last state"
                )
                try await node.stop()
                try await node.start()
                try await Self.compare(host, past, expected, copy.path, oracle.path)
            }
        }

        /// By listings, and by what `diff`, `tar` and `rsync` make of it.
        private static func compare(
            _ host: Host, _ past: String, _ expected: [UInt8], _ copy: String, _ oracle: String
        ) async throws {
            let seen = try await host.sh(exact, past, timeout: Bounds.transfer).succeeded().bytes
            try FileLife.requireEqual(expected, seen, "The past")
            try FileLife.requireEqual(
                try await FileLife.list(on: host, copy), try await FileLife.list(on: host, past),
                "The past, by its bytes,")
            try await host.sh(
                """
                diff -r --no-dereference -x pipe -x null "$1" "$2"
                mkdir -p "$3/tar" "$3/rsync"
                tar -C "$1" --xattrs -cf - . | tar -C "$3/tar" --xattrs -xpf -
                rsync -aHX "$1/" "$3/rsync/"
                """, past, copy, oracle, timeout: Bounds.transfer
            ).succeeded()
            for taken in ["tar", "rsync"] {
                try FileLife.requireEqual(
                    try await FileLife.list(on: host, copy),
                    try await FileLife.list(on: host, "\(oracle)/\(taken)"), "What \(taken) took")
            }
        }

        @Test(
            "Hard links are one inode, another than the present one and than that of other states")
        func inodes() async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess("a", on: try await Network(workshop).host())
                try await node.create()
                try await node.sh("mkdir d; echo one >d/one; ln d/one two; echo x >single")
                    .succeeded()
                let first = try await node.commit()
                try await node.sh("rm two; echo more >>single").succeeded()
                let second = try await node.commit()
                let said = try await node.sh(
                    """
                    cd .delugefs/at
                    test $1/d/one -ef $1/two; test $(stat -c %h $1/two) = 2
                    test $(stat -c %h $2/d/one) = 1
                    ! test $1/two -ef $2/d/one; ! test $1/two -ef ../../d/one
                    ! test $1/single -ef $2/single; ! test $1/single -ef ../../single
                    for i in $(stat -c %i $1 $1/d $1/two $2/single); do
                        perl -e 'exit(!(int($ARGV[0]) & (1 << 62)))' $i
                    done
                    # What a listing says is what stat says.
                    diff <(cd $1; ls -aif | grep -v ' \\.\\.$' | LC_ALL=C sort) \
                         <(cd $1; for f in . *; do echo "$(stat -c '%i %n' $f)"; done | LC_ALL=C sort) >&2
                    cp $1/single ../../single; cat ../../single
                    """, first, second)
                #expect(try said.succeeded().output == "x\n")
            }
        }

        @Test("Nothing in it can be changed, and the volume's files lose nothing by the attempts")
        func readOnly() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                let node = try NodeProcess("a", on: host)
                try await node.create()
                try await node.sh(
                    "mkdir d; echo x >d/f; setfattr -n user.k -v v d/f; ln -s f d/l; echo here >here"
                ).succeeded()
                let commit = try await node.commit()
                let attempts = [
                    "echo >new", "echo >f", "echo >>f", "touch f", "touch new", "rm f", "mv f g",
                    "mkdir sub", "rmdir ../d", "ln f g", "ln -s x y", "mkfifo p", "chmod 1 f",
                    "chown 1 f", "truncate -s 0 f", "setfattr -n user.a -v b f",
                    "setfattr -x user.k f", "setfacl -m u:5:r f", "fallocate -l 9 f",
                    "dd if=/dev/zero of=f conv=notrunc count=1", "mv ../../../../here .",
                    "cp ../../../../here .", "mv l ..", "mkdir ../../new", "touch ../../new",
                    "mkdir ../../../new", "touch ../../../status", "rm ../../../status",
                    "rmdir ../../../at",
                    "perl -e 'open(F, \"+<\", \"f\") or die $!'",
                    "python3 -c 'import os; os.open(\".\", os.O_TMPFILE | os.O_RDWR)'",
                ]
                for attempt in attempts {
                    let outcome = try await node.sh("cd .delugefs/at/$1/d; \(attempt)", commit)
                    #expect(!outcome.isSuccess, "\(attempt)")
                    #expect(
                        outcome.errors.contains("ead-only file system"),
                        "\(attempt): \(outcome.errors)")
                }
                let linked = try await node.sh("ln .delugefs/at/$1/d/f here2", commit)
                #expect(linked.errors.contains("cross-device"), "\(linked.errors)")
                let moved = try await node.sh("mv .delugefs/at/$1/d/f here2", commit)
                #expect(moved.errors.contains("ead-only"), "\(moved.errors)")
                try await node.sh("rm -f here2; rm -r d here").succeeded()
                try await FileLife.run(on: host, in: oracle.path)
                try await FileLife.runAndCompare(node, oracle, "The mount afterwards")
                try await node.sh("fallocate -p -o 0 -l 4096 grown; setfattr -n user.k -v v grown")
                    .succeeded()
            }
        }

        @Test("Only root and the mounting user get in; for these the modes of then hold")
        func permissions() async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let node = try NodeProcess("a", on: host)
                try await node.create()
                try await node.sh("chmod 777 .; mkdir -m 777 d; echo x >d/f; chmod 666 d/f")
                    .succeeded()
                let commit = try await node.commit()
                for attempt in [
                    "ls .delugefs", "cat .delugefs/status", "ls .delugefs/at",
                    "ls \(node.past(commit))",
                    "cat \(node.past(commit))/d/f", "stat \(node.past(commit))/d/f",
                ] {
                    let outcome = try await node.sh(attempt, as: Self.games)
                    #expect(!outcome.isSuccess, "\(attempt)")
                    #expect(outcome.errors.contains("ermission denied"), "\(outcome.errors)")
                }
                let below = try await node.sh(
                    """
                    cd .delugefs/at/$1/d
                    as() { setpriv --reuid 5 --regid 60 --clear-groups -- "$@"; }
                    ! as ls . && ! as cat f && ! as sh -c ': <f'
                    # What was opened by who may can be handed on.
                    as cat <f
                    """, commit)
                #expect(try below.succeeded().output == "x\n")
            }
        }

        @Test(
            "What is here is read at once, and a version of the past can be put over the present one"
        )
        func copies() async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess("a", on: try await Network(workshop).host())
                try await node.create()
                let first = try await workshop.randomFile("first", bytes: 3_000_000, seed: 41)
                let second = try await workshop.randomFile("second", bytes: 2_000_000, seed: 42)
                try await node.sh("cp \"$1\" f; cp \"$1\" same; echo small >s", first).succeeded()
                let commit = try await node.commit()
                try await node.sh("cp \"$1\" f; echo other >s; rm same", second).succeeded()
                _ = try await node.commit()
                let expected = try await Shell.sha256(first)
                #expect(try await node.sha256(".delugefs/at/\(commit)/f") == expected)
                // Open in both at once, by mappings too, while the present is written.
                let held = try await node.sh(
                    """
                    exec 5<.delugefs/at/$1/f 6<.delugefs/at/$1/same 7<f
                    cmp /dev/fd/5 /dev/fd/6; cp .delugefs/at/$1/f f; cp .delugefs/at/$1/s s
                    cp f same; echo more >>f; echo more >>same
                    sha256sum <&5; cmp .delugefs/at/$1/f .delugefs/at/$1/same; cat s
                    python3 -c 'import mmap, os, sys
                    f = os.open(sys.argv[1], os.O_RDONLY)
                    assert mmap.mmap(f, 0, prot=mmap.PROT_READ)[:] == open(sys.argv[2], "rb").read()
                    assert os.lseek(f, 0, os.SEEK_HOLE) == 3000000' .delugefs/at/$1/f "$2"
                    """, commit, first
                ).succeeded()
                #expect(held.digest == expected)
                #expect(held.output.hasSuffix("small\n"))
                let root = try await node.sh(
                    "getfattr --only-values -n user.delugefs.holders .delugefs/at/$1/f", commit)
                #expect(try root.succeeded().output == "a")
            }
        }

        @Test("Content that another disk alone still has is fetched; what was given up is an error")
        func elsewhere() async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let a = try NodeProcess("a", on: try await network.host())
                let c = try NodeProcess("c", on: try await network.host())
                try await a.create("--copies", "1")
                try await c.join(a)
                try await c.waitForPeers("a")
                let big = try await workshop.randomFile("big", bytes: 5_000_000, seed: 43)
                let lost = try await workshop.randomFile("lost", bytes: 100_000, seed: 44)
                try await a.sh("cp \"$1\" big; cp \"$2\" lost; echo inline >small", big, lost)
                    .succeeded()
                let commit = try await a.commit()
                try await c.sees("small")
                try await a.sh("rm big lost small").succeeded()
                _ = try await a.commit()
                try await c.sees("small", false)
                let expected = try await Shell.sha256(big)
                #expect(try await c.sha256(".delugefs/at/\(commit)/big") == expected)
                let small = try await c.sh("cat .delugefs/at/$1/small", commit)
                #expect(try small.succeeded().output == "inline\n")

                let object = try await a.sh(
                    "getfattr --only-values -n user.delugefs.root .delugefs/at/$1/lost", commit
                ).succeeded().output
                try await a.host.sh(
                    "exec 5<\"$1\"; rm \"$2\"; sha256sum <&5", a.past(commit) + "/lost",
                    "\(a.root)/objects/\(object.prefix(2))/\(object)"
                ).succeeded()
                // Finds that it is gone, and says so to the others.
                _ = try await a.sh(": <.delugefs/at/$1/lost", commit)
                try await eventually("nobody has it any more", within: Bounds.starvedRead) {
                    let read = try await c.sh("timeout 5 cat .delugefs/at/$1/lost", commit)
                    return read.errors.contains("Input/output error")
                        && FileBytes.text(c.log).contains("it was given up")
                }
            }
        }

        @Test("Large directories are listed in parts and whole, the same as in the present")
        func manyEntries() async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess("a", on: try await Network(workshop).host())
                try await node.create()
                let count = Bounds.isLong ? 20_000 : 3000
                try await node.sh(
                    "mkdir many; cd many; for ((i = 0; i < \(count); i++)); do : >file-$i; done; mkdir sub{1..9}",
                    timeout: Bounds.transfer
                ).succeeded()
                let commit = try await node.commit()
                try await node.sh("rm -r many", timeout: Bounds.transfer).succeeded()
                _ = try await node.commit()
                let said = try await node.sh(
                    #"""
                    cd .delugefs/at/$1
                    find many -mindepth 1 -printf '%f %y\n' | LC_ALL=C sort | sha256sum
                    { for ((i = 0; i < $2; i++)); do echo "file-$i f"; done; printf 'sub%s d\n' {1..9}; } |
                        LC_ALL=C sort | sha256sum
                    test -f many/file-$(($2 - 1)); ! test -e many/file-$2
                    # By positions that were told, and from the start again.
                    perl -e 'opendir(D, "many"); my @at; my $all = $ARGV[0] + 11;
                        while (defined(my $n = readdir D)) { push @at, [telldir(D), $n]; }
                        @at == $all or die scalar @at;
                        for my $i (0, $all / 4, $all / 2, 3, $all - 2) {
                            seekdir(D, $at[$i][0]); readdir(D) eq $at[$i + 1][1] or die $i;
                        }
                        rewinddir(D); my $n = 0; $n++ while defined readdir(D); $n == $all or die $n' $2
                    """#, commit, "\(count)", timeout: Bounds.transfer
                ).succeeded()
                let digests = Set(said.output.split(separator: "\n"))
                #expect(digests.count == 1)
            }
        }

        @Test("A state that somebody stands in outlives a repack of the history")
        func repacking() async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess("a", on: try await Network(workshop).host())
                try await node.create()
                try await node.sh(
                    "mkdir -p d/e; echo old >d/e/f; ln d/e/f d/g; for i in {1..40}; do echo $i >d/$i; done"
                ).succeeded()
                let commit = try await node.commit()
                try await node.sh("rm -r d").succeeded()
                let said = try await node.sh(
                    """
                    packs() { find "$2"/history.git/objects/pack -name '*.pack' | wc -l; }
                    top=$PWD; cd .delugefs/at/$1; most=0
                    for ((i = 0; i < 500; i++)); do
                        echo $i >"$top"/file; "$3" wait --root "$2" >&2
                        now=$(packs "$@"); ((now >= most)) || break; most=$now
                    done
                    ((now < most)); cat d/e/f d/g d/40; ls d | wc -l
                    """, commit, node.root, Machine.binary, timeout: Bounds.transfer)
                #expect(try said.succeeded().output == "old\nold\n40\n42\n")
            }
        }

        @Test(
            "A time leads to the state of then, a name that is none to nothing, what is listed to a state"
        )
        func names() async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess("a", on: try await Network(workshop).host())
                try await node.create()
                try await node.sh("echo one >f").succeeded()
                let commit = try await node.commit()
                let time = try await node.sh("date +%s.%3N; sleep 0.01").succeeded().line
                try await node.sh("mkdir d; echo two >f; echo two >d/f").succeeded()
                let later = try await node.commit()
                for name in [
                    "nothing", String(repeating: "0", count: 40), "\(commit)0", "'\n'", "$'\\xff'",
                    "100w", "%", "-1", "1970-01-01",
                ] {
                    let outcome = try await node.sh("ls -d -- .delugefs/at/\(name)")
                    #expect(outcome.errors.contains("No such file"), "\(name): \(outcome.errors)")
                }
                try await node.sh(
                    """
                    test "$(cat .delugefs/at/$1/f)" = one; test ! -e .delugefs/at/$1/d
                    # Three names of one state are one state.
                    test .delugefs/at/$1 -ef .delugefs/at/${1:0:12}; test .delugefs/at/$1 -ef .delugefs/at/@$3
                    test "$(cat .delugefs/at/0s/d/f)" = two; test .delugefs/at/$2 -ef .delugefs/at/0s
                    ls .delugefs/at | grep -q Z
                    for s in .delugefs/at/*; do ls -d $s/.; done
                    df .delugefs/at/$1; stat -f .delugefs
                    """, commit, later, time
                ).succeeded()
            }
        }
    }
}

extension NodeProcess {
    /// What was closed here is in a commit: the present one.
    func commit() async throws -> String {
        try await command(
            "wait", "--timeout", "\(Bounds.transfer.components.seconds)", timeout: Bounds.transfer
        ).succeeded()
        return try await host.run([
            "git", "-c", "safe.directory=*", "--git-dir=\(root)/history.git", "rev-parse", "main",
        ]).succeeded().line
    }

    func past(_ commit: String) -> String { self[".delugefs/at/\(commit)"] }
}
