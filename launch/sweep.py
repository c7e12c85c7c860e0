"""Runs the trials of a config, or what is left of them, into a workdir.

python -m launch.sweep --config=configs/quickstart.py --workdir=runs/quickstart
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rethink_jax import cli, remote

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the experiment: configs/NAME.py, or configs/NAME.py:quick"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the sweep produces")
_FIELDS = flags.DEFINE_bool("fields", False, "list every field of a config, and run nothing")
_SHARD = flags.DEFINE_string(
    "shard",
    "0/1",
    "i/n: run part i of n, beside other processes; auto: as SLURM, MPI or a TPU pod say",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "join jax.distributed; each process runs its part on its own devices"
)
_RETRY = flags.DEFINE_bool("retry_failed", False, "run again the trials that failed before")
_REUSE = flags.DEFINE_list("reuse", [], "other workdirs, from which finished trials are taken over")
_EXECUTOR = flags.DEFINE_enum(
    "executor",
    "local",
    ["local", "processes", "ray"],
    "local: this process; processes: one for each GPU of this machine; ray: tasks of a cluster",
)
_WORKERS = flags.DEFINE_integer("workers", 0, "at once; 0: one for each GPU, or all that Ray has")
_SLICES = flags.DEFINE_integer("slices", 0, "parts of the sweep; 0: one for each worker")
_RETRIES = flags.DEFINE_integer("retries", 3, "how often a slice whose worker dies is begun again")
_RAY = flags.DEFINE_string("ray_address", None, "of a Ray cluster, or auto; else one is started")
_RAY_CPUS = flags.DEFINE_float("ray_cpus", 1, "of each Ray task")
_RAY_GPUS = flags.DEFINE_float("ray_gpus", 0, "of each Ray task")
_PLAN = flags.DEFINE_bool("plan", False, "print what would be run, and run nothing")


def main() -> int:
    if _FIELDS.value:
        from rethink_jax import config

        print(config.describe())
        return cli.EXIT_OK
    if _CONFIG.value is None:
        raise cli.UserError(
            "--config is missing: name the experiment, as in --config=configs/quickstart.py"
        )
    if not _WORKDIR.value and not _PLAN.value:
        raise cli.UserError("--workdir is missing: name the folder for the results")
    if not _WORKDIR.value:
        return _here(None)
    with remote.folder_of(_WORKDIR.value) as workdir:
        if _EXECUTOR.value == "local" or _PLAN.value:
            return _here(workdir)
        return _by_workers(workdir)


def _here(workdir: Path | None) -> int:
    from rethink_jax import shown, slices, sweep

    part = slices.of_process() if _DISTRIBUTED.value else slices.parse(_SHARD.value, os.environ)
    made = sweep.Sweep(_CONFIG.value, part)
    if _PLAN.value:
        for line in sweep.plan(made, workdir):
            print(shown.line(line), flush=True)
        return cli.EXIT_OK
    return sweep.run(made, workdir, sys.argv, sweep.Options(_RETRY.value, _REUSE.value))


def _by_workers(workdir: Path) -> int:
    from rethink_jax import executors

    how = executors.How(
        _EXECUTOR.value, _WORKERS.value, _SLICES.value, _RETRIES.value, _RAY.value,
        _RAY_CPUS.value, _RAY_GPUS.value,
    )  # fmt: skip
    return executors.run(how, _CONFIG.value, _SHARD.value, workdir, sys.argv)


if __name__ == "__main__":
    cli.run(main)
