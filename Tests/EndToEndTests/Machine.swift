import Glibc
import Testing

/// What these tests need of the machine they run on.
enum Machine {
    /// Only this lets a machine that cannot run them pass: nothing is left out silently.
    static let mayBeSkipped = environment("DELUGEFS_E2E") == "skip-unprivileged"

    static var missing: String? {
        if geteuid() != 0 {
            return "The end-to-end tests need root: they make network namespaces and mounts."
        }
        var status = stat()
        if stat("/dev/fuse", &status) != 0 {
            return "The end-to-end tests need /dev/fuse."
        }
        if access(binary, X_OK) != 0 {
            return "There is no delugefs at \(binary); build it, or name it in DELUGEFS_BINARY."
        }
        return nil
    }

    static func requireCapable() throws {
        if let missing {
            throw Failure("\(missing) Set DELUGEFS_E2E=skip-unprivileged to leave them out.")
        }
    }

    /// The program under test.
    static let binary: String = {
        if let given = environment("DELUGEFS_BINARY") { return given }
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let length = readlink("/proc/self/exe", &buffer, Int(PATH_MAX))
        let own = String(
            decoding: buffer.prefix(max(0, length)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own.split(separator: "/").dropLast().reduce("") { $0 + "/" + $1 } + "/delugefs"
    }()

    /// The checkout that these tests were compiled from.
    static let checkout = #filePath.split(separator: "/").dropLast(3).reduce("") { $0 + "/" + $1 }
}

/// All tests that start the program. They share this machine's processors, so one at a time.
@Suite(
    .serialized,
    .enabled(
        if: Machine.missing == nil || !Machine.mayBeSkipped,
        "DELUGEFS_E2E=skip-unprivileged: \(Machine.missing ?? "")"))
struct EndToEnd {}
