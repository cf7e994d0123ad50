import CFUSE
import SystemPackage
import Testing

@testable import FUSE

struct LayoutTests {
    /// As Swift sees them; the header asserts the same for C.
    @Test func everyStructureHasItsSizeOnTheWire() {
        let sizes: [(Int, Int)] = [
            (MemoryLayout<cfuse_backing_map>.size, 16), (MemoryLayout<cfuse_in_header>.size, 40),
            (MemoryLayout<cfuse_out_header>.size, 16), (MemoryLayout<cfuse_init_in>.size, 64),
            (MemoryLayout<cfuse_init_out>.size, 64), (MemoryLayout<cfuse_attr>.size, 88),
            (MemoryLayout<cfuse_entry_out>.size, 128), (MemoryLayout<cfuse_attr_out>.size, 104),
            (MemoryLayout<cfuse_getattr_in>.size, 16), (MemoryLayout<cfuse_setattr_in>.size, 88),
            (MemoryLayout<cfuse_statx_in>.size, 24), (MemoryLayout<cfuse_mknod_in>.size, 16),
            (MemoryLayout<cfuse_mkdir_in>.size, 8), (MemoryLayout<cfuse_rename_in>.size, 8),
            (MemoryLayout<cfuse_rename2_in>.size, 16), (MemoryLayout<cfuse_link_in>.size, 8),
            (MemoryLayout<cfuse_forget_in>.size, 8), (MemoryLayout<cfuse_forget_one>.size, 16),
            (MemoryLayout<cfuse_batch_forget_in>.size, 8), (MemoryLayout<cfuse_open_in>.size, 8),
            (MemoryLayout<cfuse_create_in>.size, 16), (MemoryLayout<cfuse_open_out>.size, 16),
            (MemoryLayout<cfuse_create_out>.size, 144), (MemoryLayout<cfuse_read_in>.size, 40),
            (MemoryLayout<cfuse_write_in>.size, 40), (MemoryLayout<cfuse_write_out>.size, 8),
            (MemoryLayout<cfuse_release_in>.size, 24), (MemoryLayout<cfuse_flush_in>.size, 24),
            (MemoryLayout<cfuse_fsync_in>.size, 16), (MemoryLayout<cfuse_syncfs_in>.size, 8),
            (MemoryLayout<cfuse_fallocate_in>.size, 32), (MemoryLayout<cfuse_lseek_in>.size, 24),
            (MemoryLayout<cfuse_lseek_out>.size, 8),
            (MemoryLayout<cfuse_copy_file_range_in>.size, 56),
            (MemoryLayout<cfuse_copy_file_range_out>.size, 8),
            (MemoryLayout<cfuse_kstatfs>.size, 80), (MemoryLayout<cfuse_setxattr_in>.size, 16),
            (MemoryLayout<cfuse_getxattr_in>.size, 8), (MemoryLayout<cfuse_getxattr_out>.size, 8),
            (MemoryLayout<cfuse_access_in>.size, 8), (MemoryLayout<cfuse_file_lock>.size, 24),
            (MemoryLayout<cfuse_lk_in>.size, 48), (MemoryLayout<cfuse_interrupt_in>.size, 8),
            (MemoryLayout<cfuse_bmap_in>.size, 16), (MemoryLayout<cfuse_bmap_out>.size, 8),
            (MemoryLayout<cfuse_ioctl_in>.size, 32), (MemoryLayout<cfuse_ioctl_out>.size, 16),
            (MemoryLayout<cfuse_poll_in>.size, 24), (MemoryLayout<cfuse_poll_out>.size, 8),
            (MemoryLayout<cfuse_dirent>.size, 24), (MemoryLayout<cfuse_direntplus>.size, 152),
            (MemoryLayout<cfuse_notify_inval_inode_out>.size, 24),
            (MemoryLayout<cfuse_notify_inval_entry_out>.size, 16),
            (MemoryLayout<cfuse_notify_delete_out>.size, 24),
            (MemoryLayout<cfuse_notify_store_out>.size, 24),
        ]
        for (size, expected) in sizes { #expect(size == expected) }
        #expect(MemoryLayout<cfuse_init_out>.offset(of: \.max_stack_depth) == 36)
        #expect(MemoryLayout<cfuse_create_out>.offset(of: \.open.backing_id) == 140)
    }
}

struct NegotiationTests {
    private func accept(
        minor: UInt32 = 45, flags: UInt64 = .max, _ options: SessionOptions = SessionOptions()
    ) throws -> (cfuse_init_out, Features, Dialect) {
        let request = InitRequest(
            major: 7, minor: minor, maxReadahead: 131_072, flags: InitFlags(rawValue: flags))
        guard
            case .accept(let reply, let features, let dialect) = Negotiation.answer(
                request, options)
        else { throw SessionError.endedEarly }
        return (reply, features, dialect)
    }

