"""Copies, healing, capacity and what takes a disk out of use: `Benchmarks/run --healing`.

Each row has a volume of its own; its nodes are on hosts (network namespaces) of their own and have
loop-mounted disks of their own. What a rate or a time is compared with is measured in the same run:
a plain TCP stream of the same bytes between the same hosts, to the same disk, and an fsync.
"""
import json
import math
import os
import signal
import subprocess
import sys
import time

from bench import HERE, MIB, drop_caches, random_file, run, sha256, timed
from network import Network
from scale import Control, ScaleNode, until

GIB = 1 << 30
#: Bytes of an ordinary small file: not inside its record, and sent without a swarm.
SMALL = 64 << 10
STREAM = [sys.executable, f"{HERE}/stream.py"]


class Member(ScaleNode):
    LEVEL = os.environ.get("DELUGEFS_LOG", "warning")

    def __init__(self, group, name, *options, copies, founds):
        self.FOUNDING = ["--create", "--copies", str(copies)]
        self.image = f"{group.bench.directory}/{name}.img"
        root = f"{group.bench.disk}/{name}"
        os.makedirs(root)
        with open(self.image, "wb") as file:
            file.truncate(40 * GIB)
        run("mkfs.ext4", "-q", "-F", self.image)
        run("mount", "-o", "loop", self.image, root)
        os.chmod(root, 0o700)
        host = group.network.host(0)
        super().__init__(
            group.bench, name, host, *options, volume=group.volume, patience=120, founds=founds)

    def ask(self, path, body):
        control = Control(f"{self.root}/control.sock")
        control.request("POST", path, json.dumps(body))
        return json.loads(control.getresponse().read())

    def copies(self, name):
        """Of a file: stored, whole, online."""
        return self.ask("/v1/whereis", {"paths": [list(name.encode())]})[0]["copies"]

    def object(self, name):
        root = self.ask("/v1/whereis", {"paths": [list(name.encode())]})[0]["roots"][0]
        return f"{self.root}/objects/{root[:2]}/{root}"

    def facts(self):
        """Its status; a busy one may be late."""
        found = []
        until(f"{self.name} answers", lambda: found.append(self.status()) or found[-1], patience=60)
        return found[-1]

    def lacking(self):
        return self.facts()["contents"]["underReplicated"]["files"]

    def sees(self, other):
        return any(peer["name"] == other.name and peer["online"] for peer in self.facts()["peers"])

    def wait_replicated(self):
        run(self.bench.binary, "wait", "--replicated", "--timeout", "1800", "--root", self.root)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        subprocess.run(["umount", "-l", self.mount], check=False, capture_output=True)

    def lose(self):
        """Process and disk are gone."""
        self.kill()
        self.remove()

    def remove(self):
        if os.path.exists(self.image):
            subprocess.run(["umount", "-l", self.root], check=False, capture_output=True)
            os.unlink(self.image)


class Group:
    """Nodes of one volume."""

    def __init__(self, bench, copies):
        self.bench, self.copies = bench, copies
        self.volume = f"volume-{time.time_ns()}"
        self.network, self.nodes = Network(), []
        self.key = f"{bench.directory}/{self.volume}.key"

    def add(self, letter, *options):
        name = f"{letter}-{self.network.base[4:]}-{time.time_ns() % 10**9}"
        founds = not self.nodes
        key = [] if founds else ["--key-file", self.key]
        node = Member(self, name, *key, *options, copies=self.copies, founds=founds)
        if founds:
            with open(self.key, "wb") as file:
                file.write(run(self.bench.binary, "key", "--root", node.root))
        for other in self.nodes:
            until("all know each other", lambda other=other: node.sees(other) and other.sees(node))
        self.nodes.append(node)
        return node

    def stream(self, source, target, paths):
        """Seconds of the plain copy."""
        copy = f"{target.root}/lost+found/copy"  # on its disk, and none of its business
        address, port = self.network.address(target.host), "7777"
        enter = ["nsenter", "--net=/run/netns/{}", "--"]
        os.sync()
        receiver = subprocess.Popen(
            [part.format(target.host) for part in enter]
            + STREAM + ["receive", address, port, copy], stdout=subprocess.PIPE)
        receiver.stdout.readline()
        seconds = float(run(*[part.format(source.host) for part in enter], *STREAM, "send",
                            address, port, *paths))
        receiver.wait()
        os.unlink(copy)
        return seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            node.stop()
            node.remove()
            self.bench.nodes.remove(node)
        self.network.close()


def tell(text):
    print(f"     {text}", flush=True)


def rate(count, seconds):
    return f"{count / 1e6 / seconds:.0f} MB/s"


def fill(directory, count, length):
    os.makedirs(directory, exist_ok=True)
    for number in range(count):
        with open(f"{directory}/{number:05}", "wb", buffering=0) as file:
            file.write(os.urandom(length))


