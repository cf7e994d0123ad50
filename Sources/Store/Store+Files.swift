import CStore
import Glibc
public import SystemPackage
public import Volume

// Calls on staging files and objects that have no Swift counterpart.
extension Store {
    /// The corresponding C function is `fallocate`.
    public func allocate(
        _ file: FileDescriptor, mode: Int32, offset: UInt64, length: UInt64
    ) throws(StoreError) {
        try system("fallocate") { cstore_fallocate(file.rawValue, mode, offset, length) }
    }

    /// Writes at an offset.
    ///
    /// - Returns: how much was written: all, unless the disk became full on the way.
    public static func writeSome(
        _ data: UnsafeRawBufferPointer, to file: FileDescriptor, at offset: UInt64
    ) throws(StoreError) -> Int {
        var done = 0
        while done < data.count {
            let rest = UnsafeRawBufferPointer(rebasing: data[done...])
            do throws(StoreError) {
                done += Int(
                    try system("write staging") {
                        cstore_pwrite(
                            file.rawValue, rest.baseAddress, UInt64(rest.count),
                            offset + UInt64(done))
                    })
            } catch {
                guard done > 0 else { throw error }
                break
            }
        }
        return done
    }

    /// Copies up to `length` bytes; how many it were. The corresponding C function is
    /// `copy_file_range`.
    public func copySome(
        from source: FileDescriptor, at sourceOffset: UInt64, to target: FileDescriptor,
        at targetOffset: UInt64, length: UInt64
    ) throws(StoreError) -> Int {
        Int(
            try system("copy_file_range") {
                cstore_copy_some(
                    source.rawValue, sourceOffset, target.rawValue, targetOffset, length)
            })
    }

    /// Whether a file is a copy of the object that shares all its blocks, and so has the same bytes.
    /// Nobody may write to it meanwhile.
    public func isClone(_ file: FileDescriptor, of extent: Extent) throws(StoreError) -> Bool {
        guard try abilities().supportsReflink,
            let object = try fanOut(extent.root).openIfPresent("\(extent.root)", O_RDONLY),
            try FileStatus(of: object.raw).size == extent.length,
            try FileStatus(of: file.rawValue).size == extent.length
        else { return false }
        return cstore_same_blocks(file.rawValue, object.raw) == 1
    }

    /// The offset of the next data or hole. Throws ENXIO behind the end.
    public func seek(
        _ file: FileDescriptor, from offset: UInt64, toHole: Bool
    ) throws(StoreError) -> UInt64 {
        UInt64(
            try system("lseek") {
                toHole
                    ? cstore_next_hole(file.rawValue, offset)
                    : cstore_next_data(file.rawValue, offset)
            })
    }

    public func setModified(_ file: FileDescriptor, _ time: Timestamp) throws(StoreError) {
        try system("futimens") {
            cstore_set_modified(file.rawValue, time.seconds, time.nanoseconds)
        }
    }
}
