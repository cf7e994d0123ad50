import Glibc
import Synchronization

/// The environment, without the volume key: it is taken out before anything else happens, so that
/// no child inherits it and /proc/PID/environ does not show it.
enum SecretEnvironment {
    private static let keyText = Mutex<String?>(nil)
    private static let keyName = "DELUGEFS_KEY"

    /// The first call of the program, while it has one thread.
    static func take() {
        guard let value = getenv(keyName) else { return }
        keyText.withLock { $0 = String(cString: value) }
        // The process's first environment lies where the kernel shows it from: unsetenv alone would
        // only forget the pointer.
        memset(value, 0, strlen(value))
        unsetenv(keyName)
    }

    /// `DELUGEFS_KEY` as it was given; nil and empty are the same.
    static var key: String? { keyText.withLock { $0.flatMap { $0.isEmpty ? nil : $0 } } }

    static func value(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
}