def large_files(node, count, mebibytes):
    """Their digests by name."""
    return {f"large-{number}": random_file(f"{node.mount}/large-{number}", mebibytes)
            for number in range(count)}


# -- copies -------------------------------------------------------------------------------------


def two_copies(bench):
    """The source is on its disk already when it is closed, as it is for the plain copy."""
    size, ratios = 1024 // bench.scale, []
    with Group(bench, copies=2) as group:
        a, b = group.add("a"), group.add("b")
        for number in range(bench.runs if bench.quick else 5):
            name = f"file-{number}"
            with open(f"{a.mount}/{name}", "wb", buffering=0) as file:
                for _ in range(size):
                    file.write(os.urandom(MIB))
                os.fsync(file.fileno())
            os.sync()
            begin = time.monotonic()
            until("two copies", lambda: a.copies(name) == 2)
            seconds = time.monotonic() - begin
            plain = group.stream(a, b, [a.object(name)])
            tell(f"{size} MiB to a second node in {seconds:.2f} s, plainly in {plain:.2f} s")
            ratios.append(seconds / plain)
    bench.row(f"two copies after the close of {size} MiB, over a plain copy", ratios,
              "of its time", 2, at_least=False)


def five_nodes(bench):
    size, megabits, ratios = 512 // bench.scale, 200, []
    with Group(bench, copies=6) as group:
        nodes = [group.add(letter) for letter in "abcdef"]
        for node in nodes:
            group.network.limit(node.host, megabits)
        ideal = size * MIB * 8 / (megabits * 1e6)
        for number in range(2 if bench.quick else 3):
            name = f"file-{number}"
            random_file(f"{nodes[0].mount}/{name}", size)
            begin = time.monotonic()
            until("six copies", lambda: nodes[0].copies(name) == 6)
            seconds = time.monotonic() - begin
            ratios.append(seconds / ideal)
            tell(f"{size} MiB to five nodes in {seconds:.2f} s, ideal {ideal:.2f} s")
        plain = group.stream(nodes[0], nodes[1], [nodes[0].object("file-0")])
        tell(f"the plain copy to one of them: {plain:.2f} s, {plain / ideal:.3f} of ideal")
    bench.row(f"{size} MiB to five nodes, links of {megabits} Mbit/s, over ideal", ratios,
              "of its time", 1.4, at_least=False)


# -- healing ------------------------------------------------------------------------------------


def healed(a, begin):
    """From the moment in which the loss counts: that moment and the time it took, seconds."""
    counted = until("the loss counts", lambda: a.lacking() > 0) and time.monotonic()
    most = a.lacking()
    while (left := a.lacking()) > 0:
        if time.monotonic() - begin > 3600:
            sys.exit(f"{left} of {most} contents still have too few copies after an hour")
        time.sleep(0.1)
    return counted - begin, time.monotonic() - counted


def heal_small(bench):
    count = 10_000 // bench.scale
    with Group(bench, copies=2) as group:
        a, b = group.add("a", "--grace", "1"), group.add("b")
        begin = time.monotonic()
        fill(f"{a.mount}/many", count, SMALL)
        written = time.monotonic() - begin
        a.wait_replicated()
        tell(f"{count} files written in {written:.1f} s, two copies {time.monotonic() - begin:.1f} s"
             " after the first was begun")
        group.add("c")
        begin = time.monotonic()
        b.lose()
        waited, seconds = healed(a, begin)
        a.wait_replicated()
        tell(f"the loss counted after {waited:.1f} s (grace 1 s); then {seconds:.1f} s, "
             f"{count / seconds:.0f} files/s, {rate(count * SMALL, seconds)}")
    bench.row(f"healing {count:,} files of 64 KiB, from the loss on", [waited + seconds], "s",
              60 / bench.scale, at_least=False)


def heal_large(bench):
    """As fast as disks and processors go, and over a gigabit network."""
    for count, megabits in ((20, None), (5, 1000)):
        heal_files(bench, count, megabits)


def heal_files(bench, count, megabits):
    size = 1024 // bench.scale
    with Group(bench, copies=2) as group:
        a, b = group.add("a", "--grace", "1"), group.add("b")
        large_files(a, count, size)
        a.wait_replicated()
        c = group.add("c")
        if megabits:
            for node in (a, c):
                group.network.limit(node.host, megabits)
        drop_caches()
        begin = time.monotonic()
        b.lose()
        waited, seconds = healed(a, begin)
        a.wait_replicated()
        drop_caches()
        some = [a.object(f"large-{number}") for number in range(2)]
        plain = group.stream(a, c, some)
        length = size * MIB
        share = (count * length / seconds) / (len(some) * length / plain)
        tell(f"{count * size} MiB in {seconds:.1f} s, {rate(count * length, seconds)}, after "
             f"{waited:.1f} s; plainly {rate(len(some) * length, plain)}")
    over = f", links of {megabits} Mbit/s" if megabits else ""
    bench.row(f"healing {count * size / 1024:g} GiB of large files{over}, over a plain copy", [share],
              "of its rate", 0.6)


