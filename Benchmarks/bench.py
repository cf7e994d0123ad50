"""The disk, the nodes and the table that all measurements share."""
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

MIB = 1 << 20
RUNS = 9
HERE = os.path.dirname(os.path.abspath(__file__))


class Node:
    def __init__(self, bench, name, *options, volume="bench"):
        self.bench = bench
        self.root = f"{bench.disk}/{name}"
        self.mount = f"{bench.directory}/mount-{name}"
        os.makedirs(self.mount)
        log = open(f"{bench.directory}/{name}.log", "wb")
        self.process = subprocess.Popen(
            [bench.binary, "--id", volume, "--root", self.root, "--mount", self.mount,
             "--name", name, *options],
            env=bench.environment, stdout=log, stderr=log,
        )
        bench.nodes.append(self)
        for _ in range(240):
            if self.process.poll() is not None:
                sys.exit(f"Node {name} did not start: see {log.name}")
            if self.status() and os.path.ismount(self.mount):
                return
            time.sleep(0.25)
        sys.exit(f"Node {name} did not get ready: see {log.name}")

    def status(self):
        result = subprocess.run(
            [self.bench.binary, "status", "--json", "--root", self.root],
            env=self.bench.environment, capture_output=True,
        )
        return json.loads(result.stdout) if result.returncode == 0 else None

    def wait(self):
        run(self.bench.binary, "wait", "--timeout", "300", "--root", self.root,
            env=self.bench.environment)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.bench.nodes.remove(self)


class Bench:
    def __init__(self, arguments):
        self.quick = arguments.quick
        self.scale = 8 if self.quick else 1
        self.runs = 3 if self.quick else RUNS
        self.binary = os.path.abspath(arguments.binary)
        self.directory = os.path.abspath(arguments.directory)
        self.passthrough_hp = arguments.passthrough_hp
        self.rows = []
        self.nodes = []
        self.hp = None
        self.environment = dict(
            os.environ, XDG_CONFIG_HOME=f"{self.directory}/config", DELUGEFS_LOG="warning"
        )

    def prepare(self):
        if os.geteuid() != 0:
            sys.exit("Benchmarks need root: they make a loop-mounted ext4 and network mounts.")
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)
        self.load_program = f"{self.directory}/load"
        run("clang", "-O2", "-o", self.load_program, f"{HERE}/load.c", "-lpthread")
        image = f"{self.directory}/disk.img"
        with open(image, "wb") as file:
            file.truncate(48 << 30)
        run("mkfs.ext4", "-q", "-F", image)
        self.disk = f"{self.directory}/disk"
        os.makedirs(self.disk)
        run("mount", "-o", "loop", image, self.disk)

    def start(self):
        self.prepare()
        self.native = f"{self.disk}/native"
        os.makedirs(self.native)
        self.a = Node(self, "a", "--create", "--copies", "1")
        #: Where the same is measured in turn, the native disk first.
        self.sites = {"native": self.native, "mount": self.a.mount}
        if self.passthrough_hp:
            self.start_hp()

    def start_hp(self):
        source, mount = f"{self.disk}/hp", f"{self.directory}/mount-hp"
        os.makedirs(source)
        os.makedirs(mount)
        self.hp = subprocess.Popen(
            [self.passthrough_hp, "--foreground", source, mount],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        while not os.path.ismount(mount):
            if self.hp.poll() is not None:
                sys.exit("passthrough_hp did not start")
            time.sleep(0.1)
        self.sites["passthrough_hp"] = mount

    def stop(self):
        for node in reversed(list(self.nodes)):
            node.stop()
        if self.hp:
            self.hp.terminate()
            self.hp.wait()
        subprocess.run(["umount", "-l", self.disk], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def load(self, *arguments):
        return float(run(self.load_program, *map(str, arguments)))

    # -- the table ------------------------------------------------------------------------------

    def row(self, what, values, unit, goal, at_least=True, other=None):
        """`other`: the same of passthrough_hp, if it was measured."""
        middle = statistics.median(values)
        met = middle >= goal if at_least else middle <= goal
        spread = f"{min(values):.4g}–{max(values):.4g}" if len(values) > 1 else "one run"
        other = f"{statistics.median(other):.4g}" if other else ""
        self.rows.append((what, f"{goal:g} {unit}", f"{middle:.4g} {unit}", spread, other, met))
        print(f"{'ok  ' if met else 'MISS'} {what}: {middle:.4g} {unit} ({spread}) {other}",
              flush=True)

    def rates(self, measure, sites, runs=None):
        """What `measure(directory, number)` returns at each site, in turn."""
        rates = {site: [] for site in sites}
        for number in range(runs or self.runs):
            for site in sites:
                rates[site].append(measure(self.sites[site], number))
        return rates

    def over_native(self, what, goal, measure, runs=None):
        rates = self.rates(measure, list(self.sites), runs)
        ratios = {
            site: [rate / native for rate, native in zip(rates[site], rates["native"])]
            for site in rates
        }
        self.row(what, ratios["mount"], "of native", goal, other=ratios.get("passthrough_hp"))

    def rate(self, what, unit, goal, measure, at_least=True, divisor=1, runs=None):
        sites = [site for site in self.sites if site != "native"]
        rates = self.rates(lambda *where: measure(*where) / divisor, sites, runs)
        self.row(what, rates["mount"], unit, goal, at_least, other=rates.get("passthrough_hp"))

    def report(self):
        print("\n" + machine() + "\n")
        print("| what | at least | median | spread | passthrough_hp | met |")
        print("|---|---|---|---|---|---|")
        for what, goal, middle, spread, other, met in self.rows:
            print(f"| {what} | {goal} | {middle} | {spread} | {other} | {'yes' if met else 'no'} |")


def run(*command, env=None):
    result = subprocess.run(command, env=env, capture_output=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def timed(*command):
    begin = time.monotonic()
    run(*command)
    return time.monotonic() - begin


def same(path, data):
    try:
        with open(path, "rb") as file:
            return file.read() == data
    except OSError:
        return False


def random_file(path, mebibytes):
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(mebibytes):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def drop_caches(what=1):
    """1: pages, 2: names and attributes, 3: both."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write(str(what))


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, {memory} GiB, Linux {os.uname().release}, "
        f"load average {load:.1f}, {time.strftime('%Y-%m-%d')}"
    )
