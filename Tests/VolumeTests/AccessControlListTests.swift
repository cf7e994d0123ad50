import Simulation
import Testing
import Volume

@Suite("Access control lists")
struct AccessControlListTests {
    /// `user::rw-`, `user:7:r--`, `group::rw-`, `mask::MASK`, `other::r--`.
    private func bytes(mask: UInt8 = 4, dropping dropped: Int? = nil) -> [UInt8] {
        var entries: [[UInt8]] = [
            [1, 0, 6, 0, 255, 255, 255, 255], [2, 0, 4, 0, 7, 0, 0, 0],
            [4, 0, 6, 0, 255, 255, 255, 255], [16, 0, mask, 0, 255, 255, 255, 255],
            [32, 0, 4, 0, 255, 255, 255, 255],
        ]
        if let dropped { entries.remove(at: dropped) }
        return [2, 0, 0, 0] + entries.flatMap { $0 }
    }

    @Test("The mask is the mode's group bits, and chmod changes it")
    func mode() throws {
        let list = try #require(AccessControlList(bytes()))
        #expect(list.bytes == bytes())
        #expect(list.mode == 0o644)
        #expect(!list.isMinimal)
        #expect(list.changed(to: 0o664).bytes == bytes(mask: 6))
        #expect(list.changed(to: 0o750).mode == 0o750)
    }

    @Test("What is created has no more than its mode and the default list both allow")
    func inheritance() throws {
        let list = try #require(AccessControlList(bytes(mask: 7)))
        #expect(list.inherited(by: 0o666).mode == 0o664)
        #expect(list.inherited(by: 0o600).mode == 0o600)
        #expect(list.inherited(by: 0o777).bytes == bytes(mask: 7))
    }

    @Test("A list without users and groups needs no mask and says what the mode says")
    func minimal() throws {
        let entries: [UInt8] = [
            1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255,
            32, 0, 0, 0, 255, 255, 255, 255,
        ]
        let list = try #require(AccessControlList([2, 0, 0, 0] + entries))
        #expect(list.isMinimal)
        #expect(list.mode == 0o640)
    }

    @Test("What is no list is none, whatever bytes come")
    func hostile() {
        for index in [0, 2, 3, 4] { #expect(AccessControlList(bytes(dropping: index)) == nil) }
        #expect(AccessControlList([]) == nil)
        #expect(AccessControlList([1] + bytes().dropFirst()) == nil)
        #expect(AccessControlList(bytes(mask: 8)) == nil)
        for length in 0..<bytes().count where length != 0 {
            #expect(AccessControlList(Array(bytes().prefix(length))) == nil)
        }
        var twice = bytes()
        twice.insert(contentsOf: [2, 0, 4, 0, 7, 0, 0, 0], at: 12)
        #expect(AccessControlList(twice) == nil)
        var unordered = bytes()
        unordered.replaceSubrange(4..<20, with: Array(bytes()[12..<20] + bytes()[4..<12]))
        #expect(AccessControlList(unordered) == nil)
        let seed = UInt64.random(in: 0..<1 << 32)
        print("seed \(seed)")
        var random = SeededGenerator(seed: seed)
        for _ in 0..<10_000 {
            var changed = bytes()
            changed[Int.random(in: 0..<changed.count, using: &random)] = UInt8.random(
                in: 0...255, using: &random)
            if let list = AccessControlList(changed) { #expect(list.bytes == changed) }
        }
    }
}
