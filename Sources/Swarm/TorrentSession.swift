import CTorrent
import Glibc
import Volume

/// Something that happened to one torrent, copied out of libtorrent's queue.
enum TorrentEvent: Sendable {
    case added(failure: String?)
    case checked
    case resumed
    /// The piece's bytes are verified and in the file. May repeat.
    case piece(Int)
    case hashFailed
    case flushed
    case removed
    case fileFailed(errno: Int32, message: String)
    case failed(message: String)
    case status(TransferStatus)
}

/// Payload bytes since a torrent was loaded.
struct Traffic: Sendable {
    var downloadedBytes: Int64 = 0
    var uploadedBytes: Int64 = 0
}

/// libtorrent's figures of one torrent, once a second.
struct TransferStatus: Sendable {
    var downloadRate = 0
    var uploadRate = 0
    /// Half-open ones included.
    var connections = 0
    var peers = 0
}

/// The libtorrent session: the one place that calls `CTorrent`.
///
/// Calls are safe on any thread and never wait for the network thread, except where they say so.
/// All of them become no-ops once the session is stopped.
final class TorrentSession: @unchecked Sendable {
    // Unchecked: the pointer never changes and the shim locks inside; it is freed in deinit, when
    // nobody can call any more.
    private let pointer: OpaquePointer
    private let transport: SwarmConfiguration.Transport

    let port: UInt16
    let eventDescriptor: CInt

    /// Blocks until the port is open.
    init(_ configuration: SwarmConfiguration) throws {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        let descriptors = Int(min(limit.rlim_cur, 1 << 20))
        var isTLS = false
        if case .tls = configuration.transport { isTLS = true }
        var created: OpaquePointer?
        let failure = try Self.explained { message, bytes in
            configuration.listenAddress.withCString { address in
                var options = ctorrent_options(
                    listen_address: address, port: configuration.port, tls: isTLS,
                    connections_limit: Int32(min(configuration.maxConnections, descriptors / 4)),
                    file_pool_size: Int32(min(configuration.maxOpenFiles, descriptors / 3)))
                return ctorrent_session_create(&options, &created, message, bytes)
            }
        }
        guard let created else { throw SwarmError.torrent(failure) }
        pointer = created
        transport = configuration.transport
        port = ctorrent_session_port(created)
        eventDescriptor = ctorrent_session_event_descriptor(created)
    }

    deinit {
        ctorrent_session_stop(pointer)
        ctorrent_session_free(pointer)
    }

