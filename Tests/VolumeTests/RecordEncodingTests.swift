import Simulation
import Testing

@testable import Volume

@Suite("Record encoding")
struct RecordEncodingTests {
    @Test("Every record decodes from what it encodes to", arguments: testSeeds(4))
    func roundTrip(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<150 {
            let entry = random.entry()
            #expect(try EntryBlob(decoding: entry.encoded()) == entry)
        }
    }

    @Test(
        "Any change of the bytes is refused or is another record's encoding",
        arguments: testSeeds(4))
    func mutations(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<150 {
            let entry = random.entry()
            let bytes = try entry.encoded()
            for _ in 0..<8 {
                let changed = mutate(bytes, &random)
                guard changed != bytes, let other = try? EntryBlob(decoding: changed) else {
                    continue
                }
                #expect(other != entry)
                #expect(try other.encoded() == changed)
            }
        }
    }

    private func mutate(_ bytes: [UInt8], _ random: inout SeededGenerator) -> [UInt8] {
        var bytes = bytes
        let at = random.number(0..<bytes.count)
        switch random.number(0..<5) {
        case 0: bytes[at] = UInt8.random(in: 0...255, using: &random)
        case 1: bytes[at] ^= 1 << UInt8(random.number(0..<8))
        case 2: bytes.remove(at: at)
        case 3: bytes.insert([0x20, 0x0A, 0x30, 0x2D, 0x2B][random.number(0..<5)], at: at)
        default: bytes.removeSubrange(at...)
        }
        return bytes
    }

    @Test("The encoding is the documented text")
    func example() throws {
        let node = NodeID(high: 0, low: 0xAB)
        let made = Stamp(milliseconds: 0x18F_0000_0000, counter: 0, node: node)
        let later = Stamp(milliseconds: 0x18F_0000_0001, counter: 2, node: node)
        var record = Record(
            id: LineageID(rawValue: 0x2A), ino: InodeNumber(rawValue: 0x2B),
            content: Stamped(
                BodyGroup(
                    body: .file(.inline(Array("hello\n".utf8))),
                    modified: Timestamp(seconds: -1, nanoseconds: 5)), made),
            mode: Stamped(0o644, later), owner: Stamped(Owner(uid: 1000, gid: 100), made))
        record.xattrs[Array("user.a b".utf8)] = Stamped([], made)
        let link = Link(id: LinkID(rawValue: 0x2C), stamp: made, target: record.id)
        let text = """
            record 1
            content 18f00000000.0.000000000000000000000000000000ab
            id 000000000000002a
            ino 000000000000002b
            link 000000000000002c 18f00000000.0.000000000000000000000000000000ab
            mode 644 18f00000001.2.000000000000000000000000000000ab
            mtime -1.000000005
            owner 1000 100
            xattr user.a%20b =

            hello

            """
        #expect(Text.lossy(try EntryBlob.single(record, link).encoded()) == text)
        let place = """
            place 1
            id 000000000000002a
            link 000000000000002c 18f00000000.0.000000000000000000000000000000ab

            """
        #expect(Text.lossy(try EntryBlob.reference(link).encoded()) == place)
    }

    @Test("What exceeds a limit is neither written nor read")
    func limits() throws {
        var random = SeededGenerator(seed: 1)
        func refused(_ change: (inout Record) -> Void) -> Bool {
            var record = random.record(body: .file(.empty))
            change(&record)
            let link = Link(id: LinkID(rawValue: 1), stamp: record.content.stamp, target: record.id)
            return (try? EntryBlob.single(record, link).encoded()) == nil
        }
        let node = NodeID(high: 1, low: 1)
        let late = Stamp(milliseconds: Limits.stampMillisecondsEnd, counter: 0, node: node)
        #expect(!refused { _ in })
        #expect(refused { $0.mode.value = 0o10000 })
        #expect(refused { $0.mode.stamp = late })
        #expect(refused { $0.ino = InodeNumber(rawValue: 1 << 63) })
        #expect(refused { $0.xattrs[[]] = Stamped([], node.first) })
        #expect(
            refused { $0.xattrs[[0x61]] = Stamped(.init(repeating: 0, count: 65537), node.first) })
        #expect(refused { $0.content.value.body = .symlink([]) })
        #expect(refused { $0.content.value.body = .file(.extents([])) })
        #expect(
            refused { $0.content.value.body = .file(.inline(.init(repeating: 0, count: 4097))) })
        let huge = Extent(
            root: ContentRoot(bytes: .init(repeating: 1, count: 32)).unsafelyUnwrapped,
            length: Limits.extentBytesMax)
        #expect(
            refused { $0.content.value.body = .file(.extents(.init(repeating: huge, count: 513))) })
    }
}

extension NodeID {
    fileprivate var first: Stamp { Stamp(milliseconds: 1, counter: 0, node: self) }
}
