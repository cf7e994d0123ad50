import Testing

/// A script of ordinary file life, and a listing that tells two trees apart. A plain directory goes
/// through the same script and is the oracle.
enum FileLife {
    /// Runs in `$1`. Times that it sets lie before 2020; the others are those of the run.
    static let script = #"""
        cd "$1"
        mkdir -p a/b/c source
        echo hello >a/greeting
        printf 'bytes without newline' >a/b/short
        head -c 300000 /dev/zero | tr '\0' 'x' >a/b/large
        : >a/empty
        # attributes
        chmod 0640 a/greeting; chmod 0755 a/b/short; chmod 1777 a/b/c
        touch -d '2001-02-03 04:05:06.123456789' a/greeting
        touch -d '1999-12-31 23:59:59' a/b
        chown 12:34 a/b/large
        # links
        ln a/greeting a/b/hard; ln a/b/large large.link
        ln -s ../greeting a/b/relative; ln -s /nowhere/at/all dangling
        touch -h -d '2002-03-04 05:06:07' dangling
        # append, overwrite in the middle, truncate
        echo one >log; echo two >>log; echo three >>log
        cp log log.old; printf 'TWO' | dd of=log bs=1 seek=4 conv=notrunc status=none
        cp a/b/large cut; truncate -s 1000 cut
        cp a/b/large grown; truncate -s 400000 grown; truncate -s 5 log.old
        # a hole, and bytes behind it
        truncate -s 1M sparse; printf end | dd of=sparse bs=1 seek=700000 conv=notrunc status=none
        # appending by two descriptors
        { exec 5>>both 6>>both; echo five >&5; echo six >&6; echo seven >&5; exec 5>&- 6>&-; }
        # renaming: over a file, of a directory, across directories
        echo new >new; mv new log.old
        mkdir d1 d1/in; echo x >d1/in/x; mv d1 d2; mv d2/in a/moved
        mkdir empty1 empty2; mv -T empty1 empty2
        # odd names
        long=$(printf 'n%.0s' {1..255}); echo long >"$long"
        echo newline >$'line\nbreak'; echo high >$'\xff\xfe\x80bytes'; echo space >' '
        echo percent >'%dir'; mkdir .git; echo config >.git/config; echo star >'*'
        wide=$'\xc3\xa9'; decomposed=$'e\xcc\x81'; echo composed >"$wide"; echo other >"$decomposed"
        # attributes by name
        setfattr -n user.test.plain -v value a/greeting
        setfattr -n user.test.gone -v value a/b/short; setfattr -x user.test.gone a/b/short
        setfattr -n user.test.bytes -v 0x00ff10 a/b
        # a tree with cp, then removed in part
        cp -a a source/copy; cp -a a doomed; rm -r doomed
        rm a/b/relative; rmdir a/b/c
        mkfifo pipe; mknod null c 1 3
        # open but gone
        exec 7<>unlinked; echo still >&7; rm unlinked; echo there >&7; exec 7>&-
        find . -name 'cut' -newermt 2000-01-01 | grep -q cut
        """#

    /// Prints what programs see of the tree in `$1`, sorted, one record per line, and digests.
    static let listing = #"""
        cd "$1"
        find . -mindepth 1 -printf '%P\t%y %m %U:%G %n %l %s %T@\0' | LC_ALL=C sort -z |
            perl -0ne 'chomp; my ($n, $r) = /^(.*)\t(.*)$/s;
                my ($y, $m, $o, $c, @rest) = split / /, $r, -1;
                my $time = pop @rest; my $size = pop @rest;
                $size = "-", $c = "-" if $y eq "d";
                $time = "now" if $time > 1577836800;
                $n =~ s/([^ -~])/sprintf "\\x%02x", ord $1/ge;
                print "$n $y $m $o $c @rest $size $time\n"'
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
        find . -print0 | LC_ALL=C sort -z | xargs -0r getfattr -h -d -m '^user\.test\.' -e hex
        """#

    static func run(on host: Host, in directory: String) async throws {
        try await host.sh(script, directory, timeout: Bounds.transfer).succeeded()
    }

    static func list(on host: Host, _ directory: String) async throws -> [UInt8] {
        try await host.sh(listing, directory, timeout: Bounds.transfer).succeeded().bytes
    }

    /// On a node's mount; what is there when all is published must be what the oracle has.
    static func runAndCompare(
        _ node: NodeProcess, _ oracle: Disk, _ what: String
    ) async throws {
        let mount = try #require(node.mount)
        try await run(on: node.host, in: mount)
        try await node.settle()
        try requireEqual(
            try await list(on: node.host, oracle.path), try await list(on: node.host, mount), what)
    }

    /// - Throws: `Failure` with the differing lines.
    static func requireEqual(_ expected: [UInt8], _ seen: [UInt8], _ what: String) throws {
        guard expected != seen else { return }
        let (old, new) = (lines(expected), lines(seen))
        let missing = old.filter { !Set(new).contains($0) }.prefix(12)
        let extra = new.filter { !Set(old).contains($0) }.prefix(12)
        throw Failure(
            "\(what) differs.\nexpected:\n\(missing.joined(separator: "\n"))\nseen:\n\(extra.joined(separator: "\n"))"
        )
    }

    private static func lines(_ bytes: [UInt8]) -> [String] {
        String(decoding: bytes, as: UTF8.self).split(separator: "\n").map(String.init)
    }
}