    /// Runs a call that explains its failure; throws the explanation.
    @discardableResult
    static func explained(
        _ call: (UnsafeMutablePointer<CChar>, Int) -> ctorrent_result
    ) throws -> String {
        var message = [CChar](repeating: 0, count: 256)
        let result = call(&message, message.count)
        let text = String(
            decoding: message.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        switch result {
        case CTORRENT_OK: return text
        case CTORRENT_STOPPED: throw SwarmError.stopped
        default: throw SwarmError.torrent(text)
        }
    }

    /// Ends libtorrent's threads; blocks for as long as they take.
    func stop() { ctorrent_session_stop(pointer) }

    /// Adds a paused torrent with nothing wanted; `.added` and `.checked` follow.
    ///
    /// - Parameter have: the pieces in the file; nil for a seed.
    func add(
        token: UInt64, extent: Extent, info: [UInt8], layer: [UInt8], path: String,
        have: Bitfield?
    ) throws {
        try Self.explained { message, bytes in
            path.withCString { path in
                info.withUnsafeBufferPointer { info in
                    layer.withUnsafeBufferPointer { layer in
                        extent.root.bytes.withUnsafeBufferPointer { root in
                            (have?.bytes ?? []).withUnsafeBufferPointer { bits in
                                var torrent = ctorrent_torrent(
                                    token: token, info: info.baseAddress, info_bytes: info.count,
                                    root: root.baseAddress, layer: layer.baseAddress,
                                    layer_bytes: layer.count,
                                    piece_count: UInt32(extent.pieceCount), path: path,
                                    seed: have == nil, have: bits.baseAddress)
                                return ctorrent_add(pointer, &torrent, message, bytes)
                            }
                        }
                    }
                }
            }
        }
    }

    /// Gives a paused torrent this node's certificate; nothing in a plain volume.
    func setCertificate(_ token: UInt64) {
        guard case .tls(_, let certificate, let key) = transport else { return }
        _ = ctorrent_set_certificate(pointer, token, certificate, key, DiffieHellman.ffdhe2048)
    }

    func connect(_ token: UInt64, to endpoint: SwarmEndpoint) {
        _ = ctorrent_connect(pointer, token, endpoint.address, endpoint.port)
    }

    func setPriorities(_ token: UInt64, pieces: [UInt32], priorities: [UInt8]) {
        precondition(pieces.count == priorities.count)
        guard !pieces.isEmpty else { return }
        _ = ctorrent_set_priorities(pointer, token, pieces, priorities, pieces.count)
    }

    func setSequential(_ token: UInt64, _ sequential: Bool) {
        _ = ctorrent_set_sequential(pointer, token, sequential)
    }

    func pause(_ token: UInt64) { _ = ctorrent_pause(pointer, token) }
    func resume(_ token: UInt64) { _ = ctorrent_resume(pointer, token) }

    /// `.flushed` follows. False when the torrent is unknown.
    @discardableResult
    func flush(_ token: UInt64) -> Bool { ctorrent_flush(pointer, token) == CTORRENT_OK }

    /// `.removed` follows. False when the torrent is unknown.
    @discardableResult
    func remove(_ token: UInt64) -> Bool { ctorrent_remove(pointer, token) == CTORRENT_OK }

    /// Makes the event descriptor readable.
    func wake() { ctorrent_session_wake(pointer) }

    func requestStatus() { _ = ctorrent_session_post_status(pointer) }

    /// What a torrent has carried up to now; nil when it is gone.
    func traffic(_ token: UInt64) -> Traffic? {
        var traffic = Traffic()
        let result = ctorrent_traffic(
            pointer, token, &traffic.downloadedBytes, &traffic.uploadedBytes)
        return result == CTORRENT_OK ? traffic : nil
    }

    /// The verified pieces as libtorrent knows them; nil when the torrent is gone. Blocks.
    func pieces(_ token: UInt64, count: Int) -> Bitfield? {
        var bytes = [UInt8](repeating: 0, count: (count + 7) / 8)
        guard ctorrent_pieces(pointer, token, &bytes, bytes.count) == CTORRENT_OK else {
            return nil
        }
        return Bitfield(count: count, bytes: bytes)
    }

    /// Hands over what happened since the last call, in order. One thread only.
    ///
    /// - Parameter lost: called when libtorrent's queue overflowed: ask for `pieces` again.
    func drain(_ body: (UInt64, TorrentEvent) -> Void, lost: () -> Void) {
        withoutActuallyEscaping(body) { body in
            withoutActuallyEscaping(lost) { lost in
                let receiver = Receiver(body: body, lost: lost)
                _ = ctorrent_session_drain(
                    pointer,
                    { context, event in
                        guard let context, let event else { return }
                        Unmanaged<Receiver>.fromOpaque(context).takeUnretainedValue()
                            .receive(event.pointee)
                    }, Unmanaged.passUnretained(receiver).toOpaque())
                withExtendedLifetime(receiver) {}
            }
        }
    }
}

/// Carries Swift closures through the C callback of one drain.
private final class Receiver {
    let body: (UInt64, TorrentEvent) -> Void
    let lost: () -> Void

    init(body: @escaping (UInt64, TorrentEvent) -> Void, lost: @escaping () -> Void) {
        self.body = body
        self.lost = lost
    }

    func receive(_ event: ctorrent_event) {
        func message() -> String { event.message.map { String(cString: $0) } ?? "" }
        switch event.kind {
        case CTORRENT_EVENT_ADDED:
            body(event.token, .added(failure: event.error == 0 ? nil : message()))
        case CTORRENT_EVENT_CHECKED: body(event.token, .checked)
        case CTORRENT_EVENT_RESUMED: body(event.token, .resumed)
        case CTORRENT_EVENT_PIECE: body(event.token, .piece(Int(event.piece)))
        case CTORRENT_EVENT_HASH_FAILED: body(event.token, .hashFailed)
        case CTORRENT_EVENT_FLUSHED: body(event.token, .flushed)
        case CTORRENT_EVENT_REMOVED: body(event.token, .removed)
        case CTORRENT_EVENT_FILE_ERROR:
            body(event.token, .fileFailed(errno: event.error, message: message()))
        case CTORRENT_EVENT_TORRENT_ERROR: body(event.token, .failed(message: message()))
        case CTORRENT_EVENT_DROPPED: lost()
        case CTORRENT_EVENT_STATUS:
            body(
                event.token,
                .status(
                    TransferStatus(
                        downloadRate: Int(event.download_rate),
                        uploadRate: Int(event.upload_rate),
                        connections: Int(event.connections), peers: Int(event.peers))))
        default: break
        }
    }
}
