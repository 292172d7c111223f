"""Several hosts on one machine, with links of a known rate between them, for tests and benchmarks.

    with Hosts(2, rate="200mbit") as hosts:
        done = finish_on(hosts, [2, 2], sys.executable, "-m", "distloop.train", mpi="openmpi").check()
        print(hosts.counters())

A host is a network and a UTS namespace: its own address, its own host name, the same file system, clock and cores.
Needs root, iproute2 and nsenter: ``Hosts.missing()`` says what is not there.
"""

from tests.hosts.cluster import Counter, Hosts
from tests.hosts.launching import finish_on, start_on

__all__ = ["Counter", "Hosts", "finish_on", "start_on"]
