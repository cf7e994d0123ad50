import Catalog
import FUSE
import Foundation
import History
import Mesh
import Mount
import Synchronization
import SystemPackage
import Volume

/// The bodies of the local control API, for command lines.
public enum ControlMessage {
    /// `POST /v1/whereis`: paths in the volume, bytes.
    public struct WhereIs: Codable, Sendable {
        public var paths: [[UInt8]]
        public init(paths: [[UInt8]]) { self.paths = paths }
    }

    /// `POST /v1/wait`
    public struct Wait: Codable, Sendable {
        public var replicated: Bool
        public var timeoutSeconds: Double?
        public init(replicated: Bool, timeoutSeconds: Double?) {
            self.replicated = replicated
            self.timeoutSeconds = timeoutSeconds
        }
    }

    public struct WaitReply: Codable, Sendable {
        public enum Outcome: String, Codable, Sendable { case done, timedOut, impossible }
        public var outcome: Outcome
        /// For a person: what is missing.
        public var text: String
    }

    /// `POST /v1/log`: a part of it.
    public struct Log: Codable, Sendable {
        public struct Position: Codable, Sendable {
            public var commit: String
            public var path: [UInt8]
        }

        public var path: [UInt8]
        public var limit: Int
        /// Where the part before ended; nil: from the present.
        public var positions: [Position]?
        public init(path: [UInt8], limit: Int, positions: [Position]?) {
            self.path = path
            self.limit = limit
            self.positions = positions
        }
    }

    public struct LogReply: Codable, Sendable {
        public struct Change: Codable, Sendable {
            /// `created`, `removed`, `renamed`, `linked`, `edited`, `touched`, `mode`, `owner` or
            /// `attributes`
            public var what: String
            public var path: String
            public var isDirectory: Bool
            /// Of a renamed file, what it was called; of a linked one, another name.
            public var from: String?
            /// For a person: from what to what.
            public var detail: String?
        }

        public struct Entry: Codable, Sendable {
            public var commit: String
            /// ISO 8601: of its last change.
            public var time: String
            /// Who made it; nil: a merge of what several nodes made.
            public var node: String?
            public var name: String?
            public var changes: [Change]
            /// There are more, which are not told.
            public var isCut: Bool
        }

        /// Newest first.
        public var entries: [Entry]
        /// Where to go on; empty: that was all.
        public var positions: [Log.Position]
    }

    /// `POST /v1/purge`: a path in the volume.
    public struct Purge: Codable, Sendable {
        public var path: [UInt8]
        public init(path: [UInt8]) { self.path = path }
    }

    public struct PurgeReply: Codable, Sendable {
        /// Old contents that were here and went, and their bytes.
        public var gone = 0
        public var goneBytes: UInt64 = 0
        /// Those that stay until every node has heard that no file has them.
        public var waiting = 0
        public var waitingBytes: UInt64 = 0
        /// Names of nodes that were told, and of those that could not be.
        public var told: [String] = []
        public var untold: [String] = []
    }

    /// `POST /v1/restore`: paths in the volume, bytes.
    public struct Restore: Codable, Sendable {
        public var path: [UInt8]
        /// As `PastTime.normalised` gives it.
        public var at: String
        public var to: [UInt8]?
        public init(path: [UInt8], at: String, to: [UInt8]?) {
            self.path = path
            self.at = at
            self.to = to
        }
    }

    public struct RestoreReply: Codable, Sendable {
        /// What could not be restored.
        public struct Failure: Codable, Sendable {
            public var path: String
            /// In one clause for a person.
            public var reason: String
        }

        /// The state that was restored from.
        public var commit: String
        /// ISO 8601: of its last change.
        public var time: String
        /// Directories and all else that were gone, changed, and the same.
        public var made = 0
        public var changed = 0
        public var same = 0
        /// Files whose content no online disk has.
        public var missing = 0
        /// What else could not be restored.
        public var blocked = 0
        /// The first of both.
        public var failures: [Failure] = []

        public init(commit: String, time: String) {
            self.commit = commit
            self.time = time
        }
    }
}

/// Points in the past as a person writes them, for command lines.
public enum PastTime {
    /// What means the same to the node: times in this process's time zone, from now.
    public static func normalised(_ text: String) throws -> String {
        do throws(PastError) {
            return try PastPoint(text, now: Int64(Monotonic.wallMilliseconds)).text
        } catch { throw NodeError(error.description) }
    }
}

// `ROOT/control.sock`: who may connect is checked by the server.
extension Node {
    func control(_ request: PeerRequest) async -> PeerResponse {
        do {
            switch (request.method, request.path) {
            case ("GET", "/v1/status"):
                return try await Blocking.run { [self] in
                    PeerResponse(body: .bytes(statusText()))
                }
            case ("POST", "/v1/stop"):
                requestStop()
                return PeerResponse()
            case ("POST", "/v1/whereis"):
                return try await answer(request) { (message: ControlMessage.WhereIs) in
                    try await whereAre(message.paths)
                }
            case ("POST", "/v1/wait"):
                return try await answer(request, wait)
            case ("POST", "/v1/log"):
                return try await answer(request, log)
            case ("POST", "/v1/purge"):
                return try await answer(request, purge)
            case ("POST", "/v1/scrub"):
                return try await answer(request, scrub)
            case ("POST", "/v1/restore"):
                return try await answer(request, restore)
            case ("POST", "/v1/drain"):
                return try await answer(request, drain)
            case ("POST", "/v1/forget"):
                return try await answer(request, forget)
            case ("POST", "/v1/policy"):
                return try await answer(request, policy)
            default: return .refusal(404, "This node does not know that command.")
            }
        } catch let error as NodeError {
            return .refusal(409, error.description)
        } catch let error as PastError {
            return .refusal(409, error.description)
        } catch { return .refusal(500, "\(error)") }
    }

    private func answer<Message: Decodable, Reply: Encodable>(
        _ request: PeerRequest, _ body: (Message) async throws -> Reply
    ) async throws -> PeerResponse {
        let message = try JSONDecoder().decode(Message.self, from: Data(request.body))
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return PeerResponse(body: .bytes(Array(try encoder.encode(await body(message)))))
    }
}
