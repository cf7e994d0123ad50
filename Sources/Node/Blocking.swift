import Foundation
import Mount

/// Blocking work for tasks: on threads made for it, never on Swift's cooperative pool.
enum Blocking {
    /// What may wait behind what: an answer that a peer waits two seconds for must not stand in one
    /// queue with the syncing of gigabytes.
    enum Kind {
        /// Short: the catalog, a few system calls.
        case answers
        /// Content: reads, writes and syncs of it.
        case content
        /// The history's packs, made and taken in.
        case packs
    }

    private static let answers = WorkQueue(name: "blocking", threads: 4)
    private static let content = WorkQueue(name: "content", threads: 4, .background)
    private static let packs = WorkQueue(name: "packs", threads: 2, .background)

    static func run<T: Sendable>(
        _ kind: Kind = .answers, _ body: @escaping @Sendable () throws -> T
    ) async throws -> T {
        try await withCheckedThrowingContinuation { continuation in
            begin(kind) { continuation.resume(with: Result { try body() }) }
        }
    }

    static func begin(_ kind: Kind, _ body: @escaping @Sendable () -> Void) {
        let queue =
            switch kind {
            case .answers: answers
            case .content: content
            case .packs: packs
            }
        queue.submit(body)
    }

    /// On a thread of its own: for what may wait long for work that itself needs the queues' threads.
    static func alone<T: Sendable>(
        _ body: @escaping @Sendable () throws -> T
    ) async throws -> T {
        try await withCheckedThrowingContinuation { continuation in
            OwnThread.start("waiting") { continuation.resume(with: Result { try body() }) }
        }
    }
}
