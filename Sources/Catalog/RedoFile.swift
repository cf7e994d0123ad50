internal import Glibc
internal import SystemPackage

/// The operations of the open batch in a file: from the moment they are answered they survive a kill of
/// this process, for one short write instead of a COMMIT.
///
/// A record is one append: length (4 bytes), checksum (8), payload; both numbers and those in the payload
/// little-endian. The payload names each statement by its text once in a batch, then by number:
///
///     count of new texts (2), per text: length (4), bytes
///     count of statements (4), per statement: number of its text (2)
///     the parameters, as in `RedoLog`
///
/// The checksum covers the number of the batch (random at the start, one more with each COMMIT, which
/// stores it in `meta`), the boot and the place in the file: what is left of earlier batches does
/// not count, so a batch is never run twice, and nobody can forge a record by what he has the
/// catalog write. After a power cut nothing here counts: it was never synced, nor was what its rows
/// lead to.
///
/// Not Sendable: confined to whoever holds the writer's lock.
final class RedoFile {
    /// A batch of more than this is committed: the file's blocks are owned ahead.
    static let bytesMax: UInt64 = 4 << 20
    static let headerBytes = 12

    private let file: FileDescriptor
    private let boot: UInt64
    private var batch: UInt64
    private var end: UInt64 = 0
    private var kept = RedoLog().mark
    private var hasFailed = false
    private var numbers: [ObjectIdentifier: UInt16] = [:]
    private var buffer: [UInt8] = []

    /// - Parameter batch: the number in `meta`.
    init(
        path: FilePath, batch: UInt64, own: (UInt64, FileDescriptor) -> Bool
    ) throws {
        self.boot = try Self.currentBoot()
        self.batch = batch
        file = try FileDescriptor.open(
            path, .readWrite, options: [.create, .closeOnExec], permissions: .ownerReadWrite)
        _ = own(Self.bytesMax, file)
    }

    /// A COMMIT has stored this number.
    func began(_ batch: UInt64) {
        self.batch = batch
        end = 0
        kept = RedoLog().mark
        hasFailed = false
        numbers.removeAll(keepingCapacity: true)
    }

    /// Adds what came to the log since the last call. False: it does not fit or could not be written;
    /// then only a COMMIT keeps it.
    func append(_ log: RedoLog) -> Bool {
        guard log.mark != kept else { return true }
        guard !hasFailed, end + UInt64(log.bytes.count - kept.bytes) <= Self.bytesMax else {
            return false
        }
        buffer.removeAll(keepingCapacity: true)
        buffer.append(contentsOf: repeatElement(0, count: Self.headerBytes))
        encode(log)
        hasFailed = end + UInt64(buffer.count) > Self.bytesMax
        guard !hasFailed else { return false }
        let sum = Self.checksum(
            buffer[Self.headerBytes...], batch: batch, boot: boot, offset: end)
        buffer.withUnsafeMutableBytes {
            $0.storeBytes(of: UInt32($0.count - Self.headerBytes).littleEndian, as: UInt32.self)
            $0.storeBytes(of: sum.littleEndian, toByteOffset: 4, as: UInt64.self)
        }
        let written = buffer.withUnsafeBytes {
            pwrite(file.rawValue, $0.baseAddress, $0.count, off_t(end))
        }
        hasFailed = written != buffer.count
        guard !hasFailed else { return false }
        end += UInt64(buffer.count)
        kept = log.mark
        return true
    }

    private func encode(_ log: RedoLog) {
        let statements = log.statements[kept.statements...]
        var texts: [String] = []
        for statement in statements where numbers[ObjectIdentifier(statement)] == nil {
            numbers[ObjectIdentifier(statement)] = UInt16(numbers.count)
            texts.append(statement.text)
        }
        append(UInt16(texts.count))
        for text in texts {
            append(UInt32(text.utf8.count))
            buffer.append(contentsOf: text.utf8)
        }
        append(UInt32(statements.count))
        // Each was given a number above.
        for statement in statements { append(numbers[ObjectIdentifier(statement)]!) }
        buffer.append(contentsOf: log.bytes[kept.bytes...])
    }

