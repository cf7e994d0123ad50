import FoundationEssentials
import Mesh
import SystemPackage

/// Questions to the running node of a root; every failure becomes its sentence.
struct NodeConversation {
    let root: FilePath

    func get(_ path: String) throws -> [UInt8] {
        try ask(method: "GET", path: path, body: [], timeout: .seconds(30))
    }

    /// - Parameter timeout: the longest silence; nil waits for ever.
    func post<Reply: Decodable>(
        _ path: String, _ message: some Encodable, timeout: Duration?
    ) throws -> Reply {
        try decoded(
            Reply.self,
            ask(
                method: "POST", path: path, body: Array(try JSONEncoder().encode(message)),
                timeout: timeout))
    }

    func post(_ path: String) throws {
        _ = try ask(method: "POST", path: path, body: [], timeout: .seconds(30))
    }

    func decoded<Value: Decodable>(_ type: Value.Type, _ reply: [UInt8]) throws -> Value {
        do { return try JSONDecoder().decode(type, from: Data(reply)) } catch {
            throw Failure(
                "The node at \(name) answers in another form than this delugefs knows; use the version that it runs."
            )
        }
    }

    private func ask(
        method: String, path: String, body: [UInt8], timeout: Duration?
    ) throws -> [UInt8] {
        let reply: ControlClient.Reply
        do throws(ControlError) {
            reply = try ControlClient(root: root).request(
                method: method, path: path, body: body, timeout: timeout)
        } catch { throw failure(error) }
        guard (200..<300).contains(reply.status) else {
            let text = Terminal.visible(
                String(decoding: reply.body, as: UTF8.self).split(separator: "\n")
                    .joined(separator: " "))
            throw Failure(
                text.isEmpty ? "The node at \(name) refused with status \(reply.status)." : text)
        }
        return reply.body
    }

    private func failure(_ error: ControlError) -> Failure {
        switch error {
        case .notRunning: Failure("No node is running at \(name); start it with delugefs run.")
        case .timeout:
            Failure("The node at \(name) did not answer in time; look into its log.")
        default: Failure(sentenceOf: error)
        }
    }

    private var name: String { Terminal.visible(root.string) }
}
