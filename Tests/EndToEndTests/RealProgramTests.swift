import Glibc
import Testing

extension EndToEnd {
    /// Programs that were never told what they run on. What they leave must be what they leave on
    /// ext4, or what they themselves call sound.
    @Suite("Real programs on a mount", .serialized, .timeLimit(.minutes(5)))
    struct RealPrograms {
        static let everyMode: [[String]] = [[], ["--no-passthrough"]]

        /// Files saved in the ways of editors, copied, packed and unpacked, in `$1`.
        private static let saving = #"""
            cd "$1"; umask 022
            text() { for i in {1..2000}; do echo "line $i of $1"; done; }
            for name in vim-new vim-copy emacs atomic sed in-place; do
                text first >$name; chmod 640 $name; setfattr -n user.test.kind -v text $name
            done
            ln vim-copy vim-copy.link; ln -s sed sed.link; ln in-place in-place.link
            # vim, backupcopy=no: the old file becomes the backup, the text a new file of its mode.
            mv vim-new vim-new~; text second >vim-new; chmod --reference=vim-new~ vim-new
            sync vim-new; rm vim-new~
            # vim, backupcopy=yes: the same file is written again, so links to it stay.
            cp -p vim-copy vim-copy~; text second >vim-copy; sync vim-copy; rm vim-copy~
            # emacs: the backup stays.
            cp -p emacs emacs~; : >emacs; text second >>emacs
            # Most others: a new file takes the name at once, while somebody reads the old one.
            exec 5<atomic; head -n 1 <&5 >/dev/null; cp -p --attributes-only atomic .atomic.new
            text second >.atomic.new; sync .atomic.new; mv -f .atomic.new atomic
            cat <&5 | tail -n 1 >atomic.old; exec 5<&-
            sed -i 's/first/second/' sed; sed -i --follow-symlinks 's/second/third/' sed.link
            printf 'LINE' | dd of=in-place bs=1 conv=notrunc status=none
            # A lock file beside it, as office programs and mail readers do.
            (set -C; echo $$ >.lock) && ! (set -C; echo $$ >.lock) 2>/dev/null; rm .lock
            head -c 3000000 /dev/zero | tr '\0' z >large; truncate -s 4M large
            cp --reflink=auto large large.copy; cp --sparse=always large large.sparse; cmp large large.copy
            (echo new | dd of=large.copy conv=notrunc bs=1 seek=100 status=none); ! cmp -s large large.copy
            mkdir -p package/DEBIAN package/usr/share/thing
            printf 'Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n' >package/DEBIAN/control
            cp -a sed in-place large.sparse package/usr/share/thing; ln -s thing package/usr/share/other
            dpkg-deb --root-owner-group --build package thing.deb >/dev/null
            dpkg-deb -x thing.deb unpacked; dpkg-deb --contents thing.deb | awk '{ print $1, $2, $3, $6 }' | sort >contents
            diff -r --no-dereference package/usr unpacked/usr; rm thing.deb
            tar -cf - package | (mkdir untarred; tar -C untarred -xpf -); diff -r --no-dereference package untarred/package
            """#

        @Test("Saved, copied and unpacked files are as on ext4", arguments: everyMode)
        func saving(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                let mount = try #require(node.mount)
                for place in [oracle.path, mount] {
                    try await host.sh(Self.saving, place, timeout: Bounds.transfer).succeeded()
                }
                let expected = try await FileLife.list(on: host, oracle.path)
                try FileLife.requireEqual(
                    expected, try await FileLife.list(on: host, mount), "The mount")
                try await node.settle()
                try await node.stop()
                try await node.start()
                try FileLife.requireEqual(
                    expected, try await FileLife.list(on: host, mount), "The restarted mount")
            }
        }

        /// A history with merges, renames and a large file, cloned into `$1`.
        private static let cloning = #"""
            cd "$1"; export HOME=$PWD
            git config --global user.name x; git config --global user.email x@example.org
            git config --global init.defaultBranch main; git config --global gc.auto 0
            git init -q origin; cd origin
            for i in {1..120}; do mkdir -p $((i % 7))/$((i % 3)); seq $((i * 10)) >$((i % 7))/$((i % 3))/$i; done
            head -c 2000000 /dev/urandom >large; git add .; git commit -qm first
            for i in {1..15}; do echo $i >>1/1/1; git commit -qam "change $i"; done
            git checkout -qb side; git mv 2 second; git commit -qm renamed; git checkout -q main
            echo more >>large; git commit -qam large; git merge -q --no-edit side
            cd ..; git clone -q "file://$PWD/origin" clone; git clone -q --shared origin shared
            cd clone; git fsck --full --strict; git log --oneline | wc -l
            git checkout -q main~3; git checkout -q main; test -z "$(git status --porcelain)"
            git -c pack.threads=2 repack -adfq; git gc -q --prune=now; git fsck --full --strict
            for i in {1..10}; do echo $i >new-$i; git add new-$i; git commit -qm "new $i"; done
            git push -q origin HEAD:pushed; git stash list; git worktree add -q ../tree side
            test -z "$(git status --porcelain)"; git -C ../tree fsck --full
            """#

        private static let checking = #"""
            cd "$1"; export HOME=$PWD
            for place in origin clone shared tree; do
                git -C $place fsck --full --strict; test -z "$(git -C $place status --porcelain)"
            done
            test "$(git -C origin rev-parse pushed)" = "$(git -C clone rev-parse HEAD)"
            """#

        @Test(
            "Git finds sound what it cloned, packed and pushed, also after a restart",
            arguments: everyMode)
        func git(options: [String]) async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess(
                    "a", on: try await Network(workshop).host(), options: options)
                try await node.create()
                let mount = try #require(node.mount)
                try await node.host.sh(Self.cloning, mount, timeout: Bounds.transfer).succeeded()
                try await node.settle()
                try await node.host.sh(Self.checking, mount, timeout: Bounds.transfer).succeeded()
                try await node.kill9()
                try await node.start()
                try await node.host.sh(Self.checking, mount, timeout: Bounds.transfer).succeeded()
            }
        }

        /// A program of several files is built in `$1` with archives, a generated header and a link.
        private static let building = #"""
            cd "$1"; mkdir project; cd project
            for i in {1..12}; do
                printf '#include "all.h"\nint part%d(void) { return NUMBER * %d; }\n' $i $i >part$i.cpp
            done
            { echo '#include <stdio.h>'; for i in {1..12}; do echo "int part$i(void);"; done
              echo 'int main() { int sum = 0;'; for i in {1..12}; do echo "sum += part$i();"; done
              echo 'printf("%d\n", sum); }'; } >main.cpp
            cat >Makefile <<'END'
            objects = $(patsubst %.cpp,%.o,$(wildcard part*.cpp))
            all: program
            all.h: number
            	echo "#define NUMBER $$(cat number)" >$@
            %.o: %.cpp all.h
            	g++ -MMD -O1 -c $< -o $@
            parts.a: $(objects)
            	rm -f $@; ar rcs $@ $^
            program: main.o parts.a
            	g++ $^ -o $@
            END
            echo 2 >number; make -s -j2; test "$(./program)" = 156
            make | grep -q 'Nothing to be done'; make -q
            sleep 0.02; echo 3 >number; make -s -j2; test "$(./program)" = 234; make -q
            ./program & cp program running; wait
            rm -f *.o parts.a; make -s -j2; make -q; test "$(./running)" = 234
            """#

        @Test(
            "Make builds, runs what it built, and builds again what is out of date and no more",
            arguments: everyMode)
        func make(options: [String]) async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess(
                    "a", on: try await Network(workshop).host(), options: options)
                try await node.create()
                try await node.host.sh(
                    Self.building, try #require(node.mount), timeout: Bounds.transfer
                ).succeeded()
                try await node.settle()
                try await node.sh("cd project; make -q; test $(./program) = 234").succeeded()
                try await node.stop()
                try await node.start()
                try await node.sh("cd project; make -q; test $(./program) = 234").succeeded()
            }
        }

        /// Two writers move amounts between rows; `$2` is the journal mode, `$3` a ledger of what was
        /// acknowledged. A third is killed over and over.
        private static let transactions = #"""
            cd "$1"; base=accounts.db; ledger=$3
            sqlite3 $base "PRAGMA journal_mode=$2; PRAGMA synchronous=FULL;
                CREATE TABLE accounts(id INTEGER PRIMARY KEY, amount INTEGER);
                CREATE TABLE log(who INTEGER, number INTEGER, filler BLOB, UNIQUE(who, number));
                INSERT INTO accounts SELECT value, 100 FROM generate_series(1, 50);" >/dev/null
            writer() {
                local i
                for ((i = 0; i < 4000; i++)); do
                    test -e "$ledger.end" && exit
                    sqlite3 -cmd '.timeout 20000' $base "BEGIN IMMEDIATE;
                        UPDATE accounts SET amount = amount - 7 WHERE id = 1 + ($i * 7) % 50;
                        UPDATE accounts SET amount = amount + 7 WHERE id = 1 + ($i * 3 + 1) % 50;
                        INSERT INTO log VALUES ($1, $i, randomblob(5000)); COMMIT;" && echo "$1 $i" >>"$ledger"
                done
            }
            for who in 1 2; do writer $who & done
            for round in {1..3}; do
                sqlite3 -cmd '.timeout 20000' $base "BEGIN IMMEDIATE; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                    INSERT INTO log SELECT 1000 + $round, i, randomblob(3000) FROM n LIMIT 1000000;" & victim=$!
                sleep 0.2; kill -9 $victim; wait $victim 2>/dev/null || true
                sqlite3 -cmd '.timeout 20000' $base 'SELECT sum(amount) FROM accounts;' | grep -qx 5000
                sleep 0.3
            done
            : >"$ledger.end"; wait
            """#

        private static let integrity = #"""
            cd "$1"; base=accounts.db
            test "$(sqlite3 $base 'PRAGMA integrity_check;')" = ok
            test "$(sqlite3 $base 'SELECT sum(amount) FROM accounts;')" = 5000
            test "$(sqlite3 $base 'SELECT count(*) FROM log WHERE who > 1000;')" = 0
            sqlite3 -separator ' ' $base 'SELECT who, number FROM log;' | sort >"$2.found"
            sort "$2" | comm -23 - "$2.found" | head -n 3 >"$2.lost"; test ! -s "$2.lost"; wc -l <"$2"
            """#

        @Test(
            "No transaction of SQLite is lost or half there while its writers are killed",
            arguments: Bounds.isLong ? ["wal", "delete"] : ["wal"], everyMode)
        func sqlite(journal: String, options: [String]) async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess(
                    "a", on: try await Network(workshop).host(), options: options)
                try await node.create()
                let mount = try #require(node.mount)
                let ledger = try workshop.write("", to: "ledger")
                try await node.host.sh(
                    Self.transactions, mount, journal, ledger, timeout: Bounds.transfer
                ).succeeded()
                let kept = try await node.host.sh(Self.integrity, mount, ledger).succeeded().line
                print("\(journal): \(kept) transactions, all there")
                try await node.settle()
                try await node.stop()
                try await node.start()
                try await node.host.sh(Self.integrity, mount, ledger).succeeded()
            }
        }

        @Test("rsync finds nothing to do the second time", arguments: everyMode)
        func rsync(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let source = try await Disk(workshop, "source", .ext4(megabytes: 128))
                try await host.sh("rmdir \"$1\"/lost+found", source.path).succeeded()
                try await FileLife.run(on: host, in: source.path)
                try await host.sh(
                    """
                    cd "$1"; setfacl -m u:5:rw,g:61:r a/greeting; setfacl -d -m u:5:rwx a/b
                    setfattr -n trusted.test -v 1 log; chmod 4755 both; truncate -s 3M holes
                    """, source.path
                ).succeeded()
                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                let copy = "rsync -aHAX --checksum --itemize-changes"
                let first = try await host.sh(
                    "\(copy) --sparse \"$1\"/ \"$2\"/", source.path, node["copy"],
                    timeout: Bounds.transfer)
                #expect(try first.succeeded().output.contains("greeting"))
                func requireNothingToDo(_ when: String) async throws {
                    for direction in [(source.path, node["copy"]), (node["copy"], source.path)] {
                        let again = try await host.sh(
                            "\(copy) --delete \"$1\"/ \"$2\"/", direction.0, direction.1,
                            timeout: Bounds.transfer)
                        #expect(try again.succeeded().output == "", "\(when)")
                    }
                }
                try await requireNothingToDo("at once")
                try await node.settle()
                try await requireNothingToDo("when it is published")
                try await node.stop()
                try await node.start()
                try await requireNothingToDo("after a restart")
            }
        }

        /// Stores into a mapping of a file whose times the kernel knows.
        @Test("A store into a mapping changes the times that stat shows", arguments: everyMode)
        func storing(options: [String]) async throws {
            try await Workshop.open { workshop in
                let node = try NodeProcess(
                    "a", on: try await Network(workshop).host(), options: options)
                try await node.create()
                try await node.sh("head -c 100000 /dev/zero >file; touch -d 2001-02-03 file")
                    .succeeded()
                try await node.settle()
                // The kernel remembers the answer to the second, if not to the first.
                for _ in 1...2 {
                    #expect(try await node.sh("stat -c %Y-%s file").line == "981158400-100000")
                    try await Task.sleep(for: .seconds(1))
                }
                let file = open(node["file"], O_RDWR)
                defer { close(file) }
                let pages = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                try #require(file >= 0 && pages != MAP_FAILED)
                // Nor is it to remember this.
                #expect(try await node.sh("stat -c %Y file").line == "981158400")
                pages?.storeBytes(of: 7, as: UInt8.self)
                munmap(pages, 4096)
                if options.isEmpty {
                    #expect(try await node.sh("stat -c %Y file").line != "981158400")
                }
                try await eventually("the time has changed", within: Bounds.visible) {
                    try await node.sh("stat -c %Y file").line != "981158400"
                }
            }
        }
    }
}