    private func append(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value.littleEndian) { buffer.append(contentsOf: $0) }
    }

    func close() { _ = try? file.close() }

    // MARK: - Format

    /// Another one after each start of the machine.
    private static func currentBoot() throws -> UInt64 {
        let file = try FileDescriptor.open(
            "/proc/sys/kernel/random/boot_id", .readOnly, options: .closeOnExec)
        defer { _ = try? file.close() }
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = try bytes.withUnsafeMutableBytes { try file.read(into: $0) }
        guard count > 0 else { throw Errno.ioError }
        return checksum(bytes[..<count], batch: 0, boot: 0, offset: 0)
    }

    private static func checksum(
        _ bytes: ArraySlice<UInt8>, batch: UInt64, boot: UInt64, offset: UInt64
    ) -> UInt64 {
        var sum: UInt64 = 0x9E37_79B9_7F4A_7C15
        func mix(_ word: UInt64) {
            sum = (sum ^ word) &* 0xBF58_476D_1CE4_E5B9
            sum ^= sum >> 29
        }
        for word in [batch, boot, offset, UInt64(bytes.count)] { mix(word) }
        bytes.withUnsafeBytes { bytes in
            var place = 0
            while place + 8 <= bytes.count {
                mix(
                    UInt64(
                        littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: UInt64.self)))
                place += 8
            }
            for byte in bytes[place...] { mix(UInt64(byte)) }
        }
        // The last word has only been multiplied upwards.
        sum = (sum ^ sum >> 32) &* 0x94D0_49BB_1331_11EB
        return sum ^ sum >> 31
    }

    // MARK: - Reading

    /// What a killed process left.
    struct Operation {
        var texts: [String]
        var parameters: [UInt8]
    }

    /// The operations that were kept of the batch with this number.
    static func operations(at path: FilePath, of batch: UInt64) throws -> [Operation] {
        let file: FileDescriptor
        do {
            file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
        } catch Errno.noSuchFileOrDirectory { return [] }
        defer { _ = try? file.close() }
        var bytes = [UInt8](repeating: 0, count: Int(bytesMax))
        var count = 0
        while count < bytes.count {
            let more = try bytes[count...].withUnsafeMutableBytes {
                try file.read(fromAbsoluteOffset: Int64(count), into: $0)
            }
            if more == 0 { break }
            count += more
        }
        let boot = try currentBoot()
        var operations: [Operation] = []
        var texts: [String] = []
        var rest = RedoCursor(bytes[..<count])
        while let operation = next(&rest, &texts, batch: batch, boot: boot) {
            operations.append(operation)
        }
        return operations
    }

    /// - Returns: nil behind the last record.
    private static func next(
        _ cursor: inout RedoCursor, _ texts: inout [String], batch: UInt64, boot: UInt64
    ) -> Operation? {
        let offset = UInt64(cursor.offset)
        guard let length = cursor.integer(UInt32.self), let sum = cursor.integer(UInt64.self),
            let payload = cursor.bytes(Int(length)), !payload.isEmpty,
            sum == checksum(payload, batch: batch, boot: boot, offset: offset)
        else { return nil }
        var record = RedoCursor(payload)
        guard let newTexts = record.integer(UInt16.self) else { return nil }
        for _ in 0..<newTexts {
            guard let length = record.integer(UInt32.self), let text = record.bytes(Int(length))
            else { return nil }
            texts.append(String(decoding: text, as: UTF8.self))
        }
        guard let count = record.integer(UInt32.self) else { return nil }
        var operation = Operation(texts: [], parameters: [])
        for _ in 0..<count {
            guard let number = record.integer(UInt16.self), number < texts.count else { return nil }
            operation.texts.append(texts[Int(number)])
        }
        operation.parameters = Array(record.rest)
        return operation
    }
}
