import CTorrent
import Glibc

/// A named thread of our own: libtorrent's queue is waited for by blocking.
enum SwarmThread {
    private final class Body {
        let name: String
        let run: @Sendable () -> Void

        init(_ name: String, _ run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }

    /// - Parameter name: at most 15 bytes.
    static func start(name: String, _ run: @escaping @Sendable () -> Void) throws {
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, CInt(PTHREAD_CREATE_DETACHED))
        var thread = pthread_t()
        let body = Unmanaged.passRetained(Body(name, run))
        let code = pthread_create(
            &thread, &attributes,
            { context in
                // The argument is the retained body passed below, never nil.
                let body = Unmanaged<Body>.fromOpaque(context!).takeRetainedValue()
                ctorrent_name_this_thread(body.name)
                body.run()
                return nil
            }, body.toOpaque())
        guard code == 0 else {
            body.release()
            throw SwarmError.torrent("no thread: \(code)")
        }
    }
}
