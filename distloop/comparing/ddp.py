"""torch's DistributedDataParallel over gloo, for comparison: gradients in buckets, averaged while backward goes on."""

from __future__ import annotations

import copy
import fcntl
import os
import socket
import struct
from contextlib import suppress
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from distloop.build import Ingredients
from distloop.comm import World, at_root, together
from distloop.comparing.runners import PlainSteps, Runner
from distloop.config import Config
from distloop.errors import ConfigError
from distloop.timeline import Timeline

TIMEOUT = timedelta(seconds=120)
SIOCGIFADDR = 0x8915


def start_gloo(world: World) -> None:
    """A process group of all ranks; rank 0 finds a free port and tells it over MPI. Collective."""
    if dist.is_available() and dist.is_initialized():
        return
    with together(world.comm.control):
        if not (dist.is_available() and dist.is_gloo_available()):
            raise ConfigError("--against ddp: this torch has no gloo. Expected one that has, as torch's CPU wheels do")
        name, address = _interface(world.nodes)
        os.environ["GLOO_SOCKET_IFNAME"] = name  # else gloo looks the host's name up, which need not lead anywhere
    host, port = at_root(world.comm.control, lambda: (address, _free_port(address)))
    with together(world.comm.control):
        try:
            dist.init_process_group(
                "gloo", init_method=f"tcp://{host}:{port}", rank=world.rank, world_size=world.size, timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"--against ddp: gloo cannot be started ({str(error).splitlines()[0]})") from error


def _interface(nodes: int) -> tuple[str, str]:
    """Name and address of the one that all nodes reach: the loopback where there is one node, else the first other.

    GLOO_SOCKET_IFNAME names another one.
    """
    wanted = os.environ.get("GLOO_SOCKET_IFNAME") or ("lo" if nodes == 1 else None)
    found = {name: address for _, name in socket.if_nameindex() if (address := _address_of(name))}
    for name, address in found.items():
        if name == wanted or (wanted is None and not address.startswith("127.")):
            return name, address
    raise ConfigError(
        f"--against ddp: no network interface {wanted or 'besides the loopback'} with an address. Expected one that "
        f"all nodes reach, in GLOO_SOCKET_IFNAME: {', '.join(found)}"
    )


def _address_of(interface: str) -> str | None:
    """Its IPv4 address. Source: Linux netdevice(7), SIOCGIFADDR."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            return socket.inet_ntoa(fcntl.ioctl(asking, SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def _free_port(address: str) -> int:
    with socket.socket() as listening:
        listening.bind((address, 0))
        port: int = listening.getsockname()[1]
    return port


def stop_gloo() -> None:
    """Before MPI ends. Collective."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


@final
class Ddp(Runner):
    """Plain torch's loop, with the module wrapped."""

    def __init__(self, config: Config, world: World, found: Ingredients) -> None:
        """Collective. Raises ConfigError on all ranks where a rank may have no rows, since DDP would wait for ever."""
        last = len(found.data.train) % found.task.batch_size or found.task.batch_size
        if min(last, found.task.batch_size) < world.size:
            error = ConfigError(
                f"a global batch of {last} rows leaves some of {world.size} ranks without, and DDP waits"
            )
            raise error.on_all_ranks()
        start_gloo(world)
        module = copy.deepcopy(found.module)
        called: torch.nn.Module = module
        if any(each.requires_grad for each in module.parameters()):
            called = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._steps = PlainSteps(module, called, config, found, found.task, 1 / world.size)
        super().__init__("ddp", module, self._steps.optimizer, iter(self._steps))

    def record(self, timeline: Timeline) -> None:
        """Its exchange lies inside of backward, where nobody can tell it from computing."""
        self.timeline = self._steps.timeline = timeline

    def release(self) -> None:
        """Its buckets."""
        self._progress = iter(())
        del self._steps
