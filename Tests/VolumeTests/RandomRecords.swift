import FoundationEssentials
import Simulation

@testable import Volume

/// Seeds of this run: from DELUGEFS_SEED if set, else new ones; each test shows the one it was given.
func testSeeds(_ count: Int) -> [UInt64] {
    let first =
        ProcessInfo.processInfo.environment["DELUGEFS_SEED"].flatMap { UInt64($0) }
        ?? UInt64.random(in: 0..<1 << 32)
    return (0..<UInt64(count)).map { first + $0 }
}

extension SeededGenerator {
    mutating func number(_ range: Range<Int>) -> Int { Int.random(in: range, using: &self) }

    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8.random(in: 0...255, using: &self) }
    }

    mutating func identity() -> UInt64 { UInt64.random(in: 1..<1 << 63, using: &self) }

    mutating func stamp() -> Stamp {
        let limit = once(in: 4) ? 300 : Limits.stampMillisecondsEnd
        return Stamp(
            milliseconds: UInt64.random(in: 0..<limit, using: &self),
            counter: UInt16.random(in: 0...(once(in: 2) ? 0 : .max), using: &self),
            node: NodeID(high: next(), low: next()))
    }

    mutating func extent() -> Extent {
        // 32 bytes make a root.
        let root = ContentRoot(bytes: bytes(32)).unsafelyUnwrapped
        return Extent(
            root: root, length: UInt64.random(in: 1...Limits.extentBytesMax, using: &self))
    }

    mutating func body() -> Body {
        switch number(0..<9) {
        case 0: .file(.empty)
        case 1: .file(.inline(bytes(number(1..<5000) % (Limits.inlineBytesMax + 1))))
        case 2: .file(.extents((0..<number(1..<4)).map { _ in extent() }))
        case 3: .directory
        case 4: .symlink(bytes(number(1..<200)).map { max(1, $0) })
        case 5: .fifo
        case 6: .socket
        case 7: .characterDevice(major: .random(in: 0...(.max), using: &self), minor: 3)
        default: .blockDevice(major: 8, minor: .random(in: 0...(.max), using: &self))
        }
    }

    mutating func record(body: Body? = nil) -> Record {
        let id = LineageID(rawValue: identity())
        let stamp = stamp()
        let time = Timestamp(
            seconds: once(in: 3) ? -5 : Int64(bitPattern: next()),
            nanoseconds: .random(in: 0..<1_000_000_000, using: &self))
        var record = Record(
            id: id, ino: InodeNumber(rawValue: once(in: 2) ? id.rawValue : identity()),
            content: Stamped(BodyGroup(body: body ?? self.body(), modified: time), stamp),
            mode: Stamped(
                .random(in: 0...0o7777, using: &self), once(in: 2) ? stamp : self.stamp()),
            owner: Stamped(
                Owner(uid: .random(in: 0...(.max), using: &self), gid: 0),
                once(in: 2) ? stamp : self.stamp()))
        for _ in 0..<number(0..<4) {
            let name =
                once(in: 2) ? Array("user.a\(number(0..<3))".utf8) : bytes(3).map { max(1, $0) }
            record.xattrs[name] = Stamped(
                bytes(number(0..<20)), once(in: 2) ? stamp : self.stamp())
        }
        return record
    }

    mutating func entry() -> EntryBlob {
        let record = record()
        let link = Link(id: LinkID(rawValue: identity()), stamp: stamp(), target: record.id)
        return switch number(0..<6) {
        case 0 where !record.isDirectory: .shared(record, links: number(2..<1000))
        case 1: .reference(link)
        default: .single(record, link)
        }
    }
}
