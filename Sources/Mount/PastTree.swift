import Catalog
import FUSE
import Glibc
import SystemPackage
import Volume

/// What a name of the past leads to.
struct PastInode: Sendable {
    let record: Record
    let links: UInt32
    let entry: PastNode.Entry
}

/// Reads states of the volume from the history's trees. Blocking.
struct PastTree: Sendable {
    let source: PastSource
    let owners: OwnerMapping?

    // MARK: States

    func state(_ state: PastSource.State) throws -> PastState {
        PastState(state, try VolumeTree(reading: state.tree, from: source.objects))
    }

    func top(of state: PastState) throws -> PastInode {
        try inode(at: .directory(state.tree.root), in: state)
    }

    // MARK: Inodes

    func inode(of node: PastNode) throws -> PastInode { try inode(node.entry, in: node.state) }

    private func inode(_ entry: PastNode.Entry, in state: PastState) throws -> PastInode {
        switch entry {
        case .directory(let id): return try inode(at: .directory(id), in: state)
        case .blob(let id): return try inode(at: .blob(id), in: state)
        case .shared(let lineage):
            let shared = try state.tree.sharedRecord(lineage, from: source.objects)
            guard let (record, links) = shared else {
                throw InvalidTree("a link to a record that is not there")
            }
            return PastInode(record: record, links: UInt32(clamping: links), entry: entry)
        }
    }

    func inode(at child: TreeChild, in state: PastState) throws -> PastInode {
        switch try state.tree.item(child, from: source.objects) {
        case .directory(let directory):
            // As other file systems say that they do not count them.
            let links = directory.tree.subdirectoryCount.map { UInt32($0) + 2 } ?? 1
            return PastInode(
                record: directory.record, links: links, entry: .directory(directory.id))
        case .other(let record, let links):
            return PastInode(
                record: record, links: UInt32(clamping: links),
                entry: links > 1 ? .shared(record.id) : .blob(child.id))
        }
    }

    /// nil for a name that is not there.
    func child(_ name: FileName, of node: PastNode) throws -> PastInode? {
        guard let child = try directory(node).child(name, from: source.objects) else { return nil }
        return try inode(at: child, in: node.state)
    }

    func directory(_ node: PastNode) throws -> DirectoryTree {
        guard case .directory(let id) = node.entry else { throw Errno.notDirectory }
        return try DirectoryTree(reading: id, from: source.objects)
    }

    // MARK: What stat shows

    func attributes(_ inode: PastInode, ino: UInt64) -> Attributes {
        let record = inode.record
        let owner = owners?.shown(record.owner.value) ?? record.owner.value
        let body = record.content.value.body
        let modified = FUSE.Timestamp(record.content.value.modified)
        var attributes = Attributes(
            ino: ino, mode: body.kind.typeBits | UInt32(record.mode.value), atime: modified,
            mtime: modified, ctime: FUSE.Timestamp(Volume.Timestamp(record.newestStamp)),
            nlink: inode.links, uid: owner.uid, gid: owner.gid)
        switch body {
        case .file(let content): attributes.setSize(content.length)
        case .symlink(let target): attributes.setSize(UInt64(target.count))
        case .characterDevice(let major, let minor), .blockDevice(let major, let minor):
            attributes.rdev = DeviceNumber.encode(major: major, minor: minor)
        case .directory, .fifo, .socket: break
        }
        return attributes
    }
}
