import CFUSE
import SystemPackage

/// Why bytes from the device are not a request that can be carried out.
struct MalformedRequest: Error, Equatable {
    /// The request to answer, when as much as the head could be read.
    var unique: UInt64?
    /// `invalidArgument`, or ENOSYS for an opcode of a later protocol.
    var errno: Errno
    var opcode: UInt32
}

/// What INIT settled and the shape of later requests depends on.
struct Dialect: Sendable {
    var extendedSetxattr = false
}

/// Reads structures and names off the body of one request, never beyond its end.
private struct BodyCursor {
    private(set) var rest: UnsafeRawBufferPointer

    init(_ body: UnsafeRawBufferPointer) {
        rest = body
    }

    /// The next structure. `Value` is always a plain C structure: any bytes are a valid value.
    mutating func take<Value: BitwiseCopyable>(_: Value.Type) throws(Errno) -> Value {
        let size = MemoryLayout<Value>.size
        guard rest.count >= size else { throw .invalidArgument }
        let value = rest.loadUnaligned(as: Value.self)
        rest = UnsafeRawBufferPointer(rebasing: rest[size...])
        return value
    }

    mutating func skip(_ count: Int) throws(Errno) {
        guard rest.count >= count else { throw .invalidArgument }
        rest = UnsafeRawBufferPointer(rebasing: rest[count...])
    }

    /// The next NUL-terminated string, not empty.
    mutating func string() throws(Errno) -> [UInt8] {
        guard let end = rest.firstIndex(of: 0), end > 0 else { throw .invalidArgument }
        let bytes = [UInt8](rest[..<end])
        rest = UnsafeRawBufferPointer(rebasing: rest[(end + 1)...])
        return bytes
    }

    mutating func bytes(_ count: Int) throws(Errno) -> UnsafeRawBufferPointer {
        guard count >= 0, rest.count >= count else { throw .invalidArgument }
        let bytes = UnsafeRawBufferPointer(rebasing: rest[..<count])
        rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        return bytes
    }
}

/// Turns the bytes of one read from the device into an operation.
///
/// The kernel is trusted not to be malicious but its versions differ: every length is checked, and
/// what does not fit becomes an error reply, never a trap. Bytes after what is known are ignored:
/// later protocols append fields.
enum RequestParser {
    static let headerSize = MemoryLayout<cfuse_in_header>.size

    static func parse(
        _ packet: UnsafeRawBufferPointer, dialect: Dialect
    ) throws(MalformedRequest) -> (header: RequestHeader, opcode: Opcode, operation: Operation) {
        guard packet.count >= headerSize else {
            throw MalformedRequest(unique: nil, errno: .invalidArgument, opcode: 0)
        }
        let raw = packet.loadUnaligned(as: cfuse_in_header.self)
        let malformed = MalformedRequest(
            unique: raw.unique, errno: .invalidArgument, opcode: raw.opcode)
        // Extensions (security context, groups) follow the body; none is negotiated.
        let end = packet.count - Int(raw.total_extlen) * 8
        guard Int(raw.len) == packet.count, end >= headerSize else { throw malformed }
        guard let opcode = Opcode(rawValue: raw.opcode) else {
            throw MalformedRequest(unique: raw.unique, errno: .noFunction, opcode: raw.opcode)
        }
        let header = RequestHeader(
            unique: raw.unique, nodeid: raw.nodeid, uid: raw.uid, gid: raw.gid, pid: raw.pid)
        var cursor = BodyCursor(UnsafeRawBufferPointer(rebasing: packet[headerSize..<end]))
        do throws(Errno) {
            return (header, opcode, try operation(opcode, &cursor, dialect))
        } catch {
            throw MalformedRequest(unique: raw.unique, errno: error, opcode: raw.opcode)
        }
    }

    private static func operation(
        _ opcode: Opcode, _ cursor: inout BodyCursor, _ dialect: Dialect
    ) throws(Errno) -> Operation {
        switch opcode {
        case .lookup, .symlink, .mknod, .mkdir, .unlink, .rmdir, .rename, .rename2, .link:
            try name(opcode, &cursor)
        case .open, .create, .tmpfile, .read, .write, .release, .flush, .fsync, .opendir,
            .readdir, .readdirplus, .releasedir, .fsyncdir:
            try openFile(opcode, &cursor)
        case .getattr, .setattr, .statx, .setxattr, .getxattr, .listxattr, .removexattr, .access:
            try attribute(opcode, &cursor, dialect)
        case .getlk, .setlk, .setlkw, .bmap, .ioctl, .poll, .fallocate, .lseek, .copyFileRange,
            .copyFileRange64:
            try special(opcode, &cursor)
        case .forget:
            .forget(count: try cursor.take(cfuse_forget_in.self).nlookup)
        case .batchForget:
            try batchForget(&cursor)
        case .interrupt:
            .interrupt(unique: try cursor.take(cfuse_interrupt_in.self).unique)
        case .initialize:
            try initialize(&cursor)
        case .readlink: .readlink
        case .statfs: .statfs
        case .syncfs: .syncfs
        case .destroy: .destroy
        case .notifyReply: .notifyReply
        }
    }

