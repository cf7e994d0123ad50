import CStore
import Glibc
import SystemPackage

/// One directory of the root, held open: every access goes beneath its descriptor, so that a root
/// that is renamed or mounted over meanwhile stays the same root.
///
/// Names given here are our own ASCII names (hexadecimal digits, decimal numbers), never a user's.
final class Directory: Sendable {
    let raw: CInt
    /// For messages.
    let label: String
    /// Nothing is made beneath it.
    let isReadOnly: Bool

    init(raw: CInt, label: String, isReadOnly: Bool = false) {
        self.raw = raw
        self.label = label
        self.isReadOnly = isReadOnly
    }

    deinit { Glibc.close(raw) }

    /// Opens the directory at a path of the process.
    convenience init(
        path: [UInt8], label: String, isReadOnly: Bool = false
    ) throws(StoreError) {
        let name = path.map { CChar(bitPattern: $0) } + [0]
        let raw = try system("open \(label)") {
            cstore_openat(AT_FDCWD, name, O_RDONLY | O_DIRECTORY, 0)
        }
        self.init(raw: raw, label: label, isReadOnly: isReadOnly)
    }

    /// A subdirectory, made (0700) when it is missing and may be.
    func subdirectory(_ name: String) throws(StoreError) -> Directory {
        if !isReadOnly {
            let made = cstore_mkdirat(raw, name, 0o700)
            guard made == 0 || Errno(rawValue: -made) == .fileExists else {
                throw StoreError("mkdir \(label)/\(name)", Errno(rawValue: -made))
            }
            if made == 0 { try synchronize() }
        }
        let opened = try system("open \(label)/\(name)") {
            cstore_openat(raw, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)
        }
        return Directory(raw: opened, label: "\(label)/\(name)", isReadOnly: isReadOnly)
    }

    /// - Parameter flags: as in open(2); O_CLOEXEC and O_NOFOLLOW are added. New files get 0600.
    func open(_ name: String, _ flags: CInt) throws(StoreError) -> OwnedDescriptor {
        let opened = try system("open \(label)/\(name)") {
            cstore_openat(raw, name, flags | O_NOFOLLOW, 0o600)
        }
        return OwnedDescriptor(raw: opened)
    }

    /// nil when there is no such name.
    func openIfPresent(_ name: String, _ flags: CInt) throws(StoreError) -> OwnedDescriptor? {
        do {
            return try open(name, flags)
        } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return nil
        }
    }

    /// nil when there is no such name.
    func status(_ name: String) throws(StoreError) -> FileStatus? {
        var status = cstore_stat()
        do {
            try system("stat \(label)/\(name)") { cstore_fstatat(raw, name, &status) }
        } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return nil
        }
        return FileStatus(status)
    }

    /// False when there was no such name.
    @discardableResult
    func remove(_ name: String) throws(StoreError) -> Bool {
        do {
            try system("unlink \(label)/\(name)") { cstore_unlinkat(raw, name) }
        } catch {
            guard error.errno == .noSuchFileOrDirectory else { throw error }
            return false
        }
        return true
    }

    /// Replaces what bears the name.
    func rename(
        _ name: String, to directory: Directory, _ newName: String
    ) throws(StoreError) {
        try system("rename \(label)/\(name) to \(directory.label)/\(newName)") {
            cstore_renameat(raw, name, directory.raw, newName)
        }
    }

    /// Every entry made, renamed or removed so far is durable. The corresponding C function is
    /// `fsync`.
    func synchronize() throws(StoreError) {
        try system("fsync \(label)") { cstore_fsync(raw) }
    }

    /// Every name, in the order of the disk; names that are not UTF-8 are not ours and left out.
    /// The body answers false to end the listing.
    func forEachName(_ body: (String) throws(StoreError) -> Bool) throws(StoreError) {
        var listing: OpaquePointer?
        try system("list \(label)") { cstore_listing_open(raw, &listing) }
        defer { cstore_listing_close(listing) }
        var buffer = [CChar](repeating: 0, count: 256)
        while try system("list \(label)", { cstore_listing_next(listing, &buffer) }) == 1 {
            let bytes = buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            guard let name = String(validating: bytes, as: UTF8.self) else { continue }
            guard try body(name) else { return }
        }
    }
}
