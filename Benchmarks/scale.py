"""A million files, and ten nodes on one network: `Benchmarks/run --scale`.

Times are the wall's, as a user has them; where the machine was busy with other things the processor
time of the node beside them says what a quiet one would need. Commits and merges are timed by the nodes
(`DELUGEFS_LOG=debug`).
"""
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

from bench import drop_caches, run
from network import Network

TICKS = os.sysconf("SC_CLK_TCK")


class Control(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("node", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class ScaleNode:
    FOUNDING = ["--create", "--copies", "1"]
    LEVEL = "debug"

    def __init__(self, bench, name, host, *options, volume="bench", patience=1800,
                 founds=False):
        self.bench, self.name, self.host = bench, name, host
        self.volume, self.options, self.founds = volume, options, founds
        self.root = f"{bench.disk}/{name}"
        self.mount = f"{bench.directory}/mount-{name}"
        os.makedirs(self.mount, exist_ok=True)
        self.log = f"{bench.directory}/{name}.log"
        bench.nodes.append(self)
        self.start(patience)

    def start(self, patience=1800):
        """Until its mount answers: seconds."""
        begin = time.monotonic()
        environment = dict(
            self.bench.environment, DELUGEFS_LOG=self.LEVEL,
            XDG_CONFIG_HOME=f"{self.bench.directory}/config-{self.name}")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.host}", "--", self.bench.binary,
                 "--id", self.volume, "--root", self.root, "--mount", self.mount,
                 "--name", self.name, "--machine", self.name, *self.options,
                 *(self.FOUNDING if self.founds else [])],
                env=environment, stdout=log, stderr=log)
        self.founds = False
        while not os.path.ismount(self.mount):
            if self.process.poll() is not None or time.monotonic() - begin > patience:
                sys.exit(f"Node {self.name} did not get ready: see {self.log}")
            time.sleep(0.02)
        os.listdir(self.mount)
        seconds = time.monotonic() - begin
        while not self.status():
            time.sleep(0.05)
        return seconds

    def status(self):
        try:
            control = Control(f"{self.root}/control.sock")
            control.request("GET", "/v1/status")
            return json.loads(control.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def head(self):
        return (self.status() or {}).get("head")

    def wait(self):
        run(self.bench.binary, "wait", "--timeout", "1800", "--root", self.root,
            env=self.bench.environment)

    def stop(self):
        self.process.terminate()
        self.process.wait(120)

    def memory(self):
        """Mebibytes: all, anonymous, of files, and the most there was."""
        with open(f"/proc/{self.process.pid}/status") as file:
            values = dict(re.findall(r"(VmRSS|RssAnon|RssFile|VmHWM):\s+(\d+) kB", file.read()))
        return {name: int(value) / 1024 for name, value in values.items()}

    def processor(self):
        """Seconds used so far."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def mark(self):
        return os.path.getsize(self.log)

    def times(self, what, mark):
        """What the log says since: milliseconds."""
        with open(self.log, errors="replace") as file:
            file.seek(mark)
            found = re.findall(what + r".* in ([\d.e-]+) seconds", file.read())
        return [float(seconds) * 1000 for seconds in found]


def until(what, condition, patience=600):
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > patience:
            sys.exit(f"did not come true: {what}")
        time.sleep(0.02)
    return time.monotonic() - begin


def agreed(nodes):
    heads = {node.head() for node in nodes}
    return len(heads) == 1 and None not in heads


class Scale:
    """What the measurements share: a node with a million files, and one that joins it."""

    def __init__(self, bench, keep):
        self.bench, self.network = bench, Network()
        self.count = 1_000_000 // bench.scale
        is_kept = bool(keep) and os.path.isdir(keep)
        if is_kept:
            run("cp", "-a", keep, f"{bench.disk}/a")
        self.a = ScaleNode(bench, "a", self.network.host(0), founds=not is_kept)
        self.is_full = os.path.isdir(f"{self.a.mount}/many")
        self.b = None
        self.keep = keep

    def fill(self):
        """Through the mount: what users would do."""
        bench, a = self.bench, self.a
        if self.is_full:
            return
        os.makedirs(f"{a.mount}/many")
        rate = bench.load("fill", f"{a.mount}/many", self.count, 4, 1000)
        bench.row("filling: small files, four threads", [rate], "files/s", 2500)
        rate = bench.load("fill", a.mount, 100_000 // bench.scale, 1, 100_000 // bench.scale)
        bench.row("filling one directory with 100,000", [rate], "files/s", 1000)
        a.wait()
        time.sleep(30)
        bench.row("memory after filling, idle", [a.memory()["VmRSS"]], "MB", 400, False)
        if self.keep:
            a.stop()
            run("cp", "-a", a.root, self.keep)
            a.start()

    def size(self):
        size = run("du", "-sm", f"{self.a.root}/history.git").split()[0]
        packs = [name for name in os.listdir(f"{self.a.root}/history.git/objects/pack")
                 if name.endswith(".pack")]
        self.bench.row(f"history.git, {len(packs)} packs", [int(size)], "MB", 250, False)

    def restart(self):
        times, used = [], []
        for _ in range(3):
            self.a.stop()
            drop_caches(3)
            times.append(self.a.start())
            used.append(self.a.processor())
        self.bench.row("node start, cold, until the mount answers", times, "s", 3, False)
        self.bench.row("(processor time of it)", used, "s", 3, False)
        time.sleep(20)
        memory = self.a.memory()
        text = ", ".join(f"{name} {int(value)}" for name, value in memory.items())
        self.bench.row(f"idle memory ({text})", [memory["VmRSS"]], "MB", 400, False)

    def commits(self):
        a, one, many = self.a, [], []
        for number in range(self.bench.runs):
            mark = a.mark()
            with open(f"{a.mount}/many/directory-{number:04}/one-{time.time_ns()}", "w") as file:
                file.write("one")
            a.wait()
            one.append(max(a.times("committed", mark)))
        for number in range(self.bench.runs):
            mark = a.mark()
            self.bench.load("fill", f"{self.fresh(a)}", 1000, 4, 250)
            a.wait()
            # Several, for creating takes longer than one batch gathers.
            many.append(sum(a.times("committed", mark)))
        self.bench.row("commit of one file", one, "ms", 50, False)
        self.bench.row("commits of 1,000 new files, their sum", many, "ms", 300, False)

    def fresh(self, node):
        path = f"{node.mount}/fresh-{time.time_ns()}"
        os.makedirs(path)
        return path

    def join(self):
        begin = time.monotonic()
        with open(f"{self.bench.directory}/key", "wb") as file:
            file.write(run(self.bench.binary, "key", "--root", self.a.root))
        self.b = ScaleNode(self.bench, "b", self.network.host(1), "--key-file",
                           f"{self.bench.directory}/key")
        last = f"{self.b.mount}/many/directory-{self.count // 1000 - 1:04}"
        until("the joined node lists any directory", lambda: len(os.listdir(last)) >= 1000)
        self.bench.row("joining, until `ls` of any directory works",
                       [time.monotonic() - begin], "s", 90, False)
        self.bench.row("(processor time of it)", [self.b.processor()], "s", 90, False)
        self.bench.row("memory while joining, at most", [self.b.memory()["VmHWM"]], "MB", 600,
                       False)
        until("both agree", lambda: agreed([self.a, self.b]))

    def merge(self):
        """Fifty entries on either side, in directories that both know."""
        times, directories = [], self.count // 1000
        for number in range(self.bench.runs):
            self.network.connect(False)
            marks = [node.mark() for node in (self.a, self.b)]
            for node in (self.a, self.b):
                for index in range(50):
                    path = f"{node.mount}/many/directory-{(number * 50 + index) % directories:04}"
                    with open(f"{path}/{node.name}-{time.time_ns()}", "w") as file:
                        file.write(node.name)
                node.wait()
            self.network.connect(True)
            until("both agree", lambda: agreed([self.a, self.b]))
            for node, mark in zip((self.a, self.b), marks):
                times += node.times("merged", mark)
        self.bench.row("merge of two heads that differ in 100 entries", times, "ms", 100, False)

    def catch_up(self):
        """A node was off while 50,000 files were made, half of them in directories that it knows; its
        mount is used meanwhile."""
        self.b.stop()
        count = 25_000 // self.bench.scale
        self.bench.load("fill", self.fresh(self.a), count, 4, 1000)
        directories = self.count // 1000
        for number in range(count):
            path = f"{self.a.mount}/many/directory-{number % directories:04}/late-{number}"
            with open(path, "w") as file:
                file.write("late")
        self.a.wait()
        self.b.start()
        delays, number = [], 0
        begin = time.monotonic()
        while not agreed([self.a, self.b]) or number < 20:
            number += 1
            asked = time.monotonic()
            run("ls", "-l", f"{self.b.mount}/many/directory-{number * 7 % directories:04}")
            delays.append((time.monotonic() - asked) * 1000)
            if time.monotonic() - begin > 900:
                sys.exit("the node did not catch up")
            time.sleep(0.05)
        self.bench.row("catching up with 50,000 files", [time.monotonic() - begin], "s", 60, False)
        delays.sort()
        print("ls -l of 1,000 files, ms:", [round(delays[len(delays) * part // 100])
                                            for part in (50, 90, 99)], round(delays[-1]))
        self.bench.row("`ls -l` of 1,000 files meanwhile, the slowest", [delays[-1]], "ms", 100,
                       False)

    def close(self):
        for node in list(self.bench.nodes):
            node.stop()
        self.bench.nodes.clear()
        self.network.close()


def ten(bench):
    """Writers without a pause on both sides of a cable that is pulled twice."""
    network, nodes = Network(), []
    try:
        nodes.append(ScaleNode(bench, "t0", network.host(0), volume="ten", founds=True))
        with open(f"{bench.directory}/ten-key", "wb") as file:
            file.write(run(bench.binary, "key", "--root", nodes[0].root))
        for number in range(1, 10):
            nodes.append(ScaleNode(
                bench, f"t{number}", network.host(number // 5), "--key-file",
                f"{bench.directory}/ten-key", volume="ten"))
        os.makedirs(f"{nodes[0].mount}/common")
        for node in nodes:
            until("the directory is everywhere",
                  lambda node=node: os.path.isdir(f"{node.mount}/common"))
        marks = [node.mark() for node in nodes]
        used = sum(node.processor() for node in nodes)
        begin = time.monotonic()

        def write(node):
            for number in range(1200):
                time.sleep(max(0, begin + number / 20 - time.monotonic()))
                with open(f"{node.mount}/common/{node.name}-{number}", "w") as file:
                    file.write(f"{node.name} {number}\n")

        writers = [threading.Thread(target=write, args=(node,)) for node in nodes]
        for writer in writers:
            writer.start()
        for second, is_connected in ((10, False), (30, True), (40, False), (60, True)):
            time.sleep(max(0, begin + second - time.monotonic()))
            network.connect(is_connected)
        healed = time.monotonic()
        for writer in writers:
            writer.join()
        late = time.monotonic() - healed
        until("all ten agree", lambda: agreed(nodes) and all(
            node.status()["contents"]["files"] == 12_000 for node in nodes))
        bench.row("ten nodes, two partitions: one tree after the last heal",
                  [time.monotonic() - healed], "s", 10, False)
        commits = sum(len(node.times("committed", mark)) for node, mark in zip(nodes, marks))
        merges = sum(len(node.times("merged", mark)) for node, mark in zip(nodes, marks))
        used = sum(node.processor() for node in nodes) - used
        print(f"the writers ended {late:.1f} s after the heal; {commits} commits, {merges} merges "
              f"made, {used:.0f} s of processor time")
        lists = {tuple(sorted(os.listdir(f"{node.mount}/common"))) for node in nodes}
        assert len(lists) == 1 and len(lists.pop()) == 12_000
    finally:
        for node in nodes:
            node.stop()
            bench.nodes.remove(node)
            shutil.rmtree(node.root)
        network.close()


STEPS = ["size", "restart", "commits", "join", "merge", "catch_up"]


def measure(bench, wanted, keep):
    if not wanted or "ten" in wanted:
        ten(bench)
    steps = [step for step in STEPS if not wanted or step in wanted]
    if not steps and wanted and "fill" not in wanted:
        return
    scale = Scale(bench, keep)
    try:
        scale.fill()
        if "join" not in steps and {"merge", "catch_up"} & set(steps):
            scale.join()
        for step in steps:
            getattr(scale, step)()
    finally:
        scale.close()
