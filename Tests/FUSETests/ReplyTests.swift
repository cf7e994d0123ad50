import CFUSE
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import FUSE

/// A connection whose kernel is the other end of a socket that keeps packets apart.
private final class Wire: Sendable {
    let connection: Connection
    private let complaints: ComplaintBox
    private let kernel: Int32

    init() throws {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        try #require(socketpair(AF_UNIX, kind, 0, &ends) == 0)
        kernel = ends[1]
        let complaints = ComplaintBox()
        connection = Connection(
            channel: Channel(takingOver: ends[0]), readSizeMax: 1 << 20,
            report: { complaints.add($0) })
        self.complaints = complaints
    }

    var reported: [String] { complaints.all }

    deinit {
        close(kernel)
    }

    func reply(_ opcode: Opcode, unique: UInt64 = 8) -> Reply {
        Reply(
            Ticket(
                connection: connection, unique: unique, opcode: opcode,
                epoch: connection.requests.enter()))
    }

    /// The next packet that the kernel would see; nil when there is none.
    func nextPacket() -> (error: Int32, unique: UInt64, body: [UInt8])? {
        var bytes = [UInt8](repeating: 0, count: 2 << 20)
        let count = recv(kernel, &bytes, bytes.count, Int32(MSG_DONTWAIT))
        guard count >= 16 else { return nil }
        return bytes[..<count].withUnsafeBytes { packet in
            let header = packet.loadUnaligned(as: cfuse_out_header.self)
            #expect(Int(header.len) == count)
            return (header.error, header.unique, [UInt8](packet[16...]))
        }
    }

    func body<Body: BitwiseCopyable>(_: Body.Type) throws -> Body {
        let packet = try #require(nextPacket())
        #expect(packet.error == 0 && packet.unique == 8)
        try #require(packet.body.count == MemoryLayout<Body>.size)
        return packet.body.withUnsafeBytes { $0.loadUnaligned(as: Body.self) }
    }
}

private final class ComplaintBox: Sendable {
    private let complaints = Mutex<[String]>([])
    func add(_ complaint: String) { complaints.withLock { $0.append(complaint) } }
    var all: [String] { complaints.withLock { $0 } }
}

struct ReplyTests {
    private let wire: Wire

    init() throws {
        wire = try Wire()
    }

    @Test func anEntryIsWrittenFieldByField() throws {
        let attributes = Attributes(
            ino: 5, mode: 0o100644, size: 6, blocks: 7, atime: Timestamp(seconds: -1),
            mtime: Timestamp(seconds: 2, nanoseconds: 3), nlink: 4, uid: 8, gid: 9, rdev: 10)
        let entry = EntryOut(
            nodeid: 11, generation: 12, entryValid: .milliseconds(1500),
            attributesValid: .seconds(3600), attributes: attributes)
        let isDelivered = wire.reply(.lookup).entry(entry)
        #expect(isDelivered)
        let out = try wire.body(cfuse_entry_out.self)
        #expect(out.nodeid == 11 && out.generation == 12)
        #expect(out.entry_valid == 1 && out.entry_valid_nsec == 500_000_000)
        #expect(out.attr_valid == 3600 && out.attr_valid_nsec == 0)
        #expect(out.attr.ino == 5 && out.attr.size == 6 && out.attr.blocks == 7)
        #expect(out.attr.atime == UInt64.max && out.attr.mtimensec == 3)
        #expect(out.attr.mode == 0o100644 && out.attr.nlink == 4 && out.attr.rdev == 10)
        #expect(out.attr.blksize == 4096)
    }

    @Test func aBackingFileTurnsAnOpenIntoPassthrough() throws {
        wire.reply(.open).open(3, flags: .noFlush, backing: 17)
        let out = try wire.body(cfuse_open_out.self)
        #expect(out.fh == 3 && out.backing_id == 17)
        #expect(out.open_flags == OpenFlags([.noFlush, .passthrough]).rawValue)
        wire.reply(.create).create(
            EntryOut(nodeid: 2, attributes: Attributes(ino: 1, mode: 0)), handle: 4, backing: 18)
        let created = try wire.body(cfuse_create_out.self)
        #expect(created.entry.nodeid == 2 && created.open.fh == 4)
        #expect(created.open.backing_id == 18)
    }

    @Test func theConventionsOfExtendedAttributesAreKept() throws {
        wire.reply(.getxattr).xattr([1, 2, 3], capacity: 0)
        #expect(try wire.body(cfuse_getxattr_out.self).size == 3)
        wire.reply(.getxattr).xattr([1, 2, 3], capacity: 2)
        #expect(wire.nextPacket()?.error == -ERANGE)
        wire.reply(.getxattr).xattr([1, 2, 3], capacity: 3)
        #expect(wire.nextPacket()?.body == [1, 2, 3])
    }

