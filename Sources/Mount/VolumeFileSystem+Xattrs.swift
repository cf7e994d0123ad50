import Catalog
public import FUSE
import SystemPackage
import Volume

extension VolumeFileSystem {
    /// `user.delugefs.` names say what the volume knows of a file; they are not stored.
    private static let derivedPrefix = Array("user.delugefs.".utf8)
    /// Not offered yet: the kernel is told so, and programs go on without.
    private static let aclPrefix = Array("system.posix_acl_".utf8)

    public func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply
    ) {
        do throws(Errno) {
            guard !name.starts(with: Self.aclPrefix) else { throw .notSupported }
            let vnode = try vnode(request)
            if let value = try derivedXattr(vnode.ino, name) {
                reply.xattr(value, capacity: capacity)
                return
            }
            let value = try perform("getxattr") { tx throws(Errno) in
                try tx.xattr(vnode.ino, name)
            }
            reply.xattr(value, capacity: capacity)
        } catch { reply.error(error) }
    }

    public func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply) {
        do throws(Errno) {
            let vnode = try vnode(request)
            let names = try perform("listxattr") { tx throws(Errno) in
                try tx.xattrNames(vnode.ino)
            }
            reply.xattr(names.flatMap { $0 + [0] }, capacity: capacity)
        } catch { reply.error(error) }
    }

    public func setxattr(
        _ request: RequestHeader, name: [UInt8], value: UnsafeRawBufferPointer,
        flags: SetXattrFlags, reply: consuming Reply
    ) {
        do throws(Errno) {
            let vnode = try vnode(request)
            try checkWritable(name)
            let mode: XattrMode =
                flags.contains(.create) ? .create : flags.contains(.replace) ? .replace : .set
            let value = Array(value)
            _ = try perform("setxattr") { tx throws(Errno) in
                try tx.setXattr(vnode.ino, name, value, mode, now: .now)
            }
            changed()
            reply.empty()
        } catch { reply.error(error) }
    }

    public func removexattr(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        do throws(Errno) {
            let vnode = try vnode(request)
            try checkWritable(name)
            _ = try perform("removexattr") { tx throws(Errno) in
                try tx.removeXattr(vnode.ino, name, now: .now)
            }
            changed()
            reply.empty()
        } catch { reply.error(error) }
    }

    private func checkWritable(_ name: [UInt8]) throws(Errno) {
        guard !name.starts(with: Self.aclPrefix) else { throw .notSupported }
        guard name.starts(with: Self.derivedPrefix) else { return }
        let settable = ["user.delugefs.copies", "user.delugefs.fsync-copies"]
        guard settable.contains(where: { Array($0.utf8) == name }) else { throw .notPermitted }
    }

    /// nil for a name that is stored like any other.
    private func derivedXattr(_ ino: InodeNumber, _ name: [UInt8]) throws(Errno) -> [UInt8]? {
        guard name.starts(with: Self.derivedPrefix) else { return nil }
        let extents = try perform("getxattr") { tx throws(Errno) -> [Extent]? in
            guard let inode = try tx.inode(ino), inode.kind == .file else { return nil }
            return try tx.content(of: ino).extents
        }
        guard let extents else { return nil }
        switch String(decoding: name.dropFirst(Self.derivedPrefix.count), as: UTF8.self) {
        case "root": return Array(extents.map { "\($0.root)" }.joined(separator: ",").utf8)
        case "holders": return Array(holders(extents).joined(separator: ",").utf8)
        case "copies.now": return Array("\(holders(extents).count)".utf8)
        case "local": return Array("\(try localPercent(extents))".utf8)
        default: return nil
        }
    }

    private func localPercent(_ extents: [Extent]) throws(Errno) -> UInt64 {
        let total = extents.reduce(0) { $0 + $1.length }
        guard total > 0 else { return 100 }
        let here = try perform("getxattr") { tx throws(Errno) in
            var here: UInt64 = 0
            for extent in extents {
                guard let entry = try tx.content(extent.root) else { continue }
                switch entry.state {
                case .cached, .stored, .dropping: here += extent.length
                case .partial:
                    let pieces = UInt64((entry.verified ?? []).reduce(0) { $0 + $1.nonzeroBitCount })
                    here += min(extent.length, pieces * extent.pieceBytes)
                default: break
                }
            }
            return here
        }
        return here * 100 / total
    }
}
