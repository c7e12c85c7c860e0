"""What a worker runs before it runs the command: it is tied to its parent and to its cores.

python -m rethink_jax.executors.worker PARENT CORES -m launch.sweep ...
"""

import ctypes
import os
import runpy
import signal
import sys

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl.


def main() -> None:
    parent, cores, module = int(sys.argv[1]), sys.argv[2], sys.argv[4]
    if sys.platform == "linux":
        # A parent that is killed could not stop it, and nobody would know that it runs.
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    sys.argv = sys.argv[4:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
