import CStore
import Glibc
import SystemPackage

/// Runs a call of `CStore` (negative errno on failure) again while signals interrupt it.
///
/// - Throws: `StoreError` with the operation's text, evaluated on failure only.
@discardableResult
func system<Result: SignedInteger & FixedWidthInteger>(
    _ operation: @autoclosure () -> String, _ call: () -> Result
) throws(StoreError) -> Result {
    while true {
        let result = call()
        if result >= 0 { return result }
        let errno = Errno(rawValue: CInt(-result))
        if errno == .interrupted { continue }
        // A closed descriptor of our own may by now be somebody else's file: stop before damage.
        precondition(errno != .badFileDescriptor, "\(operation()): EBADF on our own descriptor")
        throw StoreError(operation(), errno)
    }
}

/// A descriptor that closes with its scope. Whatever must be durable was synced before.
struct OwnedDescriptor: ~Copyable {
    let raw: CInt

    deinit { Glibc.close(raw) }

    var descriptor: FileDescriptor { FileDescriptor(rawValue: raw) }

    /// Hands the descriptor to the caller, who closes it.
    consuming func release() -> FileDescriptor {
        let descriptor = descriptor
        discard self
        return descriptor
    }
}

struct FileStatus {
    let device: UInt64
    let inode: UInt64
    let size: UInt64
    let blocks512: UInt64
    let mode: UInt32
    let links: UInt64

    init(_ status: cstore_stat) {
        device = status.device
        inode = status.inode
        size = status.size
        blocks512 = status.blocks512
        mode = status.mode
        links = UInt64(status.links)
    }

    init(of file: CInt) throws(StoreError) {
        var status = cstore_stat()
        try system("fstat") { cstore_fstat(file, &status) }
        self.init(status)
    }

    /// Blocks are missing: holes are worth looking for.
    var isSparse: Bool { blocks512 * 512 < size }
    var isRegular: Bool { mode & UInt32(S_IFMT) == UInt32(S_IFREG) }
}

/// The file's last written bytes and its length reach the disk. The corresponding C function is
/// `fsync`.
func synchronize(_ file: CInt, _ operation: @autoclosure () -> String) throws(StoreError) {
    try system("fsync \(operation())") { cstore_fsync(file) }
}

/// Writes all bytes from `offset` on.
func write(
    _ bytes: UnsafeRawBufferPointer, to file: CInt, at offset: UInt64,
    _ operation: @autoclosure () -> String
) throws(StoreError) {
    var done = 0
    while done < bytes.count {
        let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
        done += Int(
            try system("write \(operation())") {
                cstore_pwrite(file, rest.baseAddress, UInt64(rest.count), offset + UInt64(done))
            })
    }
}

func write(
    _ bytes: [UInt8], to file: CInt, at offset: UInt64 = 0, _ operation: String
) throws(StoreError) {
    var failure: StoreError?
    bytes.withUnsafeBytes { buffer in
        do throws(StoreError) {
            try write(buffer, to: file, at: offset, operation)
        } catch { failure = error }
    }
    if let failure { throw failure }
}

/// Reads until the buffer is full or the file ends; the number of bytes read.
func read(
    into buffer: UnsafeMutableRawBufferPointer, from file: CInt, at offset: UInt64,
    _ operation: @autoclosure () -> String
) throws(StoreError) -> Int {
    var done = 0
    while done < buffer.count {
        let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
        let count = Int(
            try system("read \(operation())") {
                cstore_pread(file, rest.baseAddress, UInt64(rest.count), offset + UInt64(done))
            })
        if count == 0 { break }
        done += count
    }
    return done
}

/// Later reads of the range come from the disk, as far as the kernel complies.
func dropCache(_ file: CInt, offset: UInt64, length: UInt64) {
    _ = cstore_drop_cache(file, offset, length)
}

/// Where data begins at or after an offset; `UInt64.max` when only a hole follows. The
/// corresponding C function is `lseek` with `SEEK_DATA`.
func nextData(in file: CInt, from offset: UInt64) throws(StoreError) -> UInt64 {
    let result = cstore_next_data(file, offset)
    if result >= 0 { return UInt64(result) }
    let errno = Errno(rawValue: CInt(-result))
    if errno == .noSuchAddressOrDevice { return .max }
    // A file system without it: everything may be data.
    if errno == .invalidArgument || errno == .notSupported { return offset }
    throw StoreError("seek data", errno)
}

/// Where the data that begins at `offset` ends.
func nextHole(in file: CInt, from offset: UInt64, end: UInt64) throws(StoreError) -> UInt64 {
    let result = cstore_next_hole(file, offset)
    if result >= 0 { return min(UInt64(result), end) }
    let errno = Errno(rawValue: CInt(-result))
    if errno == .noSuchAddressOrDevice || errno == .invalidArgument || errno == .notSupported {
        return end
    }
    throw StoreError("seek hole", errno)
}
