import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import Mesh

@Suite struct ControlTests {
    static func serve(
        _ root: FilePath, _ body: (ControlClient) async throws -> Void
    ) async throws {
        let threads = MeshThreads()
        let server = try await ControlServer.start(
            root: root, threads: threads, bodyLimit: { _, path in path == "/none" ? nil : 1000 },
            handler: { request in
                guard case .local(let uid) = request.origin else { return .refusal(500, "?") }
                if request.path == "/progress" {
                    return PeerResponse(
                        body: .stream { writer in
                            for step in 0..<5 {
                                try await writer.write(Array("step \(step)\n".utf8))
                            }
                        })
                }
                let body = Array("\(request.method) \(request.path) \(uid) ".utf8) + request.body
                return PeerResponse(status: 201, body: .bytes(body))
            })
        do { try await body(ControlClient(root: root)) } catch {
            await server.stop()
            await threads.stop()
            throw error
        }
        await server.stop()
        await threads.stop()
    }

    /// Asks by a plain socket, as another user.
    static func ask(_ root: String, uid: Int) async throws -> (status: Int32, output: String) {
        try await run(
            "setpriv", "--reuid=\(uid)", "--clear-groups", "perl", "-MIO::Socket::UNIX",
            "-e",
            """
            my $s = IO::Socket::UNIX->new("\(root)/control.sock") or die "connect: $!";
            print $s "GET /x HTTP/1.1\\r\\nhost: c\\r\\nconnection: close\\r\\n\\r\\n";
            print while <$s>;
            """)
    }

    @Test func theOwnerIsAnswered() async throws {
        let directory = try TemporaryDirectory()
        try await Self.serve(directory.path) { client in
            let reply = try await onThread {
                try client.request(method: "POST", path: "/x?y", body: Array("hi".utf8))
            }
            #expect(reply.status == 201)
            #expect(String(decoding: reply.body, as: UTF8.self) == "POST /x?y \(getuid()) hi")
            let status = try await onThread { try client.request(path: "/none").status }
            #expect(status == 404)
            let pieces = Mutex<[UInt8]>([])
            let streamed = try await onThread {
                try client.stream(path: "/progress", timeout: .seconds(30)) { piece in
                    pieces.withLock { $0 += piece }
                    return true
                }
            }
            #expect(streamed == 200)
            let text = String(decoding: pieces.withLock { $0 }, as: UTF8.self)
            #expect(text == "step 0\nstep 1\nstep 2\nstep 3\nstep 4\n")
            let large = try await onThread {
                try client.request(
                    method: "POST", path: "/", body: [UInt8](repeating: 0, count: 2000))
            }
            #expect(large.status == 413)
        }
        await #expect(throws: ControlError.notRunning(directory.path)) {
            try await onThread { try ControlClient(root: directory.path).request(path: "/") }
        }
        #expect(access("\(directory.path)/control.sock", F_OK) != 0)
    }

    @Test func aRootWithALongPathHasASocketToo() async throws {
        let directory = try TemporaryDirectory()
        var root = directory.path
        for _ in 0..<3 {
            root = root.appending(String(repeating: "long", count: 30))
            #expect(mkdir(root.string, 0o700) == 0)
        }
        try await Self.serve(root) { client in
            let status = try await onThread { try client.request(path: "/").status }
            #expect(status == 201)
        }
        // A socket that a killed node left behind is replaced.
        try await Self.serve(root) { client in
            let status = try await onThread { try client.request(path: "/").status }
            #expect(status == 201)
        }
    }

    @Test(.enabled(if: geteuid() == 0, "needs root to become somebody else"))
    func otherUsersAreRefused() async throws {
        let directory = try TemporaryDirectory()
        let root = directory.path.string
        try await Self.serve(directory.path) { client in
            var status = stat()
            #expect(stat("\(root)/control.sock", &status) == 0)
            #expect(status.st_mode & 0o7777 == 0o600)
            // By the file system first.
            let barred = try await Self.ask(root, uid: 12345)
            #expect(barred.output.contains("Permission denied"))
            // By the kernel's word about the other end, when the file system lets everybody in.
            #expect(chmod(root, 0o777) == 0 && chmod("\(root)/control.sock", 0o777) == 0)
            let unknown = try await Self.ask(root, uid: 12345)
            #expect(!unknown.output.contains("HTTP/1.1"))
            let known = try await Self.ask(root, uid: 0)
            #expect(known.output.contains("HTTP/1.1 201"))
        }
        // A root that belongs to a plain user serves him and root, nobody else.
        #expect(chown(root, 12345, 12345) == 0)
        try await Self.serve(directory.path) { client in
            #expect(chmod("\(root)/control.sock", 0o777) == 0)
            for (uid, isServed) in [(12345, true), (0, true), (12346, false)] {
                let answer = try await Self.ask(root, uid: uid)
                #expect(answer.output.contains("HTTP/1.1 201") == isServed, "\(answer.output)")
            }
        }
    }
}
