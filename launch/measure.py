"""Measures the networks of a workdir: norms, margins, path norms ... into its measures.csv.

python -m launch.measure --workdir=runs/quickstart
"""

from pathlib import Path

from absl import flags

from rethink_jax import cli, remote, shown

_WORKDIR = flags.DEFINE_string("workdir", None, "folder that a sweep wrote")
_MEASURES = flags.DEFINE_list(
    "measures", ["one_pass"], "names of measures, families or groups (one_pass, paper, all)"
)
_TRIALS = flags.DEFINE_list("trials", [], "ids of trials; not given: all that are finished")
_TIME_EACH = flags.DEFINE_bool(
    "time_each", False, "compute nothing new; print the seconds that each measure takes on its own"
)
_LIST = flags.DEFINE_bool("list", False, "name every measure, and compute nothing")


def main() -> int:
    from rethink_jax import measures

    if _LIST.value:
        for family, names in measures.FAMILIES.items():
            print(f"{family}: {', '.join(names)}")
        for group, names in measures.GROUPS.items():
            print(f"group {group}: {', '.join(names)}")
        return cli.EXIT_OK
    if not _WORKDIR.value:
        raise cli.UserError("--workdir is missing: name the folder that the sweep wrote")
    with remote.folder_of(_WORKDIR.value, everything=True) as workdir:
        return _measure(workdir)


def _measure(workdir: Path) -> int:
    from rethink_jax import measuring
    from rethink_jax.progress import Counter

    counter = Counter("networks by family")
    work = measuring.Measuring(workdir, _MEASURES.value, _TRIALS.value, counter)
    if _TIME_EACH.value:
        print(f"{'measure':34}{'compile s':>10}{'s/network':>11}")
        for name, compiling, seconds in work.seconds_each():
            print(f"{name:34}{compiling:10.1f}{seconds:11.4f}", flush=True)
        return cli.EXIT_OK
    work.run()
    for family, (seconds, networks) in work.seconds.items():
        print(
            f"{family}: {networks} networks in {seconds:.1f} s, compiling included; "
            f"{seconds / networks:.3f} s each"
        )
    print(shown.line(f"measures: {work.path.absolute()}"))
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)