    private static func batchForget(_ cursor: inout BodyCursor) throws(Errno) -> Operation {
        let count = Int(try cursor.take(cfuse_batch_forget_in.self).count)
        return .batchForget(try cursor.bytes(count * MemoryLayout<cfuse_forget_one>.size))
    }

    /// INIT was 16 bytes before protocol 7.36 and may grow again.
    private static func initialize(_ cursor: inout BodyCursor) throws(Errno) -> Operation {
        let major = try cursor.take(UInt32.self)
        let minor = try cursor.take(UInt32.self)
        let readahead = try cursor.take(UInt32.self)
        let low = try cursor.take(UInt32.self)
        var flags = UInt64(low)
        if flags & InitFlags.extendedInit.rawValue != 0, let high = try? cursor.take(UInt32.self) {
            flags |= UInt64(high) << 32
        }
        return .initialize(
            InitRequest(
                major: major, minor: minor, maxReadahead: readahead,
                flags: InitFlags(rawValue: flags)))
    }

    private static func name(
        _ opcode: Opcode, _ cursor: inout BodyCursor
    ) throws(Errno) -> Operation {
        switch opcode {
        case .symlink:
            let name = try cursor.string()
            return .symlink(name: name, target: try cursor.string())
        case .mknod:
            let body = try cursor.take(cfuse_mknod_in.self)
            return .mknod(
                name: try cursor.string(), mode: body.mode, umask: body.umask, device: body.rdev)
        case .mkdir:
            let body = try cursor.take(cfuse_mkdir_in.self)
            return .mkdir(name: try cursor.string(), mode: body.mode, umask: body.umask)
        case .unlink:
            return .unlink(name: try cursor.string())
        case .rmdir:
            return .rmdir(name: try cursor.string())
        case .rename:
            let body = try cursor.take(cfuse_rename_in.self)
            let name = try cursor.string()
            return .rename(
                name: name, newParent: body.newdir, newName: try cursor.string(), flags: [])
        case .rename2:
            let body = try cursor.take(cfuse_rename2_in.self)
            let name = try cursor.string()
            return .rename(
                name: name, newParent: body.newdir, newName: try cursor.string(),
                flags: RenameFlags(rawValue: body.flags))
        case .link:
            let body = try cursor.take(cfuse_link_in.self)
            return .link(target: body.oldnodeid, name: try cursor.string())
        default:
            return .lookup(name: try cursor.string())
        }
    }

    private static func openFile(
        _ opcode: Opcode, _ cursor: inout BodyCursor
    ) throws(Errno) -> Operation {
        switch opcode {
        case .open:
            let body = try cursor.take(cfuse_open_in.self)
            return .open(
                flags: Int32(bitPattern: body.flags), killPrivileges: body.open_flags & 1 != 0)
        case .opendir:
            let body = try cursor.take(cfuse_open_in.self)
            return .opendir(flags: Int32(bitPattern: body.flags))
        case .create, .tmpfile:
            let body = try cursor.take(cfuse_create_in.self)
            let flags = Int32(bitPattern: body.flags)
            // The name that comes with TMPFILE is a slash and means nothing.
            guard opcode == .create else {
                return .tmpfile(flags: flags, mode: body.mode, umask: body.umask)
            }
            return .create(
                name: try cursor.string(), flags: flags, mode: body.mode, umask: body.umask,
                killPrivileges: body.open_flags & 1 != 0)
        case .read, .readdir, .readdirplus:
            let body = try cursor.take(cfuse_read_in.self)
            let size = Int(body.size)
            return switch opcode {
            case .read: .read(handle: body.fh, offset: body.offset, size: size)
            case .readdir: .readdir(handle: body.fh, offset: body.offset, size: size)
            default: .readdirplus(handle: body.fh, offset: body.offset, size: size)
            }
        case .write:
            let body = try cursor.take(cfuse_write_in.self)
            return .write(
                handle: body.fh, offset: body.offset, data: try cursor.bytes(Int(body.size)),
                flags: WriteFlags(rawValue: body.write_flags))
        case .flush:
            let body = try cursor.take(cfuse_flush_in.self)
            return .flush(handle: body.fh, lockOwner: body.lock_owner)
        case .fsync, .fsyncdir:
            let body = try cursor.take(cfuse_fsync_in.self)
            let dataOnly = body.fsync_flags & 1 != 0
            return opcode == .fsync
                ? .fsync(handle: body.fh, dataOnly: dataOnly)
                : .fsyncdir(handle: body.fh, dataOnly: dataOnly)
        default:
            let body = try cursor.take(cfuse_release_in.self)
            guard opcode == .release else { return .releasedir(handle: body.fh) }
            return .release(
                handle: body.fh, flags: Int32(bitPattern: body.flags),
                releaseFlags: ReleaseFlags(rawValue: body.release_flags),
                lockOwner: body.lock_owner)
        }
    }