    @Test func theOtherAnswersHaveTheirShapes() throws {
        wire.reply(.write).written(4096)
        #expect(try wire.body(cfuse_write_out.self).size == 4096)
        wire.reply(.copyFileRange64).written(0x1_0000_0000)
        #expect(try wire.body(UInt64.self) == 0x1_0000_0000)
        wire.reply(.lseek).lseek(77)
        #expect(try wire.body(UInt64.self) == 77)
        wire.reply(.statfs).statfs(VolumeStatistics(blocks: 1, blocksFree: 2, files: 3))
        let statistics = try wire.body(cfuse_kstatfs.self)
        #expect(statistics.blocks == 1 && statistics.bfree == 2 && statistics.namelen == 255)
        wire.reply(.getattr).attributes(Attributes(ino: 9, mode: 1), valid: .nanoseconds(7))
        #expect(try wire.body(cfuse_attr_out.self).attr_valid_nsec == 7)
        wire.reply(.flush).empty()
        #expect(wire.nextPacket()?.body == [])
        wire.reply(.read).data([9, 8])
        #expect(wire.nextPacket()?.body == [9, 8])
        wire.reply(.rmdir).error(.directoryNotEmpty)
        #expect(wire.nextPacket()?.error == -ENOTEMPTY)
    }

    @Test func anErrorTheKernelWouldRefuseBecomesEIO() {
        for code in [0, -5, 512, 5000] as [Int32] {
            wire.reply(.open).error(Errno(rawValue: code))
            #expect(wire.nextPacket()?.error == -EIO)
        }
    }

    @Test func bytesOfAFileAreReadUpToItsEnd() throws {
        var template = Array("/tmp/fuse-reply-XXXXXX".utf8CString)
        let file = mkstemp(&template)
        defer {
            close(file)
            unlink(template)
        }
        _ = write(file, "0123456789", 10)
        wire.reply(.read).data(ofFile: file, offset: 4, size: 100)
        #expect(wire.nextPacket()?.body == Array("456789".utf8))
        wire.reply(.read).data(ofFile: file, offset: 2, size: 3)
        #expect(wire.nextPacket()?.body == Array("234".utf8))
        wire.reply(.read).data(ofFile: -1, offset: 2, size: 3)
        #expect(wire.nextPacket()?.error == -EBADF)
        wire.reply(.read).data(ofFile: file, offset: UInt64.max, size: 3)
        #expect(wire.nextPacket()?.error == -EINVAL)
    }

    @Test func aDroppedReplyAnswersEIOAndSaysSo() {
        do { _ = wire.reply(.mkdir) }
        #expect(wire.nextPacket()?.error == -EIO)
        #expect(wire.reported.count == 1)
    }

    @Test func aDetachedReplyAnswersExactlyOnce() {
        let pending = wire.reply(.read).detach()
        #expect(wire.nextPacket() == nil)
        #expect(pending.data([1]))
        #expect(!pending.data([2]))
        #expect(!pending.error(.ioError))
        #expect(wire.nextPacket()?.body == [1])
        #expect(wire.nextPacket() == nil)
        #expect(wire.connection.requests.detachedReplies.isEmpty)
    }

    @Test func aDroppedDetachedReplyAnswersEIO() {
        do { _ = wire.reply(.read).detach() }
        #expect(wire.nextPacket()?.error == -EIO)
        #expect(wire.nextPacket() == nil)
    }

    @Test func anInterruptReachesAWaitingRequestOnce() {
        let pending = wire.reply(.read, unique: 30).detach()
        let interrupts = Atomic(0)
        pending.onInterrupt { interrupts.wrappingAdd(1, ordering: .relaxed) }
        wire.connection.requests.interrupted(30)?.interrupt()
        wire.connection.requests.interrupted(30)?.interrupt()
        #expect(interrupts.load(ordering: .relaxed) == 1)
        #expect(pending.isInterrupted)
        pending.error(.interrupted)
        #expect(wire.nextPacket()?.error == -EINTR)
    }

    @Test func anInterruptThatOvertakesItsRequestIsNotLost() {
        #expect(wire.connection.requests.interrupted(30) == nil)
        let pending = wire.reply(.read, unique: 30).detach()
        let interrupts = Atomic(0)
        pending.onInterrupt { interrupts.wrappingAdd(1, ordering: .relaxed) }
        #expect(interrupts.load(ordering: .relaxed) == 1)
        pending.error(.interrupted)
    }

