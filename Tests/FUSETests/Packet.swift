import CFUSE

@testable import FUSE

/// Builds the bytes of one request as the kernel would write them.
struct Packet {
    var bytes: [UInt8]

    init(
        _ opcode: UInt32, unique: UInt64 = 2, nodeid: UInt64 = 1, uid: UInt32 = 1000,
        gid: UInt32 = 100, pid: UInt32 = 4711
    ) {
        let header = cfuse_in_header(
            len: 0, opcode: opcode, unique: unique, nodeid: nodeid, uid: uid, gid: gid, pid: pid,
            total_extlen: 0, padding: 0)
        bytes = withUnsafeBytes(of: header) { [UInt8]($0) }
        seal()
    }

    init(_ opcode: Opcode, unique: UInt64 = 2, nodeid: UInt64 = 1) {
        self.init(opcode.rawValue, unique: unique, nodeid: nodeid)
    }

    func body<Body: BitwiseCopyable>(_ body: Body) -> Packet {
        appending(withUnsafeBytes(of: body) { [UInt8]($0) })
    }

    func name(_ name: String) -> Packet { appending(Array(name.utf8) + [0]) }

    func appending(_ more: [UInt8]) -> Packet {
        var packet = self
        packet.bytes += more
        packet.seal()
        return packet
    }

    /// Makes the length in the header right.
    mutating func seal() {
        let length = UInt32(bytes.count)
        withUnsafeBytes(of: length) { bytes.replaceSubrange(0..<4, with: $0) }
    }

    func parsed<Result>(
        extendedSetxattr: Bool = true,
        _ body: (RequestHeader, Opcode, FUSE.Operation) throws -> Result
    ) throws -> Result {
        try bytes.withUnsafeBytes { buffer in
            let (header, opcode, operation) = try RequestParser.parse(
                buffer, dialect: Dialect(extendedSetxattr: extendedSetxattr))
            return try body(header, opcode, operation)
        }
    }

    /// One well-formed request of every opcode.
    static let everyRequest: [(Opcode, Packet)] = Opcode.allCases.map { ($0, example(of: $0)) }

    static func example(of opcode: Opcode) -> Packet {
        let packet = Packet(opcode)
        switch opcode {
        case .lookup, .unlink, .rmdir, .removexattr: return packet.name("name")
        case .forget: return packet.body(cfuse_forget_in(nlookup: 3))
        case .getattr: return packet.body(cfuse_getattr_in(flags: 1, dummy: 0, fh: 9))
        case .setattr:
            var body = cfuse_setattr_in()
            body.valid = 0xfff
            body.mtime = UInt64(bitPattern: -5)
            return packet.body(body)
        case .readlink, .statfs, .destroy, .notifyReply: return packet
        case .symlink: return packet.name("name").name("the/target")
        case .mknod:
            return packet.body(cfuse_mknod_in(mode: 0o10644, rdev: 7, umask: 0o22, padding: 0))
                .name("name")
        case .mkdir: return packet.body(cfuse_mkdir_in(mode: 0o755, umask: 0o22)).name("name")
        case .rename: return packet.body(cfuse_rename_in(newdir: 5)).name("old").name("new")
        case .rename2:
            return packet.body(cfuse_rename2_in(newdir: 5, flags: 2, padding: 0)).name("old")
                .name("new")
        case .link: return packet.body(cfuse_link_in(oldnodeid: 8)).name("name")
        case .open, .opendir: return packet.body(cfuse_open_in(flags: 0o2001, open_flags: 1))
        case .create, .tmpfile:
            return packet.body(
                cfuse_create_in(flags: 0o2, mode: 0o100600, umask: 0o77, open_flags: 1)
            ).name("name")
        case .read, .readdir, .readdirplus:
            var body = cfuse_read_in()
            (body.fh, body.offset, body.size) = (9, 4096, 8192)
            return packet.body(body)
        case .write:
            var body = cfuse_write_in()
            (body.fh, body.offset, body.size, body.write_flags) = (9, 4096, 5, 4)
            return packet.body(body).appending(Array("hello".utf8))
        case .release, .releasedir:
            return packet.body(
                cfuse_release_in(fh: 9, flags: 2, release_flags: 1, lock_owner: 77))
        case .fsync, .fsyncdir:
            return packet.body(cfuse_fsync_in(fh: 9, fsync_flags: 1, padding: 0))
        case .setxattr:
            return packet.body(
                cfuse_setxattr_in(size: 5, flags: 1, setxattr_flags: 1, padding: 0)
            ).name("user.x").appending(Array("value".utf8))
        case .getxattr: return packet.body(cfuse_getxattr_in(size: 64, padding: 0)).name("user.x")
        case .listxattr: return packet.body(cfuse_getxattr_in(size: 64, padding: 0))
        case .flush:
            return packet.body(cfuse_flush_in(fh: 9, unused: 0, padding: 0, lock_owner: 77))
        default: return rareExample(of: opcode)
        }
    }

    private static func rareExample(of opcode: Opcode) -> Packet {
        let packet = Packet(opcode)
        switch opcode {
        case .initialize:
            var body = cfuse_init_in()
            (body.major, body.minor, body.max_readahead) = (7, 45, 131_072)
            (body.flags, body.flags2) = (UInt32.max, UInt32.max)
            return packet.body(body)
        case .getlk, .setlk, .setlkw:
            let lock = cfuse_file_lock(start: 1, end: 9, type: 1, pid: 3)
            return packet.body(
                cfuse_lk_in(fh: 9, owner: 77, lk: lock, lk_flags: 0, padding: 0))
        case .access: return packet.body(cfuse_access_in(mask: 4, padding: 0))
        case .interrupt: return packet.body(cfuse_interrupt_in(unique: 44))
        case .bmap: return packet.body(cfuse_bmap_in(block: 3, blocksize: 4096, padding: 0))
        case .ioctl:
            var body = cfuse_ioctl_in()
            (body.fh, body.cmd, body.in_size, body.out_size) = (9, 0x1234, 4, 8)
            return packet.body(body).appending([1, 2, 3, 4])
        case .poll: return packet.body(cfuse_poll_in(fh: 9, kh: 1, flags: 0, events: 1))
        case .batchForget:
            return packet.body(cfuse_batch_forget_in(count: 2, dummy: 0))
                .body(cfuse_forget_one(nodeid: 5, nlookup: 1))
                .body(cfuse_forget_one(nodeid: 6, nlookup: 2))
        case .fallocate:
            return packet.body(
                cfuse_fallocate_in(fh: 9, offset: 4096, length: 8192, mode: 3, padding: 0))
        case .lseek: return packet.body(cfuse_lseek_in(fh: 9, offset: 5, whence: 3, padding: 0))
        case .copyFileRange, .copyFileRange64:
            return packet.body(
                cfuse_copy_file_range_in(
                    fh_in: 9, off_in: 1, nodeid_out: 7, fh_out: 10, off_out: 2,
                    len: 0x1_0000_0000, flags: 0))
        case .syncfs: return packet.body(cfuse_syncfs_in(padding: 0))
        case .statx:
            return packet.body(
                cfuse_statx_in(getattr_flags: 1, reserved: 0, fh: 9, sx_flags: 1, sx_mask: 2))
        default: return packet
        }
    }
}
