"""Hosts in network namespaces on two bridges, between which the cable can be pulled."""
import os

from bench import run


class Network:
    def __init__(self):
        self.base = f"dfsb{os.getpid()}"
        self.names = []
        self.trunk = self.add("trunk")
        for side in (0, 1):
            self.ip(self.trunk, "link", "add", f"bridge{side}", "type", "bridge",
                    "mcast_snooping", "0")
            self.ip(self.trunk, "link", "set", f"bridge{side}", "up")
        self.ip(self.trunk, "link", "add", "cable0", "type", "veth", "peer", "name", "cable1")
        for side in (0, 1):
            self.ip(self.trunk, "link", "set", f"cable{side}", "master", f"bridge{side}", "up")

    def add(self, name):
        name = f"{self.base}-{name}"
        run("ip", "netns", "add", name)
        self.names.append(name)
        return name

    def ip(self, name, *arguments):
        run("ip", "-n", name, *arguments)

    def host(self, side=0):
        """The name of a namespace with `eth0` at 10.77.0.N."""
        number = len(self.names)
        name = self.add(str(number))
        self.ip(name, "link", "set", "lo", "up")
        self.ip(self.trunk, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0",
                "netns", name)
        self.ip(self.trunk, "link", "set", f"port{number}", "master", f"bridge{side}", "up")
        self.ip(name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        self.ip(name, "link", "set", "eth0", "up")
        # As on any machine with a default route; simple mDNS clients join groups by it.
        self.ip(name, "route", "add", "default", "dev", "eth0")
        return name

    @staticmethod
    def address(name):
        return f"10.77.0.{name.rsplit('-', 1)[1]}"

    def port(self, name):
        return f"port{name.rsplit('-', 1)[1]}"

    def plug(self, name, is_connected):
        """One host's own cable."""
        self.ip(self.trunk, "link", "set", self.port(name), "up" if is_connected else "down")

    def limit(self, name, megabits):
        """What the host sends and what it receives, each."""
        for where, device in ((name, "eth0"), (self.trunk, self.port(name))):
            run("ip", "netns", "exec", where, "tc", "qdisc", "replace", "dev", device, "root",
                "tbf", "rate", f"{megabits}mbit", "burst", "256k", "latency", "50ms")

    def connect(self, is_connected):
        self.ip(self.trunk, "link", "set", "cable0", "up" if is_connected else "down")

    def close(self):
        for name in self.names:
            run("ip", "netns", "del", name)
