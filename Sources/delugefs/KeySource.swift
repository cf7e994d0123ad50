import Glibc
import SystemPackage

/// The volume key's text as the user hands it over: never in argv.
enum KeySource {
    /// A key has 61 characters; white space around it is allowed.
    static let textBytesMax = 4096

    /// `--key-file FILE`, or `-` for standard input; else `DELUGEFS_KEY`; else nil.
    static func text(file: String?) throws -> String? {
        guard let file else { return SecretEnvironment.key }
        let bytes: [UInt8]
        if file == "-" {
            bytes = try standardInput()
        } else {
            do {
                let descriptor = try FileDescriptor.open(
                    FilePath(file), .readOnly, options: .closeOnExec)
                bytes = try descriptor.closeAfter { try read(descriptor) }
            } catch let error as Errno {
                throw Failure(
                    "The key file \(Terminal.visible(file)) cannot be read (\(error)); give another with --key-file."
                )
            }
        }
        guard bytes.count <= textBytesMax else {
            throw Failure(
                "What --key-file names is not a key: it is too long; `delugefs key` prints one.")
        }
        let text = String(decoding: bytes, as: UTF8.self)
        guard text.contains(where: { !$0.isWhitespace }) else {
            throw Failure("What --key-file names is empty; `delugefs key` prints the key.")
        }
        return text
    }

    private static func standardInput() throws -> [UInt8] {
        guard isatty(STDIN_FILENO) == 1 else {
            do { return try read(.standardInput) } catch {
                throw Failure("The key cannot be read from standard input: \(error).")
            }
        }
        // On a terminal: one line, and nobody reads it over the shoulder.
        Terminal.write(Array("Volume key: ".utf8), to: STDERR_FILENO)
        var settings = termios()
        let isKnown = tcgetattr(STDIN_FILENO, &settings) == 0
        if isKnown {
            var silent = settings
            silent.c_lflag &= ~tcflag_t(ECHO)
            tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent)
        }
        defer {
            if isKnown { tcsetattr(STDIN_FILENO, TCSAFLUSH, &settings) }
            Terminal.complain("")
        }
        return Array((readLine() ?? "").utf8)
    }

    /// At most one byte more than a key may have.
    static func read(_ file: FileDescriptor) throws -> [UInt8] {
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: textBytesMax + 1)
        while result.count <= textBytesMax {
            let count = try buffer.withUnsafeMutableBytes { try file.read(into: $0) }
            if count == 0 { break }
            result += buffer.prefix(count)
        }
        return result
    }
}
