import Catalog
import Foundation
import Logging
import Mesh
import Volume

extension ControlMessage {
    /// `POST /v1/forget`
    public struct Forget: Codable, Sendable {
        /// Name or id.
        public var node: String
        /// Also when there are files that no other disk has.
        public var acceptsLoss: Bool
        public init(node: String, acceptsLoss: Bool) {
            self.node = node
            self.acceptsLoss = acceptsLoss
        }
    }

    public struct ForgetReply: Codable, Sendable {
        public var node: String
        public var name: String
        /// Contents of files that no other disk has, and their bytes.
        public var lostFiles: Int
        public var lostBytes: UInt64
    }
}

// `delugefs forget`: a disk that will not come back.
extension Node {
    func forget(_ message: ControlMessage.Forget) async throws -> ControlMessage.ForgetReply {
        let (node, name) = try await Blocking.run { [self] in try named(message.node) }
        guard node != identity.node else {
            throw NodeError(
                "\(name) is this node. To take its disk away: delugefs drain --wait, then delugefs stop; then forget it from another node."
            )
        }
        guard mesh.peer(node)?.isOnline != true else {
            throw NodeError(
                "\(name) is online. To take its disk away run delugefs drain --wait and delugefs stop there, then forget it."
            )
        }
        let lost = try await Blocking.run { [catalog] in
            try catalog.flush()
            return try catalog.snapshot { try $0.heldOnly(by: node) }
        }
        guard lost.count == 0 || message.acceptsLoss else {
            throw NodeError(
                "\(lost.count) contents of files (\(lost.bytes) bytes) are on no other disk. Start \(name) once more and let it drain, or run delugefs recover on its disk; if they are gone for good: delugefs forget \(name) --accept-loss."
            )
        }
        try await Blocking.run { [self] in
            try catalog.perform { try $0.describe(node, as: nil) }
            try catalog.flush()
        }
        timeline.changed()
        replicator.poke()
        logger.notice("node \(name) (\(node)) was forgotten")
        return ControlMessage.ForgetReply(
            node: "\(node)", name: name, lostFiles: Int(lost.count), lostBytes: lost.bytes)
    }

    private func named(_ text: String) throws -> (NodeID, String) {
        let known = try catalog.read { try $0.nodeDescriptions() }
        let found = known.filter { $0.value.name == text || "\($0.key)" == text }
        guard let (node, description) = found.first else {
            throw NodeError(
                "The volume has no node \(text). Its nodes: \(known.values.map(\.name).sorted().joined(separator: ", "))."
            )
        }
        guard found.count == 1 else {
            throw NodeError(
                "Several nodes are called \(text). Say which: \(found.keys.map { "\($0)" }.sorted().joined(separator: ", "))."
            )
        }
        return (node, description.name)
    }

    /// A node that was forgotten and is back says who it is.
    func describeAgain() throws {
        let isListed = try catalog.read { try $0.nodeDescriptions()[identity.node] } != nil
        guard !isListed else { return }
        try catalog.perform {
            try $0.describe(
                identity.node, as: NodeDescription(name: file.name, machine: file.machine))
        }
        timeline.changed()
    }
}