    private static func attribute(
        _ opcode: Opcode, _ cursor: inout BodyCursor, _ dialect: Dialect
    ) throws(Errno) -> Operation {
        switch opcode {
        case .setattr:
            return .setattr(SetAttributes(wire: try cursor.take(cfuse_setattr_in.self)))
        case .statx:
            let body = try cursor.take(cfuse_statx_in.self)
            return .statx(
                handle: body.getattr_flags & 1 != 0 ? body.fh : nil, flags: body.sx_flags,
                mask: body.sx_mask)
        case .setxattr:
            return try setxattr(&cursor, dialect)
        case .getxattr:
            let size = Int(try cursor.take(cfuse_getxattr_in.self).size)
            return .getxattr(name: try cursor.string(), capacity: size)
        case .listxattr:
            return .listxattr(capacity: Int(try cursor.take(cfuse_getxattr_in.self).size))
        case .removexattr:
            return .removexattr(name: try cursor.string())
        case .access:
            let body = try cursor.take(cfuse_access_in.self)
            return .access(mask: Int32(bitPattern: body.mask))
        default:
            let body = try cursor.take(cfuse_getattr_in.self)
            return .getattr(handle: body.flags & 1 != 0 ? body.fh : nil)
        }
    }

    private static func setxattr(
        _ cursor: inout BodyCursor, _ dialect: Dialect
    ) throws(Errno) -> Operation {
        let size = try cursor.take(UInt32.self)
        // Only the two public flags may pass; bit 31 is ours.
        var flags = SetXattrFlags(rawValue: try cursor.take(UInt32.self) & 0x7fff_ffff)
        if dialect.extendedSetxattr {
            if try cursor.take(UInt32.self) & 1 != 0 { flags.insert(.killSetGroupID) }
            try cursor.skip(4)
        }
        let name = try cursor.string()
        return .setxattr(name: name, value: try cursor.bytes(Int(size)), flags: flags)
    }

    private static func special(
        _ opcode: Opcode, _ cursor: inout BodyCursor
    ) throws(Errno) -> Operation {
        switch opcode {
        case .bmap:
            let body = try cursor.take(cfuse_bmap_in.self)
            return .bmap(block: body.block, blockSize: body.blocksize)
        case .ioctl:
            let body = try cursor.take(cfuse_ioctl_in.self)
            return .ioctl(
                IoctlRequest(
                    handle: body.fh, flags: body.flags, command: body.cmd, argument: body.arg,
                    input: [UInt8](try cursor.bytes(Int(body.in_size))),
                    outputSize: body.out_size))
        case .poll:
            let body = try cursor.take(cfuse_poll_in.self)
            return .poll(handle: body.fh, events: body.events)
        case .fallocate:
            let body = try cursor.take(cfuse_fallocate_in.self)
            return .fallocate(
                handle: body.fh, offset: body.offset, length: body.length,
                mode: Int32(bitPattern: body.mode))
        case .lseek:
            let body = try cursor.take(cfuse_lseek_in.self)
            return .lseek(
                handle: body.fh, offset: body.offset, whence: Int32(bitPattern: body.whence))
        case .copyFileRange, .copyFileRange64:
            let body = try cursor.take(cfuse_copy_file_range_in.self)
            // The 32-bit answer of the older request cannot express more.
            let lengthMax: UInt64 = opcode == .copyFileRange ? 0xffff_f000 : 0x7fff_ffff_ffff_f000
            return .copyFileRange(
                CopyRequest(
                    handle: body.fh_in, offset: body.off_in, targetNode: body.nodeid_out,
                    targetHandle: body.fh_out, targetOffset: body.off_out,
                    length: min(body.len, lengthMax), flags: body.flags))
        default:
            let body = try cursor.take(cfuse_lk_in.self)
            let action: LockRequest.Action =
                opcode == .getlk ? .query : opcode == .setlk ? .set : .setAndWait
            return .lock(
                LockRequest(
                    action: action, handle: body.fh, owner: body.owner,
                    lock: FileLock(
                        start: body.lk.start, end: body.lk.end, type: body.lk.type,
                        pid: body.lk.pid),
                    isFlock: body.lk_flags & 1 != 0))
        }
    }
}

extension SetAttributes {
    init(wire: cfuse_setattr_in) {
        self.init(
            fields: Fields(rawValue: wire.valid), handle: wire.fh, size: wire.size,
            lockOwner: wire.lock_owner,
            atime: Timestamp(
                seconds: Int64(bitPattern: wire.atime), nanoseconds: wire.atimensec),
            mtime: Timestamp(
                seconds: Int64(bitPattern: wire.mtime), nanoseconds: wire.mtimensec),
            ctime: Timestamp(
                seconds: Int64(bitPattern: wire.ctime), nanoseconds: wire.ctimensec),
            mode: wire.mode, uid: wire.uid, gid: wire.gid)
    }
}
