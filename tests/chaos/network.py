"""Hosts that can be cut off from each other: network namespaces on a bridge, for root on Linux."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from schedule import TCP_TIMEOUT_S

#: The bridge and the Dask scheduler are on the first.
HOSTS = ("scheduler", "driver", "worker")


@functools.cache
def why_not() -> str:
    """Return why there can be no such network here; empty if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "ip is not installed (Debian's iproute2)"
    try:
        with network():
            return ""
    except subprocess.CalledProcessError as error:
        return f"this system gives no network namespaces: {error.stderr.decode().strip()}"


class Network:
    """The hosts, each with an address of its own that the others reach."""

    def __init__(self) -> None:
        self._prefix = f"chaos-{os.getpid()}"
        #: How soon Dask takes a silent connection for dead.
        self.environment = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP_TIMEOUT_S:g}s"}

    def address(self, host: str) -> str:
        """Return the address of a host."""
        return f"10.77.0.{HOSTS.index(host) + 1}"

    def at(self, host: str) -> list[str]:
        """Return what makes a command run on a host, to be put before it."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def cut(self, host: str) -> None:
        """Let nothing to a host or from it arrive any more; nobody is told."""
        self._ip(HOSTS[0], "link", "set", host, "down")

    def mend(self, host: str) -> None:
        """Connect a host again."""
        self._ip(HOSTS[0], "link", "set", host, "up")

    def make(self) -> None:
        """Make the hosts and connect them."""
        hub = HOSTS[0]
        for host in HOSTS:
            _run("ip", "netns", "add", self._namespace(host))
            self._ip(host, "link", "set", "lo", "up")
        self._ip(hub, "link", "add", "bridge", "type", "bridge")
        self._ip(hub, "link", "set", "bridge", "up")
        self._ip(hub, "address", "add", f"{self.address(hub)}/24", "dev", "bridge")
        for host in HOSTS[1:]:
            there = ["peer", "name", "eth0", "netns", self._namespace(host)]
            self._ip(hub, "link", "add", host, "type", "veth", *there)
            self._ip(hub, "link", "set", host, "master", "bridge", "up")
            self._ip(host, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._ip(host, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove the hosts that were made; their links go with them."""
        for host in HOSTS:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "delete", self._namespace(host))

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}-{host}"

    def _ip(self, host: str, *arguments: str) -> None:
        _run("ip", "-netns", self._namespace(host), *arguments)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Yield a network, and remove it afterwards."""
    made = Network()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
