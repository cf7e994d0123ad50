"""Two nodes of one volume on one machine: what one writes the other sees, and fetches."""
import os
import random
import sys
import time

from bench import MIB, drop_caches, random_file, same, sha256


def visibility(bench):
    delays = []
    for number in range(5 if bench.quick else 20):
        name = f"visible-{number}"
        with open(f"{bench.a.mount}/{name}", "wb") as file:
            file.write(b"x" * 100)
        begin = time.monotonic()
        while not os.path.exists(f"{bench.b.mount}/{name}") and time.monotonic() < begin + 20:
            time.sleep(0.002)
        delays.append((time.monotonic() - begin) * 1000)
        time.sleep(0.3)
    bench.row(
        "close of one file to its name visible on another mount, median", delays, "ms", 500,
        at_least=False,
    )


def small_files(bench):
    count = 2000 // bench.scale
    data = os.urandom(4096)
    rates, delays = [], []
    for run_number in range(2 if bench.quick else 5):
        directory = f"{bench.a.mount}/small-{run_number}"
        os.makedirs(directory)
        names = [f"{directory}/{number}" for number in range(count)]
        begin = time.monotonic()
        for name in names:
            descriptor = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)
        end = time.monotonic()
        rates.append(count / (end - begin))
        other = [name.replace(bench.a.mount, bench.b.mount) for name in names]
        while other and time.monotonic() < end + 60:
            other = [name for name in other if not same(name, data)]
            if other:
                time.sleep(0.02)
        if other:
            sys.exit(f"{len(other)} files never became readable on the other node")
        delays.append(time.monotonic() - end)
    bench.row("create + write 4 KiB + close, one thread, two nodes", rates, "files/s", 1500)
    bench.row(
        "last close of those 2,000 files to all of them readable on another node",
        delays, "s", 2, at_least=False,
    )


def memory(bench):
    count = 10_000 // bench.scale
    directory = f"{bench.a.mount}/many"
    os.makedirs(directory)
    for number in range(count):
        with open(f"{directory}/{number}", "wb") as file:
            file.write(b"%d" % number)
    bench.a.wait()
    time.sleep(2)
    with open(f"/proc/{bench.a.process.pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                kib = int(line.split()[1])
    bench.row(
        "memory of a node holding 10,000 files, idle", [kib / 1024], "MiB", 200, at_least=False
    )


def remote_first_byte(bench):
    delays = []
    for number in range(5 if bench.quick else 20):
        random_file(f"{bench.a.mount}/first-{number}", 4)
    bench.a.wait()
    for number in range(5 if bench.quick else 20):
        begin = time.monotonic()
        with open(f"{bench.b.mount}/first-{number}", "rb", buffering=0) as file:
            file.read(1)
        delays.append((time.monotonic() - begin) * 1000)
    bench.row("first byte of a cold remote file, median", delays, "ms", 150, at_least=False)


def remote_random(bench):
    size = 2048 // bench.scale
    random_file(f"{bench.a.mount}/seek", size)
    bench.a.wait()
    delays = []
    generator = random.Random(1)
    with open(f"{bench.b.mount}/seek", "rb", buffering=0) as file:
        file.read(1)
        for _ in range(10 if bench.quick else 50):
            offset = generator.randrange(size - 1) * MIB
            begin = time.monotonic()
            got = os.pread(file.fileno(), MIB, offset)
            delays.append((time.monotonic() - begin) * 1000)
            with open(f"{bench.a.mount}/seek", "rb") as original:
                original.seek(offset)
                if original.read(len(got)) != got:
                    sys.exit("a random cold read gave other bytes")
    bench.row(
        "random 1 MiB reads in a cold remote 2 GiB file, median", delays, "ms", 100,
        at_least=False,
    )


def remote(bench):
    size = 2048 // bench.scale
    rates = []
    for number in range(1 if bench.quick else 3):
        digest = random_file(f"{bench.a.mount}/remote-{number}", size)
        bench.a.wait()
        drop_caches()
        path = f"{bench.b.mount}/remote-{number}"
        begin = time.monotonic()
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass
        rates.append(size * MIB / 1e6 / (time.monotonic() - begin))
        if sha256(path) != digest:
            sys.exit("a cold read gave other bytes")
    bench.row(
        "cold read on B of a 2 GiB file only A holds, TLS", rates, "MB/s", 200,
    )
