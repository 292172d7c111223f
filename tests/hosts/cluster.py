"""Hosts as namespaces that live as long as a process in each: when those end, the kernel removes all of it.

A holder ends when the pipe to it is closed, so however this process goes, nothing stays behind. Nothing has a global
name: several clusters may be up at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

_TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "hostname": "hostname",
    "sysctl": "procps",
}
_HOLDER = 'hostname "$0" && echo up && exec cat'
# A queue of 20 ms and a burst of 128 KiB, as a small switch has them.
# Loss-based, like the default of nearly every cluster, whatever this machine has: BBR, which believes its own estimate
# of the way's length, loses up to a quarter where data goes both ways through a queue.
_CONGESTION = "reno"
_SHAPE = "root tbf rate {rate} burst 128kb latency 20ms"


@dataclass(frozen=True)
class Counter:
    """Bytes that have passed a host's interface, with the headers of Ethernet, IP and TCP."""

    received: int
    sent: int

    def __sub__(self, earlier: Counter) -> Counter:
        return Counter(self.received - earlier.received, self.sent - earlier.sent)


class Hosts:
    """``count`` hosts on one switch, dl0 at 10.77.0.1 and so on, each link shaped to ``rate`` both ways (None: not).

    ``congestion``: the control that TCP uses, of those in /proc/sys/net/ipv4/tcp_allowed_congestion_control.
    """

    def __init__(self, count: int, rate: str | None = None, congestion: str = _CONGESTION) -> None:
        self.count, self.rate, self.congestion = count, rate, congestion
        self.names = [f"dl{host}" for host in range(count)]
        self.addresses = [f"10.77.0.{host + 1}" for host in range(count)]
        self._holders: list[subprocess.Popen[str]] = []

    @staticmethod
    @cache
    def missing() -> str | None:
        """Why there can be no hosts here, and what to do; or None."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return "several hosts need root, for network namespaces"
        for tool, package in _TOOLS.items():
            if shutil.which(tool) is None:
                return f"{tool} is not installed: apt-get install {package}"
        try:
            with Hosts(1, rate="1gbit"):
                return None
        except OSError as error:
            return str(error)

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def pids(self) -> list[int]:
        """A process in each host."""
        return [holder.pid for holder in self._holders[1:]]

    def enter(self, host: int, *command: str) -> list[str]:
        """The command line that runs ``command`` on a host."""
        return ["nsenter", "--target", str(self.pids[host]), "--net", "--uts", *command]

    def counters(self) -> list[Counter]:
        """Of each host's interface, since it came up."""
        return [counter_of(pid) for pid in self.pids]

    def down(self) -> None:
        """Let the holders end; what else runs on the hosts is its starter's to end."""
        for holder in self._holders:
            if holder.stdin:
                holder.stdin.close()
        for holder in self._holders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                holder.wait(5)
            holder.kill()
            holder.wait()
            if holder.stdout:
                holder.stdout.close()
        self._holders = []

    def _up(self) -> None:
        self._holders = [_holder(name) for name in ["switch", *self.names]]
        for holder in self._holders:
            assert holder.stdout
            if holder.stdout.readline() != "up\n":
                raise OSError(f"no namespaces can be made here: {holder.communicate()[0].strip()}")
        switch = self._holders[0].pid
        _batch(switch, "ip", ["link add br0 type bridge", "link set br0 up"])
        for port, pid in enumerate(self.pids):
            link = f"link add eth0 netns {pid} type veth peer name port{port}"
            _batch(switch, "ip", [link, f"link set port{port} master br0", f"link set port{port} up"])
            address = f"addr add {self.addresses[port]}/24 dev eth0"
            _batch(pid, "ip", ["link set lo up", address, "link set eth0 up"])
            _run(pid, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={self.congestion}")
            if self.rate:
                shape = _SHAPE.format(rate=self.rate)
                _batch(switch, "tc", [f"qdisc add dev port{port} {shape}"])
                _batch(pid, "tc", [f"qdisc add dev eth0 {shape}"])
        self._wait_for_links(switch)

    def _wait_for_links(self, switch: int) -> None:
        """Until the switch forwards on every port: a moment after the link is up."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            ports = _run(switch, "ip", "-oneline", "link", "show", "master", "br0").splitlines()
            if sum("LOWER_UP" in port for port in ports) == self.count:
                return
            time.sleep(0.01)
        raise TimeoutError("the links of the hosts do not come up")


def counter_of(process: int | str) -> Counter:
    """Of the host that a process is on."""
    for line in Path(f"/proc/{process}/net/dev").read_text().splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == "eth0":
            numbers = [int(field) for field in fields.split()]
            return Counter(received=numbers[0], sent=numbers[8])
    raise OSError(f"the host of process {process} has no interface eth0")


def _holder(name: str) -> subprocess.Popen[str]:
    command = ["unshare", "--net", "--uts", "sh", "-c", _HOLDER, name]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def _batch(pid: int, tool: str, lines: list[str]) -> None:
    _run(pid, tool, "-batch", "-", text="\n".join(lines) + "\n")


def _run(pid: int, *command: str, text: str = "") -> str:
    inside = ["nsenter", "--target", str(pid), "--net", *command]
    done = subprocess.run(inside, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()} (given: {text.strip()})")
    return done.stdout
