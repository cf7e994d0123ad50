import CStore
import Glibc
import SystemPackage

/// How bytes came from one file into another.
public enum CloneResult: Hashable, Sendable {
    /// The files share blocks until one of them is written to.
    case reflinked
    case copied
}

/// Copying between files of one disk.
enum Cloning {
    /// Bytes per step of a copy: cancellation is noticed between steps.
    static let stepBytes: UInt64 = 16 << 20

    /// Puts `range` of one file at `destination` in another, which grows as needed. Holes stay
    /// holes; what the destination had in the range is gone.
    static func clone(
        from source: CInt, to target: CInt, range: Range<UInt64>, at destination: UInt64,
        cancellation: Cancellation?
    ) throws(StoreError) -> CloneResult {
        guard !range.isEmpty else { return .copied }
        let before = try FileStatus(of: target)
        let end = destination + UInt64(range.count)
        let sourceStatus = try FileStatus(of: source)
        guard sourceStatus.size >= range.upperBound else { throw StoreError("clone", .wrongLength) }
        let result = cstore_clone_range(
            source, range.lowerBound, UInt64(range.count), target, destination)
        if result == 0 { return .reflinked }
        guard isRefusal(Errno(rawValue: -result)) else {
            throw StoreError("reflink", Errno(rawValue: -result))
        }
        if before.size < end {
            try system("ftruncate") { cstore_ftruncate(target, end) }
        }
        if before.size > destination, before.blocks512 > 0 {
            try clear(target, destination..<min(end, before.size), cancellation)
        }
        try copy(
            from: source, range, to: target, at: destination, isSparse: sourceStatus.isSparse,
            cancellation)
        return .copied
    }

    /// What a disk without reflinks, or with larger blocks than the range, answers.
    private static func isRefusal(_ errno: Errno) -> Bool {
        let refusals: [Errno] = [
            .notSupported, .invalidArgument, .improperLink, Errno(rawValue: ENOTTY), .noFunction,
            .textFileBusy,
            .notPermitted,
        ]
        return refusals.contains(errno)
    }

    /// Puts the bytes where nothing is yet.
    ///
    /// - Parameter isSparse: holes of the source are left out.
    static func copy(
        from source: CInt, _ range: Range<UInt64>, to target: CInt, at destination: UInt64,
        isSparse: Bool, _ cancellation: Cancellation?
    ) throws(StoreError) {
        var position = range.lowerBound
        var canCopyInKernel = true
        while position < range.upperBound {
            var dataEnd = range.upperBound
            if isSparse {
                position = try nextData(in: source, from: position)
                guard position < range.upperBound else { return }
                dataEnd = try nextHole(in: source, from: position, end: range.upperBound)
            }
            while position < dataEnd {
                try cancellation?.check("copy")
                let target = (file: target, offset: destination + (position - range.lowerBound))
                let length = min(stepBytes, dataEnd - position)
                if canCopyInKernel {
                    let count = cstore_copy_range(
                        source, position, target.file, target.offset, length)
                    if count > 0 {
                        position += UInt64(count)
                        continue
                    }
                    let errno = Errno(rawValue: CInt(-count))
                    if errno == .interrupted { continue }
                    guard count == 0 || isRefusal(errno) else {
                        throw StoreError("copy_file_range", errno)
                    }
                    canCopyInKernel = false
                }
                try copyThroughMemory(source, position, target.file, target.offset, length)
                position += length
            }
        }
    }

    private static func copyThroughMemory(
        _ source: CInt, _ from: UInt64, _ target: CInt, _ to: UInt64, _ length: UInt64
    ) throws(StoreError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        var done: UInt64 = 0
        while done < length {
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer[..<Int(min(UInt64(buffer.count), length - done))])
            let count = try read(into: part, from: source, at: from + done, "for copy")
            guard count == part.count else { throw StoreError("copy", .wrongLength) }
            try write(UnsafeRawBufferPointer(part), to: target, at: to + done, "copy")
            done += UInt64(count)
        }
    }

    /// Makes a range a hole; where the disk cannot, writes zeros.
    private static func clear(
        _ file: CInt, _ range: Range<UInt64>, _ cancellation: Cancellation?
    ) throws(StoreError) {
        let result = cstore_punch(file, range.lowerBound, UInt64(range.count))
        if result == 0 { return }
        guard isRefusal(Errno(rawValue: -result)) else {
            throw StoreError("punch", Errno(rawValue: -result))
        }
        let zeros = [UInt8](repeating: 0, count: 1 << 20)
        var position = range.lowerBound
        while position < range.upperBound {
            try cancellation?.check("copy")
            let count = min(UInt64(zeros.count), range.upperBound - position)
            try write(Array(zeros[..<Int(count)]), to: file, at: position, "zeros")
            position += count
        }
    }
}
