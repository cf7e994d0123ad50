import Glibc
import NIOCore
import NIOPosix
import Synchronization
public import SystemPackage

/// The local control API: HTTP on `ROOT/control.sock`, for ROOT's owner and root only.
public final class ControlServer: Sendable {
    private let channel: any Channel
    private let service: HTTPService
    private let root: FilePath

    private init(channel: any Channel, service: HTTPService, root: FilePath) {
        self.channel = channel
        self.service = service
        self.root = root
    }

    /// Listens and serves until `stop()`. A socket that is left there from before is replaced: the
    /// caller holds ROOT's lock, so nobody serves it.
    ///
    /// - Throws: `ServerError.socket`.
    public static func start(
        root: FilePath, limits: ServerLimits = ServerLimits(), threads: MeshThreads,
        bodyLimit: @escaping BodyLimit, handler: @escaping PeerHandler
    ) async throws -> ControlServer {
        let service = HTTPService(
            limits: limits, files: threads.files, bodyLimit: bodyLimit, handler: handler)
        do {
            let (descriptor, owner) = try listeningSocket(root: root)
            let channel = try await ServerBootstrap(group: threads.group)
                .childChannelInitializer { channel in
                    credentials(of: channel).flatMapThrowing { credentials in
                        guard credentials.uid == owner || credentials.uid == 0 else {
                            return channel.close(promise: nil)
                        }
                        try service.install(
                            on: channel, origin: .local(uid: credentials.uid), remoteHost: nil)
                    }
                }
                // Takes the descriptor over, also when it fails.
                .withBoundSocket(descriptor).get()
            return ControlServer(channel: channel, service: service, root: root)
        } catch {
            throw ServerError.socket(
                path: "\(root.appending(ControlSocketAddress.name))", reason: "\(error)")
        }
    }

    /// Stops listening, cuts every connection, removes the socket; waits for the handlers, whose
    /// tasks are cancelled.
    public func stop() async {
        if let address = try? ControlSocketAddress(root: root) { address.unlinkName() }
        try? await channel.close().get()
        await service.stop(on: channel.eventLoop)
    }

    private static func listeningSocket(root: FilePath) throws(Errno) -> (CInt, uid_t) {
        let address = try ControlSocketAddress(root: root)
        let descriptor = socket(
            AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Errno(rawValue: errno) }
        do throws(Errno) {
            address.unlinkName()
            // Before bind: the name then never exists with more permissions than these.
            guard fchmod(descriptor, 0o600) == 0 else { throw Errno(rawValue: errno) }
            try address.use { bind(descriptor, $0, $1) }
            return (descriptor, address.owner)
        } catch {
            close(descriptor)
            throw error
        }
    }

    private static func credentials(of channel: any Channel) -> EventLoopFuture<SocketCredentials> {
        guard let provider = channel as? any SocketOptionProvider else {
            return channel.eventLoop.makeFailedFuture(Errno.notSupported)
        }
        return provider.unsafeGetSocketOption(
            level: .socket, name: NIOBSDSocket.Option(rawValue: SO_PEERCRED))
    }
}
