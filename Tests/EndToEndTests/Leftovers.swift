import Glibc
import Synchronization

/// What runs that crashed or were killed left on this machine. Only things that carry the name of a
/// workshop whose process is gone are touched.
actor Leftovers {
    private var isDone = false

    func remove() async {
        guard !isDone else { return }
        isDone = true
        for name in Self.names(in: "/tmp") {
            let path = "/tmp/\(name)"
            guard path.hasPrefix(Workshop.prefix), Self.isAbandoned(path) else { continue }
            print("Removing \(path), left by an earlier run.")
            Self.killProcesses(of: path)
            await Self.remove(directory: path)
        }
        for name in Self.names(in: "/run/netns") {
            guard name.hasPrefix(Network.prefix) else { continue }
            let owner = name.dropFirst(Network.prefix.count).prefix { $0.isNumber }
            guard let pid = pid_t(owner), kill(pid, 0) != 0 else { continue }
            _ = try? await Shell.run(["ip", "netns", "del", name])
        }
    }

    private static func isAbandoned(_ path: String) -> Bool {
        let owner = path.dropFirst(Workshop.prefix.count).prefix { $0.isNumber }
        guard let pid = pid_t(owner), pid != getpid() else { return false }
        return kill(pid, 0) != 0
    }

    /// Processes that were started with the workshop's mark in their environment.
    private static func killProcesses(of directory: String) {
        let mark = Array("\(Workshop.mark)=\(directory)".utf8)
        for name in names(in: "/proc") {
            guard let pid = pid_t(name) else { continue }
            let variables = FileBytes.read("/proc/\(pid)/environ").split(separator: 0)
            if variables.contains(where: { $0.elementsEqual(mark) }) { kill(pid, SIGKILL) }
        }
    }

    /// Unmounts all that lies under a workshop, deepest last made first, then removes it.
    static func remove(directory: String) async {
        let text = FileBytes.text("/proc/self/mountinfo")
        let points = text.split(separator: "\n").compactMap { line -> String? in
            let fields = line.split(separator: " ")
            guard fields.count > 4, fields[4].hasPrefix(directory + "/") else { return nil }
            return String(fields[4])
        }
        for point in points.reversed() {
            _ = try? await Shell.run(["umount", "-l", point])
        }
        _ = try? await Shell.run(
            ["rm", "-rf", "--one-file-system", directory], timeout: Bounds.transfer)
    }

    static func names(in directory: String) -> [String] {
        guard let stream = opendir(directory) else { return [] }
        defer { closedir(stream) }
        var result: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            result.append(name)
        }
        return result
    }
}