    @Test func theAnswerTakesWhatWeWantAndNoMore() throws {
        let (reply, features, dialect) = try accept()
        let taken = InitFlags(rawValue: UInt64(reply.flags) | UInt64(reply.flags2) << 32)
        for left: InitFlags in [
            .writebackCache, .readdirplusAuto, .autoInvalidateData, .exportSupport, .posixLocks,
            .flockLocks, .posixACL, .dontMask,
        ] {
            #expect(taken.isDisjoint(with: left))
        }
        #expect(taken.isSuperset(of: [.passthrough, .handleKillPrivilegesV2, .extendedInit]))
        #expect(reply.major == 7 && reply.minor == 45)
        #expect(reply.max_write == 1 << 20 && reply.max_pages == 256)
        #expect(reply.max_background == 128 && reply.congestion_threshold == 96)
        #expect(reply.max_stack_depth == 1 && reply.time_gran == 1)
        #expect(reply.max_readahead == 131_072)
        #expect(features.passthrough == .readWrite && features.killPrivileges)
        #expect(dialect.extendedSetxattr)
    }

    @Test func nothingIsTakenThatWasNotOffered() throws {
        var random = SeededGenerator.printed()
        for _ in 0..<1000 {
            let offered = UInt64.random(in: 0...UInt64.max, using: &random)
            var options = SessionOptions()
            options.posixACL = Bool.random(using: &random)
            options.forwardsLocks = Bool.random(using: &random)
            let (reply, features, _) = try accept(flags: offered, options)
            let taken = UInt64(reply.flags) | UInt64(reply.flags2) << 32
            #expect(taken & ~offered == 0)
            if taken & InitFlags.extendedInit.rawValue == 0 { #expect(reply.flags2 == 0) }
            #expect((features.passthrough == .none) == (reply.max_stack_depth == 0))
        }
    }

    @Test func passthroughWritesNeedLinux612() throws {
        #expect(try accept(minor: 40).1.passthrough == .readOnly)
        #expect(try accept(minor: 41).1.passthrough == .readWrite)
        var without = SessionOptions()
        without.passthrough = false
        #expect(try accept(without).1.passthrough == .none)
    }

    @Test func accessControlListsBringTheUmask() throws {
        var options = SessionOptions()
        options.posixACL = true
        let (_, features, _) = try accept(options)
        #expect(features.posixACL && features.dontMask)
    }

    @Test func olderAndNewerKernelsAreMet() throws {
        #expect(try accept(minor: 32).0.minor == 32)
        #expect(try accept(minor: 60).0.minor == 45)
        let old = InitRequest(major: 7, minor: 30, maxReadahead: 0, flags: [])
        guard case .refuse = Negotiation.answer(old, SessionOptions()) else {
            Issue.record("a protocol without known sizes was accepted")
            return
        }
        let new = InitRequest(major: 8, minor: 0, maxReadahead: 0, flags: [])
        guard case .repeated(let reply) = Negotiation.answer(new, SessionOptions()) else {
            Issue.record("a newer major number was not asked to come down")
            return
        }
        #expect(reply.major == 7 && reply.minor == 45)
    }
}

struct MountTableTests {
    @Test func theMountTableIsUnescaped() {
        let table = """
            22 1 8:1 / / rw,relatime - ext4 /dev/root rw
            90 22 0:50 / /mnt/with\\040space\\134and\\011tab rw shared:5 - fuse.x a\\040b rw
            broken line
            91 22 0:51 / /mnt/plain rw - tmpfs none rw

            """
        let entries = MountTable.parse(Array(table.utf8))
        #expect(entries.count == 3)
        #expect(entries[1].mountPoint == Array("/mnt/with space\\and\ttab".utf8))
        #expect(entries[1].type == Array("fuse.x".utf8))
        #expect(entries[1].source == Array("a b".utf8))
        #expect(entries[2].type == Array("tmpfs".utf8))
    }

    @Test func theRootIsMounted() throws {
        #expect(try MountTable.topmost(at: "/") != nil)
        #expect(try MountTable.topmost(at: "/no/such/mount") == nil)
    }
}
