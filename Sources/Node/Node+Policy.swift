import Catalog
import Foundation
import Mesh
import Mount
import Volume

extension ControlMessage {
    /// `POST /v1/policy`: a path in the volume.
    public struct Policy: Codable, Sendable {
        public enum Wish: Codable, Sendable {
            case ask
            case copies(Int)
            /// What the directory above says.
            case inherit
        }
        public var path: [UInt8]
        public var wish: Wish
        public init(path: [UInt8], wish: Wish) {
            self.path = path
            self.wish = wish
        }
    }

    public struct PolicyReply: Codable, Sendable {
        public var path: String
        /// How many copies files there are to have.
        public var copies: Int
        /// The path says so itself, not a directory above it or the volume.
        public var isSetHere: Bool
    }
}

// `delugefs policy`: how many copies what is below a directory is to have.
extension Node {
    func policy(_ message: ControlMessage.Policy) async throws -> ControlMessage.PolicyReply {
        let reply = try await Blocking.run { [self] in try perform(message) }
        if case .ask = message.wish { return reply }
        timeline.changed()
        replicator.poke()
        return reply
    }

    private func perform(_ message: ControlMessage.Policy) throws -> ControlMessage.PolicyReply {
        let path = try Self.names(of: message.path)
        let text = String(decoding: message.path, as: UTF8.self)
        return try catalog.perform { tx in
            var found = try inode(at: path, called: text, tx)
            if !found.isDirectory {
                guard case .ask = message.wish else {
                    throw NodeError("\(text) is a file; copies are asked for by directories.")
                }
                // What its directory says.
                found = try inode(at: path.dropLast(), called: text, tx)
            }
            let directory = found.ino
            switch message.wish {
            case .ask: break
            case .copies(let copies):
                guard (1...Limits.copiesMax).contains(copies) else {
                    throw NodeError("Copies are 1 to \(Limits.copiesMax).")
                }
                _ = try tx.setXattr(
                    directory, CopiesPolicy.name, Array("\(copies)".utf8), now: .now)
            case .inherit:
                if try tx.xattrNames(directory).contains(CopiesPolicy.name) {
                    _ = try tx.removeXattr(directory, CopiesPolicy.name, now: .now)
                }
            }
            return ControlMessage.PolicyReply(
                path: text,
                copies: try tx.copies(in: directory, otherwise: settings.copies),
                isSetHere: try tx.xattrNames(directory).contains(CopiesPolicy.name))
        }
    }
}
