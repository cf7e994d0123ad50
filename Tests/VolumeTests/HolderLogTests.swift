import Simulation
import Testing

@testable import Volume

@Suite("Holder logs")
struct HolderLogTests {
    private func entries(_ count: Int, _ random: inout SeededGenerator) -> [HolderLogEntry] {
        (0..<count).map { _ in
            switch random.number(0..<5) {
            case 0: .stored(random.extent())
            case 1: .cached(random.extent())
            case 2: .lost(random.extent())
            case 3: .cloning(random.extent())
            default: .capacity(random.next())
            }
        }
    }

    @Test(
        "Entries survive as bytes, and other bytes are other entries or none",
        arguments: testSeeds(3))
    func encoding(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for entry in entries(100, &random) {
            #expect(entry.bytes.count == HolderLogEntry.encodedBytes)
            #expect(HolderLogEntry(bytes: entry.bytes) == entry)
            var changed = entry.bytes
            changed[random.number(0..<changed.count)] ^= 1 << UInt8(random.number(0..<8))
            if let other = HolderLogEntry(bytes: changed) {
                #expect(other != entry)
                #expect(other.bytes == changed)
            }
        }
    }

    @Test("A batch is accepted only whole, in order, in its epoch", arguments: testSeeds(3))
    func verification(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let node = NodeID(high: 3, low: 4)
        let start = HolderLogPosition(node: node, epoch: 10)
        let batch = entries(20, &random)
        let middle = start.advanced(by: batch.prefix(8))
        let end = start.advanced(by: batch)
        #expect(end.count == 20)
        #expect(start.verifies(batch, upTo: end))
        #expect(middle.verifies(Array(batch.dropFirst(8)), upTo: end))
        #expect(middle.verifies([], upTo: middle))
        #expect(!middle.verifies(Array(batch.dropFirst(9)), upTo: end))
        #expect(!start.verifies(Array(batch.reversed()), upTo: end))
        #expect(!HolderLogPosition(node: node, epoch: 11).verifies(batch, upTo: end))
        #expect(!end.verifies([], upTo: middle))
        let other = NodeID(high: 3, low: 5)
        #expect(!HolderLogPosition(node: other, epoch: 10).verifies(batch, upTo: end))
        #expect(start.signedBytes != HolderLogPosition(node: node, epoch: 11).signedBytes)
    }

    @Test("A root that knows less of its own log than a peer does was restored or copied")
    func restored() {
        var random = SeededGenerator(seed: 1)
        let start = HolderLogPosition(node: NodeID(high: 1, low: 1), epoch: 5)
        let one = start.advanced(by: entries(3, &random))
        let fork = start.advanced(by: entries(3, &random))
        let later = one.advanced(by: .capacity(1))
        let next = HolderLogPosition(node: start.node, epoch: 6)
        #expect(one.isOvertaken(by: later))
        #expect(one.isOvertaken(by: fork))
        #expect(one.isOvertaken(by: next))
        #expect(!one.isOvertaken(by: one))
        #expect(!later.isOvertaken(by: one))
        #expect(!next.isOvertaken(by: later))
        #expect(one.relation(to: later) == .weLack)
        #expect(later.relation(to: one) == .theyLack)
        #expect(one.relation(to: fork) == .forked)
    }

    @Test("Reading a log gives what the node holds")
    func state() {
        var random = SeededGenerator(seed: 2)
        let (a, b) = (random.extent(), random.extent())
        var state = HolderLogState()
        let log: [HolderLogEntry] = [
            .capacity(7), .cloning(a), .stored(a), .cached(b), .lost(b), .cloning(b),
        ]
        for entry in log { state.apply(entry) }
        #expect(state.capacity == 7)
        #expect(state.holdings == [a: .stored, b: .cloning])
    }
}

@Suite("Commit messages and settings")
struct CommitMessageTests {
    @Test("Messages survive as bytes, and nothing else is one", arguments: testSeeds(3))
    func messages(seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        for _ in 0..<50 {
            let node = NodeID(high: random.next(), low: random.next())
            let kind: CommitMessage.Kind = random.once(in: 2) ? .change(node) : .merge(rules: 1)
            let message = CommitMessage(kind: kind, newestStamp: random.stamp())
            #expect(try CommitMessage(decoding: message.encoded) == message)
            var bytes = message.encoded
            bytes[random.number(0..<bytes.count)] ^= 1 << UInt8(random.number(0..<8))
            if let other = try? CommitMessage(decoding: bytes) {
                #expect(other != message)
                #expect(other.encoded == bytes)
            }
        }
        let message = CommitMessage(kind: .merge(rules: 2), newestStamp: random.stamp())
        #expect(throws: UpgradeNeeded.self) { try CommitMessage(decoding: message.encoded) }
    }

    @Test("Settings and descriptions survive as bytes; higher numbers ask for an upgrade")
    func settings() throws {
        var settings = VolumeSettings(
            volume: "big.store-1", copies: 2, transport: .plain, owner: Owner(uid: 1000, gid: 7))
        let bytes = try settings.encoded()
        #expect(
            Text.lossy(bytes) == """
                authority 1
                copies 2
                format 1
                owner 1000 7
                rules 1
                transport plain
                volume big.store-1

                """)
        #expect(try VolumeSettings(decoding: bytes) == settings)
        #expect(throws: InvalidTree.self) { try VolumeSettings(decoding: bytes + [0x0A]) }
        let newer = Array("anything else\nformat 2\nrules 3\n".utf8)
        #expect(throws: UpgradeNeeded(format: 2, rules: 3)) { try VolumeSettings(decoding: newer) }
        settings.volume = "no/name"
        #expect(throws: InvalidTree.self) { try settings.encoded() }
        let node = NodeDescription(name: "disk1", machine: "host.example")
        #expect(try NodeDescription(decoding: node.encoded()) == node)
        #expect(throws: InvalidTree.self) {
            try NodeDescription(decoding: Array("machine a\nname b c\n".utf8))
        }
    }
}