    @Test func theHandlerOfAnAnsweredRequestIsLetGo() {
        final class Canary: Sendable {}
        weak var canary: Canary?
        let pending = wire.reply(.read).detach()
        do {
            let held = Canary()
            canary = held
            pending.onInterrupt { _ = held }
        }
        #expect(canary != nil)
        pending.empty()
        #expect(canary == nil)
    }

    @Test func directoryEntriesArePaddedAndBounded() throws {
        var buffer = DirectoryBuffer(capacity: 24 + 8 + 24 + 8)
        let fits = [
            buffer.append(name: Array("ab".utf8), ino: 1, mode: 0o40755, cookie: 10),
            buffer.append(name: Array("ninebytes".utf8), ino: 2, mode: 0, cookie: 11),
            buffer.append(name: Array("eightbyt".utf8), ino: 2, mode: 0o100644, cookie: 11),
            buffer.append(name: Array("c".utf8), ino: 3, mode: 0, cookie: 12),
        ]
        #expect(fits == [true, false, true, false])
        var expected: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]
        expected += [2, 0, 0, 0, 4, 0, 0, 0] + Array("ab".utf8) + [0, 0, 0, 0, 0, 0]
        expected += [2, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0]
        expected += [8, 0, 0, 0, 8, 0, 0, 0] + Array("eightbyt".utf8)
        wire.reply(.readdir).directory(buffer)
        #expect(wire.nextPacket()?.body == expected)
    }

    @Test func anEntryOfReaddirplusLeadsWithItsAttributes() throws {
        var buffer = DirectoryBuffer(capacity: 4096)
        let attributes = Attributes(ino: 77, mode: 0o120777)
        let fits = buffer.append(
            name: [120], entry: EntryOut(nodeid: 5, attributes: attributes), cookie: 3)
        #expect(fits)
        #expect(buffer.bytes.count == 160)
        let plus = buffer.bytes.withUnsafeBytes { $0.loadUnaligned(as: cfuse_direntplus.self) }
        #expect(plus.entry.nodeid == 5 && plus.entry.attr.ino == 77)
        #expect(plus.dirent.ino == 77 && plus.dirent.off == 3 && plus.dirent.type == 10)
    }

    @Test func invalidationsWaitForEarlierAnswersButNotForWaitingReads() {
        let requests = wire.connection.requests
        let read = wire.reply(.read, unique: 2).detach()
        let lookup = wire.reply(.lookup, unique: 4).detach()
        #expect(requests.afterCurrent {} == .later)
        let later = requests.enter()
        #expect(requests.leave(later).isEmpty)
        lookup.error(.noSuchFileOrDirectory)
        // Nothing but the read is left: new work is due at once.
        #expect(requests.afterCurrent {} == .due)
        read.empty()
    }

    @Test func invalidationsDoNotWaitForAnswersAboutWhatNeverChanges() {
        let requests = wire.connection.requests
        let lookup = wire.reply(.lookup, unique: 2).detachUnordered()
        #expect(requests.afterCurrent {} == .due)
        lookup.error(.noSuchFileOrDirectory)
        #expect(wire.nextPacket()?.error == -ENOENT)
    }

    @Test func workWaitsForItsOwnEpochOnly() {
        let requests = RequestTable()
        let (first, second) = (requests.enter(), requests.enter())
        #expect(requests.afterCurrent {} == .later)
        let third = requests.enter()
        #expect(requests.afterCurrent {} == .later)
        #expect(requests.leave(third).isEmpty)
        #expect(requests.leave(first).isEmpty)
        #expect(requests.leave(second).count == 2)
        #expect(requests.afterCurrent {} == .due)
    }

    @Test func notificationsHaveTheirShapes() throws {
        let notifier = wire.connection.notifier
        notifier.invalidateInode(5, offset: 1, length: 2)
        notifier.invalidateAttributes(6)
        notifier.invalidateEntry(parent: 7, name: [97, 98])
        notifier.expireEntry(parent: 7, name: [97])
        notifier.delete(parent: 7, child: 8, name: [99])
        #expect(notifier.run { notifier.stop() })
        notifier.serve()
        #expect(wire.nextPacket()?.error == 2)
        let attributes = try #require(wire.nextPacket())
        #expect(attributes.unique == 0)
        #expect(attributes.body[8..<16].allSatisfy { $0 == 255 })
        let entry = try #require(wire.nextPacket())
        #expect(entry.error == 3)
        #expect(entry.body == [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 97, 98, 0])
        #expect(wire.nextPacket()?.body[12] == 1)
        let deletion = try #require(wire.nextPacket())
        #expect(deletion.error == 6 && deletion.body.count == 26)
        #expect(!notifier.invalidateAttributes(6))
    }
}
