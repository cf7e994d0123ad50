import Glibc
import SystemPackage
import Testing

@testable import FUSE

/// Requests that no kernel sends. Each lies at the end of a page that is followed by an inaccessible
/// one, in exactly its length.
struct ParserFuzzTests {
    private static let isLong = getenv("DELUGEFS_TEST_LONG") != nil
    private static let inputs = isLong ? 20_000_000 : 1_000_000

    @Test func noInputCrashesTheParserOrIsReadBeyondItsEnd() {
        var random = SeededGenerator.printed()
        var forge = Forge()
        let memory = GuardedPages(pages: Forge.bytesMax / Int(getpagesize()))
        let fileSystem = EmptyFileSystem()
        var understood = [Int](repeating: 0, count: Opcode.allCases.count)
        var refused = 0
        for _ in 0..<Self.inputs {
            let count = forge.make(&random)
            let packet = forge.bytes.withUnsafeBytes {
                memory.holding(UnsafeRawBufferPointer(rebasing: $0[..<count]))
            }
            let dialect = Dialect(extendedSetxattr: random.next() & 1 == 0)
            do throws(MalformedRequest) {
                let (_, opcode, operation) = try RequestParser.parse(packet, dialect: dialect)
                understood[Self.index(of: opcode)] += 1
                consume(operation, fileSystem)
            } catch {
                refused += 1
                #expect(packet.count < RequestParser.headerSize || error.unique != nil)
            }
        }
        let rarest = understood.min() ?? 0
        print("\(Self.inputs) inputs, \(refused) refused, at least \(rarest) of each opcode parsed")
        #expect(rarest > Self.inputs / 1000 && refused > Self.inputs / 10)
    }

    private static let numbers = Dictionary(
        uniqueKeysWithValues: Opcode.allCases.enumerated().map { ($1, $0) })
    private static func index(of opcode: Opcode) -> Int { numbers[opcode] ?? 0 }

    /// Touches every byte that a parsed request points at.
    private func consume(_ operation: FUSE.Operation, _ fileSystem: EmptyFileSystem) {
        switch operation {
        case .write(_, _, let data, _): touch(data)
        case .setxattr(let name, let value, _):
            touch(value)
            check(name)
        case .batchForget(let batch): fileSystem.forget(batch: batch)
        case .lookup(let name), .mkdir(let name, _, _), .mknod(let name, _, _, _),
            .unlink(let name), .rmdir(let name), .link(_, let name), .getxattr(let name, _),
            .removexattr(let name), .create(let name, _, _, _, _):
            check(name)
        case .symlink(let name, let other), .rename(let name, _, let other, _):
            check(name)
            check(other)
        default: break
        }
    }

    private func touch(_ bytes: UnsafeRawBufferPointer) {
        // One byte of each page, and the last.
        var sum = bytes.last ?? 0
        for index in stride(from: 0, to: bytes.count, by: 4096) { sum &+= bytes[index] }
        withExtendedLifetime(sum) {}
    }

    private func check(_ name: [UInt8]) {
        if name.isEmpty || name.contains(0) { Issue.record("a name that is none: \(name)") }
    }
}

/// Makes one bad request after the other, in place.
private struct Forge {
    static let bytesMax = 16_384
    private static let longestMax = 9000

    private(set) var bytes = [UInt8](repeating: 0, count: bytesMax)
    private let examples = Packet.everyRequest.map(\.1.bytes)

    /// - Returns: how many of `bytes` are the request.
    mutating func make(_ random: inout SeededGenerator) -> Int {
        let example = examples[Int(random.next() % UInt64(examples.count))]
        bytes.replaceSubrange(0..<example.count, with: example)
        var count = example.count
        let changes = Int(random.next() % 4)
        for _ in 0..<changes { change(&count, &random) }
        // Else nearly all would be refused for the length alone.
        if count >= 4, random.next() % 8 != 0 { store(UInt64(count), at: 0, width: 4) }
        return count
    }

    private mutating func change(_ count: inout Int, _ random: inout SeededGenerator) {
        let choice = random.next()
        let number = Int(choice >> 16 & 0xffff_ffff)
        switch choice & 0xf {
        case 0: count = number % (count + 1)
        case 1: lengthen(&count, by: number % 65, &random)
        case 2 where number % 16 == 0:
            lengthen(&count, by: number % Self.longestMax, &random)
        case 3: lengthen(&count, by: 8, &random)
        case 4: all(count, number, &random)
        case 5, 6: if count > 0 { bytes[number % count] = UInt8(truncatingIfNeeded: random.next()) }
        case 7: removeNULs(count)
        case 8: graft(&count, number)
        case 9: if count >= 8 { store(random.next() % 64, at: 4, width: 4) }
        case 10: if count >= 40 { store(random.next() % 32, at: 36, width: 2) }
        case 11, 12, 13: extreme(count, number, width: 4, &random)
        default: extreme(count, number, width: 8, &random)
        }
    }

    private mutating func lengthen(
        _ count: inout Int, by more: Int, _ random: inout SeededGenerator
    ) {
        let end = min(count + more, Self.longestMax)
        while count < end {
            bytes[count] = UInt8(truncatingIfNeeded: random.next())
            count += 1
        }
    }

    /// Nothing but random bytes behind the opcode, or nothing else at all.
    private mutating func all(_ count: Int, _ number: Int, _ random: inout SeededGenerator) {
        for index in (number & 1 == 0 ? 0 : 8)..<max(8, count) where index < count {
            bytes[index] = UInt8(truncatingIfNeeded: random.next())
        }
    }

    /// Names without an end.
    private mutating func removeNULs(_ count: Int) {
        for index in RequestParser.headerSize..<max(RequestParser.headerSize, count)
        where bytes[index] == 0 { bytes[index] = 0x2f }
    }

    /// The body of another request.
    private mutating func graft(_ count: inout Int, _ number: Int) {
        let other = examples[number % examples.count]
        guard count >= RequestParser.headerSize else { return }
        let body = other[RequestParser.headerSize...]
        count = RequestParser.headerSize + body.count
        bytes.replaceSubrange(RequestParser.headerSize..<count, with: body)
    }

    /// Lengths, counts, sizes and offsets at the ends of what they can be.
    private mutating func extreme(
        _ count: Int, _ number: Int, width: Int, _ random: inout SeededGenerator
    ) {
        guard count >= width else { return }
        let place = number % (count / 4) * 4
        guard place + width <= count else { return }
        let top = UInt64(1) << (UInt64(width * 8) - 1)
        let all = top - 1 + top
        let values = [
            0, 1, top - 1, top, all, all - 1, UInt64(count), UInt64(count) + 1, all / 16 + 1,
        ]
        store(values[Int(random.next() % UInt64(values.count))], at: place, width: width)
    }

    private mutating func store(_ value: UInt64, at place: Int, width: Int) {
        for index in 0..<width {
            bytes[place + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
        }
    }
}