def detection(bench):
    killed, unplugged = [], []
    with Group(bench, copies=2) as group:
        a, b = group.add("a"), group.add("b")
        for _ in range(3 if bench.quick else 7):
            time.sleep(2)
            b.kill()
            killed.append(until("the dead one is offline", lambda: not a.sees(b)))
            b.start()
            until("it is back", lambda: a.sees(b) and b.sees(a))
        for _ in range(2 if bench.quick else 5):
            time.sleep(2)
            group.network.plug(b.host, False)
            unplugged.append(until("the silent one is offline", lambda: not a.sees(b)))
            group.network.plug(b.host, True)
            until("it is back", lambda: a.sees(b) and b.sees(a))
    bench.row("detection of a killed peer", killed, "s", 2, at_least=False)
    bench.row("detection of an unplugged peer", unplugged, "s", 15, at_least=False)


def percentile(values, part):
    return sorted(values)[math.ceil(part * len(values)) - 1]


class Reader:
    """Reads what its node has not, each thing once."""

    def __init__(self, node, small, slots):
        self.node = node
        self.small, self.slots = iter(range(small)), iter(range(slots))

    def timed(self, path, offset, length):
        begin = time.monotonic()
        with open(f"{self.node.mount}/{path}", "rb", buffering=0) as file:
            if len(os.pread(file.fileno(), length, offset)) != length:
                sys.exit(f"a read of {path} was short")
        time.sleep(0.02)
        return (time.monotonic() - begin - 0.02) * 1000

    def measure(self, count, goes_on=lambda: True):
        """Milliseconds of small files and of places in a large one, in turn."""
        files, places = [], []
        while len(files) < count and goes_on():
            files.append(self.timed(f"many/{next(self.small):05}", 0, SMALL))
            # 12 MiB apart, beyond what is read ahead of the one before.
            places.append(self.timed("seek", next(self.slots) * 12 * MIB, MIB // 4))
        return files, places


def latency(bench):
    """A fourth node, which stores nothing, reads; the healing is from a to c."""
    count, samples = 64 // bench.scale, 300 // (3 if bench.quick else 1)
    with Group(bench, copies=2) as group:
        a, b = group.add("a", "--grace", "1"), group.add("b")
        fill(f"{a.mount}/many", 2 * samples, SMALL)
        random_file(f"{a.mount}/seek", 2 * samples * 12)
        large_files(a, count, 128)
        a.wait_replicated()
        group.add("c")
        d = group.add("d", "--capacity", "0")
        until("d has the names", lambda: os.path.exists(f"{d.mount}/large-{count - 1}"))
        reader = Reader(d, 2 * samples, 2 * samples)
        idle = reader.measure(samples)
        b.lose()
        until("the loss counts", lambda: a.lacking() > 0)
        busy = reader.measure(samples, lambda: a.lacking() > 0)
        left = a.lacking()
    for what, still, healing in zip(("64 KiB file", "256 KiB within a large file"), idle, busy):
        figures = [percentile(healing, part) / percentile(still, part) for part in (0.5, 0.99)]
        tell(f"{what}, ms: idle {percentile(still, 0.5):.1f}, p99 {percentile(still, 0.99):.1f}; "
             f"healing {percentile(healing, 0.5):.1f}, p99 {percentile(healing, 0.99):.1f}, "
             f"of {len(healing)} reads, {left} contents left at the end; medians {figures[0]:.1f}x")
        bench.row(f"cold remote read while healing over idle, p99: {what}", figures[1:], "x", 3,
                  at_least=False)


# -- capacity -----------------------------------------------------------------------------------


def water_filled(capacities, data, copies):
    """Bytes of each of the disks, all on different machines, when all are equally full: no disk
    has a content twice."""
    low, high = 0.0, max(data / capacity for capacity in capacities)
    for _ in range(100):
        level = (low + high) / 2
        full = sum(min(level * capacity, data) for capacity in capacities)
        low, high = (level, high) if full < copies * data else (low, level)
    return [min(high * capacity, data) for capacity in capacities]


def fill_evenly(bench):
    """Written in equal parts on all three, and on the largest alone."""
    count = 5000 // bench.scale
    sizes = [count * SMALL * part for part in (1, 2, 8)]
    for what, writers in (("on each a third", (0, 1, 2)), ("on the largest", (2,))):
        with Group(bench, copies=2) as group:
            nodes = [group.add(letter, "--capacity", str(size))
                     for letter, size in zip("abc", sizes)]
            for index in writers:
                fill(f"{nodes[index].mount}/many-{index}", count // len(writers), SMALL)
            for node in nodes:
                node.wait()
            nodes[0].wait_replicated()
            used = settled(nodes)
        data = count // len(writers) * len(writers) * SMALL
        ideal = water_filled(sizes, data, 2)
        off = [abs(got / want - 1) * 100 for got, want in zip(used, ideal)]
        tell("disks 1:2:8 hold " + ", ".join(
            f"{got / data:.3f} (ideal {want / data:.3f})" for got, want in zip(used, ideal))
            + " of the data")
        bench.row(f"fill off ideal, disks 1:2:8, {count:,} files written {what}", [max(off)], "%",
                  5, at_least=False)


def settled(nodes, quiet=20, patience=300):
    """Bytes in use, when they have not changed for a while: copies may move."""
    begin = since = time.monotonic()
    used = None
    while time.monotonic() - since < quiet and time.monotonic() - begin < patience:
        now = [node.facts()["usedBytes"] for node in nodes]
        if now != used:
            used, since = now, time.monotonic()
        time.sleep(0.5)
    return used


# -- checking and taking out of use -------------------------------------------------------------


def has(bench, command):
    if f"\n  {command} " in run(bench.binary, "--help").decode():
        return True
    tell(f"this build has no `delugefs {command}`")
    return False


def scrub(bench):
    """All threads of the node on one processor; what is read is in memory."""
    if not has(bench, "scrub"):
        return
    count, size, rates = 4, 1024 // bench.scale, []
    with Group(bench, copies=1) as group:
        a = group.add("a")
        large_files(a, count, size)
        a.wait_replicated()
        names = [a.object(f"large-{number}") for number in range(count)]
        begin = time.monotonic()
        for name in names:
            sha256(name)
        plain = time.monotonic() - begin
        length = count * size * MIB
        for thread in os.listdir(f"/proc/{a.process.pid}/task"):
            os.sched_setaffinity(int(thread), {0})
        for _ in range(3):
            used = a.processor()
            seconds = timed(bench.binary, "scrub", "--wait", "--root", a.root)
            rates.append(length / 1e6 / seconds)
            used = a.processor() - used
            tell(f"{count * size} MiB in {seconds:.2f} s, {used:.2f} s of processor time; sha256 of "
                 f"the same: {rate(length, plain)}")
    bench.row("scrub at full speed, one core", rates, "MB/s", 800)


def drain(bench):
    if not has(bench, "drain"):
        return
    count, size = 10, 1024 // bench.scale
    with Group(bench, copies=2) as group:
        a, b = group.add("a"), group.add("b")
        digests = large_files(a, count, size)
        a.wait_replicated()
        c = group.add("c")
        drop_caches()
        length = size * MIB
        seconds = timed(bench.binary, "drain", "--wait", "--root", b.root)
        lacking = a.lacking()
        b.stop()
        drop_caches()
        plain = group.stream(a, c, [a.object(name) for name in ("large-0", "large-1")])
        tell(f"{count * size} MiB drained in {seconds:.1f} s, {rate(count * length, seconds)}; "
             f"plainly {rate(2 * length, plain)}; {lacking} contents lack copies after it")
        bench.row(f"drain of {count * size / 1024:g} GiB, over a plain copy",
                  [count * length / seconds / (2 * length / plain)], "of its rate", 0.6)
        recover(bench, b, digests, count * length)


def recover(bench, node, digests, length):
    """From the drained disk, no node running; to another disk."""
    if not has(bench, "recover"):
        return
    target = f"{bench.disk}/recovered"
    drop_caches()
    seconds = timed(bench.binary, "recover", "--root", node.root, "--to", target)
    os.sync()
    wrong = [name for name, digest in digests.items() if sha256(f"{target}/{name}") != digest]
    if wrong:
        sys.exit(f"recovered, and not the same: {wrong}")
    drop_caches()
    plain = timed("cp", "-r", target, f"{target}-again")
    tell(f"recovered {length >> 20} MiB in {seconds:.1f} s, {rate(length, seconds)}; cp of the same "
         f"in {plain:.1f} s")
    bench.row(f"recover {length / GIB:g} GiB from one disk, over cp", [plain / seconds],
              "of its rate", 0.6)
    run("rm", "-r", target, f"{target}-again")


ROWS = [two_copies, five_nodes, heal_small, heal_large, detection, latency, fill_evenly, scrub,
        drain]


def measure(bench, wanted):
    # Nodes, mounts and namespaces go away also when the benchmark is ended from outside.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    for row in ROWS:
        if not wanted or row.__name__ in wanted:
            row(bench)
