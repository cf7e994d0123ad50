import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import FUSE

@Suite(.serialized, .timeLimit(.minutes(2)))
struct MountTests {
    @Test func filesAreWrittenAndRead() async throws {
        try await withExampleMount { mount throws in
            let outcome = try mount.sh(
                """
                set -e
                echo hello > a; cat a; echo world >> a; cat a; wc -c < a
                dd if=/dev/urandom of=../scratch/r bs=1M count=5 2>/dev/null
                cp ../scratch/r big; cmp ../scratch/r big
                dd if=../scratch/r of=big bs=100001 seek=3 conv=notrunc 2>/dev/null
                truncate -s 3 a; cat a
                """)
            #expect(outcome == Outcome(status: 0, output: "hello\nhello\nworld\n12\nhel"))
            #expect(mount.complaints.all == [])
            let writes = mount.fileSystem.count(of: "write")
            #expect(writes > 0 && writes < 200, "5 MiB must come in large pieces")
        }
    }

    @Test func namesAreMadeListedRenamedAndRemoved() async throws {
        try await withExampleMount { mount throws in
            let outcome = try mount.sh(
                """
                set -e
                mkdir -p d/e; touch d/e/f; ln -s e/f d/l; readlink d/l; ln d/e/f d/g
                stat -c '%h %F' d/g; mv d/e d/h; ls d; ls -a d/h
                mkfifo d/p; stat -c %F d/p; chmod 640 d/g; stat -c %a d/h/f
                mv -n d/g d/p; ls d | wc -l; rm -r d; ls
                """)
            #expect(
                outcome
                    == Outcome(
                        status: 0,
                        output: "e/f\n2 regular empty file\ng\nh\nl\n.\n..\nf\nfifo\n640\n4\n"))
            // Everything removed and forgotten: only the root is left.
            let isEmpty = eventually { mount.fileSystem.state.withLock { $0.nodes.count == 1 } }
            #expect(isEmpty)
            #expect(mount.complaints.all == [])
        }
    }

    @Test(arguments: [true, false])
    func aLargeDirectoryIsListedWholeAndRemoved(_ hasAttributes: Bool) async throws {
        var options = SessionOptions()
        options.readdirplus = hasAttributes
        try await withExampleMount(options: options) { mount throws in
            let outcome = try mount.sh(
                """
                set -e
                mkdir d; seq 1 400 | sed 's,^,d/a-name-of-some-length-,' | xargs touch
                ls d | sort -u | wc -l; ls -l d | wc -l; rm -r d
                """)
            #expect(outcome == Outcome(status: 0, output: "400\n401\n"))
            let plus = mount.fileSystem.count(of: "readdirplus")
            #expect((plus > 0) == hasAttributes)
        }
    }

    @Test func errorsReachTheApplication() async throws {
        try await withExampleMount { mount throws in
            #expect(try mount.sh("cat missing").output.contains("No such file"))
            #expect(try mount.sh("mkdir d d/e; rmdir d").output.contains("not empty"))
            #expect(try mount.sh("mkdir d").output.contains("File exists"))
        }
    }

    @Test func extendedAttributesAreKept() async throws {
        try await withExampleMount { mount throws in
            let script = """
                import os
                open('f', 'w').close()
                os.setxattr('f', 'user.a', b'1' * 5000); os.setxattr('f', 'user.b', b'')
                print(len(os.getxattr('f', 'user.a')), os.listxattr('f'))
                try: os.getxattr('f', 'user.c')
                except OSError as error: print(error.errno)
                """
            guard access("/usr/bin/python3", X_OK) == 0 else { return }
            let outcome = try mount.sh("python3 -c \"\(script)\"")
            #expect(outcome == Outcome(status: 0, output: "5000 ['user.a', 'user.b']\n61\n"))
        }
    }

    @Test func unmountingEndsTheSession() async throws {
        let fileSystem = Mutex<ExampleFileSystem?>(nil)
        try await withExampleMount { mount throws in
            _ = try mount.sh("touch f")
            fileSystem.withLock { $0 = mount.fileSystem }
        }
        #expect(fileSystem.withLock { $0?.state.withLock { $0.isEnded } } == true)
    }

    @Test func stoppingAMountedSessionAbortsItAndLeavesAStaleMount() async throws {
        try await onThread { () throws in
            let mount = try ExampleMount()
            let point = mount.workshop.mountPoint
            #expect(try Mounting.state(at: point) == .live)
            mount.session.stop()
            let dead = try mount.sh("ls").output
            #expect(dead.contains("not connected") || dead.contains("can't cd"))
            #expect(try Mounting.detectStale(at: point))
            #expect {
                try Mounting.mount(at: point, options: MountOptions(source: "x", subtype: "x"))
            } throws: { ($0 as? MountError)?.code == .stale }
            #expect(try Mounting.recoverStale(at: point))
            #expect(try Mounting.state(at: point) == .notMounted)
            #expect(try !Mounting.recoverStale(at: point))
            mount.workshop.remove()
        }
    }

    @Test func aBusyMountIsReportedAndLeftLazily() async throws {
        try await onThread { () throws in
            let mount = try ExampleMount()
            let sleeper = try mount.start("touch ../scratch/ready; exec sleep 60")
            let ready = mount.workshop.scratch.appending("ready").string
            let isReady = eventually { access(ready, F_OK) == 0 }
            #expect(isReady)
            let isBusy = eventually {
                do throws(MountError) {
                    try Mounting.unmount(at: mount.workshop.mountPoint)
                    return true
                } catch {
                    return error.code == .busy
                }
            }
            #expect(isBusy)
            try Mounting.unmount(at: mount.workshop.mountPoint, .lazily)
            sleeper.signal(SIGKILL)
            _ = sleeper.wait()
            mount.session.wait()
            mount.workshop.remove()
        }
    }

    @Test func otherMountsAreLeftAlone() async throws {
        try await onThread { () throws in
            #expect(try Mounting.state(at: "/proc") == .foreign)
            #expect(try Mounting.state(at: "/tmp/no-such-mount") == .notMounted)
            #expect {
                try Mounting.unmount(at: "/proc")
            } throws: { ($0 as? MountError)?.code == .notMounted }
            #expect {
                try Mounting.mount(
                    at: "/etc/passwd", options: MountOptions(source: "x", subtype: "x"))
            } throws: { ($0 as? MountError)?.code == .badMountPoint }
        }
    }

    // MARK: - Waiting requests

    @Test(arguments: [SIGINT, SIGKILL])
    func aSignalFreesAProcessThatWaitsForARead(_ signal: Int32) async throws {
        try await withExampleMount { mount throws in
            _ = try mount.sh("echo text > stuck")
            let reader = try mount.start("exec cat stuck")
            let isStuck = eventually { mount.fileSystem.state.withLock { $0.stuckReads > 0 } }
            #expect(isStuck)
            // The other requests go on meanwhile.
            #expect(try mount.sh("echo 1 > other; cat other").output == "1\n")
            // No INTERRUPT comes if the kernel reads ahead in the background: then the request
            // goes on without the process.
            reader.signal(signal)
            #expect(reader.wait().status == -signal)
        }
    }

    @Test(arguments: [SIGINT, SIGKILL])
    func anUncachedReadIsInterrupted(_ signal: Int32) async throws {
        try await withExampleMount { mount throws in
            _ = try mount.sh("echo text > stuckdirect")
            let reader = try mount.start("exec cat stuckdirect")
            let isStuck = eventually { mount.fileSystem.state.withLock { $0.stuckReads > 0 } }
            #expect(isStuck)
            reader.signal(signal)
            #expect(reader.wait().status == -signal)
            #expect(mount.fileSystem.state.withLock { $0.interruptedReads } > 0)
        }
    }

    @Test func manyProcessesWorkAtOnce() async throws {
        try await withExampleMount { mount throws in
            let workers = try (1...6).map { worker in
                try mount.start(
                    """
                    set -e
                    mkdir w\(worker); cd w\(worker)
                    for i in 1 2 3 4 5 6 7 8 9 10; do
                        echo $i > f; cat f > g; mv g h; ln h k; cat h k; rm h k
                        echo $i >> ../shared; echo $i >> ../backed; cat ../backed > /dev/null
                    done
                    """)
            }
            for worker in workers {
                #expect(
                    worker.wait()
                        == Outcome(
                            status: 0,
                            output: (1...10).map { "\($0)\n\($0)\n" }.joined()))
            }
            #expect(try mount.sh("wc -l < backed").output == "60\n")
            #expect(mount.complaints.all == [])
        }
    }

    @Test func moreReadersThanThreadsMayWait() async throws {
        try await withExampleMount { mount throws in
            _ = try mount.sh("for i in 1 2 3 4 5 6 7 8; do echo text > stuck$i; done")
            let readers = try (1...8).map { try mount.start("exec cat stuck\($0)") }
            let areStuck = eventually { mount.fileSystem.state.withLock { $0.stuckReads >= 8 } }
            #expect(areStuck)
            #expect(try mount.sh("ls | wc -l").output == "8\n")
            for reader in readers { reader.signal(SIGTERM) }
            for reader in readers { #expect(reader.wait().status == -SIGTERM) }
        }
    }

    @Test func waitingReadsGetEIOWhenTheMountIsAborted() async throws {
        try await onThread { () throws in
            let mount = try ExampleMount()
            _ = try mount.sh("echo text > stuck")
            let reader = try mount.start("exec cat stuck")
            let isStuck = eventually { mount.fileSystem.state.withLock { $0.stuckReads > 0 } }
            #expect(isStuck)
            mount.session.stop()
            #expect(reader.wait().status > 0)
            try Mounting.recoverStale(at: mount.workshop.mountPoint)
            mount.workshop.remove()
        }
    }

    // MARK: - Notifications

    @Test func aChangeBehindTheKernelsBackShowsAfterAnInvalidation() async throws {
        try await withExampleMount(valid: .seconds(3600)) { mount throws in
            #expect(try mount.sh("echo old > f; cat f; cat absent").output.hasPrefix("old\n"))
            let (id, other) = mount.fileSystem.state.withLock { state -> (UInt64, UInt64) in
                let id = state.child(1, [UInt8(ascii: "f")]) ?? 0
                state.nodes[id]?.content = Array("new\n".utf8)
                let attributes = Attributes(ino: 99, mode: S_IFREG | 0o644)
                var node = ExampleFileSystem.Node(attributes: attributes)
                node.content = Array("other\n".utf8)
                state.nodes[99] = node
                return (id, 99)
            }
            #expect(try mount.sh("cat f").output == "old\n")
            let notifier = mount.session.notifier
            let isDone = Atomic(false)
            mount.session.afterCurrentRequests {
                notifier.invalidateInode(id)
                mount.session.afterCurrentRequests { isDone.store(true, ordering: .releasing) }
            }
            let ran = eventually { isDone.load(ordering: .acquiring) }
            #expect(ran)
            #expect(try mount.sh("cat f").output == "new\n")
            // The name now leads to another node.
            mount.fileSystem.state.withLock { state in
                state.nodes[id]?.attributes.nlink -= 1
                state.nodes[1]?.children.removeAll()
                state.attach(1, [UInt8(ascii: "f")], other)
            }
            #expect(try mount.sh("cat f").output == "new\n")
            notifier.invalidateEntry(parent: 1, name: [UInt8(ascii: "f")])
            let hasChanged = eventually { (try? mount.sh("cat f"))?.output == "other\n" }
            #expect(hasChanged)
            #expect(mount.complaints.all == [])
        }
    }

    // MARK: - Passthrough

    @Test func passthroughMakesNoReadAndNoWriteRequest() async throws {
        try await withExampleMount { mount throws in
            #expect(mount.features.passthrough == .readWrite)
            let probe = open("/etc/passwd", pathOnly | O_CLOEXEC)
            defer { close(probe) }
            #expect(mount.session.probePassthrough(probe) == .readWrite)
            let outcome = try mount.sh(
                """
                set -e
                dd if=/dev/urandom of=../scratch/r bs=1M count=8 2>/dev/null
                cp ../scratch/r backed; cmp ../scratch/r backed; stat -c %s backed
                echo more >> backed; stat -c %s backed; tail -c 5 backed
                ls -l backed | wc -l; mv backed backed2; head -c 3 backed2 | wc -c; rm backed2
                """)
            #expect(outcome == Outcome(status: 0, output: "8388608\n8388613\nmore\n1\n3\n"))
            #expect(mount.fileSystem.count(of: "read") == 0)
            #expect(mount.fileSystem.count(of: "write") == 0)
            // With KILLPRIV_V2 the kernel does not ask for capabilities at every write.
            #expect(mount.fileSystem.count(of: "getxattr") < 20)
            #expect(mount.complaints.all == [])
        }
    }

    @Test func withoutPassthroughTheSameFilesAreServed() async throws {
        var options = SessionOptions()
        options.passthrough = false
        try await withExampleMount(options: options) { mount throws in
            #expect(mount.features.passthrough == .none)
            #expect(
                try mount.sh("echo text > backed; cat backed; stat -c %s backed").output
                    == "text\n5\n")
            #expect(mount.fileSystem.count(of: "write") > 0)
            #expect(mount.complaints.all == [])
        }
    }
}

/// `O_PATH`, which Swift does not import.
private let pathOnly: Int32 = 0o10_000_000
