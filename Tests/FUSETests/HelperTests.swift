import Glibc
import SystemPackage
import Testing

@testable import FUSE

/// Set in the process that `filesAreServedWithoutRoot` starts as another user.
private let isUnprivilegedCopy = getenv("FUSE_TESTS_UNPRIVILEGED") != nil

@Suite(.serialized, .timeLimit(.minutes(2)))
struct HelperTests {
    private func mounting(_ method: MountOptions.Method) -> MountOptions {
        var options = MountOptions(source: "a, b\\c", subtype: "example")
        options.method = method
        options.allowOther = getuid() == 0
        return options
    }

    @Test(.enabled(if: geteuid() == 0))
    func theHelperMountsForRootToo() async throws {
        try await withExampleMount(mounting: mounting(.helper)) { mount throws in
            #expect(try mount.sh("echo text > f; cat f").output == "text\n")
            let entry = try #require(try MountTable.topmost(at: mount.workshop.mountPoint))
            #expect(entry.source == Array("a, b\\c".utf8))
            #expect(entry.type == Array("fuse.example".utf8))
        }
    }

    @Test(.enabled(if: geteuid() == 0))
    func theComplaintOfTheHelperIsPassedOn() async throws {
        try await onThread {
            let workshop = try Workshop()
            defer { workshop.remove() }
            var options = mounting(.helper)
            options.subtype = "x,bogus_option"
            // The comma is escaped, so that this is a strange subtype and no further option.
            let channel = try Mounting.mount(at: workshop.mountPoint, options: options)
            #expect(try MountTable.topmost(at: channel.mountPoint)?.type.count == 19)
            try Mounting.unmount(at: workshop.mountPoint)
            do {
                try FusermountHelper.unmount(workshop.mountPoint, lazily: false)
                Issue.record("unmounted twice")
            } catch let error as MountError {
                #expect(error.code == .helperFailed)
                #expect(error.description.contains("fusermount3: "))
            }
        }
    }

    /// Runs this program again as `nobody`, in a mount namespace of its own where everybody may
    /// open the FUSE device.
    @Test(.enabled(if: geteuid() == 0))
    func filesAreServedWithoutRoot() async throws {
        try await onThread {
            let workshop = try Workshop()
            defer { workshop.remove() }
            let copy = workshop.directory.appending("tests")
            let child = try ChildProcess(
                """
                set -e
                chmod 755 '\(workshop.directory)'
                cp /proc/\(getpid())/exe '\(copy)'
                export FUSE_TESTS_UNPRIVILEGED=1
                unshare --mount --propagation private sh -ec '
                    mount -t tmpfs -o dev none "\(workshop.scratch)"
                    mknod -m 666 "\(workshop.scratch)/fuse" c 10 229
                    mount --bind "\(workshop.scratch)/fuse" /dev/fuse
                    exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                        "\(copy)" --testing-library swift-testing --filter HelperTests'
                """)
            let outcome = child.wait()
            #expect(outcome.status == 0)
            #expect(outcome.output.contains("Test nobodyIsServed() passed"), "\(outcome.output)")
        }
    }

    @Test(.enabled(if: isUnprivilegedCopy))
    func nobodyIsServed() async throws {
        try #require(geteuid() != 0)
        let automatic = mounting(.automatic)
        try await withExampleMount(mounting: automatic) { mount throws in
            let outcome = try mount.sh(
                """
                set -e
                echo text > f; cat f; mkdir d; mv f d; ls d
                echo bytes > backed; cat backed; stat -c %s backed; rm -r d backed
                """)
            #expect(outcome == Outcome(status: 0, output: "text\nf\nbytes\n6\n"))
            // Backing files need CAP_SYS_ADMIN: the session noticed and went on without.
            #expect(mount.session.features?.passthrough == Features.Passthrough.none)
            #expect(mount.fileSystem.count(of: "write") > 0)
            #expect(mount.complaints.all.count == 1)
        }
        // A crash leaves a stale mount, which its owner can remove.
        try await onThread {
            let mount = try ExampleMount(mounting: automatic)
            mount.session.stop()
            #expect(try Mounting.recoverStale(at: mount.workshop.mountPoint))
            #expect(try Mounting.state(at: mount.workshop.mountPoint) == .notMounted)
            mount.workshop.remove()
        }
    }
}
