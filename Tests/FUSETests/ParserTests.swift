import CFUSE
import SystemPackage
import Testing

@testable import FUSE

struct ParserTests {
    @Test func theHeadOfARequestIsDecoded() throws {
        try Packet(Opcode.readlink, unique: 0x1122_3344_5566_7788, nodeid: 42).parsed {
            header, opcode, _ in
            #expect(opcode == .readlink)
            #expect(
                header
                    == RequestHeader(
                        unique: 0x1122_3344_5566_7788, nodeid: 42, uid: 1000, gid: 100, pid: 4711))
        }
    }

    @Test func aLookupAsTheKernelWritesIt() throws {
        let bytes: [UInt8] = [
            43, 0, 0, 0, 1, 0, 0, 0,  // length, opcode
            6, 0, 0, 0, 0, 0, 0, 0,  // unique
            1, 0, 0, 0, 0, 0, 0, 0,  // node
            0, 0, 0, 0, 0, 0, 0, 0,  // uid, gid
            9, 0, 0, 0, 0, 0, 0, 0,  // pid, extensions, padding
            0xc3, 0x28, 0,  // a name that is not UTF-8
        ]
        try bytes.withUnsafeBytes { buffer in
            let (header, _, operation) = try RequestParser.parse(buffer, dialect: Dialect())
            #expect(header.unique == 6 && header.pid == 9)
            guard case .lookup(let name) = operation else {
                Issue.record("not a lookup: \(operation)")
                return
            }
            #expect(name == [0xc3, 0x28])
        }
    }

    @Test(arguments: Opcode.allCases)
    func everyRequestIsUnderstood(_ opcode: Opcode) throws {
        try Packet.example(of: opcode).parsed { _, parsed, _ in #expect(parsed == opcode) }
    }

    @Test func aWriteCarriesExactlyItsData() throws {
        try Packet.example(of: .write).appending([1, 2, 3]).parsed { _, _, operation in
            guard case .write(9, 4096, let data, let flags) = operation else {
                Issue.record("not that write: \(operation)")
                return
            }
            #expect([UInt8](data) == Array("hello".utf8))
            #expect(flags == .killPrivileges)
        }
    }

    @Test func attributeChangesKeepNegativeTimes() throws {
        try Packet.example(of: .setattr).parsed { _, _, operation in
            guard case .setattr(let changes) = operation else {
                Issue.record("not a setattr: \(operation)")
                return
            }
            #expect(changes.mtime == Timestamp(seconds: -5))
            #expect(changes.fields.isSuperset(of: [.mode, .killPrivileges, .mtimeNow, .handle]))
        }
    }

    @Test func bothShapesOfSetxattrAreUnderstood() throws {
        func check(_ operation: FUSE.Operation, _ flags: SetXattrFlags) {
            guard case .setxattr(let name, let value, flags) = operation else {
                Issue.record("not that setxattr: \(operation)")
                return
            }
            #expect(name == Array("user.x".utf8))
            #expect([UInt8](value) == Array("value".utf8))
        }
        try Packet.example(of: .setxattr).parsed { check($2, [.create, .killSetGroupID]) }
        // Without the extension bit 31 of the flags must not be taken for ours.
        let short = Packet(.setxattr).body(cfuse_getxattr_in(size: 5, padding: 0x8000_0002))
            .name("user.x").appending(Array("value".utf8))
        try short.parsed(extendedSetxattr: false) { check($2, .replace) }
    }

    @Test func aShortCopyRequestIsClampedToWhatItsAnswerCanSay() throws {
        func length(_ opcode: Opcode) throws -> UInt64 {
            try Packet.example(of: opcode).parsed { _, _, operation in
                guard case .copyFileRange(let copy) = operation else { return 0 }
                return copy.length
            }
        }
        #expect(try length(.copyFileRange) == 0xffff_f000)
        #expect(try length(.copyFileRange64) == 0x1_0000_0000)
    }

    @Test func initOfBeforeProtocol36HasOneWordOfFlags() throws {
        let packet = Packet(.initialize).body(
            cfuse_access_in(mask: 7, padding: 32)
        ).body(cfuse_access_in(mask: 65536, padding: 0xffff_ffff))
        try packet.parsed { _, _, operation in
            guard case .initialize(let request) = operation else { return }
            #expect(request.minor == 32 && request.maxReadahead == 65536)
            #expect(request.flags.rawValue == 0xffff_ffff)
        }
    }

    @Test func extensionsBehindTheBodyAreLeftOut() throws {
        var packet = Packet.example(of: .lookup).appending([UInt8](repeating: 65, count: 16))
        packet.bytes[36] = 2
        try packet.parsed { _, _, operation in
            guard case .lookup(let name) = operation else { return }
            #expect(name == Array("name".utf8))
        }
        packet.bytes[36] = 200
        #expect(throws: MalformedRequest.self) { try packet.parsed { _, _, _ in } }
    }

    @Test func anUnknownRequestIsAnsweredENOSYS() {
        let unknown = MalformedRequest(unique: 2, errno: .noFunction, opcode: 4096)
        #expect(throws: unknown) { try Packet(4096).parsed { _, _, _ in } }
    }

    @Test func requestsThatLieAboutTheirLengthAreRefused() {
        var packet = Packet.example(of: .open)
        packet.bytes[0] += 1
        let malformed = MalformedRequest(
            unique: 2, errno: .invalidArgument, opcode: Opcode.open.rawValue)
        #expect(throws: malformed) { try packet.parsed { _, _, _ in } }
        let write = Packet.example(of: .write)
        var cut = Packet(.write)
        cut.bytes = Array(write.bytes.dropLast())
        cut.seal()
        #expect(throws: MalformedRequest.self) { try cut.parsed { _, _, _ in } }
    }

    @Test func aNameWithoutAnEndOrWithoutBytesIsRefused() {
        for body in [Array("name".utf8), [0], []] {
            let packet = Packet(.lookup).appending(body)
            #expect(throws: MalformedRequest.self) { try packet.parsed { _, _, _ in } }
        }
    }
}

/// Nothing but the defaults.
final class EmptyFileSystem: FileSystem {}

/// splitmix64: small, and the same everywhere.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    /// Starts from a seed that is printed, to be repeated by putting it here.
    static func printed() -> SeededGenerator {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        return SeededGenerator(seed: seed)
    }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
