import CFUSE
import Glibc
import SystemPackage

/// The program that mounts for users without privileges. It sends the descriptor of the mounted
/// device back over a socket.
enum FusermountHelper {
    /// Bytes of its complaints that are kept.
    private static let complaintMax = 4096

    static func mount(_ path: FilePath, _ options: String) throws(MountError) -> Int32 {
        var sockets: [Int32] = [-1, -1]
        if socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &sockets) < 0
        {
            throw MountError(.system, path, errno: Errno(rawValue: errno))
        }
        defer { close(sockets[0]) }
        let child: Child
        do throws(MountError) {
            child = try spawn(path, ["-o", options, "--"], socket: sockets[1])
        } catch {
            close(sockets[1])
            throw error
        }
        // From here on only the child has the other end: its exit ends the wait below.
        close(sockets[1])
        var descriptor = cfuse_receive_descriptor(sockets[0])
        while descriptor == -1, errno == EINTR {
            descriptor = cfuse_receive_descriptor(sockets[0])
        }
        let (status, complaint) = child.wait()
        if descriptor < 0 {
            throw MountError(.helperFailed, path, detail: complaint)
        }
        if status != 0 {
            close(descriptor)
            throw MountError(.helperFailed, path, detail: complaint)
        }
        return descriptor
    }

    static func unmount(_ path: FilePath, lazily: Bool) throws(MountError) {
        let arguments = lazily ? ["-u", "-z", "--"] : ["-u", "--"]
        let (status, complaint) = try spawn(path, arguments, socket: nil).wait()
        if status == 0 { return }
        let isBusy = complaint.contains("busy")
        throw MountError(isBusy ? .busy : .helperFailed, path, detail: complaint)
    }

    private struct Child {
        let pid: pid_t
        let errors: Int32

        /// Waits for the end; the result is the exit code, or -1.
        func wait() -> (status: Int32, complaint: String) {
            var complaint: [UInt8] = []
            var chunk = [UInt8](repeating: 0, count: complaintMax)
            while true {
                let count = read(errors, &chunk, chunk.count)
                if count < 0, errno == EINTR { continue }
                if count <= 0 { break }
                if complaint.count < complaintMax { complaint += chunk[..<count] }
            }
            close(errors)
            var status: Int32 = 0
            while waitpid(pid, &status, 0) < 0, errno == EINTR {}
            let hasExited = status & 0x7f == 0
            let text = String(decoding: complaint, as: UTF8.self)
            return (
                hasExited ? (status >> 8) & 0xff : -1,
                text.split(separator: "\n").joined(separator: "; ")
            )
        }
    }

    /// `posix_spawn`, because a process with threads must not fork by itself.
    private static func spawn(
        _ path: FilePath, _ arguments: [String], socket: Int32?
    ) throws(MountError) -> Child {
        var pipeEnds: [Int32] = [-1, -1]
        if pipe2(&pipeEnds, O_CLOEXEC) < 0 {
            throw MountError(.system, path, errno: Errno(rawValue: errno))
        }
        defer { close(pipeEnds[1]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, pipeEnds[1], STDERR_FILENO)
        // dup2 onto itself clears close-on-exec, in the child alone.
        if let socket { posix_spawn_file_actions_adddup2(&actions, socket, socket) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var noSignals = sigset_t()
        sigemptyset(&noSignals)
        posix_spawnattr_setsigmask(&attributes, &noSignals)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))

        // Set-user-id programs need nothing of our environment but the socket and, for the search,
        // a path that is not ours to choose.
        var environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        if let socket { environment.append("_FUSE_COMMFD=\(socket)") }
        var argv: [UnsafeMutablePointer<CChar>?] = (["fusermount3"] + arguments).map { strdup($0) }
        argv.append(path.withPlatformString { strdup($0) })
        argv.append(nil)
        var envp: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) }
        envp.append(nil)
        defer { for string in argv + envp { free(string) } }

        for directory in ["/usr/bin", "/bin", "/usr/local/bin"] {
            var pid: pid_t = 0
            let program = "\(directory)/fusermount3"
            let code = posix_spawn(&pid, program, &actions, &attributes, argv, envp)
            if code == 0 { return Child(pid: pid, errors: pipeEnds[0]) }
            if code != ENOENT {
                close(pipeEnds[0])
                throw MountError(.system, path, errno: Errno(rawValue: code))
            }
        }
        close(pipeEnds[0])
        throw MountError(.noHelper, path)
    }
}
