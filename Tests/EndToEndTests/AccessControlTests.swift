import Testing

extension EndToEnd {
    @Suite("Access control lists on a mount", .serialized, .timeLimit(.minutes(5)))
    struct AccessControl {
        /// Runs in `$1`; prints what everybody may do.
        private static let script = #"""
            cd "$1"; umask 027
            chmod 755 .
            report() { find . -mindepth 1 ! -type l | LC_ALL=C sort | xargs getfacl -n -p; find . -mindepth 1 -printf '%P %m\n' | LC_ALL=C sort; }
            try() { setpriv --reuid 5 --regid 60 --clear-groups -- "$@" >/dev/null 2>&1 && echo "yes: ${*:1:2}" || echo "no: ${*:1:2}"; }
            echo x >plain; echo y >listed; setfacl -m u:5:rw,g:61:r listed
            try cat listed; try cat plain
            chmod 600 listed; try cat listed; chmod 660 listed; try cat listed
            setfacl -m m::r listed; try sh -c 'echo more >>listed'; try cat listed
            mkdir dir; setfacl -d -m u:5:rwx,g::r,m::rwx dir; setfacl -m u:5:rwx dir
            echo z >dir/inherits; mkdir dir/sub; echo deep >dir/sub/file; mkfifo dir/pipe; ln -s x dir/link
            try cat dir/inherits; try sh -c 'echo own >dir/made'; try cat dir/sub/file
            cp -a dir copy; setfacl -b dir/inherits; setfacl -k dir/sub; setfacl -x u:5 dir
            chmod 2775 dir; setfacl -m u:6:rx dir
            setfacl -b plain; setfacl -m u::rw,g::r,o::- plain
            mv listed moved; ln moved hard
            report
            """#

        private static func run(_ host: Host, in directory: String) async throws -> [UInt8] {
            try await host.sh(script, directory, timeout: Bounds.transfer).succeeded().bytes
        }

        @Test(
            "They act and are shown as on ext4, on other nodes too, and survive a restart",
            arguments: [[], ["--no-passthrough"]])
        func likeExt4(options: [String]) async throws {
            try await Workshop.open { workshop in
                let network = try await Network(workshop)
                let (one, two) = (try await network.host(), try await network.host())
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 64))
                try await one.sh("rmdir \"$1\"/lost+found", oracle.path).succeeded()
                let expected = try await Self.run(one, in: oracle.path)
                let a = try NodeProcess("a", on: one, options: options)
                let c = try NodeProcess("c", on: two, options: options)
                try await a.create()
                try await c.join(a)
                try await c.waitForPeers("a")
                let mount = try #require(a.mount)
                try FileLife.requireEqual(
                    expected, try await Self.run(one, in: mount), "What the mount said")
                let report = "find . -mindepth 1 ! -type l | LC_ALL=C sort | xargs getfacl -n -p"
                let shown = try await a.sh(report).succeeded().bytes
                try await a.settle()
                try await c.sees("hard")
                try await eventually("c shows the same", within: Bounds.visible) {
                    try await c.sh(report).bytes == shown
                }
                try await a.stop()
                try await a.start()
                try FileLife.requireEqual(
                    shown, try await a.sh(report).succeeded().bytes, "After a restart")
            }
        }

        /// `stat` asks for the mode alone: what the kernel remembers it answers by itself.
        private static let writing = #"""
            cd "$1"; chmod 777 .
            as() { setpriv --reuid 5 --regid 60 --clear-groups -- "$@"; }
            for kind in plain direct reserve punch copy truncate; do
                head -c 8192 /dev/zero >$kind; chown 5:60 $kind; chmod 6766 $kind
                echo $kind $(stat -c %a $kind)
                case $kind in
                plain) echo x | as dd of=$kind conv=notrunc status=none ;;
                direct) as dd if=/dev/zero of=$kind oflag=direct bs=4096 count=1 conv=notrunc status=none ;;
                reserve) as fallocate -l 20000 $kind ;;
                punch) as fallocate -p -o 0 -l 4096 $kind ;;
                copy) as cp --reflink=auto plain $kind ;;
                truncate) as truncate -s 5 $kind ;;
                esac
                echo $kind $(stat -c %a $kind)
            done
            """#

        @Test(
            "Who writes takes set-id bits away, as stat shows at once",
            arguments: [[], ["--no-passthrough"]])
        func setID(options: [String]) async throws {
            try await Workshop.open { workshop in
                let host = try await Network(workshop).host()
                let oracle = try await Disk(workshop, "oracle", .ext4(megabytes: 64))
                let node = try NodeProcess("a", on: host, options: options)
                try await node.create()
                let expected = try await host.sh(Self.writing, oracle.path).succeeded().bytes
                let shown = try await host.sh(Self.writing, node[""]).succeeded().bytes
                try FileLife.requireEqual(expected, shown, "The mount")
            }
        }
    }
}
