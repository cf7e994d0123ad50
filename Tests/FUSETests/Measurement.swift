import Glibc
import SystemPackage
import Testing

@testable import FUSE

/// Not a test: prints what a round trip costs. Run by hand, on a machine that is otherwise idle:
/// `FUSE_MEASURE=1 swift test -c release -Xswiftc -enable-testing --filter Measurement`.
@Suite(.serialized, .enabled(if: getenv("FUSE_MEASURE") != nil))
struct Measurement {
    @Test(arguments: [0, 100])
    func theCostOfARoundTrip(_ spinMicroseconds: Int) async throws {
        var options = SessionOptions()
        options.spin = .microseconds(spinMicroseconds)
        options.passthrough = false
        try await withExampleMount(options: options, valid: .zero) { mount throws in
            let script = """
                import os, time, threading
                def timed(what, count, work):
                    start = time.perf_counter(); [work(i) for i in range(count)]
                    print(f'{what}: {(time.perf_counter() - start) / count * 1e6:.1f} us')
                fd = os.open('f', os.O_CREAT | os.O_RDWR); os.write(fd, b'x' * 131072)
                timed('GETATTR', 30000, lambda i: os.fstat(fd))
                def create(i): os.close(os.open(f'n{i % 50}', os.O_CREAT | os.O_WRONLY))
                timed('LOOKUP CREATE/OPEN FLUSH', 3000, create)
                timed('WRITE 4 KiB', 10000, lambda i: os.pwrite(fd, b'y' * 4096, 4096 * (i % 32)))
                if os.fork() == 0:
                    timed('GETATTR, two at once', 20000, lambda i: os.fstat(fd)); os._exit(0)
                timed('GETATTR, two at once', 20000, lambda i: os.fstat(fd)); os.wait()
                time.sleep(0.05)
                def rare(i): time.sleep(0.002); os.fstat(fd)
                timed('GETATTR, every 2 ms', 500, rare)
                """
            let before = processTime()
            print("spin \(spinMicroseconds) us:")
            print(try mount.sh("python3 -c \"\(script)\"").output)
            print("server: \(processTime() - before) ms of processor time")
        }
    }

    private func processTime() -> Int {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        let microseconds = usage.ru_utime.tv_usec + usage.ru_stime.tv_usec
        return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 + microseconds / 1000
    }
}
