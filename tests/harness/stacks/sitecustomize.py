"""In every rank that tests start: on a signal it writes its Python stacks, even from inside a blocked MPI call.

The folder gets a file RANK-PID from each process, which also says that the process is there. The signal is one that no
scheduler and no program uses.
"""

import faulthandler
import os
import signal

_rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
_folder = os.environ.get("DISTLOOP_TEST_STACKS")
if _folder:
    _file = open(os.path.join(_folder, f"{_rank}-{os.getpid()}"), "w")  # noqa: PTH118, PTH123, SIM115 (open for life)
    faulthandler.register(getattr(signal, "SIGRTMIN", signal.SIGUSR1), file=_file, all_threads=True)
