import Catalog
public import FUSE
import SystemPackage
import Volume

extension VolumeFileSystem {
    private static let accessControlPrefix = Array("system.posix_acl_".utf8)

    public func getxattr(
        _ request: RequestHeader, name: [UInt8], capacity: Int, reply: consuming Reply
    ) {
        do throws(Errno) {
            let vnode = try vnode(request)
            if let value = try derivedXattr(vnode.ino, name) {
                reply.xattr(value, capacity: capacity)
                return
            }
            let value = try query("getxattr") { reader throws(Errno) in
                try reader.xattr(vnode.ino, name)
            }
            reply.xattr(value, capacity: capacity)
        } catch { reply.error(error) }
    }

    public func listxattr(_ request: RequestHeader, capacity: Int, reply: consuming Reply) {
        do throws(Errno) {
            let vnode = try vnode(request)
            let names = try query("listxattr") { reader throws(Errno) in
                try reader.xattrNames(vnode.ino)
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
            let value = Array(value)
            try checkWritable(name, vnode.ino)
            try checkValue(value, of: name)
            let mode: XattrMode =
                flags.contains(.create) ? .create : flags.contains(.replace) ? .replace : .set
            _ = try performMaking("setxattr") { tx throws(Errno) in
                switch name {
                case AccessControlList.accessName:
                    try tx.setAccessList(
                        vnode.ino, value, killsSetGroupID: flags.contains(.killSetGroupID),
                        now: .now)
                case AccessControlList.defaultName:
                    try tx.setDefaultList(vnode.ino, value, now: .now)
                default: _ = try tx.setXattr(vnode.ino, name, value, mode, now: .now)
                }
            }
            vnode.locked {
                vnode.state.isUncommitted = true
                if name == Self.capabilityName { vnode.state.privileges.insert(.capability) }
            }
            changed()
            reply.empty()
        } catch { reply.error(error) }
    }

    public func removexattr(_ request: RequestHeader, name: [UInt8], reply: consuming Reply) {
        do throws(Errno) {
            let vnode = try vnode(request)
            try checkWritable(name, vnode.ino)
            do throws(Errno) {
                _ = try perform("removexattr") { tx throws(Errno) in
                    try tx.removeXattr(vnode.ino, name, now: .now)
                }
            } catch .noData where name.starts(with: Self.accessControlPrefix) {
                // No list is what was wanted.
            }
            vnode.locked { vnode.state.isUncommitted = true }
            changed()
            reply.empty()
        } catch { reply.error(error) }
    }

    /// How many copies, of everything below a directory.
    private static let policyNames = [CopiesPolicy.name, CopiesPolicy.syncName]

    private func checkWritable(_ name: [UInt8], _ ino: InodeNumber) throws(Errno) {
        guard name.starts(with: DerivedXattrs.prefix) else { return }
        guard Self.policyNames.contains(name) else { throw .notPermitted }
        let isDirectory = try query("setxattr") { reader throws(Errno) in
            try reader.inode(ino)?.isDirectory
        }
        guard isDirectory == true else { throw .notPermitted }
    }

    private func checkValue(_ value: [UInt8], of name: [UInt8]) throws(Errno) {
        guard Self.policyNames.contains(name) else { return }
        guard let copies = Int(String(decoding: value, as: UTF8.self)),
            (1...Limits.copiesMax).contains(copies)
        else { throw .invalidArgument }
    }

    /// nil for a name that is stored like any other, or not there.
    private func derivedXattr(_ ino: InodeNumber, _ name: [UInt8]) throws(Errno) -> [UInt8]? {
        guard name.starts(with: DerivedXattrs.prefix) else { return nil }
        let extents = try query("getxattr") { reader throws(Errno) -> [Extent]? in
            guard let inode = try reader.inode(ino), inode.kind == .file else { return nil }
            return try reader.content(of: ino).extents
        }
        return try extents.flatMap { extents throws(Errno) in try derived.value(name, of: extents) }
    }
}
