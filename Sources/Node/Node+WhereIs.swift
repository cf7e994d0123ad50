import Catalog
import Foundation
import Mesh
import Mount
import Store
import Volume

// Where a file's bytes are.
extension Node {
    private struct Found {
        let inode: CatalogInode
        let content: Content
        /// Bytes in its staging file; nil when it has been published.
        let stagedBytes: UInt64?
        let isCommitted: Bool
        /// How many it is to have.
        let copies: Int
    }

    func whereAre(_ paths: [[UInt8]]) async throws -> [Whereabouts] {
        let found = try await Blocking.run { [self] in try paths.map { try find($0) } }
        let isAnyInline = found.contains { $0.stagedBytes == nil && $0.content.extents.isEmpty }
        let taken = isAnyInline ? await nodesAtHead() : []
        return try await Blocking.run { [self] in
            try zip(paths, found).map { try whereabouts(of: $1, at: $0, taken) }
        }
    }

    private func find(_ path: [UInt8]) throws -> Found {
        let text = String(decoding: path, as: UTF8.self)
        let names = try path.split(separator: 0x2F).map { part in
            guard let name = FileName(Array(part)) else { throw NodeError("\(text) is no path.") }
            return name
        }
        return try catalog.read { reader in
            let inode = try inode(at: names, called: text, reader)
            let ino = inode.ino
            let content = inode.kind == .file ? try reader.content(of: ino) : .empty
            var stagedBytes: UInt64?
            // With a version that was published, that one is meant.
            if content.length == 0, let staging = try reader.staging(of: ino),
                let name = StagingName(staging.name)
            {
                stagedBytes = try store.stagingFacts(name).size
            }
            let targets = try content.extents.map {
                try reader.copies(of: $0.root, otherwise: settings.copies)
            }
            return Found(
                inode: inode, content: content, stagedBytes: stagedBytes,
                isCommitted: try reader.isCommitted(inode),
                copies: targets.max() ?? settings.copies)
        }
    }

    /// - Parameter text: the path as the person gave it.
    func inode(
        at path: some Sequence<FileName>, called text: String, _ reader: Reader
    ) throws -> CatalogInode {
        var ino = InodeNumber.root
        do {
            for name in path { ino = try reader.lookup(ino, name).ino }
            if let inode = try reader.inode(ino) { return inode }
        } catch {}
        throw NodeError("There is no \(text) in the volume.")
    }

    private func whereabouts(
        of found: Found, at path: [UInt8], _ taken: Set<NodeID>
    ) throws -> Whereabouts {
        let holders =
            if found.stagedBytes != nil {
                try everybody { $0 == identity.node ? (true, false) : nil }
            } else if found.content.extents.isEmpty {
                // What lies in the metadata is on every node that has taken it in.
                try everybody { node in
                    let has = node == identity.node || found.isCommitted && taken.contains(node)
                    return (has, has)
                }
            } else {
                try holders(of: found.content.extents)
            }
        return Whereabouts(
            path: String(decoding: path, as: UTF8.self), ino: found.inode.ino.rawValue,
            length: found.stagedBytes ?? found.content.length,
            roots: found.content.extents.map { "\($0.root)" }, target: found.copies,
            copies: holders.filter { $0.stored && $0.complete && $0.online }.count,
            holders: holders)
    }

    /// The nodes of the volume with what the body says of each; nil leaves one out.
    private func everybody(
        _ has: (NodeID) -> (complete: Bool, stored: Bool)?
    ) throws -> [Whereabouts.Holder] {
        try catalog.read { try $0.nodeDescriptions() }.sorted { $0.key < $1.key }.compactMap {
            node, description in
            guard let has = has(node) else { return nil }
            return Whereabouts.Holder(
                node: "\(node)", name: description.name, machine: description.machine,
                online: node == identity.node || mesh.peer(node)?.isOnline == true,
                complete: has.complete, stored: has.stored)
        }
    }

    /// Online nodes that have taken in this node's last commit.
    private func nodesAtHead() async -> Set<NodeID> {
        guard let head = timeline.applied else { return [] }
        return await withTaskGroup(of: NodeID?.self) { group in
            for peer in mesh.peers where peer.isOnline {
                group.addTask { await self.hasTaken(head, peer) ? peer.node : nil }
            }
            return await group.reduce(into: []) { if let node = $1 { $0.insert(node) } }
        }
    }
}
