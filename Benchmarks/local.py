"""One node on one machine, against the disk under it."""
import os
import random
import shutil
import tarfile

from bench import MIB, Node, drop_caches, run, timed


def removed(path):
    if os.path.exists(path):
        os.unlink(path)
    # What an earlier run left for the kernel to write would slow down this one.
    os.sync()
    return path


def reading(bench):
    size = 1024 * MIB // bench.scale
    for site in bench.sites.values():
        bench.load("write", f"{site}/read", size, 1 << 20)
    bench.a.wait()
    for site in bench.sites.values():
        bench.load("read", f"{site}/read", size, 1 << 20)
    bench.over_native(
        "warm sequential read of 1 GiB", 0.95,
        lambda directory, _: bench.load("read", f"{directory}/read", size, 128 << 10))
    bench.over_native(
        "warm random 4 KiB reads", 0.90,
        lambda directory, _: bench.load(
            "random-read", f"{directory}/read", size, 400_000 // bench.scale))


def writing(bench):
    size = 1024 * MIB // bench.scale
    bench.over_native(
        "sequential write of 1 GiB by 128 KiB", 0.90,
        lambda directory, _: bench.load(
            "write", removed(f"{directory}/write"), size, 128 << 10))
    bench.over_native(
        "random 4 KiB overwrite", 0.85,
        lambda directory, _: bench.load(
            "random-write", removed(f"{directory}/overwrite"), size, 200_000 // bench.scale))
    for site in bench.sites.values():
        os.unlink(f"{site}/write")
        os.unlink(f"{site}/overwrite")


def portable(bench):
    """Through the daemon, as without root or on an older kernel."""
    node = Node(bench, "portable", "--create", "--copies", "1", "--no-passthrough",
                volume="portable")
    bench.sites, sites = {"mount": node.mount}, bench.sites
    size, path = 1024 * MIB // bench.scale, f"{node.mount}/file"
    gb = dict(unit="GB/s", divisor=1e9)
    bench.rate(
        "portable: fresh write", goal=0.6, **gb,
        measure=lambda *_: bench.load("write", removed(path), size, 1 << 20))
    bench.rate(
        "portable: overwrite", goal=1.0, **gb,
        measure=lambda *_: bench.load("rewrite", removed(path), size, 1 << 20))
    node.wait()

    def cold(*_):
        # The mount's pages go, those of the disk stay: what the daemon costs, not the disk.
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
        return bench.load("read", path, size, 1 << 20)

    bench.rate("portable: cold read, warm on the disk", goal=1.5, measure=cold, **gb)
    bench.rate(
        "portable: warm read", goal=4, **gb,
        measure=lambda *_: bench.load("read", path, size, 1 << 20))
    bench.sites = sites
    node.stop()


def names(bench):
    """Creates first; what they made is looked at, then removed. Not by passthrough_hp, which answered
    EBADF in its third run of creates."""
    bench.sites, sites = {"mount": bench.a.mount}, bench.sites
    count = 8000 // bench.scale

    def create(threads):
        def measure(directory, number):
            path = f"{directory}/create-{threads}-{number}"
            os.makedirs(path)
            rate = bench.load("create", path, count, threads)
            bench.a.wait()
            return rate
        return measure

    def unknown(directory, number):
        drop_caches(2)
        return bench.load("stat", f"{directory}/create-1-{number}", count, 1)

    bench.rate("create + write 4 KiB + close, one thread", "files/s", 2500, create(1))
    bench.rate("create + write 4 KiB + close, four threads", "files/s", 3500, create(4))
    bench.rate(
        "stat of cached names", "/s", 400_000,
        lambda directory, number: bench.load(
            "stat-again", f"{directory}/create-1-{number}", count, 50))
    bench.rate("stat of names the kernel does not know", "/s", 20_000, unknown)
    bench.rate(
        "unlink", "/s", 8000,
        lambda directory, number: bench.load("unlink", f"{directory}/create-1-{number}", count, 1))
    bench.sites = sites


def large_directory(bench):
    count = 100_000 // bench.scale
    path = f"{bench.a.mount}/listed"
    os.makedirs(path)
    bench.load("create", path, count, 1)
    bench.a.wait()
    bench.sites, sites = {"mount": path}, bench.sites
    for command, goal in (("ls -f", 0.6), ("find {} -ls", 1.5), ("ls -l", 7)):
        def listing(directory, _, command=command):
            drop_caches(3)
            path = f"{directory}/0"
            full = command.format(path) if "{}" in command else f"{command} {path}"
            return timed("sh", "-c", f"{full} >/dev/null")
        bench.rate(
            f"{count:,} entries, cold: `{command.replace(' {}', '')}`", "s", goal, listing,
            at_least=False, runs=3)
    bench.sites = sites


def large_file(bench):
    size = 10240 * MIB // bench.scale
    path = f"{bench.a.mount}/large"
    bench.load("write", path, size, 1 << 20)
    bench.a.wait()
    bench.sites, sites = {"mount": path}, bench.sites

    def reopen(path, _):
        milliseconds = bench.load("reopen", path, size)
        bench.a.wait()
        return milliseconds

    bench.rate("open of a 10 GiB file for writing, and a 4 KiB write", "ms", 50, reopen,
               at_least=False, runs=3)
    bench.sites = sites
    os.unlink(path)


def unpacking(bench):
    """A tree like that of a large program's source: small files, a few to a directory."""
    generator = random.Random(1)
    tree, archive = f"{bench.disk}/tree", f"{bench.disk}/tree.tar"
    for number in range(20_000 // bench.scale):
        directory = f"{tree}/{number // 400}/{number // 20}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/{number}.c", "wb") as file:
            file.write(generator.randbytes(min(int(generator.expovariate(1 / 6000)), 100_000)))
    with tarfile.open(archive, "w") as tar:
        tar.add(tree, "tree")
    shutil.rmtree(tree)

    def unpack(directory, number):
        path = f"{directory}/unpack-{number}"
        os.makedirs(path)
        rate = 1 / timed("tar", "xf", archive, "-C", path)
        run("rm", "-rf", path)
        bench.a.wait()
        return rate

    bench.sites = {site: path for site, path in bench.sites.items() if site != "passthrough_hp"}
    bench.over_native("`tar x` of 20,000 files", 0.08, unpack, runs=3 if bench.quick else 5)
